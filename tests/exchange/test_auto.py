"""What an exchange chooses by itself: from numbers that are given, so that the choice is known."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from hpcopt.comm.alpha_beta import CodecCost, Line, Machine
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.world import World
from hpcopt.compress import QSGD, Bounded, Half, PerTensor, Rule, TopK
from hpcopt.exchange import (
    AutoConfig,
    Bucket,
    Exchange,
    NativeConfig,
    RingConfig,
    TwoPhaseConfig,
    VoteConfig,
    auto,
    trials,
)
from hpcopt.exchange.choices import choose, decide
from hpcopt.exchange.trials import Trial
from hpcopt.optim import SignumConfig
from hpcopt.seeds import derive
from hpcopt.testing.problem import flat
from tests.exchange.test_exchange import descend, network

QUICK, SLOW = Line(1e-6, 1e12), Line(1e-6, 1e6)
CODEC = CodecCost(Line(0.0, 1e9), Line(0.0, 1e9), 8.0)
FREE, DEAR = CodecCost(Line(), Line(), 8.0), CodecCost(Line(1.0, 1e3), Line(1.0, 1e3), 8.0)


def machine(size: int, link: Line, native_s: float) -> Machine:
    return Machine(tuple(range(size)), Line(), link, Line(), ((1.0, native_s), (1e9, 1e3 * native_s)))


def predict(machine: Machine, nbytes: int, cost: CodecCost | None, codec=QSGD()) -> dict[str, float]:  # noqa: B008
    """Seconds of the ways that a bucket of float32 can go."""
    values = torch.zeros(nbytes // 4)
    bucket = Bucket(0, codec, values, {}, {})
    return AutoConfig(codec=codec).build(0)._predicted(machine, bucket, {} if cost is None else {codec: cost})


def given(monkeypatch, known: Machine, cost: CodecCost = CODEC) -> None:
    def codec_cost(_world, codec, *_):
        return replace(cost, ratio=2.0) if isinstance(codec, Half) else cost

    monkeypatch.setattr(auto, "calibrate", lambda _world, _s: known)
    monkeypatch.setattr(auto, "codec_cost", codec_cost)


def trained(size: int, config, steps: int, state=None, models=None):
    """Parameters, own states and exchanges of ranks that take some steps, going on from states if they are given."""
    models = copy.deepcopy(models) if models else [network() for _ in range(size)]

    def program(t):
        exchange = Exchange(World(t), models[t.rank].named_parameters(), config, mean=True)
        first = 0
        if state is not None:
            exchange.load_state_dict(state)
            first = state[0]["step"]
        descend(World(t), exchange, range(first, first + steps), models[t.rank], 0.05)
        return flat(models[t.rank]), exchange

    results = run_ranks(size, program)
    return [parameters for parameters, _ in results], [exchange for _, exchange in results], models


def algorithms(exchange: Exchange) -> list[str]:
    return [choice.algorithm for choice in exchange.choices.buckets]


@pytest.mark.parametrize(
    ("known", "cost", "config", "same_as", "way"),
    [
        (machine(3, SLOW, 10.0), FREE, {"bounded": Bounded()}, RingConfig(codec=Bounded()), "bounded"),
        (machine(3, SLOW, 1e-9), DEAR, {"bounded": Bounded()}, NativeConfig(), "native"),
        (machine(3, SLOW, 10.0), FREE, {"signs": True}, VoteConfig(), "vote"),
    ],
)
def test_a_bound_and_a_vote_are_ways_where_they_save_time(monkeypatch, known, cost, config, same_as, way):
    """Bit for bit what the exchange of that name gives: buckets of another grain change no sum here."""
    given(monkeypatch, known, cost)
    results, exchanges, _ = trained(3, AutoConfig(bucket_mb=0.002, **config), 5)
    assert set(algorithms(exchanges[0])) == {way}
    expected = trained(3, same_as.model_copy(update={"bucket_mb": 0.002}), 5)[0][0]
    assert all(torch.equal(result, expected) for result in results)


def test_where_no_vote_pays_signs_are_those_of_summed_momenta(monkeypatch):
    """Packed for Signum, they move parameters as Signum does behind plain sums; and as ever, if they are not packed."""
    given(monkeypatch, machine(2, SLOW, 1e-9), DEAR)

    def moved(t, config):
        world, model = World(t), network()
        names = {p: name for name, p in model.named_parameters()}
        exchange = Exchange(world, model.named_parameters(), config, mean=True)
        optimizer_config = SignumConfig(lr=0.01, momentum=0.5)
        if config.gives == "signs":
            optimizer = optimizer_config.build_on_signs(model.parameters(), exchange.signs)
        else:
            optimizer = optimizer_config.build(model.parameters())
        for step in range(4):
            exchange.zero()
            for bucket in exchange.buckets:
                for p, view in bucket.views.items():
                    seed = derive(step, 0, t.rank, names[p])
                    view.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
            exchange.finish()
            optimizer.step()
        return flat(model)

    signs = run_ranks(2, partial(moved, config=AutoConfig(signs=True, bucket_mb=0.002)))
    sums = run_ranks(2, partial(moved, config=RingConfig(bucket_mb=0.002)))
    assert torch.equal(signs[0], signs[1])
    torch.testing.assert_close(signs[0], sums[0], rtol=0, atol=1e-6)


def test_what_cannot_go_within_a_bound_is_not_told_of(monkeypatch):
    """The longest bucket is of float64, which travels exactly."""
    given(monkeypatch, machine(2, SLOW, 1e-9), DEAR)

    def program(t):
        parameters = [("a", torch.zeros(64)), ("b", torch.zeros(1000, dtype=torch.float64))]
        named = [(name, torch.nn.Parameter(p)) for name, p in parameters]
        return Exchange(World(t), named, AutoConfig(bounded=Bounded())).choices.lines()

    for _, *warnings in run_ranks(2, program):
        assert len(warnings) == 1 and "codec bounded does not pay" in warnings[0] and "0.000256 MB" in warnings[0]


def test_signs_leave_no_use_for_a_codec():
    assert AutoConfig(signs=True).gives == "signs" and AutoConfig().gives == "sums"
    with pytest.raises(ValueError, match="signs come by votes or of plain sums"):
        AutoConfig(signs=True, codec=QSGD())


def test_short_buckets_go_natively_and_long_ones_round_the_ring():
    quick_native = Machine((0,) * 8, Line(2e-5, 1e9), Line(), Line(0.0, 1e10), ((1.0, 1e-5), (1e5, 2e-5), (1e6, 1e-2)))
    chosen = [choose(predict(quick_native, n, None)) for n in (100, 4000, 1 << 22)]
    assert chosen == ["native", "native", "ring"]


@pytest.mark.parametrize(
    ("predicted_s", "chosen"),
    [
        ({"native": 3, "doubling": 2, "ring": 1}, "ring"),
        ({"native": 3, "doubling": 2, "ring": 1, "two_phase": 0.96}, "ring"),
        ({"native": 3, "doubling": 2, "ring": 1, "two_phase": 0.85}, "two_phase"),
        ({"native": 3, "doubling": 2, "ring": 1, "two_phase": 0.85, "two_phase_by_nodes": 0.5}, "two_phase_by_nodes"),
        ({"native": 3, "doubling": 2, "ring": 1, "half_ring": 0.5}, "half_ring"),
        ({"ring": 1, "half_ring": 0.96, "two_phase": 0.93}, "half_ring"),
        ({"ring": 1, "half_ring": 0.96, "two_phase": 0.91}, "two_phase"),
        ({"ring": 1, "half_ring": 0.98, "two_phase": 0.94}, "two_phase"),
    ],
)
def test_a_codec_must_be_worth_what_it_loses(predicted_s, chosen):
    assert choose(predicted_s) == chosen


def test_nodes_that_share_a_link_make_lanes():
    m = Machine((0, 0, 0, 0, 1, 1, 1, 1), Line(1e-6, 1e10), Line(1e-4, 1e8), Line(0.0, 1e10), ((1.0, 1.0),))
    assert choose(predict(m, 1 << 22, CODEC)) == "two_phase_by_nodes"
    assert "two_phase_by_nodes" not in predict(machine(4, QUICK, 1.0), 1 << 22, CODEC)


@pytest.mark.parametrize(
    ("known", "cost", "codec", "same_as", "expected"),
    [
        (machine(3, QUICK, 1.0), CODEC, None, RingConfig(), {"ring", "doubling"}),
        (machine(3, SLOW, 1e-9), CODEC, None, RingConfig(), {"native"}),
        (machine(3, SLOW, 10.0), FREE, QSGD(bits=4), TwoPhaseConfig(codec=QSGD(bits=4)), {"two_phase"}),
        (machine(3, SLOW, 10.0), FREE, TopK(fraction=0.1), TwoPhaseConfig(codec=TopK(fraction=0.1)), {"two_phase"}),
        (machine(3, SLOW, 10.0), FREE, Half(), None, {"half_ring"}),
        (machine(3, SLOW, 1e-9), DEAR, QSGD(bits=4), RingConfig(), {"native"}),
    ],
)
def test_a_run_is_that_of_what_was_chosen(monkeypatch, known, cost, codec, same_as, expected):
    given(monkeypatch, known, cost)
    config = AutoConfig(bucket_mb=0.002) if codec is None else AutoConfig(codec=codec, bucket_mb=0.002)
    results, exchanges, _ = trained(3, config, 5)
    assert all(torch.equal(result, results[0]) for result in results)
    assert set(algorithms(exchanges[0])) <= expected
    assert all(algorithms(exchange) == algorithms(exchanges[0]) for exchange in exchanges)
    if same_as is not None:
        expected_parameters = trained(3, same_as.model_copy(update={"bucket_mb": 0.002}), 5)[0][0]
        torch.testing.assert_close(results[0], expected_parameters, rtol=1e-5, atol=1e-6)


def test_measured_choices_keep_replicas_equal():
    """Nothing is given here: the machine is measured, as in a run."""
    small = PerTensor(otherwise=QSGD(bits=4), rules=(Rule(max_dims=1),))
    results, exchanges, _ = trained(3, AutoConfig(codec=small, bucket_mb=0.002, calibration_s=0.1), 10)
    assert all(torch.equal(result, results[0]) for result in results)
    choices = exchanges[0].choices
    assert choices.lap().shape == (10, len(exchanges[0].buckets))
    assert set(json.loads(choices.attributes()["calibration"])["codecs"]) == {"half", "qsgd"}


@pytest.mark.parametrize("codec", [QSGD(bits=4), TopK(fraction=0.1)])
def test_a_run_that_goes_on_keeps_its_choice_bit_for_bit(monkeypatch, codec):
    """The machine looks otherwise after the restart, and would choose otherwise."""
    config = AutoConfig(codec=codec, bucket_mb=0.002)
    given(monkeypatch, machine(3, SLOW, 10.0), FREE)
    straight = trained(3, config, 8)[0][0]
    _, exchanges, models = trained(3, config, 5)
    states = [exchange.rank_state_dict() for exchange in exchanges]
    given(monkeypatch, machine(3, SLOW, 1e-9), DEAR)
    anew = trained(3, config, 1)[1][0]
    resumed, exchanges, _ = trained(3, config, 3, states, models)
    assert set(algorithms(anew)) == {"native"} and set(algorithms(exchanges[0])) == {"two_phase"}
    assert torch.equal(resumed[0], straight)
    assert "as in the checkpoint" in exchanges[0].choices.lines()[0]


def test_what_is_owed_is_paid_when_the_choice_changes(monkeypatch):
    """Three ranks with top-k become two that sum exactly: the first finite sum has the debts in it, and no other."""
    config = AutoConfig(codec=TopK(fraction=0.05), bucket_mb=0.002)
    given(monkeypatch, machine(3, SLOW, 10.0), FREE)
    states = [exchange.rank_state_dict() for exchange in trained(3, config, 4)[1]]
    residuals = [r for s in states for r in s["reducer"]["lossy"]["two_phase"].values()]
    owed = sum(tensor.double().sum() for r in residuals for tensor in r.values())
    given(monkeypatch, machine(2, SLOW, 1e-9), DEAR)

    def program(t):
        exchange = Exchange(World(t), network().named_parameters(), config)
        exchange.load_state_dict(states)
        totals = []
        for step in range(3):
            exchange.zero()
            for bucket in exchange.buckets:
                bucket.values.fill_(math.nan if (step, t.rank) == (0, 1) else 0)
            exchange.finish()
            totals.append(sum(bucket.values.double().sum() for bucket in exchange.buckets))
        return algorithms(exchange), totals

    for chosen, totals in run_ranks(2, program):
        assert set(chosen) == {"native"}
        assert totals[0].isnan()
        torch.testing.assert_close(totals[1], owed, rtol=1e-5, atol=1e-6)
        assert totals[2] == 0


def test_a_codec_that_cannot_pay_is_named_once_with_its_numbers(monkeypatch):
    given(monkeypatch, machine(3, SLOW, 1e-9), DEAR)
    _, exchanges, _ = trained(3, AutoConfig(codec=QSGD(bits=4), bucket_mb=0.002), 1)
    first, *warnings = exchanges[0].choices.lines()
    assert "native" in first and len(warnings) == 1
    assert "codec qsgd does not pay here" in warnings[0] and "GB/s" in warnings[0] and "by native" in warnings[0]


def test_a_rehearsal_measures_nothing_and_says_what_auto_means():
    exchange = Exchange(World(RehearsalTransport(16)), network().named_parameters(), AutoConfig(codec=QSGD()))
    plan = exchange.plan()
    assert exchange.choices is None
    assert "native, doubling, ring; qsgd where it is at least 5 % faster" in plan["exchange"]
    assert plan["bytes a step"].startswith(f"{exchange.planned_bytes():,}")


def test_calibration_counts_no_bytes():
    def program(t, config):
        world = World(t)
        world.traffic.lap()
        Exchange(world, network().named_parameters(), config)
        return world.traffic.lap().sent_bytes

    measured, given = (
        run_ranks(2, lambda t, c=config: program(t, c)) for config in (AutoConfig(calibration_s=0.05), RingConfig())
    )
    assert measured == given


@pytest.mark.parametrize("size", [1, 2])
def test_planned_bytes_follow_the_choice(monkeypatch, size):
    given(monkeypatch, machine(size, SLOW, 10.0), FREE)

    def program(t, config):
        world = World(t)
        exchange = Exchange(world, network().named_parameters(), config)
        world.traffic.lap()
        exchange.zero()
        exchange.finish()
        return world.traffic.lap().sent_bytes - exchange.planned_bytes()

    for config in (AutoConfig(), AutoConfig(codec=Half()), AutoConfig(codec=QSGD(bits=4))):
        assert all(abs(off) <= 16 for off in run_ranks(size, partial(program, config=config)))


def test_bfloat16_is_considered_beside_a_codec():
    """Where the codec's own kernels are too slow, and the link is slow too."""
    m, codec = machine(4, SLOW, 10.0), QSGD()
    bucket = Bucket(0, codec, torch.zeros(1 << 20), {}, {})
    costs = {codec: DEAR, Half(): CodecCost(Line(), Line(), 2.0)}
    assert choose(AutoConfig(codec=codec).build(0)._predicted(m, bucket, costs)) == "half_ring"


