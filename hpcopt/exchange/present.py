"""Dense sums over the ranks that are present (``hpcopt.comm.roll_call``), for a solver that can do without the others.

What becomes the ballot is each parameter's gradient, flat, those of one dtype behind each other. The teller adds up the
ballots of those present in the order of their ranks, each dtype in its own arithmetic; all ranks get these bytes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import Dense
from hpcopt.errors import JobError
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.sums import NativeConfig, RingConfig
from hpcopt.phases import PhaseClock


class PresentSums:
    """Sums gradients over those present, bit-equal on all ranks.

    Attributes:
        roll_call: who was.
    """

    def __init__(
        self,
        transport: Transport,
        roll_call: RollCall,
        world: World,
        parameters: Sequence[nn.Parameter],
        clock: PhaseClock,
    ) -> None:
        """Use ``of``; parameters in the order of the ballot."""
        self.roll_call, self._transport, self._world, self._clock = roll_call, transport, world, clock
        self._parameters = parameters

    @classmethod
    def of(
        cls,
        world: World,
        parameters: Sequence[nn.Parameter],
        config: ExchangeConfig,
        clock: PhaseClock,
        patience_s: float | None,
    ) -> "PresentSums | None":
        """Sums in an exchange's place; None where ranks cannot be absent, or where payloads are more than values.
        Collective.

        Raises:
            JobError: on all ranks: ``patience_s`` is given where ranks cannot be absent.
        """
        if not is_dense(config):
            if patience_s is not None:
                raise JobError('patience_s is for plain sums: [exchange] name = "ring", without a codec').everywhere()
            return None
        transport = world.transport.duplicate()
        ordered = sorted(parameters, key=lambda p: -p.element_size())  # so that each begins where it may
        kinds = _kinds(ordered)

        def count(_: int, ballots: Mapping[int, np.ndarray]) -> np.ndarray:
            return _added(list(ballots.values()), kinds)

        roll_call = transport.roll_call(count, patience_s)
        return None if roll_call is None else cls(transport, roll_call, world, ordered, clock)

    def sum(self, number: int) -> None:
        """Replace all gradients by their sums over those present in a round of this number. Collective.

        Raises:
            LostRankError: see ``RollCall.hold``.
        """
        traffic = self._transport.traffic
        with self._clock("exchange"), self._world.watch(f"sums of round {number}", self._world.ranks):
            with traffic.encoding():
                parts = [_bytes(p) for p in self._parameters]
                ballot = np.concatenate(parts) if parts else np.empty(0, np.uint8)
            with traffic.waiting():
                decided, sent_bytes = self.roll_call.hold(number, ballot)
            with traffic.decoding():
                begin = 0
                for p, part in zip(self._parameters, parts, strict=True):
                    values = torch.from_numpy(decided.outcome[begin : begin + len(part)].copy()).view(p.dtype)
                    assert p.grad is not None
                    p.grad.copy_(values.view_as(p))
                    begin += len(part)
        traffic.sent_bytes += sent_bytes
        traffic.dense_bytes += sent_bytes
        traffic.hand_on(self._world.traffic, self._clock)

    def planned_bytes(self) -> int:
        """The most that a rank sends in a round: the teller, if the others' ballots come in time."""
        return sum(p.numel() * p.element_size() for p in self._parameters) * max(1, self._world.size - 1)


def is_dense(config: ExchangeConfig) -> bool:
    """Whether an exchange carries plain values."""
    return isinstance(config, NativeConfig) or (isinstance(config, RingConfig) and isinstance(config.codec, Dense))


def _bytes(p: nn.Parameter) -> np.ndarray:
    assert p.grad is not None
    flat: Tensor = p.grad.detach().reshape(-1).cpu()
    return flat.view(torch.uint8).numpy()


def _kinds(parameters: Sequence[nn.Parameter]) -> list[tuple[torch.dtype, int]]:
    """Stretches of a ballot of these, in their order: dtype, and bytes."""
    found: list[tuple[torch.dtype, int]] = []
    for p in parameters:
        size_bytes = p.numel() * p.element_size()
        if found and found[-1][0] == p.dtype:
            size_bytes += found.pop()[1]
        found.append((p.dtype, size_bytes))
    return found


def _added(ballots: Sequence[np.ndarray], kinds: Sequence[tuple[torch.dtype, int]]) -> np.ndarray:
    """The sum of ballots, in their order."""
    total = torch.from_numpy(ballots[0].copy())
    for ballot in ballots[1:]:
        values, begin = torch.from_numpy(ballot.copy()), 0
        for dtype, size_bytes in kinds:
            part = slice(begin, begin + size_bytes)
            total[part].view(dtype).add_(values[part].view(dtype))
            begin += size_bytes
    return total.numpy()
