"""Classes of anybody's, by dotted name: found, checked, and noted for the run's records."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """Where a class came from.

    Attributes:
        name: "package.module:Class".
        file: of the module.
        digest: of that file's bytes; "" if there is no file.
        distribution, version: of the installed package that the module belongs to; "" if to none.
        printed: what the module printed while it was imported.
    """

    name: str
    file: str
    digest: str
    distribution: str
    version: str
    printed: str


LOADED: dict[str, Plugin] = {}


def import_object(name: str) -> Any:
    """The object at "package.module:name", noted in LOADED.

    Raises:
        ValueError: the module cannot be imported, or has no such name; the message says why.
    """
    module_name, _, place = name.partition(":")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(
                f'"{name}": there is no module {error.name}; is its folder the current one, on PYTHONPATH, or '
                "installed here?"
            ) from None
        raise ValueError(f'"{name}": importing {module_name} failed: {error}') from None
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # whatever stands in somebody's module: SystemExit too
        raise ValueError(f'"{name}": importing {module_name} failed: {type(error).__name__}: {error}') from None
    if not isinstance(module, ModuleType):  # it has put something else in its place
        raise ValueError(f'"{name}": importing {module_name} gave {type(module).__name__}, not a module')
    found: Any = module
    for part in place.split("."):
        if not hasattr(found, part):
            public = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))[:20])
            raise ValueError(f'"{name}": {module_name} has no {place}; it has {public}')
        found = getattr(found, part)
    if name not in LOADED:
        LOADED[name] = _describe(name, module_name, getattr(module, "__file__", None) or "", printed.getvalue())
    return found


def import_class(name: str, kind: type[T]) -> type[T]:
    """The class at "package.module:Class".

    Raises:
        ValueError: there is none, or it is not a subclass of ``kind``.
    """
    found = import_object(name)
    if not isinstance(found, type) or not issubclass(found, kind):
        raise ValueError(f'"{name}" is {found!r}, not a subclass of {kind.__module__}:{kind.__name__}')
    return found


def provenance() -> dict[str, dict[str, str]]:
    """What was plugged into this run, by name, as plain data: for metrics.h5 and checkpoints."""
    return {name: {k: v for k, v in asdict(p).items() if k not in ("name", "printed")} for name, p in LOADED.items()}


def _describe(name: str, module: str, file: str, printed: str) -> Plugin:
    digest = (
        hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest() if file and Path(file).exists() else ""
    )
    distribution = version = ""
    if not _in_current_folder(file):
        names = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
        if names:
            distribution, version = names[0], importlib.metadata.version(names[0])
    return Plugin(name, file, digest, distribution, version, printed)


def _in_current_folder(file: str) -> bool:
    return bool(file) and Path(file).resolve().is_relative_to(Path.cwd()) and "site-packages" not in file


def current_folder_first() -> None:
    """Let Python find modules of the current folder, as ``python -m`` does, whatever started it."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
