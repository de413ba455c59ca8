"""Checkpoints written beside the training: the state is copied at once or, what stays as it is until the next update
of the parameters, while the next gradients are computed (as CheckFreq does: Mohan et al. 2021, FAST'21); the rest is
another thread's.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.tree import has_values


class Snapshot:
    """Copies of trees, in CPU memory that is used again when the next tree has the same tensors."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0
        self._still: set[tuple[int, int]] = set()
        self._later: list[tuple[Tensor, Tensor]] = []

    def take(self, tree: Any, still: Iterable[Tensor] = ()) -> Any:
        """Copy a tree, which may change afterwards. The copy taken before is overwritten.

        Tensors of any device are copied to the CPU. Costs one pass over memory.

        Args:
            still: tensors that do not change until ``complete`` has returned; they are left to it.
        """
        self._used = 0
        self._still = {_place(tensor) for tensor in still}
        copy = self._copy(tree)
        del self._buffers[self._used :]
        return copy

    def complete(self) -> None:
        """Copy what ``take`` left."""
        for buffer, tensor in self._later:
            buffer.copy_(tensor)
        self._later.clear()

    def _copy(self, node: Any) -> Any:
        match node:
            case Tensor() if has_values(node):  # write_tree refuses others, by name
                buffer = self._buffer(node)
                if _place(node) in self._still:
                    self._later.append((buffer, node.detach()))
                    return buffer
                return buffer.copy_(node.detach())
            case np.ndarray():
                return node.copy()
            case dict():
                return {key: self._copy(value) for key, value in node.items()}
            case list():
                return [self._copy(value) for value in node]
            case tuple():
                return tuple(self._copy(value) for value in node)
            case _:
                return node

    def _buffer(self, like: Tensor) -> Tensor:
        index, self._used = self._used, self._used + 1
        if index < len(self._buffers):
            found = self._buffers[index]
            if (found.dtype, found.shape) == (like.dtype, like.shape):
                return found
            del self._buffers[index:]
        self._buffers.append(torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda))
        return self._buffers[index]


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's values are, the same for all views of them all."""
    return tensor.data_ptr(), tensor.numel()


class BackgroundWriter:
    """Writes this rank's parts of a checkpoint in a thread of its own; one checkpoint at a time.

    Where Checkpoints asks for a barrier and then commit(), call wait() on every rank first.

    Attributes:
        took_s: seconds that it wrote at the newest checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints, self._snapshot = checkpoints, Snapshot()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._copying: Future[None] | None = None
        self._writing: Future[None] | None = None
        self.took_s = 0.0

    def write(self, step: int, parts: Mapping[str, Any], still: Iterable[Tensor] = ()) -> None:
        """Copy the parts and start to write them; returns when the originals may change.

        Waits first for an earlier checkpoint that is still being written, and raises what wait() raises.

        Args:
            still: tensors that do not change before copied() is called; they are copied in the background.
        """
        self.wait()
        copies = self._snapshot.take(dict(parts), still)
        self._copying = self._thread.submit(self._snapshot.complete)
        self._writing = self._thread.submit(self._write, step, copies)

    def copied(self) -> None:
        """Return when all originals may change."""
        if self._copying is not None:
            copying, self._copying = self._copying, None
            copying.result()

    @property
    def busy(self) -> bool:
        """Whether there is something left to write."""
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Return when all is on disk.

        Raises:
            CheckpointError: it could not be written.
            TypeError: the tree held something that is not data.
        """
        self.copied()
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Leave out what is not begun, and return when nothing is being written; the last call."""
        self._thread.shutdown(cancel_futures=True)

    def _write(self, step: int, parts: Mapping[str, Any]) -> None:
        start_s = time.monotonic()
        for name, tree in parts.items():
            self._checkpoints.write_part(step, name, tree)
        self.took_s = time.monotonic() - start_s
