"""From a batch to the instances that pass through a graph one by one, whatever kind of batch it is."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hpcopt.dataflow.instance import Instance, InstanceBatch, InstanceLoss
from hpcopt.errors import JobError
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.loss import Loss, OutputLoss


class Feed:
    """Takes batches of instances as they are, and batches of tensors apart into samples.

    Attributes:
        criterion: of the network's outputs for an instance, and the tensors of its target.
    """

    def __init__(self, loss: Loss) -> None:
        """Raise JobError, on all ranks, if a loss needs more of the network than its outputs."""
        if not isinstance(loss, InstanceLoss | OutputLoss):
            raise JobError(
                '[solver] name = "amp" needs a workload whose loss is a function of the outputs and the target'
            ).everywhere()
        self._loss = loss
        self._names: tuple[str, ...] = ()
        self.criterion = loss.criterion if isinstance(loss, InstanceLoss) else self._of_sample

    def look_at(self, batch: Any) -> None:
        """Learn what the tensors of a sample are called, on ranks that get them without names."""
        if isinstance(batch, TensorBatch):
            self._names = tuple(sorted(batch.tensors))

    def instances(self, batch: Any) -> Iterable[Instance]:
        """The batch's instances, in order."""
        if isinstance(self._loss, InstanceLoss):
            assert isinstance(batch, InstanceBatch)
            return batch
        return [self._instance(self._loss, sample) for sample in batch.split(len(batch)) if len(sample)]

    def _instance(self, loss: OutputLoss, sample: TensorBatch) -> Instance:
        return Instance((loss.inputs(sample),), (sample.indices, *(sample.tensors[name] for name in self._names)))

    def _of_sample(self, outputs: Tensor, indices: Tensor, *tensors: Tensor) -> Tensor:
        assert isinstance(self._loss, OutputLoss)
        batch = TensorBatch(dict(zip(self._names, tensors, strict=True)), indices.cpu(), len(indices))
        return self._loss.criterion(outputs, batch)
