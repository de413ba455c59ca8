"""Checkpoints of a job: a folder a step, a file a rank, complete or not there. Parts are trees (hpcopt/store/tree.py).

    checkpoints/
        step_00001234/
            manifest.json     step, and of each part its size and checksum; written last
            shared.h5         what all ranks have in common, written by rank 0
            rank00000.h5 ...  what a rank has alone, each written by its rank
        latest                name of the newest folder, for people and scripts

Where all ranks write together (hpcopt/store/parallel.py), parts.h5 takes the place of the parts' own files.

While it is written the folder is called step_00001234.tmp; the rename is the commit. No rank writes another rank's
file, and only rank 0 makes, renames and removes folders. The class knows no ranks: the caller makes the barriers.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcopt import __version__
from hpcopt.errors import CheckpointError
from hpcopt.store import hdf5
from hpcopt.store.files import read_plain, remove, replace_text
from hpcopt.store.hung import touching
from hpcopt.store.parallel import write_trees
from hpcopt.store.room import unwritten
from hpcopt.store.saved_parts import SavedParts
from hpcopt.store.tree import REMEDY, pack, read_tree, tree_checksum, verify_tree, write_tree

SCHEMA_VERSION = 2
SHARED = "shared"
TOGETHER = "parts.h5"
MANIFEST = "manifest.json"
LATEST = "latest"
MOST_MANIFEST_BYTES = 1 << 26

__all__ = ["SHARED", "Checkpoints", "rank_part", "read_tree", "write_tree"]


def rank_part(rank: int) -> str:
    """Name of the part that a rank writes alone."""
    return f"rank{rank:05d}"


def ranks_of(parts: Sequence[str]) -> int:
    """Number of ranks that wrote these parts."""
    return len(set(parts) - {SHARED})


class Checkpoints:
    """The checkpoints of one run directory.

    To write step s: begin(s) on rank 0, barrier, write_part(s, ...) on every rank, barrier, commit(s) on rank 0.

    Attributes:
        folder: where they stand; made by the first begin().
        keep: how many of the newest stay; at least 1.
        require_ours: raises if another job has taken over the run directory.
    """

    def __init__(self, folder: Path, keep: int, require_ours: Callable[[], None] = lambda: None) -> None:
        self.folder, self.keep, self.require_ours = Path(folder), max(1, keep), require_ours

    def begin(self, step: int) -> Path:
        """Make the empty folder that write_part() fills, removing what earlier, interrupted checkpoints left behind.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        with self._writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._unfinished(step).mkdir()
        return self._unfinished(step)

    def abandon(self) -> None:
        """Give back the room of a checkpoint that could not be written; for rank 0, once no rank writes any more."""
        with touching(self.folder), suppress(OSError):
            self._remove_unfinished()

    def write_part(self, step: int, name: str, tree: Any) -> None:
        """Write one part of the checkpoint that begin() opened.

        Args:
            step: as given to begin().
            name: SHARED or rank_part(rank).
            tree: see write_tree.

        Raises:
            CheckpointError: the file cannot be written.
            TypeError: the tree holds something that is not data.
        """
        path = self._unfinished(step) / f"{name}.h5"
        with self._writing(path, tree):
            write_tree(path, tree, {"step": step, "part": name})

    def write_together(self, step: int, comm: Any, parts: Mapping[str, Any]) -> None:
        """Write all ranks' parts to one file of the checkpoint that begin() opened. Collective over comm.

        Args:
            step: as given to begin().
            comm: communicator of mpi4py.
            parts: this rank's, by name; a tree each, of which nothing may be wrong: see write_part.

        Raises:
            CheckpointError: the file cannot be written.
        """
        path = self._unfinished(step) / TOGETHER
        with self._writing(path, parts):
            write_trees(path, comm, {name: pack(tree) for name, tree in parts.items()}, {"step": step})

    def commit(self, step: int, parts: Sequence[str]) -> Path:
        """Make the checkpoint count, once all ranks have written: manifest, rename, `latest`, and prune the oldest.

        Args:
            step: as given to begin().
            parts: the names of all parts that belong to it.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: a part is missing or incomplete; the checkpoint does not count then.
        """
        unfinished, folder = self._unfinished(step), self.path(step)
        together = {"file": TOGETHER} if (unfinished / TOGETHER).exists() else {}
        about = {}
        for name in parts:
            path, group = _place(unfinished, name, together)
            about[name] = {"crc32": tree_checksum(path, group), "bytes": path.stat().st_size}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "hpcopt_version": __version__,
            "date_created": datetime.now(UTC).isoformat(timespec="seconds"),
            **together,
            "parts": about,
        }
        with self._writing(self.folder):
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            hdf5.sync(unfinished / MANIFEST)
            if folder.exists():  # the same step of an earlier attempt
                folder.rename(folder.with_suffix(".old.tmp"))
            hdf5.publish(unfinished, folder)
            replace_text(self.folder / LATEST, folder.name + "\n")
            self._prune()
        return folder

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, newest first; whether they are undamaged is for read_part() to say."""
        found = (re.fullmatch(r"step_(\d{8,18})", path.name, re.ASCII) for path in self.folder.glob("step_*"))
        steps = (int(match[1]) for match in found if match)
        return sorted((step for step in steps if self.path(step).exists()), reverse=True)

    def parts(self, step: int) -> list[str]:
        """Names of the parts of a committed checkpoint.

        Raises:
            CheckpointError: no such checkpoint, or its manifest is damaged.
        """
        return list(self.manifest(step)["parts"])

    def read_part(self, step: int, name: str) -> Any:
        """Read one part of a committed checkpoint.

        Raises:
            CheckpointError: no such checkpoint or part, or it is damaged.
        """
        with touching(self.path(step)):
            return read_tree(*self._known_part(step, name))

    def rank_parts(self, step: int, ranks: int) -> SavedParts:
        """What each rank that saved a committed checkpoint wrote alone: read on access, as by read_part, and once."""
        return SavedParts.once(lambda rank: self.read_part(step, rank_part(rank)), ranks)

    def verify(self, step: int) -> None:
        """Read every byte of a committed checkpoint.

        Raises:
            CheckpointError: a part is missing or damaged.
        """
        for name in self.parts(step):
            self.verify_part(step, name)

    def verify_part(self, step: int, name: str) -> None:
        """Read every byte of one part.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        verify_tree(*self._known_part(step, name))

    def place(self, step: int, name: str) -> tuple[Path, str]:
        """File of a part, and the group that it is in that file."""
        return _place(self.path(step), name, self.manifest(step))

    def path(self, step: int) -> Path:
        """Folder of a committed checkpoint."""
        return self.folder / f"step_{step:08d}"

    def _unfinished(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.tmp"

    def manifest(self, step: int) -> dict[str, Any]:
        """What the manifest of a committed checkpoint says: `date_created`, and `bytes` and `crc32` of its `parts`.

        Raises:
            CheckpointError: no such checkpoint, or its manifest is damaged.
        """
        path = self.path(step) / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(read_plain(path, MOST_MANIFEST_BYTES))
            _require_manifest(manifest, step)
        except FileNotFoundError as cause:
            raise CheckpointError(f"{path} is missing: {REMEDY}") from cause
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
            raise CheckpointError(f"{path} is damaged ({hdf5.printable(str(cause))}): {REMEDY}") from cause
        return manifest

    def _known_part(self, step: int, name: str) -> tuple[Path, str]:
        """Place of a part, after making sure that the file is the one the manifest was written for."""
        manifest = self.manifest(step)
        (path, group), parts = _place(self.path(step), name, manifest), manifest["parts"]
        if name not in parts:
            raise CheckpointError(f"{path.parent / MANIFEST} knows no part {name}, only {', '.join(parts)}: {REMEDY}")
        if tree_checksum(path, group) != parts[name]["crc32"] or path.stat().st_size != parts[name]["bytes"]:
            raise CheckpointError(f"{path} is not the file that {MANIFEST} was written for: {REMEDY}")
        return path, group

    @contextmanager
    def _writing(self, path: Path, tree: Any = None) -> Iterator[None]:
        try:
            with touching(path):
                yield
        except (OSError, RuntimeError) as cause:  # HDF5 reports a full disk as either
            needed_bytes = None if tree is None else sum(leaf.nbytes for leaf in pack(tree).leaves)
            raise CheckpointError(unwritten(path, cause, needed_bytes)) from cause

    def _remove_unfinished(self) -> None:
        for stale in self.folder.glob("step_*.tmp"):
            remove(stale)

    def _prune(self) -> None:
        for step in self.steps()[self.keep :]:
            doomed = self.path(step).with_suffix(".old.tmp")  # no longer a checkpoint, even if interrupted here
            self.path(step).rename(doomed)
            remove(doomed)
        for replaced in self.folder.glob("*.old.tmp"):
            remove(replaced)


def _require_manifest(manifest: Any, step: int) -> None:
    """Raise ValueError, or what looking into something else raises, unless this is the manifest of a step."""
    if manifest["schema_version"] != SCHEMA_VERSION or manifest["step"] != step:
        raise ValueError(f"it is of schema {manifest['schema_version']}, step {manifest['step']}")
    if SHARED not in manifest["parts"]:
        raise ValueError(f"it names no part {SHARED}")
    for name, part in manifest["parts"].items():
        if not re.fullmatch(rf"{SHARED}|rank\d{{5,}}", name, re.ASCII):
            raise ValueError(f"it names a part {name!r}")
        if type(part["bytes"]) is not int or not re.fullmatch(r"[0-9a-f]{8}", part["crc32"]):
            raise ValueError(f"it gives {name} neither size nor checksum")
    if not isinstance(manifest["date_created"], str) or manifest.get("file", TOGETHER) != TOGETHER:
        raise ValueError("it has no date, or names another file")


def _place(folder: Path, name: str, manifest: Mapping[str, Any]) -> tuple[Path, str]:
    return (folder / TOGETHER, name) if "file" in manifest else (folder / f"{name}.h5", "/")
