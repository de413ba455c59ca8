"""Pictures of unlike sizes to values that are known: whether they belong to a language, or what a model that is drawn
gives them.

Graph weighted models were made for it (Amortila and Rabusseau 2018, arXiv:1806.08297): train on small sizes, and see
whether larger ones follow.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import JobError
from hpcopt.families import PICTURE_MODELS
from hpcopt.models.config import PictureModelConfig
from hpcopt.models.graph_weighted import GraphWeightedConfig, drawn_for
from hpcopt.shapes.context import Context
from hpcopt.shapes.workload import Better, WorkloadConfig
from hpcopt.workloads.drawn import TRAIN, DrawnWorkload
from hpcopt.workloads.pictures.batch import PictureBatch
from hpcopt.workloads.pictures.languages import Language, Size, coins, member, other
from hpcopt.workloads.pictures.measures import Accuracy, Error, Measure

SYMBOLS, SMALLEST = 2, 2
SCORED = ("familiar", "validation", "test")  # kinds of sizes, each drawn apart, and so is
TRAINED = len(SCORED)

Side = Annotated[int, Field(ge=1)]
Sizes = tuple[tuple[Side, Side], ...]  # rows and columns


class PicturesConfig(WorkloadConfig):
    """Pictures of zeros and ones, drawn by the seed, and a network whose parameters serve every size."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {"model", "validation_sizes", "test_sizes", "test", "precision", "compile"}
    )

    name: Literal["pictures"] = "pictures"
    batch: int = Field(64, ge=1, description="pictures in one step, over all ranks")
    task: Language | Literal["random_values"] = Field(
        "bars_and_stripes",
        description="a picture's value: 1 in a language and 0 outside, or that of a graph weighted model that is drawn",
    )
    sizes: Sizes = Field(
        tuple((rows, columns) for rows in (2, 3) for columns in (2, 3, 4)),
        min_length=1,
        description="rows and columns of the pictures that are trained on; familiar_* scores are of others of them",
    )
    validation_sizes: Sizes = Field(((4, 3), (3, 5)), description="sizes by which to choose settings and restarts")
    test_sizes: Sizes = Field(((4, 4), (5, 5)), min_length=1, description="sizes that nothing is chosen by")
    train: int = Field(4096, ge=1, description="pictures to train on; each size has as many, half of them members")
    test: int = Field(1024, ge=1, description="pictures of each kind of score; each size has as many, half members")
    near: float = Field(
        0.5, ge=0, le=1, description="share of the pictures outside a language that are a member but for one pixel"
    )
    dimension: int = Field(2, ge=1, description="of the model that gives random values")
    model: Annotated[PictureModelConfig, PICTURE_MODELS] = Field(GraphWeightedConfig(), description="the network")

    def build(self, context: Context) -> "Pictures":
        """Make the model; pictures are drawn when they are asked for.

        Raises:
            JobError: a size is too small or too large, or comes twice; a batch is more than there is to train on.
        """
        return Pictures(self, context)


