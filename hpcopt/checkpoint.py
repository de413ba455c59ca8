"""hpcopt checkpoint ls|verify|export|diff: look into checkpoints, check them, take the model out."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_DONE, CheckpointError, HpcoptError
from hpcopt.models.compact import compact_state
from hpcopt.store.checkpoint import MANIFEST, SHARED, Checkpoints
from hpcopt.store.hdf5 import printable
from hpcopt.store.tree import read_tree, verify_tree, write_tree

EXIT_DIFFERENT = 1
MODEL = "solver.model"
ELAPSED = "position.elapsed_s"

EPILOG = """\
PATH is a run directory, a folder of checkpoints, one checkpoint, or one part (an .h5 file).
Where one checkpoint is needed, a run directory stands for its newest one.

examples:
  hpcopt checkpoint ls runs/quickstart
  hpcopt checkpoint verify runs/quickstart
  hpcopt checkpoint export runs/quickstart model.safetensors
  hpcopt checkpoint diff runs/a/checkpoints/step_00000330 runs/b

exit codes: 0 done, verify: undamaged, diff: the same; 1 diff: not the same; 2 damaged or bad input.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt checkpoint",
        description="Look into checkpoints, check them, take the model out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="ls|verify|export|diff")
    for name, text in (("ls", "list checkpoints, or what is in a part"), ("verify", "read every byte")):
        commands.add_parser(name, help=text).add_argument("path", type=Path)
    export = commands.add_parser("export", help="write a state_dict as .safetensors, .h5, or .pt for torch.load")
    export.add_argument("path", type=Path)
    export.add_argument("file", type=Path, help="FILE.safetensors, FILE.pt or FILE.h5")
    export.add_argument("--codes", action="store_true", help="embeddings of codes as packed integers and small tables")
    export.add_argument("--key", default=MODEL, help=f"which subtree of the part to write (default: {MODEL})")
    diff = commands.add_parser("diff", help="compare two checkpoints or parts, value by value")
    diff.add_argument("path", type=Path)
    diff.add_argument("other", type=Path)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    print_any_text()
    options = parser().parse_args(arguments)
    try:
        match options.command:
            case "ls":
                return ls(options.path)
            case "verify":
                return verify(options.path)
            case "export":
                return export(options.path, options.file, options.key, codes=options.codes)
            case _:
                return diff(options.path, options.other)
    except HpcoptError as error:
        print(f"hpcopt checkpoint: {error}", file=sys.stderr)
        return error.exit_code


def ls(path: Path) -> int:
    """Print a line a checkpoint, or a line a value for one checkpoint's parts."""
    if path.is_file():
        _print_leaves(read_tree(path))
    elif (path / MANIFEST).exists():
        for name, part in parts(path).items():
            print(f"{name}:")
            _print_leaves(read_tree(*part), "  ")
    else:
        for folder in folders(path):
            print(f"{folder.name}  {_about(folder)}")
    return EXIT_DONE


def verify(path: Path) -> int:
    """Read every byte of a part, a checkpoint, or all checkpoints; names all that is damaged, and what is left."""
    if path.is_file():
        verify_tree(path)
        print(f"{path.name}  whole")
        return EXIT_DONE
    found = folders(path)
    whole = [folder for folder in found if _verify(folder)]
    if len(whole) == len(found):
        return EXIT_DONE
    if whole:
        print(f"training goes on from {whole[-1].name}")
    return CheckpointError.exit_code


def _verify(folder: Path) -> bool:
    """Print a line for a checkpoint that is whole, else one for each damaged part, and what can be had all the same."""
    checkpoints, step = Checkpoints(folder.parent, 1), _step(folder)
    damaged: dict[str, CheckpointError] = {}
    try:
        for name in checkpoints.parts(step):
            try:
                checkpoints.verify_part(step, name)
            except CheckpointError as error:
                damaged[name] = error
    except CheckpointError as error:
        print(f"{folder.name}  {error}")
        return False
    for complaint in damaged.values():
        print(f"{folder.name}  {complaint}")
    if not damaged:
        print(f"{folder.name}  whole")
    elif SHARED not in damaged:
        print(f"{folder.name}  {SHARED} is whole: `hpcopt checkpoint export {folder} FILE` gives the model")
    return not damaged


