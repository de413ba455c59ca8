"""Samples of a teacher: a ReLU network that is drawn by the seed, so that the truth which training looks for is known.

Inputs are standard normal, ``x ~ N(0, I)``, and targets are ``f(x) + noise z`` with the teacher f and a normal z
(arXiv:1806.07808, 1806.07863); test targets have no noise. The loss is ``1/(2N) sum (f_W(x_i) - y_i)^2``.
Sample i is a function of the run's seed and of i, so every rank draws its own.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from hpcopt.errors import JobError
from hpcopt.families import VECTOR_MODELS
from hpcopt.models.config import VectorModelConfig
from hpcopt.models.relu_student import ReluStudent, ReluStudentConfig
from hpcopt.randomness import drawn_by
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.workload import Better, WorkloadConfig
from hpcopt.workloads.drawn import TRAIN, DrawnWorkload
from hpcopt.workloads.normal import normals
from hpcopt.workloads.recovery import recovery_error, require_scipy

SPLITS = "train", "test"


class TeacherConfig(WorkloadConfig):
    """A teacher of ReLU layers, samples of it, and a student."""

    may_change: ClassVar[frozenset[str]] = frozenset({"model", "start", "test", "precision", "compile"})

    name: Literal["teacher"] = "teacher"
    inputs: PositiveInt = Field(10, description="coordinates of a sample")
    hidden: tuple[PositiveInt, ...] = Field((5,), min_length=1, description="the teacher's units, layer by layer")
    skip: bool = Field(False, description="the teacher's units add a coordinate of what comes in")
    perturbation: float = Field(
        0.1,
        ge=0,
        description="length of the Gaussian vectors added to orthonormal rows, or to the skip form's identity",
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of what is added to training targets")
    train: PositiveInt = Field(5000, description="training samples")
    test: PositiveInt = Field(1000, description="test samples, without noise")
    batch: int = Field(5000, ge=1, description="samples in one step, over all ranks; as many as train: all")
    dtype: Literal["float32", "float64"] = Field("float64", description="of samples and parameters")
    start: float | None = Field(
        None, ge=0, description="begin at the teacher plus a random vector of this length in its own; off: as the model"
    )
    model: Annotated[VectorModelConfig, VECTOR_MODELS] | None = Field(
        None, description="the student; off: a relu_student of the teacher's form"
    )

    @model_validator(mode="after")
    def _rounds_what_can_be_rounded(self) -> Self:
        if self.precision == "bfloat16" and self.dtype == "float64":
            raise ValueError('precision = "bfloat16" rounds products of float32: set dtype = "float32", too')
        return self

    def build(self, context: Context) -> "Teacher":
        """Draw the teacher and make the student.

        Raises:
            JobError: there is no such teacher or student, fewer samples than a batch has, or no scipy.
        """
        return Teacher(self, context.run_seed)


class Teacher(DrawnWorkload):
    """The workload; a batch has ``inputs``, (n, d), and ``targets``, (n,).

    Scores: ``test_loss``, as the loss, on targets without noise; ``recovery_error``, see ``hpcopt.workloads.recovery``,
    if the student is a ``ReluStudent`` of as many layers.

    Attributes:
        teacher: the network that the targets are from.
    """

    test_batch = 4096

    def __init__(self, config: TeacherConfig, seed: int) -> None:
        require_scipy()
        super().__init__(config.train, config.test, config.batch, seed)
        self._config, self._dtype = config, getattr(torch, config.dtype)
        self._last: tuple[int, TensorBatch] | None = None
        self.teacher = drawn_teacher(config, torch.Generator().manual_seed(derive(seed, 0, EVERY_RANK, "teacher")))
        with drawn_by(seed):
            self.model: nn.Module = self._student().to(self._dtype)
        self.scores: Mapping[str, Better] = {"test_loss": "lower"}
        self._alike = isinstance(self.model, ReluStudent) and len(self.model.layers) == len(self.teacher.layers)
        if self._alike:
            self.scores = {**self.scores, "recovery_error": "lower"}
        if config.start is not None:
            self._begin_near(config.start)
        self.loss = OutputLoss(
            inputs=lambda batch: batch.tensors["inputs"],
            criterion=lambda outputs, batch: (outputs - batch.tensors["targets"]).square().mean() / 2,
            example=torch.zeros(1, config.inputs, dtype=self._dtype),
        )

    def score(self, model: nn.Module, batch: TensorBatch) -> dict[str, Tensor]:
        outputs, targets = model(batch.tensors["inputs"]), batch.tensors["targets"]
        added = {"test_loss": (outputs - targets).square().sum() / 2}
        if self._alike and isinstance(model, ReluStudent):
            error = recovery_error(model.totals(), self.teacher.totals())
            added["recovery_error"] = torch.tensor(error * len(batch), dtype=torch.float64)
        return added

    @torch.no_grad()
    def part(self, indices: np.ndarray, global_size: int, split: int = TRAIN) -> TensorBatch:
        """Samples by number; what was drawn last is kept, for those who take all of them in every step."""
        numbers = torch.from_numpy(indices)
        last = self._last  # once: another thread may draw batches ahead
        if last is not None and last[0] == split and torch.equal(last[1].indices, numbers):
            return TensorBatch(last[1].tensors, numbers, global_size)
        drawn = torch.from_numpy(
            normals(derive(self._seed, 0, EVERY_RANK, f"{SPLITS[split]} samples"), indices, self._config.inputs + 1)
        )
        x, noise = drawn[:, :-1].contiguous(), drawn[:, -1] * (self._config.noise if split == TRAIN else 0.0)
        tensors = {"inputs": x.to(self._dtype), "targets": (self.teacher(x) + noise).to(self._dtype)}
        batch = TensorBatch(tensors, numbers, global_size)
        self._last = split, batch
        return batch

    def _student(self) -> nn.Module:
        c = self._config
        config = c.model or ReluStudentConfig(hidden=c.hidden, skip=c.skip)
        try:
            return config.build(c.inputs)
        except ValueError as cause:
            raise JobError(f"[workload.model]: {cause}") from cause

    @torch.no_grad()
    def _begin_near(self, distance: float) -> None:
        """At the teacher plus a random vector of ``distance`` times the length of all its weights."""
        truth, model = self.teacher.totals(), self.model
        shapes = [w.shape for w in model.layers] if isinstance(model, ReluStudent) else []
        if not isinstance(model, ReluStudent) or shapes != [w.shape for w in truth]:
            raise JobError("[workload] start begins near the teacher: leave it out, or let the model have its form")
        generator = torch.Generator().manual_seed(derive(self._seed, 0, EVERY_RANK, "start"))
        away = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in truth]
        length = distance * (_squares(truth) / _squares(away)).sqrt()
        for weights, w, a in zip(model.layers, truth, away, strict=True):
            weights.copy_(w + length * a - model.added(w))


@torch.no_grad()
def drawn_teacher(config: TeacherConfig, generator: torch.Generator) -> ReluStudent:
    """A teacher, float64. Rows are orthonormal ones, or the identity's in the skip form, plus Gaussian vectors of the
    length ``config.perturbation``; a layer with more units than come in has several orthonormal sets.

    Raises:
        JobError: there is no such skip form.
    """
    try:
        teacher = ReluStudent(config.inputs, config.hidden, config.skip).double()
    except ValueError as cause:
        raise JobError(f"[workload] hidden: {cause}") from cause
    for weights in teacher.layers:
        units, fan_in = weights.shape
        weights.copy_(config.perturbation * _gaussian(units, fan_in, generator) / fan_in**0.5)
        if not config.skip:
            sets = [torch.linalg.qr(_gaussian(fan_in, fan_in, generator))[0] for _ in range(-(-units // fan_in))]
            weights.add_(torch.cat(sets)[:units])
    return teacher.requires_grad_(False)


def _gaussian(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _squares(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum()
