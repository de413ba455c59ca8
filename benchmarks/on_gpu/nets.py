"""Networks with random batches, for parts that train."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcopt.comm.world import World
from hpcopt.exchange import ExchangeConfig, RingConfig
from hpcopt.models.bert import Bert, BertConfig
from hpcopt.models.deep_resnet import DeepResNetConfig
from hpcopt.models.resnet import ResNetConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import Loss
from hpcopt.shapes.solver import Solver, SolverConfig, Task
from hpcopt.workloads.on_device import Narrow

CLASSES = 10


def made_once(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The network, from a seed of its own."""

    @cache
    def first() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return first


@dataclass(frozen=True)
class Net:
    """What trains.

    Attributes:
        model: the network, the same at every call; made before there are ranks, which as threads would share torch's
            generator.
        loss: of it and a batch.
        batch: tensors of so many samples, drawn by a generator.
        samples: in a batch over all ranks.
        skip: modules that K-FAC leaves out.
    """

    model: Callable[[], nn.Module]
    loss: Loss
    batch: Callable[[int, torch.Generator], dict[str, Tensor]]
    samples: int
    skip: tuple[str, ...] = ()

    def solver(
        self,
        config: SolverConfig,
        world: World,
        device: torch.device,
        exchange: ExchangeConfig | None = None,
        *,
        narrow: bool = False,
    ) -> Solver:
        """One that trains it on a device, from the same parameters everywhere."""
        model = copy.deepcopy(self.model()).to(device)
        loss: Loss = (lambda model, batch: self.loss(Narrow(model), batch)) if narrow else self.loss
        context = Context(world=world, exchange=exchange or RingConfig(), steps=1000, device=device)
        return config.build(Task(model, loss), context)

    def part(self, step: int, world: World, device: torch.device) -> TensorBatch:
        """A rank's part of a step's batch, the same on any device."""
        generator = torch.Generator().manual_seed(step)
        mine = torch.arange(self.samples).tensor_split(world.size)[world.rank]
        tensors = {name: x[mine] for name, x in self.batch(self.samples, generator).items()}
        return TensorBatch(tensors, mine, self.samples).to(device)


def images(make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, samples: int) -> Net:
    """Images into classes."""

    def batch(count: int, generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(count, *shape, generator=generator)
        return {"x": x, "y": x.flatten(1)[:, :classes].argmax(1)}

    return Net(made_once(make), lambda model, b: F.cross_entropy(model(b.tensors["x"]), b.tensors["y"]), batch, samples)


def small_images(*, tiny: bool = False) -> Net:
    """What trains in milliseconds."""
    shape = (1, 8, 8)
    if tiny:
        return images(
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES)),
            shape,
            CLASSES,
            8,
        )
    return images(lambda: ResNetConfig(blocks=1, width=8).build(shape, CLASSES), shape, CLASSES, 24)


def resnet50() -> Net:
    """On 128 photographs of 224 by 224."""
    shape, classes = (3, 224, 224), 1000
    return images(lambda: DeepResNetConfig().build(shape, classes), shape, classes, 128)


def bert(*, small: bool) -> Net:
    """BERT-base on 64 sequences of 128 words, of which 20 are masked."""
    words, tokens, masked = (50, 8, 2) if small else (30_000, 128, 20)

    def loss(model: nn.Module, b: TensorBatch) -> Tensor:
        t = b.tensors
        rows = torch.arange(len(b), device=t["ids"].device)[:, None] * tokens
        found, follows = model(t["ids"], t["segments"], t["mask"], (rows + t["places"]).flatten())
        return F.cross_entropy(found, t["words"].flatten()) + F.cross_entropy(follows, t["follows"])

    def batch(count: int, generator: torch.Generator) -> dict[str, Tensor]:
        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=generator)

        mask, segments = torch.ones(count, tokens, dtype=torch.bool), torch.zeros(count, tokens, dtype=torch.int64)
        given = {"ids": draw(words, count, tokens), "segments": segments, "mask": mask}
        places = {"places": draw(tokens, count, masked), "words": draw(words, count, masked)}
        return {**given, **places, "follows": draw(2, count)}

    skip = ("word", "position", "segment")
    made = made_once(lambda: Bert(1, 16, 2, words, 0.0) if small else BertConfig(dropout=0, size="base").build(words))
    return Net(made, loss, batch, 2 if small else 64, skip)
