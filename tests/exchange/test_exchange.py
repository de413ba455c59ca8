"""Exchanges through a real backward pass: exact where they promise it, and replicas that stay bit-equal.

HPCOPT_REPLICA_STEPS=1000 makes the replicas' runs as long; 25 steps by default.
"""

import itertools
import json
import os
import time
from threading import Lock

import pytest
import torch
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.compress import (
    QSGD,
    AdaComp,
    Dense,
    Half,
    Natural,
    PerTensor,
    PowerSGD,
    RandomK,
    Rule,
    SharedTernGrad,
    SharedTopK,
    Sign,
    TopK,
)
from hpcopt.errors import HpcoptError, PeerError, UnsupportedError
from hpcopt.exchange import Exchange, NativeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.exchange.adversary import AdversaryConfig
from hpcopt.exchange.bucket import make_buckets
from hpcopt.exchange.sums import RingReducer
from hpcopt.testing.problem import flat
from tests.comm.test_calibration import on_hosts

REPLICA_STEPS = int(os.environ.get("HPCOPT_REPLICA_STEPS", "25"))
SMALL = PerTensor(otherwise=QSGD(bits=4), rules=(Rule(max_dims=1),))
EXCHANGES = [
    RingConfig(),
    NativeConfig(),
    RingConfig(codec=Half()),
    RingConfig(codec=PowerSGD(rank=1, min_compression=1)),
    RingConfig(codec=SharedTernGrad()),
    RingConfig(codec=SharedTopK(fraction=0.1)),
    RingConfig(codec=RandomK(fraction=0.2, scaled=False)),
    TwoPhaseConfig(),
    TwoPhaseConfig(codec=SMALL),
    TwoPhaseConfig(codec=Sign()),
    TwoPhaseConfig(codec=TopK(fraction=0.05)),
    TwoPhaseConfig(codec=AdaComp()),
    VoteConfig(momentum=0.9),
    VoteConfig(momentum=0.9, weights="learned"),
]


def label(config) -> str:
    return f"{config.name}-{config.codec.name if hasattr(config, 'codec') else getattr(config, 'weights', None)}"


SEEDING = Lock()  # ranks are threads here, and torch's generator is common to them


def network() -> nn.Module:
    with SEEDING:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3))


def train(world: World, config, steps: int, model: nn.Module, lr: float = 0.05, sleep=None) -> Exchange:
    """Plain gradient descent on this rank's own regression; steps counted from the exchange's state."""
    exchange = Exchange(world, model.named_parameters(), config, mean=not isinstance(config, VoteConfig))
    descend(world, exchange, range(steps), model, lr, sleep)
    return exchange


def descend(world: World, exchange: Exchange, steps: range, model: nn.Module, lr: float, sleep=None) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * step + world.rank)
        x = torch.randn(8, 6, generator=generator)
        exchange.zero()
        (model(x) - x[:, :3]).square().mean().backward()
        if sleep:
            time.sleep(sleep(world.rank, step))
        exchange.finish()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=lr)


def trained(size: int, config, steps: int, **options) -> list[torch.Tensor]:
    models = [network() for _ in range(size)]

    def program(transport):
        train(World(transport), config, steps, models[transport.rank], **options)
        return flat(models[transport.rank])

    return run_ranks(size, program)


@pytest.mark.parametrize("config", EXCHANGES, ids=label)
def test_replicas_stay_bit_equal(config):
    results = trained(3, config.model_copy(update={"bucket_mb": 0.003}), steps=REPLICA_STEPS, lr=0.01)
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].isfinite().all() and not torch.equal(results[0], flat(network()))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("bucket_mb", [1e-6, 0.002, 4.0])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_dense_sum_is_the_sum(size, bucket_mb, overlap):
    x = torch.randn(size, 8, 6, generator=torch.Generator().manual_seed(1))
    models = [network() for _ in range(size)]

    def program(transport):
        model = models[transport.rank]
        config = RingConfig(bucket_mb=bucket_mb, overlap=overlap)
        exchange = Exchange(World(transport), model.named_parameters(), config)
        exchange.zero()
        model(x[transport.rank]).square().mean().backward()
        exchange.finish()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters()])

    whole = network()
    for own in x:
        whole(own).square().mean().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in whole.parameters()])
    for result in run_ranks(size, program):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_compression_with_feedback_reaches_the_dense_optimum():
    dense = trained(3, RingConfig(), steps=150)[0]
    for config in (TwoPhaseConfig(codec=QSGD(bits=4)), TwoPhaseConfig(codec=TopK(fraction=0.1))):
        assert (trained(3, config, steps=150)[0] - dense).norm() < 0.25 * (dense - flat(network())).norm()


