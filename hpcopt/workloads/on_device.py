"""A workload whose model computes elsewhere or in another precision than the one that it is made for.

Workloads make everything in main memory, so that parameters begin the same, and batches are the same, on any device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from hpcopt.shapes.batch import Batch
from hpcopt.shapes.loss import Loss, OutputLoss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.simulation import Simulation
from hpcopt.shapes.solver import Tree
from hpcopt.shapes.workload import Precision, Workload
from hpcopt.workloads.handover import Handover

WITHOUT_STREAMS = ("cpu", "meta")
RECURRENCES = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


def on_device(workload: Workload, device: torch.device, precision: Precision = "float32") -> Workload:
    """The workload on a device, in a precision; its model moves there."""
    if device.type == "cpu" and precision == "float32":
        return workload
    return WorkloadOnDevice(workload, device, narrow=precision == "bfloat16")


class Narrow(nn.Module):
    """A model whose matrix products round to bfloat16, as torch's autocast does it; its outputs are float32 again, for
    a loss that takes them so. Its parameters are the model's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        given = (x for x in (*tree_leaves((args, kwargs)), *self.model.parameters()) if isinstance(x, Tensor))
        device = next(given).device.type
        recurrent = device == "cpu" and any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        with torch.autocast(device, torch.bfloat16), WideRecurrence() if recurrent else nullcontext():
            outputs = self.model(*args, **kwargs)
        return tree_map(_widened, outputs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)


class WideRecurrence(TorchFunctionMode):
    """Within it, and in this thread, LSTM, GRU and RNN compute in float32: not every CPU has them in bfloat16."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in RECURRENCES:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*tree_map(_widened, args), **(kwargs or {}))


class WorkloadOnDevice(Workload):
    """The workload."""

    def __init__(self, inner: Workload, device: torch.device, *, narrow: bool = False) -> None:
        self._inner, self._device, self._narrow = inner, device, narrow
        self.model = inner.model.to(device)
        self.batch, self.scores = inner.batch, inner.scores
        self.train_samples, self.test_samples = inner.train_samples, inner.test_samples
        loss = inner.loss
        self.loss: Loss = replace(loss, example=loss.example.to(device)) if isinstance(loss, OutputLoss) else loss
        if narrow:  # no OutputLoss: who takes a model apart would run its parts in float32
            self.loss = lambda model, batch: loss(Narrow(model), batch)

    @property
    def steps_per_epoch(self) -> int | None:
        return self._inner.steps_per_epoch

    def verify(self, rank: int, size: int) -> None:
        self._inner.verify(rank, size)

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[Batch]:
        return self._there(self._inner.train_batches(rank, size, start), beside=self._inner.ahead)

    def by_index(self) -> Samples | None:
        inner = self._inner.by_index()
        if inner is None:
            return None
        return replace(inner, at=lambda indices, whole: next(self._there(iter([inner.at(indices, whole)]))))

    def simulation(self) -> Simulation | None:
        return self._inner.simulation()

    def test_batches(self, rank: int, size: int) -> Iterator[Batch]:
        return self._there(self._inner.test_batches(rank, size))

    def _there(self, batches: Iterator[Batch], *, beside: bool = False) -> Iterator[Batch]:
        if self._device.type in WITHOUT_STREAMS:
            return (batch.to(self._device) for batch in batches)
        return self._handover.batches(batches, beside=beside)

    @cached_property
    def _handover(self) -> Handover:
        return Handover(self._device)

    def score(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return self._inner.score(Narrow(model) if self._narrow else model, batch)

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return self._inner.finish(sums)

    def state_dict(self) -> Tree:
        return self._inner.state_dict()

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        self._inner.load_state_dict(parts)


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x
