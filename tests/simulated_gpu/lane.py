"""What an exchange asks of the device in a step, on any number of ranks, a JSON object a case:

python -m tests.simulated_gpu.lane
"""

import json
from typing import Any
from unittest import mock

import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, AdaComp, TopK
from hpcopt.exchange import Exchange, ExchangeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.exchange.lane import Lane
from tests.simulated_gpu.device import SIM
from tests.simulated_gpu.ledger import KINDS, LEDGER
from tests.simulated_gpu.run import interpreted_kernels
from tests.simulated_gpu.streams import Stream, stream

SIZES = (2, 3)
N = 6 * 512  # shards of one length
EXCHANGES: dict[str, ExchangeConfig] = {
    "ring": RingConfig(),
    "qsgd": TwoPhaseConfig(codec=QSGD()),
    "topk": TwoPhaseConfig(codec=TopK(fraction=0.1)),
    "adacomp": TwoPhaseConfig(codec=AdaComp()),
    "vote": VoteConfig(momentum=0.9),
}


def step_of(config: ExchangeConfig, size: int, *, aside: bool = False) -> dict[str, Any]:
    """What all ranks' exchanges ask for in a steady step, what is refused, and how much pinned memory is made in it.

    Args:
        aside: compute on a stream of one's own.
    """

    def program(transport: Transport) -> tuple[dict[str, int], int]:
        world = World(StagedTransport(transport))
        with stream(Stream() if aside else Stream.default()):
            p = nn.Parameter(torch.zeros(N, device=SIM))
            values = torch.randn(N, generator=torch.Generator().manual_seed(world.rank)).to(SIM)
            exchange = Exchange(world, [("p", p)], config, broadcast=False)
            for last in (False, False, True):
                made = world.transport.slots.made
                exchange.zero()
                world.barrier()
                if last:
                    LEDGER.clear()
                world.barrier()
                p.grad.add_(values)
                exchange._ready(p)
                exchange.finish()
                p.detach().add_(p.grad)
                world.barrier()
        asked = {kind: sum(n for what, n in getattr(LEDGER, kind).items() if "elsewhere" not in what) for kind in KINDS}
        world.barrier()
        return asked, world.transport.slots.made - made

    LEDGER.refused.clear()
    ranks = run_ranks(size, program)
    return {**ranks[0][0], "made": sum(made for _, made in ranks), "refused": dict(LEDGER.refused)}


def main() -> None:
    """The command."""
    with interpreted_kernels():
        for name, config in EXCHANGES.items():
            print(json.dumps({"case": name, **{str(size): step_of(config, size) for size in SIZES}}), flush=True)
        print(json.dumps({"case": "aside", "2": step_of(TwoPhaseConfig(), 2, aside=True)}))
        for method in ("note", "join"):
            with mock.patch.object(Lane, method, lambda self: None):
                print(json.dumps({"case": f"without {method}", "2": step_of(RingConfig(), 2, aside=True)}))


if __name__ == "__main__":
    main()
