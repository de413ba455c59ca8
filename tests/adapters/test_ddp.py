"""The hook for DDP: somebody's DistributedDataParallel over gloo takes the path of our own exchange."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpcopt.adapters import DdpExchange, ddp_hook
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.process_group import ProcessGroupTransport
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, Half, PowerSGD, Sign
from hpcopt.errors import LaunchError, UnsupportedError
from hpcopt.exchange import AutoConfig, Exchange, ExchangeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.testing.transport import check_transport
from tests.launching import PATIENCE_S

RANKS, STEPS = 3, 12
CONFIGS: dict[str, ExchangeConfig] = {
    "4 bits": TwoPhaseConfig(codec=QSGD(bits=4)),
    "signs with feedback": TwoPhaseConfig(codec=Sign()),
    "half": RingConfig(codec=Half()),
    "low rank": RingConfig(codec=PowerSGD(rank=1)),
    "vote": VoteConfig(),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 3))


def curve(rank: int, model: nn.Module, after: Callable[[], None], steps: range, lr: float = 0.05) -> list[float]:
    """A rank's losses, on data of its own."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr), []
    for step in steps:
        draw = torch.Generator().manual_seed(100 * step + rank)
        x = torch.randn(16, 20, generator=draw)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        after()
        optimizer.step()
        losses.append(loss.item())
    return losses


def hooked(config: ExchangeConfig, **how: Any) -> tuple[nn.Module, DdpExchange]:
    inner = network()
    model, state = DistributedDataParallel(inner, **how), DdpExchange(inner, config)
    model.register_comm_hook(state, ddp_hook)
    return model, state


def resumed(rank: int) -> dict[str, Any]:
    """Stopped after five steps, and another DDP that goes on with what was kept."""
    model, state = hooked(CONFIGS["signs with feedback"])
    first = curve(rank, model, lambda: None, range(5))
    kept, parts = model.module.state_dict(), [None] * RANKS
    dist.all_gather_object(parts, state.rank_state_dict())
    model, state = hooked(CONFIGS["signs with feedback"])
    model.module.load_state_dict(kept)
    state.load_state_dict(parts)
    return {"losses": first + curve(rank, model, lambda: None, range(5, STEPS))}


def with_nan(rank: int) -> dict[str, Any]:
    """The gradients of a step that is not finite on one rank, and of the next."""
    model, _ = hooked(CONFIGS["signs with feedback"])
    finite = []
    for bad in (rank == 1, False):
        model.zero_grad()
        (model(torch.ones(2, 20)).sum() * (torch.nan if bad else 1.0)).backward()
        finite.append(all(p.grad.isfinite().all().item() for p in model.parameters()))
    return {"finite": finite}


def of_config(config: ExchangeConfig, rank: int, **how: Any) -> dict[str, Any]:
    model, state = hooked(config, **how)
    losses = curve(rank, model, lambda: None, range(STEPS))
    return {"losses": losses, "end": model.module.state_dict(), "sent_bytes": state.sent_bytes}


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    check_transport(ProcessGroupTransport())
    found = {name: of_config(config, rank) for name, config in CONFIGS.items()}
    found["small buckets"] = of_config(CONFIGS["signs with feedback"], rank, bucket_cap_mb=0.001)
    found["resumed"], found["nan"] = resumed(rank), with_nan(rank)
    with pytest.raises(UnsupportedError, match="auto"):
        DdpExchange(network(), AutoConfig())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def kill(ranks: torch.multiprocessing.ProcessContext) -> None:
    for process in ranks.processes:
        process.kill()
        process.join()


def wait_for(ranks: torch.multiprocessing.ProcessContext, patience_s: float = PATIENCE_S) -> None:
    """Return when all have ended, and raise what one has raised; name those that do not end."""
    end = time.monotonic() + patience_s
    while not ranks.join(max(0.0, end - time.monotonic())):  # returns whenever one has ended
        left = [rank for rank, process in enumerate(ranks.processes) if process.is_alive()]
        assert time.monotonic() < end, f"ranks {left} still run after {patience_s} s"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of three processes found; all cases in one start of them."""
    folder = tmp_path_factory.mktemp("ddp")
    ranks = torch.multiprocessing.spawn(rank_main, (str(folder),), nprocs=RANKS, join=False)
    try:
        wait_for(ranks)
    finally:
        kill(ranks)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


@functools.cache
def own_curves(name: str) -> list[list[float]]:
    """The same losses, by our own exchange on threads."""
    models = [network() for _ in range(RANKS)]

    def program(transport) -> list[float]:
        model = models[transport.rank]
        exchange = Exchange(World(transport), model, CONFIGS[name], mean=True)
        return curve(transport.rank, model, exchange.finish, range(STEPS))

    return run_ranks(RANKS, program)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_curve_is_that_of_our_own_exchange(found, name):
    for rank, own in enumerate(own_curves(name)):
        assert found[rank][name]["losses"] == pytest.approx(own, rel=1e-5)
    assert own_curves(name)[0] != own_curves("4 bits")[0] or name == "4 bits"


def test_4_bits_send_an_eighth_of_half_precision_or_less(found):
    assert found[0]["4 bits"]["sent_bytes"] < 0.4 * found[0]["half"]["sent_bytes"]


def test_error_feedback_goes_by_names_when_ddp_makes_its_buckets_anew(found):
    ends = [rank["small buckets"]["end"] for rank in found]
    assert all(torch.equal(end[name], ends[0][name]) for end in ends for name in end)
    losses = torch.tensor([rank["small buckets"]["losses"] for rank in found]).mean(0)
    assert losses[-3:].mean() < losses[:3].mean()


def test_a_checkpoint_keeps_what_is_owed(found):
    for rank in found:
        assert rank["resumed"]["losses"] == rank["signs with feedback"]["losses"]


def test_one_ranks_nan_is_everybodys_and_gone_in_the_next_step(found):
    assert [rank["nan"]["finite"] for rank in found] == [[False, True]] * RANKS


def test_without_a_process_group_it_says_what_to_do():
    with pytest.raises(LaunchError, match="init_process_group"):
        DdpExchange(network(), RingConfig())


def test_a_rank_that_hangs_is_named():
    alive = [SimpleNamespace(is_alive=lambda: False), SimpleNamespace(is_alive=lambda: True)]
    with pytest.raises(AssertionError, match=r"ranks \[1\] still run"):
        wait_for(SimpleNamespace(processes=alive, join=lambda timeout: False), patience_s=0.0)
