"""Anybody's network, data set, loss and scores, by the names under which Python finds them.

The global batches of a data set that is read by index are drawn as everywhere (``hpcopt.workloads.order``); those of a
stream are its next samples. Either way they depend on the run's seed and the step alone, so the training is the same at
any number of ranks, and goes on anywhere.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from hpcopt.errors import DataError, JobError
from hpcopt.randomness import draws_kept, seed_draws
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import Loss, OutputLoss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.solver import Tree
from hpcopt.shapes.workload import Workload, WorkloadConfig
from hpcopt.workloads.own.layout import INPUTS, fill
from hpcopt.workloads.own.names import Dotted, FunctionOfTorch, ScoreName, not_forked
from hpcopt.workloads.own.samples import Origin
from hpcopt.workloads.own.scores import BUILTIN, scores_of
from hpcopt.workloads.own.splits import Split, open_split
from hpcopt.workloads.own.theirs import theirs
from hpcopt.workloads.own.user_code import function, made, require_network

SAMPLES = "samples"  # the sum that counts test samples


class TorchConfig(WorkloadConfig):
    """A torch network and data sets of your own, see docs/howto/own_data.md."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {"network", "network_arguments", "loss", "loss_arguments", "scores", "test", "test_arguments", "test_samples"}
        | {"workers", "workers_by", "rewrites", "precision", "compile"}
    )

    name: Literal["torch"] = "torch"
    network: Dotted = Field(description='"my_net:Net", a class or function that gives a torch.nn.Module')
    network_arguments: dict[str, Any] = Field({}, description="keyword arguments of network")
    train: Dotted = Field(
        description='"my_data:train_set", a class or function that gives a torch.utils.data.Dataset or IterableDataset'
    )
    train_arguments: dict[str, Any] = Field({}, description="keyword arguments of train")
    test: Dotted = Field(description="likewise, of the samples to evaluate on")
    test_arguments: dict[str, Any] = Field({}, description="keyword arguments of test")
    test_samples: int | None = Field(None, ge=1, description="most test samples to evaluate on")
    targets: str = Field("targets", description="key of the target in samples that are dictionaries")
    collate: Dotted | None = Field(
        None, description="function that makes a batch of a list of samples; by default they are stacked"
    )
    loss: FunctionOfTorch = Field(
        "cross_entropy",
        description='mean loss of outputs and targets: a function of torch.nn.functional, or "my_module:my_loss"',
    )
    loss_arguments: dict[str, Any] = Field({}, description="keyword arguments of loss")
    scores: tuple[ScoreName, ...] = Field(
        (), description=f"beside test_loss: {', '.join(BUILTIN)}, or dotted names of your own"
    )
    workers: int = Field(0, ge=0, description="of a rank, that read batches ahead; 0: they are read between the steps")
    workers_by: Annotated[Literal["spawn", "thread"], BeforeValidator(not_forked)] = Field(
        "spawn", description="workers are processes, or threads (for data sets that draw nothing at random)"
    )

    def build(self, context: Context) -> "TorchWorkload":
        """Open the data and make the network.

        Raises:
            DataError: a data set cannot be opened, has no samples, or its first sample is none.
            JobError: network, loss or scores are not what they should be, or do not fit the data.
        """
        return TorchWorkload(self, context.run_seed)


