"""Pack what a machine with a GPU lacks for ``benchmarks/gpu.py``, where nothing can be installed from there.

    python benchmarks/pack_for_gpu.py --out pack --python 3.12
    . pack/activate && python benchmarks/gpu.py --all --out measured      there, in the checkout

The machine has torch with CUDA and Triton, and what else ``--there`` names. The rest of what hpcopt needs, with an MPI
library, is taken in the versions of this environment, as wheels for that Python on Linux, and unpacked: so are files
that pip's ``--target`` leaves out, as an MPI library's own.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
THERE = ("torch", "triton", "numpy", "h5py", "mpi4py", "numba", "rich")
MPI = "mpich"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34)] + ["manylinux2014_x86_64"]
ACTIVATE = """here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$PWD:$here/site${PYTHONPATH:+:$PYTHONPATH}"
export PATH="$here/prefix/bin:$PATH"
export LD_LIBRARY_PATH="$here/prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
"""


def name_of(requirement: str) -> str:
    """A requirement's package.

    >>> name_of("Mpi4py>=4.0; extra == 'x'")
    'mpi4py'
    """
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def lacking(wanted: Iterable[str], there: Collection[str]) -> list[str]:
    """The packages, and what they need in turn, that are not there: in the versions of this environment."""
    found, open_ends = dict[str, str](), [name_of(each) for each in wanted]
    while open_ends:
        name = open_ends.pop()
        if name in found or name in there:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is needed, and its version is taken from this environment, which has none: install it")
        open_ends += [name_of(each) for each in requires(name) or () if "extra ==" not in each and "win32" not in each]
    return [f"{name}=={found[name]}" for name in sorted(found)]


def unpack(wheel: Path, out: Path) -> None:
    """Into ``out``/site what is imported, into ``out``/prefix programs and libraries."""
    places = {
        "purelib": "site",
        "platlib": "site",
        "scripts": "prefix/bin",
        "data": "prefix",
        "headers": "prefix/include",
    }
    with ZipFile(wheel) as files:
        for entry in files.infolist():
            first, *rest = Path(entry.filename).parts
            own = first.endswith(".data") and len(rest) > 1
            target = out / places[rest[0]] / Path(*rest[1:]) if own else out / "site" / entry.filename
            if entry.is_dir():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.open(entry) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            if target.is_relative_to(out / "prefix" / "bin"):
                target.chmod(0o755)


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder to make")
    p.add_argument("--python", default="3.12", help="version on that machine")
    p.add_argument("--there", nargs="*", default=THERE, help=f"packages that it has; by default {' '.join(THERE)}")
    p.add_argument("--most-mib", type=float, default=64, help="what may be carried there")
    options = p.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = lacking([*project["dependencies"], MPI], {name_of(each) for each in options.there})
    with tempfile.TemporaryDirectory() as folder:
        kind = ["--only-binary=:all:", "--implementation", "cp", "--python-version", options.python]
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, *kind, *platforms]
        subprocess.run([*command, *packages], check=True)
        for wheel in Path(folder).glob("*.whl"):
            unpack(wheel, options.out)
    (options.out / "activate").write_text(ACTIVATE)
    size_mib = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file()) / 2**20
    print(f"{', '.join(packages)}: {size_mib:.1f} MiB in {options.out}")
    if size_mib > options.most_mib:
        sys.exit(f"that is more than {options.most_mib:g} MiB: name more of what is --there")


if __name__ == "__main__":
    main()
