"""hpcopt new DIR: lay out a project of one's own, with a network and a data set to change."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_DONE, HpcoptError, JobError
from hpcopt.shipped import shipped

SCRIPTS = ("launch.sh", "train.sh", "scaling_sweep.sh")  # those that any job needs
OWN_NETWORK = "examples/own_network"  # which one of the example jobs names
NO_TRACES = shutil.ignore_patterns("__pycache__")

EPILOG = """\
examples:
  hpcopt new mine && cd mine
  hpcopt train                     job.toml, on one rank; mpirun -n 2 hpcopt train, on two
  hpcopt report runs/mine

The job names the network and the data set by where Python finds them. The project's README.md has the rest.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt new",
        description="Lay out a project of your own: network, data set, job, batch scripts, test.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or an empty one")
    p.add_argument("--examples", action="store_true", help="also hpcopt's example jobs and their batch scripts")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Lay out a project and say how to run it; returns the exit code."""
    print_any_text()
    options = parser().parse_args(arguments)
    try:
        lay_out(options.folder, options.examples)
    except HpcoptError as error:
        print(f"hpcopt new: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.folder}: a project of your own; its README.md says what stands where")
    print(f"try:  cd {shlex.quote(str(options.folder))} && hpcopt train")
    return EXIT_DONE


def lay_out(folder: Path, examples: bool = False) -> None:
    """Copy the project, its batch scripts and, if asked for, the example jobs into a folder.

    Raises:
        JobError: there is something in the folder, or it cannot be written.
    """
    slurm = shipped("slurm")
    scripts = [path.name for path in slurm.glob("*.sh")] if examples else SCRIPTS
    try:
        if folder.exists() and any(folder.iterdir()):
            raise JobError(f"{folder} is not empty: name a new folder")
        shutil.copytree(shipped("examples/project"), folder, ignore=NO_TRACES, dirs_exist_ok=True)
        for name in ("slurm/site", "logs"):
            (folder / name).mkdir(parents=True)
        for name in (*scripts, "site/example.sh"):
            shutil.copyfile(slurm / name, folder / "slurm" / name)
        shutil.copytree(slurm / "containers", folder / "slurm/containers")
        if examples:
            shutil.copytree(shipped("jobs"), folder / "jobs")
            shutil.copytree(shipped(OWN_NETWORK), folder / OWN_NETWORK, ignore=NO_TRACES)
    except OSError as error:
        raise JobError(f"cannot lay out a project in {folder}: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(main())