class Branches(nn.Module):
    """Uses one of two layers, and one of them in an order that depends on the rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, turn: int) -> torch.Tensor:
        if turn == 0:
            return self.b(self.a(x))
        return self.a(self.b(x)) if turn == 1 else self.a(x)


def test_readiness_may_differ_between_ranks_and_parameters_may_be_unused():
    """Each rank's graph is another one; the collectives still meet, and what is unused counts as zero."""
    models = [Branches() for _ in range(3)]
    x = torch.ones(2, 4)

    def program(transport):
        model = models[transport.rank]
        exchange = Exchange(World(transport), model.named_parameters(), RingConfig(bucket_mb=1e-6))
        for _ in range(3):
            for p in model.parameters():
                p.grad = None  # as optimizer.zero_grad() does
            model(x, transport.rank).sum().backward()
            exchange.finish()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    results = run_ranks(3, program)
    reference = Branches()
    for turn in range(3):
        reference(x, turn).sum().backward()
    for name, p in reference.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        for result in results:
            torch.testing.assert_close(result[name], expected)


def test_accumulated_passes_go_once_after_the_last():
    model, x = network(), torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(2))
    exchange = Exchange(alone(), model.named_parameters(), RingConfig())
    exchange.zero(backwards=4)
    for micro in x:
        model(micro).square().mean().backward()
    exchange.finish()
    whole = network()
    for micro in x:
        whole(micro).square().mean().backward()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_pass_too_many_is_an_error():
    model = network()
    exchange = Exchange(alone(), model.named_parameters(), RingConfig())
    exchange.zero()
    model(torch.ones(1, 6)).sum().backward()
    with pytest.raises(HpcoptError, match=r"exchange.zero\(backwards=N\)"):
        model(torch.ones(1, 6)).sum().backward()


def test_a_failure_in_the_thread_is_raised_by_finish():
    def program(transport):
        model = network()
        exchange = Exchange(World(transport), model.named_parameters(), TwoPhaseConfig(codec=Natural()))
        exchange.zero()
        (model[4].bias * 3e38).sum().backward()
        exchange.finish()

    with pytest.raises(HpcoptError, match="'natural' carries magnitudes up to"):
        run_ranks(2, program)


@pytest.mark.parametrize("config", EXCHANGES, ids=label)
def test_planned_bytes_are_what_is_sent(config):
    def program(transport):
        world, model = World(transport), nn.Sequential(nn.Linear(6, 4000), nn.Linear(4000, 3))
        exchange = Exchange(world, model, config, broadcast=True)
        world.traffic.lap()
        exchange.zero()
        model(torch.ones(3, 6)).square().sum().backward()
        exchange.finish()
        return world.traffic.lap(), exchange.planned_bytes()

    for counts, planned in run_ranks(3, program):
        assert counts.dense_bytes > 0
        if config.name == "native":
            continue  # loopback's own all-reduce sends no messages
        # adacomp's payloads vary; loopback's own broadcast, which shared_topk uses, sends no messages; ballots are
        # compared at one step in 8
        learned = getattr(config, "weights", None) == "learned"
        variable = learned or (config.name != "vote" and config.codec.name in ("adacomp", "shared_topk"))
        assert counts.sent_bytes <= planned + 8
        assert variable or counts.sent_bytes == pytest.approx(planned, abs=8)


def test_ranks_with_unlike_models_are_told_at_once():
    models = [network(), network(), nn.Linear(6, 3)]

    def program(transport):
        Exchange(World(transport), models[transport.rank].named_parameters(), RingConfig())

    with pytest.raises(PeerError, match=r"ranks \[2\] would exchange other buckets"):
        run_ranks(3, program)


def test_a_timeline_has_every_bucket_of_every_step(tmp_path):
    trained(2, RingConfig(bucket_mb=0.002, trace=tmp_path), steps=3)
    for rank in range(2):
        lines = (tmp_path / f"trace-{rank}.json").read_text().removesuffix(",\n") + "]"
        events = json.loads(lines)
        assert [e["args"]["step"] for e in events if e["name"] == "finish"] == [0, 1, 2]
        buckets = [(e["args"]["step"], e["name"]) for e in events if e["tid"] == "exchange"]
        assert sorted(buckets) == [(step, f"bucket {index}") for step in range(3) for index in range(2)]
        assert all(e["dur"] >= 0 and e["pid"] == rank for e in events)


def test_random_delays_change_nothing():
    generator = torch.Generator().manual_seed(3)
    delays = (0.004 * torch.rand(4, 6, generator=generator)).tolist()
    slow = trained(4, RingConfig(bucket_mb=0.002), steps=6, sleep=lambda rank, step: delays[rank][step])
    assert all(torch.equal(result, trained(4, RingConfig(bucket_mb=0.002), steps=6)[0]) for result in slow)


def test_buckets_hold_every_parameter_once_last_first():
    parameters = list(network().named_parameters())
    buckets = make_buckets(parameters, 1000, lambda _name, p: p.dim(), grain=64)
    names = [name for bucket in buckets for name in bucket.layout if "gap" not in name]
    assert sorted(names) == sorted(name for name, _ in parameters)
    for bucket in buckets:
        assert {p.dim() for p in bucket.views} == {bucket.kind}
        assert all(offset % 64 == 0 for offset in bucket.offsets.values())
        assert all(view.data_ptr() == bucket.values[bucket.offsets[p] :].data_ptr() for p, view in bucket.views.items())
    matrices = [names.index(name) for name in ("4.weight", "2.weight", "0.weight")]
    assert all(a < b for a, b in itertools.pairwise(matrices))


