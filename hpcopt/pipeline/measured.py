"""What blocks and the links between stages cost, by the clock: multiply-adds leave out what memory, small products and
calls take, and nobody has said how quick a link is.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpcopt.comm.alpha_beta import Line, fit
from hpcopt.comm.world import World

SAMPLES, TURNS = 32, 5
MESSAGES_BYTES = (64, 64 << 10)  # there and back takes a second at 1 Mbit/s


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


def measured_links(world: World, stages: int, device: torch.device) -> list[Line]:
    """Seconds of a message over each boundary of the first data group, by its bytes: half of the quickest way there and
    back, told to all. One boundary after the other. Collective; costs ``TURNS`` messages of 64 KiB each way a boundary.

    Args:
        stages: ranks of a data group; neighbours hold neighbouring stages.
        device: of the messages.
    """
    found = torch.zeros(stages - 1, len(MESSAGES_BYTES), dtype=torch.float64)
    for boundary in range(stages - 1):
        world.barrier()
        if world.rank in (boundary, boundary + 1):
            for column, nbytes in enumerate(MESSAGES_BYTES):
                ball = torch.zeros(nbytes, dtype=torch.uint8, device=device)
                seconds = min(_there_and_back_s(world, boundary, ball) for _ in range(TURNS))
                found[boundary, column] = seconds / 2 if world.rank == boundary else 0.0
    return [fit(MESSAGES_BYTES, seconds) for seconds in world.all_reduce(found).tolist()]


def _there_and_back_s(world: World, boundary: int, ball: Tensor) -> float:
    """Seconds of a message to the next rank and back. Both call it."""
    start_s = time.perf_counter()
    if world.rank == boundary:
        world.transport.send(ball, boundary + 1).wait()
        world.transport.receive(ball, boundary + 1).wait()
    else:
        world.transport.receive(ball, boundary).wait()
        world.transport.send(ball, boundary).wait()
    return max(time.perf_counter() - start_s, 1e-9)
