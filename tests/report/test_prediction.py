"""Runs made from a known model: what is fitted is what they were made of, and more ranks take what they would take."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from hpcopt.errors import MetricsError
from hpcopt.report.__main__ import main
from hpcopt.report.prediction import predict
from hpcopt.report.prediction_views import figures
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.store.metrics import MetricsFile

PHASES = ("forward", "backward", "exchange", "encode", "comm", "update")
TARGETS = (128, 1024, 8192)
PARAMETERS_BYTES = 8_000_000
BUCKETS = 2


@dataclass(frozen=True)
class Machine:
    """Seconds a message and a byte; what each exchange makes of a gradient, and what that takes, dense and in votes."""

    alpha_s: float = 30e-6
    beta_s: float = 8e-9
    shares: tuple[tuple[str, float, float], ...] = (("ring", 1.0, 0.0), ("vote", 1 / 32, 0.004))

    def phases(self, exchange: str, ranks: int, samples: float, overlap: bool, load: float = 1.0) -> dict[str, float]:
        _, share, encode_s = next(each for each in self.shares if each[0] == exchange)
        backward_s = load * (0.002 + 0.0004 * samples)
        comm_s = self.alpha_s * 2 * (ranks - 1) * BUCKETS
        comm_s += self.beta_s * 2 * (ranks - 1) / ranks * PARAMETERS_BYTES * share
        exposed_s = whole_s = comm_s + load * encode_s
        if overlap:
            exposed_s = max(whole_s / BUCKETS, whole_s - (1 - 1 / BUCKETS) * backward_s)
        return {
            "forward": load * 0.0002 * samples,
            "backward": backward_s,
            "exchange": exposed_s + self.alpha_s * math.ceil(math.log2(ranks)),
            "encode": load * encode_s,
            "comm": comm_s,
            "update": load * 0.001,
        }

    def step_s(self, exchange: str, ranks: int, samples: float, overlap: bool) -> float:
        phases = self.phases(exchange, ranks, samples, overlap)
        return sum(phases[name] for name in ("forward", "backward", "exchange", "update"))


def run_of(folder, machine, exchange, ranks, *, overlap=True, batch=1024, seed=0, noise=0.0, slower=0.0, load=0.5):
    """A run of 40 steps, all of which took the same. `slower` is what the model knows nothing of."""
    rng = np.random.default_rng([seed, ranks, len(exchange)])
    seconds = machine.phases(exchange, ranks, batch / ranks, overlap, max(1.0, load))
    seconds = {name: s * float(1 + noise * rng.standard_normal()) for name, s in seconds.items()}
    seconds["exchange"] += slower * ranks**2
    step_s = sum(seconds[name] for name in ("forward", "backward", "exchange", "update"))
    share = next(share for name, share, _ in machine.shares if name == exchange)
    dense_bytes = 2 * (ranks - 1) * PARAMETERS_BYTES // ranks
    config = {
        "run": {"name": exchange, "seed": seed, "backend": "mpi"},
        "workload": {"batch": batch},
        "solver": {"name": "data_parallel"},
        "exchange": {"name": exchange, "overlap": overlap, "bucket_mb": PARAMETERS_BYTES / BUCKETS / 1e6},
    }
    folder.mkdir(parents=True)
    file = MetricsFile(folder / "metrics.h5")
    attributes = {
        "title": exchange,
        "hostnames": [f"n{rank}" for rank in range(ranks)],
        "threads_per_core": load,
        "oversubscribed": load > 1,
    }
    file.create(ranks, PHASES, {"config": json.dumps(config), **attributes})
    step = np.arange(1, 41)
    columns = {"step": step, "step_s": np.full(40, step_s), "samples": step * batch}
    phase_s = np.tile([seconds[name] for name in PHASES], (40, ranks, 1))
    sent = np.full((40, ranks), round(dense_bytes * share))
    file.append_steps(columns, phase_s, sent, np.full((40, ranks), dense_bytes))
    run = read_run(folder)
    return run, summarise(run)


def sweep(folder, machine=Machine(), sizes=(1, 2, 4, 8), repeats=1, **options):
    return [
        run_of(folder / f"{exchange}-{ranks}-{seed}", machine, exchange, ranks, seed=seed, **options)
        for exchange in ("ring", "vote")
        for ranks in sizes
        for seed in range(repeats)
    ]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_known_model_is_found_again(tmp_path, overlap):
    machine = Machine()
    found = predict(sweep(tmp_path, overlap=overlap), TARGETS)
    assert found.latency.seconds == pytest.approx(machine.alpha_s, rel=1e-3)
    assert found.s_per_byte.seconds == pytest.approx(machine.beta_s, rel=1e-3)
    assert [(h.series, h.ranks) for h in found.held_out] == [("ring", 8), ("vote", 8)]
    assert max(abs(h.error) for h in found.held_out) < 1e-3
    assert [(row.kind, row.ranks) for row in found.rows] == [
        (k, p) for k in ("strong", "weak") for p in (128, 1024, 8192)
    ]
    for row in found.rows:
        samples = 1024 / row.ranks if row.kind == "strong" else 128
        expected = {name: machine.step_s(name, row.ranks, samples, overlap) for name in ("ring", "vote")}
        if samples < 1:
            assert row.steps == {"ring": None, "vote": None}
            assert row.fastest is None
            continue
        assert {name: e.seconds for name, e in row.steps.items()} == pytest.approx(expected, rel=1e-3)
        assert row.fastest == min(expected, key=expected.__getitem__)


def test_who_wins_depends_on_the_links(tmp_path):
    for name, beta_s, winner in (("slow", 8e-9, "vote"), ("fast", 1e-11, "ring")):
        found = predict(sweep(tmp_path / name, Machine(beta_s=beta_s)), TARGETS)
        assert {row.fastest for row in found.rows} == {winner, None}


def test_noise_gives_intervals_around_the_truth(tmp_path):
    machine, within = Machine(), []
    for trial in range(3):
        found = predict(sweep(tmp_path / str(trial), machine, repeats=2 + trial, noise=0.05), TARGETS)
        for row in found.rows:
            for name, estimate in row.steps.items():
                if estimate is not None:
                    samples = 1024 / row.ranks if row.kind == "strong" else 128
                    truth = machine.step_s(name, row.ranks, samples, True)
                    assert estimate.low_s < estimate.seconds < estimate.high_s
                    within.append(estimate.low_s < truth < estimate.high_s)
    assert np.mean(within) > 0.7  # of 90 % intervals; the trials' rows are not independent


def test_what_the_model_leaves_out_shows_in_the_hold_out(tmp_path):
    found = predict(sweep(tmp_path, slower=1e-3), TARGETS)
    assert [held.series for held in found.held_out if held.error < -0.2] == ["ring", "vote"]


def test_computing_that_shared_its_cores_is_predicted_with_a_core_a_thread(tmp_path):
    machine = Machine()
    runs = [run_of(tmp_path / f"{p}", machine, "vote", p, load=p / 2) for p in (1, 2, 4, 8)]
    found = predict(runs, TARGETS)
    assert found.oversubscribed
    assert abs(found.held_out[0].error) < 1e-3
    weak = found.rows[3]
    assert weak.steps["vote"].seconds == pytest.approx(machine.step_s("vote", 128, 128, True), rel=1e-3)


def test_nothing_is_predicted_from_runs_that_cannot_carry_it(tmp_path):
    """Each time the reason is told, and nothing else."""
    ring = [run_of(tmp_path / f"ring{p}", Machine(), "ring", p) for p in (1, 2, 4)]
    unlike = run_of(tmp_path / "unlike", Machine(), "ring", 4)
    unlike[0].config["workload"]["model"] = {"name": "another"}
    one_host = [run_of(tmp_path / f"one{p}", Machine(), "ring", p) for p in (1, 2, 4)]
    for run, _ in one_host:
        run.attributes["hostnames"] = ["n0"] * run.ranks
    for runs, reason in (
        ([], "none of the runs is data parallelism"),
        (ring[1:2], "ring ran on 2 ranks only"),
        ([*ring, run_of(tmp_path / "vote", Machine(), "vote", 4)], "vote ran on 4 ranks only"),
        (ring[:2], "no interval"),
        ([*ring, unlike], "differ in what they train"),
        (one_host, "links between hosts"),
    ):
        with pytest.raises(MetricsError, match=reason):
            predict(runs, TARGETS)


def test_a_refused_prediction_is_one_sentence(tmp_path, capsys):
    run_of(tmp_path / "ring", Machine(), "ring", 2)
    assert main([str(tmp_path / "ring"), "--predict", "128"]) == 2
    assert capsys.readouterr().err == "hpcopt report: these runs cannot predict more ranks: ring ran on 2 ranks only\n"
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "ring"), "--predict", "many"])


def test_terminal_and_plots_say_what_was_predicted_and_how_well(tmp_path, capsys):
    found = predict(sweep(tmp_path, repeats=2, noise=0.02), TARGETS)
    held = found.held_out[0]
    paths = [*map(str, tmp_path.iterdir())]
    assert main(paths) == 0
    assert "Prediction" not in capsys.readouterr().out
    assert main([*paths, "--predict", "128,1024,8192"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Held out, ring on 8 ranks: predicted {held.predicted.seconds * 1e3:.3g} ms" in text
    assert f"{held.error:+.0%}" in text
    strong, weak = figures(found)
    assert strong.table["ranks"] == [128, 1024] * 2  # a batch of 1,024 does not reach 8,192 ranks
    assert weak.table["ranks"] == [128, 1024, 8192] * 2
    assert weak.table["step_s"][:3] == [row.steps["ring"].seconds for row in found.rows[3:]]
    for figure in (strong, weak):
        json.dumps([figure.data, figure.layout], allow_nan=False)
        assert "Not measured" in figure.definition
        assert f"{held.error:+.0%}" in figure.definition