@pytest.mark.parametrize(
    ("ready_s", "chosen"),
    [
        ([0.0, 0.0], ["two_phase", "two_phase"]),  # after the backward pass: 8 s are waited for, or 2
        ([0.0, 9.0], ["two_phase", "two_phase"]),  # the first is hidden whatever it takes
        ([0.0, 100.0, 200.0], ["ring", "ring", "native"]),  # only the last counts, which has no codec
    ],
)
def test_a_codec_is_not_used_for_what_computation_hides(ready_s, chosen):
    seconds = [{"ring": 4.0, "native": 5.0, "two_phase": 1.0}] * 2 + [{"ring": 2.0, "native": 1.0}]
    assert decide(seconds[: len(ready_s)], ready_s)[0] == chosen


def carried(trial: Trial, link) -> None:
    """Let every bucket of a trial take what the link says for the way that it goes, to the trial's last step."""
    step = trial.begin
    while step <= trial.last:
        for index in range(len(trial.ways)):
            trial.record(index, step, link(index, trial.way(index, step)))
        begun_s = 2.0 * step + 50 * (step > 12)  # an evaluation goes before one step
        trial.ready([begun_s + 4 * index for index in range(len(trial.ways))])
        step += 1


def test_a_trial_gives_runs_and_keeps_the_medians_without_their_first_steps():
    trial = Trial(10, [["ring", "native"], ["ring"]])
    assert trial.last == 10 + 2 * 4 - 1 and not trial.complete
    took = {"ring": iter([50.0, 3.0, 99.0, 2.0]), "native": iter([0.0, 5.0, 6.0, 1.0])}
    carried(trial, lambda index, way: 7.0 if index else next(took[way]))
    assert trial.complete and trial.step_s == 2
    measured = trial.measured(trial.table())
    assert measured == ([{"ring": 3.0, "native": 5.0}, {"ring": 7.0}], [0.0, 4.0])