class Pictures(DrawnWorkload):
    """The workload."""

    samples = "pictures"

    def __init__(self, config: PicturesConfig, context: Context) -> None:
        self._sizes = (config.sizes, config.validation_sizes, config.test_sizes, config.sizes)
        self._all = _checked(config)
        tested = config.test * sum(map(bool, self._sizes[:TRAINED]))
        super().__init__(config.train, tested, config.batch, context.run_seed)
        self._task, self._near, self._each = config.task, config.near, config.test
        self._measure: Measure = Error() if config.task == "random_values" else Accuracy()
        self.scores: Mapping[str, Better] = dict.fromkeys(self._places(), self._measure.better)
        self._known = cache(self.picture)  # a picture to train on comes back to its rank in every epoch
        largest = max(rows for rows, _ in self._all), max(columns for _, columns in self._all)
        if config.task == "random_values":
            try:
                self._truth = drawn_for(largest, SYMBOLS, config.dimension, context.generator("picture values"))
            except ValueError as cause:
                raise JobError(f'[workload] task = "random_values": {cause}') from cause
        torch.manual_seed(self._seed)
        try:
            self.model: nn.Module = config.model.build(largest, SYMBOLS)
        except ValueError as cause:
            raise JobError(f"[workload] model: {cause}") from cause

    def picture(self, split: int, index: int) -> tuple[np.ndarray, float]:
        """The index'th picture of a split, (rows, columns), uint8, and whether it is a member; drawn at random and 0,
        where there is no language.
        """
        generator = np.random.default_rng([self._seed, split, index])
        sizes = self._sizes[split]
        size, inside = sizes[index % len(sizes)], index // len(sizes) % 2
        if self._task == "random_values":
            return coins(generator, size), 0.0
        if inside:
            return member(self._task, size, generator), 1.0
        return other(self._task, size, self._near, generator), 0.0

    def part(self, indices: np.ndarray, global_size: int, split: int = TRAIN) -> PictureBatch:
        if split == TRAIN:
            return self._of([(TRAINED, int(index)) for index in indices], global_size)
        kinds = [kind for kind, sizes in enumerate(self._sizes[:TRAINED]) if sizes]
        places = (divmod(int(index), self._each) for index in indices)
        return self._of([(kinds[kind], index) for kind, index in places], global_size)

    def loss(self, model: nn.Module, batch: PictureBatch) -> Tensor:
        """Mean squared error of the values."""
        errors = [(model(group.pictures) - group.values).square().sum() for group in batch.groups]
        return torch.stack(errors).sum() / len(batch)

    def score(self, model: nn.Module, batch: PictureBatch) -> dict[str, Tensor]:
        """What each size adds, (sizes, parts)."""
        sums = batch.groups[0].values.new_zeros(len(self._all), self._measure.parts)
        for group in batch.groups:
            rows, columns = group.pictures.shape[1:]
            sums[self._all.index((rows, columns))] += self._measure.added(model(group.pictures), group.values)
        return {"sums": sums}

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Of each kind of size, and of each size of the test."""
        return {name: self._measure.of(sums["sums"][places].sum(0)) for name, places in self._places().items()}

    def _places(self) -> dict[str, list[int]]:
        """The sizes that a score is of."""
        what, sizes = self._measure.name, dict(zip(SCORED, self._sizes, strict=False))
        kinds = {f"{kind}_{what}": of for kind, of in sizes.items() if of}
        each = {f"test_{what}_{rows}x{columns}": [(rows, columns)] for rows, columns in sizes["test"]}
        return {name: [self._all.index(size) for size in of] for name, of in {**kinds, **each}.items()}

    def _of(self, places: Iterable[tuple[int, int]], global_size: int) -> PictureBatch:
        batch = PictureBatch.of([self._known(*place) for place in places], global_size)
        if self._task != "random_values":
            return batch
        with torch.no_grad():
            return replace(batch, groups=tuple(replace(g, values=self._truth(g.pictures)) for g in batch.groups))


def _checked(config: PicturesConfig) -> list[Size]:
    """All sizes.

    Raises:
        JobError: they, or the numbers of pictures, do not suit each other.
    """
    kinds = (config.sizes, config.validation_sizes, config.test_sizes)
    found = [size for sizes in kinds for size in sizes]
    if twice := [size for size in found if found.count(size) > 1]:
        raise JobError(f"[workload] pictures of {twice[0][0]} by {twice[0][1]} stand twice among the sizes")
    if config.task != "random_values" and (small := [size for size in found if min(size) < SMALLEST]):
        raise JobError(
            f"[workload] sizes have {small[0][0]} by {small[0][1]}: {config.task} takes {SMALLEST} rows and columns"
        )
    if config.test < (least := 2 * max(map(len, kinds))):
        raise JobError(f"[workload] test = {config.test}: for a member and another of each size take {least} at least")
    return found
