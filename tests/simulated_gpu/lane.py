"""What an exchange asks of the device in a step, on any number of ranks, a JSON object a case:

python -m tests.simulated_gpu.lane
"""

import json
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from hpcopt.adapters import DdpExchange, ddp
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, AdaComp, TopK
from hpcopt.exchange import Exchange, ExchangeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.exchange.lane import Lane
from hpcopt.solvers.kaisa.preconditioner import Kaisa
from tests.simulated_gpu.device import SIM
from tests.simulated_gpu.ledger import KINDS, LEDGER
from tests.simulated_gpu.run import interpreted_kernels
from tests.simulated_gpu.streams import Stream, current_stream, stream

SIZES = (2, 3)
N = 6 * 512  # shards of one length
EXCHANGES: dict[str, ExchangeConfig] = {
    "ring": RingConfig(),
    "qsgd": TwoPhaseConfig(codec=QSGD()),
    "topk": TwoPhaseConfig(codec=TopK(fraction=0.1)),
    "adacomp": TwoPhaseConfig(codec=AdaComp()),
    "vote": VoteConfig(momentum=0.9),
}


def exchanged(world: World, p: nn.Parameter, config: ExchangeConfig) -> Callable[[Tensor], None]:
    """What gives a parameter the mean of the ranks' gradients, by an exchange."""
    exchange = Exchange(world, [("p", p)], config, mean=True, broadcast=False)

    def step(gradient: Tensor) -> None:
        exchange.zero()
        p.grad.add_(gradient)
        exchange._ready(p)
        exchange.finish()
        p.detach().add_(p.grad)

    return step


def hooked(world: World, p: nn.Parameter, config: ExchangeConfig) -> Callable[[Tensor], None]:
    """The same by the hook that DDP calls."""
    state = DdpExchange(nn.ParameterDict({"p": p}), config, group=world.transport)

    def step(gradient: Tensor) -> None:
        p.detach().add_(state.reduce(gradient.clone(), [p], last=True).wait())

    return step


def group(transport: StagedTransport) -> SimpleNamespace:
    """What a process group of gloo would be of it."""
    return SimpleNamespace(backend="gloo", duplicate=transport.inner.duplicate)


def house(counts: Counter[str]) -> int:
    """Of our own lines."""
    return sum(n for what, n in counts.items() if "elsewhere" not in what)


def step_of(
    config: ExchangeConfig, size: int, *, aside: bool = False, way: Callable[..., Any] = exchanged
) -> dict[str, Any]:
    """What all ranks' exchanges ask for in a steady step, what is refused, how much pinned memory is made in it, and
    the sum of what three steps come to.

    Args:
        aside: compute on a stream of one's own.
        way: that gradients go.
    """

    def program(transport: Transport) -> tuple[dict[str, int], int, float]:
        world = World(StagedTransport(transport))
        with stream(Stream() if aside else Stream.default()):
            p = nn.Parameter(torch.zeros(N, device=SIM))
            values = torch.randn(N, generator=torch.Generator().manual_seed(world.rank)).to(SIM)
            step = way(world, p, config)
            for last in (False, False, True):
                made = world.transport.slots.made
                world.barrier()
                if last:
                    LEDGER.clear()
                world.barrier()
                step(values)
                world.barrier()
            asked = {kind: house(getattr(LEDGER, kind)) for kind in KINDS}
            world.barrier()
            total = float(p.detach().cpu().double().sum())
        return asked, world.transport.slots.made - made, total

    LEDGER.refused.clear()
    ranks = run_ranks(size, program)
    asked, _, total = ranks[0]
    return {**asked, "made": sum(made for _, made, _ in ranks), "sum": total, "refused": dict(LEDGER.refused)}


def inverses(transport: Transport) -> list[bool]:
    """Whether K-FAC's inverses of three steps were computed on the stream that trains."""
    model, streams = nn.Linear(3, 2).to(SIM), list[Stream]()
    kaisa = Kaisa(model, World(StagedTransport(transport)), inverse_lag=1, factor_every=1, inverse_every=1)
    invert = kaisa._method.invert
    kaisa._method.invert = lambda *work: (streams.append(current_stream()), invert(*work))
    for _ in range(3):
        model.zero_grad()
        model(torch.ones(4, 3).to(SIM)).square().sum().backward()
        kaisa.step(terms=4)
    kaisa.state_dict(), kaisa.rank_state_dict()
    return [each is Stream.default() for each in streams]


def main() -> None:
    """The command."""
    with interpreted_kernels():
        for name, config in EXCHANGES.items():
            print(json.dumps({"case": name, **{str(size): step_of(config, size) for size in SIZES}}), flush=True)
        print(json.dumps({"case": "aside", "2": step_of(TwoPhaseConfig(), 2, aside=True)}))
        for name in ("qsgd", "adacomp"):
            with mock.patch.object(ddp, "ProcessGroupTransport", group):
                found = step_of(EXCHANGES[name], 2, aside=True, way=hooked)
            print(json.dumps({"case": f"DDP, {name}", "2": found}))
        LEDGER.refused.clear()
        found = run_ranks(1, inverses)[0]
        print(json.dumps({"case": "inverses", "training stream": found, "refused": dict(LEDGER.refused)}))
        for method in ("note", "join"):
            with mock.patch.object(Lane, method, lambda self: None):
                print(json.dumps({"case": f"without {method}", "2": step_of(RingConfig(), 2, aside=True)}))


if __name__ == "__main__":
    main()