class TorchWorkload(Workload):
    """The workload. A batch's tensors are ``inputs`` and ``targets``, or ``inputs.0``, ``inputs.name`` and so on."""

    def __init__(self, config: TorchConfig, seed: int) -> None:
        self._config, self._seed, self.batch = config, seed, config.batch
        self._train, self._test = self._open("train"), self._open("test")
        self._layout, self.train_samples = self._train.layout, self._train.samples
        if (self._test.layout.inputs, self._test.layout.targets) != (self._layout.inputs, self._layout.targets):
            raise DataError(f"train has {self._layout.words()}, and test {self._test.layout.words()}")
        if self.train_samples is not None and self.train_samples < self.batch:
            raise JobError(f"[workload] batch = {self.batch}, but train has {self.train_samples} samples")
        there = self._test.samples
        self.test_samples = config.test_samples if there is None else min(there, config.test_samples or there)
        self._scores = scores_of(config.scores)
        self.scores = {"test_loss": "lower", **{name: score.better for name, score in self._scores.items()}}
        self._criterion = criterion(config)
        with draws_kept():
            seed_draws(seed)
            self.model = network(config)
            example = self._layout.batch([self._train.first], [0])
            self._try(TensorBatch(example, torch.zeros(1, dtype=torch.int64), 1))
        self.loss: Loss = self._loss
        if isinstance(self._layout.inputs, str):
            self.loss = OutputLoss(
                inputs=lambda batch: batch.tensors[INPUTS],
                criterion=lambda outputs, batch: self._criterion(outputs, self._targets(batch)),
                example=example[INPUTS],
            )

    @property
    def steps_per_epoch(self) -> int | None:
        return None if self.train_samples is None else self.train_samples // self.batch

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        return self._train.train(rank, size, start)

    def by_index(self) -> Samples | None:
        return self._train.by_index()

    def test_batches(self, rank: int, size: int) -> Iterator[TensorBatch]:
        return self._test.once(rank, size, self.test_samples)

    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        outputs, targets = self._outputs(model, batch), self._targets(batch)
        with theirs("[workload] loss", JobError):
            sums = {"test_loss": self._criterion(outputs, targets).double() * len(batch)}
        sums[SAMPLES] = torch.tensor(len(batch))
        for name, score in self._scores.items():
            with theirs(f"[workload] scores: {name}: update()", JobError):
                added = {f"{name}.{part}": value for part, value in score.update(outputs, targets).items()}
            for part, value in added.items():
                if not isinstance(value, Tensor):
                    raise JobError(f"[workload] scores: {part}: update() gave {type(value).__name__}, not a tensor")
            sums |= added
        return sums

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = {"test_loss": float(sums["test_loss"] / sums[SAMPLES])}
        for name, score in self._scores.items():
            own = {key.removeprefix(f"{name}."): value for key, value in sums.items() if key.startswith(f"{name}.")}
            with theirs(f"[workload] scores: {name}: finish()", JobError):
                found[name] = float(score.finish(own))
        return found

    def state_dict(self) -> Tree:
        return self._train.state

    def load_state_dict(self, parts: Sequence[Tree]) -> None:
        self._train.load(parts[0])  # every rank goes through the whole stream: all are the same

    def _open(self, split: Literal["train", "test"]) -> Split:
        c = self._config
        name, arguments = (c.train, c.train_arguments) if split == "train" else (c.test, c.test_arguments)
        origin = Origin(split, name, arguments, c.targets, c.collate or "", self._seed)
        return open_split(origin, c.batch, c.workers, c.workers_by)

    def _outputs(self, model: nn.Module, batch: TensorBatch) -> Any:
        inputs = fill(self._layout.inputs, batch.tensors)
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    def _targets(self, batch: TensorBatch) -> Any:
        return fill(self._layout.targets, batch.tensors)

    def _loss(self, model: nn.Module, batch: TensorBatch) -> Tensor:
        loss: Tensor = self._criterion(self._outputs(model, batch), self._targets(batch))
        return loss

    def _try(self, batch: TensorBatch) -> None:
        """Go through network, loss and scores once: what does not fit together is a message now, not a traceback."""
        shapes = ", ".join(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in batch.tensors.items())
        wide = any(value.dtype == torch.float64 for value in batch.tensors.values())
        hint = ' (numpy makes float64, networks take float32: x.astype("float32"))' if wide else ""
        self.model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # (n, 1) less (n,) is (n, n), and trains nonsense
            with theirs(f'[workload] network = "{self._config.network}" with {shapes}{hint}', JobError):
                outputs = self._outputs(self.model, batch)
            with theirs(f'[workload] loss = "{self._config.loss}" of the outputs and {shapes}', JobError):
                loss = self._criterion(outputs, self._targets(batch))
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise JobError(f'[workload] loss = "{self._config.loss}" gives {loss!r}, not one number, the mean')
            self.score(self.model, batch)
        self.model.train()


def network(config: TorchConfig) -> nn.Module:
    """The network that a job names.

    Raises:
        JobError: it cannot be made, or is none.
    """
    what = f'[workload] network = "{config.network}"'
    found = made(config.network, config.network_arguments, what, JobError)
    if not isinstance(found, nn.Module) or not hasattr(found, "_modules"):
        forgot = "" if not isinstance(found, nn.Module) else " that was made: call super().__init__() first"
        raise JobError(f"{what} gave {type(found).__name__}, not a torch.nn.Module{forgot}")
    try:
        list(found.modules())
    except TypeError as cause:
        raise JobError(f"{what}: {cause}; a module that is a dataclass needs @dataclass(eq=False)") from None
    require_network(found, what)
    return found


def criterion(config: TorchConfig) -> Callable[[Any, Any], Any]:
    """The loss of outputs and targets that a job names: a function with its arguments, or what a class makes of them.

    Raises:
        JobError: there is none.
    """
    what = f'[workload] loss = "{config.loss}"'
    if ":" not in config.loss:
        return partial(getattr(nn.functional, config.loss), **config.loss_arguments)
    found: Callable[[Any, Any], Any] = function(config.loss, config.loss_arguments, what)
    if not callable(found):
        raise JobError(f"{what} is {type(found).__name__}, not a function of outputs and targets")
    return found
