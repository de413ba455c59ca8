"""The folders that come with the package: example jobs, batch scripts, a project to start from.

In a checkout they stand at its top, where people read and edit them; a wheel carries them inside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """One of these folders: ``jobs``, ``slurm``, ``examples/project`` or ``examples/own_network``."""
    installed = _PACKAGE / "share" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