@pytest.mark.parametrize(
    ("step_s", "run", "rounds"), [(1e-6, 40, 5), (0.01, 10, 5), (0.2, 4, 5), (0.5, 4, 2), (2.0, 4, 1)]
)
def test_runs_are_longer_and_more_where_steps_are_short(step_s, run, rounds):
    """Two ways: the last runs follow the first round, or take its place where it was all."""
    trial = Trial(10, [["ring", "native"], ["ring"]])
    carried(trial, lambda *_: step_s)
    trial.plan(step_s)
    assert (trial.run, trial.rounds, trial.complete) == (run, rounds, rounds == 1)
    assert trial.last == 10 + 8 * (rounds > 1) + 2 * run * rounds - 1


@pytest.mark.parametrize(
    ("kb_per_ms", "best"),
    [(125, "half_ring"), (1e9, "native")],  # exact sums use up the credit; nothing does
)
def test_a_link_that_gives_credit_misleads_no_trial(kb_per_ms, best):
    """After a rest 262 kB may go at once, as behind a token bucket of 2 ms at 1 Gbit/s. Sums of 264 kB are the quickest
    as long as other ways leave them the credit, and slower than bfloat16's 133 kB behind themselves.
    """
    ways = {"bounded": (1.3, 60), "native": (0.95, 264), "ring": (1.05, 264), "half_ring": (1.1, 133)}
    credit = 262.0

    def link(_index, way):
        nonlocal credit
        unhindered_ms, sent = ways[way]
        credit = min(262.0, credit + 0.75 * kb_per_ms)  # while the step computes
        took_ms = max(unhindered_ms, (sent - credit) / kb_per_ms)
        credit = min(262.0, credit + took_ms * kb_per_ms - sent)
        return took_ms

    trial = Trial(0, [list(ways)])
    carried(trial, link)
    trial.plan(2e-3)
    carried(trial, link)
    seconds, ready_s = trial.measured(trial.table())
    assert decide(seconds, ready_s)[0] == [best]


