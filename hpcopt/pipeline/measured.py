"""What blocks cost, by the clock: multiply-adds leave out what memory, small products and calls take."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcopt.comm.world import World

SAMPLES, TURNS = 32, 5


def measured_s(blocks: Sequence[nn.Module], examples: Sequence[Tensor], world: World) -> list[float]:
    """Seconds of each block for some samples forward and backward: rank 0's, the quickest of a few turns, told to all.

    Nothing of the blocks is changed by it. Collective.

    Args:
        blocks: of a network.
        examples: one sample's inputs of each, shape (1, ...).
    """
    found = torch.zeros(len(blocks), dtype=torch.float64)
    if world.rank == 0:
        for t, (block, example) in enumerate(zip(blocks, examples, strict=False)):
            training = block.training
            found[t] = min(_turn_s(block.eval(), example) for _ in range(TURNS))
            block.train(training)
    seconds: list[float] = world.broadcast(found).tolist()
    return seconds


def _turn_s(block: nn.Module, example: Tensor) -> float:
    x = example.detach().repeat(SAMPLES, *(1,) * (example.dim() - 1))
    x.requires_grad_(x.is_floating_point())
    wanted = [p for p in (x, *block.parameters()) if p.requires_grad]
    start_s = time.perf_counter()
    with torch.enable_grad():
        out = block(x).sum()
        got = torch.autograd.grad(out, wanted, allow_unused=True) if out.requires_grad else (out,)
    for gradient in got[:1]:
        if gradient is not None:
            gradient.flatten()[:1].tolist()  # waits for a device
    return time.perf_counter() - start_s