def export(path: Path, file: Path, key: str, *, codes: bool = False) -> int:
    """Write the tensors under a key of a checkpoint's common part as a flat state_dict.

    Args:
        path: of the checkpoint.
        file: to write.
        key: of the common part.
        codes: write embeddings of codes as ``hpcopt.models.compact.compact`` has them.

    Raises:
        CheckpointError: no such key, nothing under it, no codes, or the file's suffix is unknown.
    """
    tree: Any = read_tree(path) if path.is_file() else read_tree(*parts(path)[SHARED])
    for name in filter(None, key.split(".")):
        if not isinstance(tree, dict) or name not in tree:
            there = ", ".join(map(str, tree)) if isinstance(tree, dict) else "no names"
            raise CheckpointError(f"no `{name}` of --key {key} in {path}, only {there}")
        tree = tree[name]
    tensors = {name: value for name, value in leaves(tree) if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"no tensors under --key {key} in {path}")
    if codes:
        try:
            tensors = compact_state(tensors)
        except ValueError as cause:
            raise CheckpointError(f"--codes: {cause}") from cause
    _save(tensors, file)
    print(f"{file}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} values")
    return EXIT_DONE


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, file)
        elif file.suffix in (".pt", ".pth"):
            torch.save(tensors, file)
        elif file.suffix == ".h5":
            write_tree(file, tensors)
        else:
            raise CheckpointError(f"cannot export to {file.name}: name a .safetensors, .h5 or .pt file")
    except ImportError as cause:
        raise CheckpointError("safetensors is not installed: `pip install safetensors`, or export a .pt") from cause
    except HpcoptError:
        raise
    except Exception as cause:  # each library has classes of its own for a full disk
        raise CheckpointError(f"cannot write {file} ({cause})") from cause


def diff(path: Path, other: Path) -> int:
    """Print what two parts, or two checkpoints' parts, do not have in common; how long they took does not count."""
    ours, theirs = ({SHARED: (p, "/")} if p.is_file() else parts(p) for p in (path, other))
    different = 0
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs:
            print(f"{name}: only in {path if name in ours else other}")
            different += 1
            continue
        a, b = (dict(leaves(read_tree(*p[name]))) for p in (ours, theirs))
        for key in dict.fromkeys(key for key in [*a, *b] if key != ELAPSED):
            if (text := _difference(a.get(key, _ABSENT), b.get(key, _ABSENT))) is not None:
                print(f"{name}: {printable(key)}: {text}")
                different += 1
    if not different:
        print("no difference")
    return EXIT_DIFFERENT if different else EXIT_DONE


def folders(path: Path) -> list[Path]:
    """Folders of the checkpoints that a path stands for, oldest first.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).exists() or path.name.startswith("step_"):
        return [path]
    checkpoints = Checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path, 1)
    if not (steps := checkpoints.steps()):
        raise CheckpointError(f"no checkpoint in {path}")
    return [checkpoints.path(step) for step in reversed(steps)]


def parts(path: Path) -> dict[str, tuple[Path, str]]:
    """Files and groups of the parts, by name, of the newest checkpoint that a path stands for."""
    folder = folders(path)[-1]
    checkpoints, step = Checkpoints(folder.parent, 1), _step(folder)
    return {name: checkpoints.place(step, name) for name in checkpoints.parts(step)}


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What stands at the ends of a tree, each with its keys joined by dots; empty containers count as ends."""
    if isinstance(tree, dict | list | tuple) and tree:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _difference(a: Any, b: Any) -> str | None:
    """How two ends of a tree differ, or None; NaNs of the same bits are the same."""
    if type(a) is not type(b) or not isinstance(a, Tensor | np.ndarray):
        same = type(a) is type(b) and (a == b or (a != a and b != b))
        return None if same else f"{_text(a)} and {_text(b)}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{_text(a)} and {_text(b)}"
    if isinstance(a, Tensor):
        a, b = (x.contiguous().reshape(-1) for x in (a, b))
        if not a.numel() or torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            return None
        a, b = (x.to(torch.complex128).numpy() for x in (a, b))
    elif a.tobytes() == b.tobytes():
        return None
    apart = np.abs(np.asarray(a, np.complex128) - b)
    return f"{np.count_nonzero(apart)} of {apart.size} values differ, by at most {np.nanmax(apart):.3g}"


def _print_leaves(tree: Any, indent: str = "") -> None:
    for name, value in leaves(tree):
        print(f"{indent}{printable(name)}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(map(str, value.shape))})"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _step(folder: Path) -> int:
    try:
        return int(folder.name.removeprefix("step_"))
    except ValueError:
        raise CheckpointError(f"{folder} is not a checkpoint: its name should be like step_00001234") from None


def _about(folder: Path) -> str:
    try:
        manifest = Checkpoints(folder.parent, 1).manifest(_step(folder))
    except CheckpointError as error:
        return str(error)
    nbytes = sum(part["bytes"] for part in manifest["parts"].values())
    return f"{manifest['date_created']}  {len(manifest['parts'])} parts  {nbytes:,} bytes"


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it without a word
    sys.exit(main())