@pytest.mark.parametrize(
    ("half_s", "two_phase_s", "chosen"),
    [(0.98, 0.96, "ring"), (0.96, 0.92, "half_ring"), (0.96, 0.9, "two_phase"), (2.0, 0.94, "two_phase")],
)
def test_what_loses_more_must_save_more(half_s, two_phase_s, chosen):
    ways = {"ring": 1.0, "native": 1.1, "half_ring": half_s, "two_phase": two_phase_s}
    assert decide([ways], [0.0]) == ([chosen], ways[chosen], 1.0)


@pytest.mark.parametrize("codec", [None, TopK(fraction=0.1)])
def test_a_choice_made_again_is_told_and_loses_nothing(monkeypatch, codec):
    """All ways carry in turn, and what top-k owes comes out with exact sums at the end. One trial is on at a time."""
    given(monkeypatch, machine(3, SLOW, 1e-9), CODEC)
    monkeypatch.setattr(auto, "decide", lambda seconds, _: (["doubling"] * len(seconds), 0.5, 0.25))
    monkeypatch.setattr(trials, "LONGEST_RUN", 4)
    monkeypatch.setattr(trials, "ROUNDS", 2)
    monkeypatch.setattr(trials, "TRIAL_S", 1e9)
    config = AutoConfig(bucket_mb=0.002, measure_again=(2, 5), **({} if codec is None else {"codec": codec}))

    def program(t):
        exchange = Exchange(World(t), network().named_parameters(), config)
        came, went = torch.zeros(()).double(), torch.zeros(()).double()
        for step in range(80):
            exchange.zero()
            for bucket in exchange.buckets:
                if step < 70:
                    bucket.values.copy_(torch.randn(bucket.values.shape, generator=torch.Generator().manual_seed(step)))
                came += 3 * bucket.values.double().sum()
            exchange.finish()
            went += sum(bucket.values.double().sum() for bucket in exchange.buckets)
        return algorithms(exchange), exchange.choices.lines(), came, went

    for chosen, lines, came, went in run_ranks(3, program):
        assert set(chosen) == {"doubling"}
        ways = 3 if codec is None else 5
        assert f"as measured before step {2 + 3 * 4 * ways};" in lines[0]
        assert "500 ms a step are waited for, 250 ms with exact" in lines[1]
        assert "goes by doubling" in lines[2] and "no longer by native" in lines[2]
        torch.testing.assert_close(went, came, rtol=0, atol=1.0)  # bfloat16 rounds; top-k owes up to 190
