"""A small classification problem in any precision, cut into batches as the trainer would."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from hpcopt.comm.world import World, alone
from hpcopt.exchange import RingConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.shapes.solver import Task
from hpcopt.solvers.block_admm.solver import BlockAdmm, BlockAdmmConfig
from hpcopt.workloads.order import TrainOrder

SAMPLES, FEATURES, CLASSES, BATCH = 48, 6, 3, 12

LOSS = OutputLoss(
    inputs=lambda batch: batch.tensors["x"],
    criterion=lambda logits, batch: F.cross_entropy(logits, batch.tensors["y"]),
    example=torch.zeros(1, FEATURES),
)


def network(layers: int = 3, width: int = 7, activation: type[nn.Module] = nn.Tanh, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    widths = [FEATURES, *[width] * (layers - 1), CLASSES]
    modules: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        modules += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*modules[:-1]).to(dtype)


def batches(steps: int, rank: int = 0, size: int = 1, dtype=torch.float64) -> list[TensorBatch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    y = (x @ torch.randn(FEATURES, CLASSES, generator=generator, dtype=torch.float64).to(dtype)).argmax(1)
    order = TrainOrder(SAMPLES, BATCH, seed=0)
    indices = [torch.from_numpy(order.indices(step, rank, size)) for step in range(steps)]
    return [TensorBatch({"x": x[i], "y": y[i]}, i, BATCH) for i in indices]


def solver(config: BlockAdmmConfig, model: nn.Module, world: World | None = None, steps: int = 100) -> BlockAdmm:
    return config.build(Task(model, LOSS), Context(exchange=RingConfig(), world=world or alone(), steps=steps))