def test_dense_codec_is_exact_in_two_phases():
    ring, two_phase = trained(2, RingConfig(), 3), trained(2, TwoPhaseConfig(codec=Dense()), 3)
    assert torch.equal(ring[0], two_phase[0])


def test_in_debug_mode_a_bucket_out_of_step_is_told_before_it_hangs():
    """One rank has done a step more: its buckets are those of another step."""

    def program(transport):
        exchange = Exchange(World(transport, debug=True), network().named_parameters(), RingConfig(overlap=False))
        exchange.load_state_dict([{"step": 7 + rank // 2, "reducer": {}} for rank in range(3)])
        exchange.finish()

    with pytest.raises(PeerError, match=r"ranks \[0, 1\] 'ring of bucket 0, step 7: .*ranks \[2\] '.*step 8"):
        run_ranks(3, program)


def test_in_debug_mode_replicas_that_differ_are_told_before_the_update():
    def program(transport):
        model = network()
        exchange = Exchange(World(transport, debug=True), model.named_parameters(), RingConfig())
        for step in range(3):
            if transport.rank == 1 and step == 2:
                model[0].bias.data[0] += 1e-7
            exchange.zero()
            exchange.finish()

    with pytest.raises(PeerError, match=r"step 2 parameters are not the same on all ranks: ranks \[1\] differ"):
        run_ranks(3, program)


BY_NODES = [
    TwoPhaseConfig(codec=TopK(fraction=0.1), by_nodes=True),
    TwoPhaseConfig(codec=QSGD(bits=4), by_nodes=True),
    VoteConfig(momentum=0.9, by_nodes=True),
]


@pytest.mark.parametrize("hosts", [["a", "a", "b", "b", "b"], ["a", "b", "c"], ["a", "a"]])
@pytest.mark.parametrize("config", BY_NODES, ids=label)
def test_by_nodes_replicas_stay_equal_and_bytes_are_those_planned(config, hosts):
    models = [nn.Sequential(nn.Linear(6, 900), nn.Linear(900, 3)) for _ in hosts]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())

    def program(transport):
        world, model = on_hosts(transport, hosts), models[transport.rank]
        exchange = Exchange(world, model.named_parameters(), config, mean=config.name != "vote")
        world.traffic.lap()
        descend(world, exchange, range(6), model, 0.01)
        return flat(model), world.traffic.lap().sent_bytes / 6, exchange.planned_bytes()

    results = run_ranks(len(hosts), program)
    assert all(torch.equal(parameters, results[0][0]) for parameters, _, _ in results)
    for _, sent, planned in results:  # loopback's own all-gather of electorates, 8 bytes a lane, sends no messages
        assert sent == pytest.approx(planned, abs=16 + 0.002 * planned)


def test_a_vote_by_nodes_is_the_flat_vote():
    flat_vote = trained(4, VoteConfig(momentum=0.9, weights=(1, 2, 1, 3)), 6)
    config, models = VoteConfig(momentum=0.9, weights=(1, 2, 1, 3), by_nodes=True), [network() for _ in range(4)]

    def program(transport):
        world = on_hosts(transport, ["a", "b", "a", "b"])
        train(world, config, 6, models[transport.rank])
        return flat(models[transport.rank])

    assert all(torch.equal(a, b) for a, b in zip(run_ranks(4, program), flat_vote, strict=True))


DRAWING = [
    TwoPhaseConfig(codec=QSGD(bits=4)),
    RingConfig(codec=SharedTernGrad()),
    RingConfig(adversary=AdversaryConfig(ranks=(1,), kind="random")),
]


@pytest.mark.parametrize("config", DRAWING, ids=["two-phase", "rounds", "adversary"])
def test_the_seed_decides_what_is_drawn(config):
    def program(transport, seed):
        model = network()
        exchange = Exchange(World(transport), model, config, seed=seed)
        descend(World(transport), exchange, range(2), model, 0.05)
        return flat(model)

    once, again, other = (run_ranks(2, lambda t, k=seed: program(t, k))[0] for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_a_grain_of_nothing_is_refused():
    class Odd(RingReducer):
        grain = 0

    with pytest.raises(UnsupportedError, match="grain is a number of values, at least 1, not 0"):
        make_buckets(list(network().named_parameters()), 1000, Odd(None).kind, Odd(None).grain)


class Mute(Half):
    __str__ = None


def test_a_codec_is_known_by_its_settings_whatever_its_text():
    exchange = Exchange(alone(), nn.Linear(2, 2), TwoPhaseConfig(codec=Mute()))
    assert exchange.buckets
