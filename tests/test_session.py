"""A loop of somebody's own, in a Session: what a job's run has, and the bits of an undisturbed one."""

import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hpcopt
from hpcopt.checkpoint import main as checkpoint_command
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.compress import QSGD, TopK
from hpcopt.errors import CheckpointError, DataError, DivergedError, HpcoptError, JobError, MetricsError
from hpcopt.exchange import TwoPhaseConfig, VoteConfig
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.runs import open_run
from hpcopt.session import Requeue
from hpcopt.shapes.stats import Scalar
from hpcopt.solvers.local.steps import LocalStepsConfig
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.submit import main as submit_command

FEATURES = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
LABELS = (FEATURES.sum(1) > 0).long()
LINE = TensorDataset(FEATURES, LABELS)


class Noisy(Dataset):
    """A data set that draws from every generator there is."""

    def __len__(self) -> int:
        return len(LINE)

    def __getitem__(self, index: int):
        x, y = LINE[index]
        return x + torch.rand(3) + random.random() + float(np.random.random()), y


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(0.1), torch.nn.Linear(5, 2))


def loader_of(kind: str, session: hpcopt.Session) -> DataLoader:
    if kind == "ours":
        return DataLoader(Noisy(), batch_sampler=session.sampler(LINE, batch=8))
    if kind == "shuffled":
        return DataLoader(Noisy(), batch_size=8, shuffle=True)
    if kind == "generator":
        return DataLoader(Noisy(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(7))
    return DataLoader(LINE, batch_size=8, shuffle=True, num_workers=1, multiprocessing_context="fork")


def script(path: Path, steps: int, kind: str = "shuffled", **run) -> dict[str, torch.Tensor]:
    """Train with everything that may be kept; five steps are an epoch."""
    with hpcopt.Session(path, steps=steps, world=alone(), device="cpu", checkpoint_every=3, **run) as session:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        own, words, dice = torch.Generator().manual_seed(3), np.random.default_rng(4), random.Random(5)
        average, count, best = torch.zeros(2), np.zeros(1), {"loss": float("inf"), "step": 0}
        session.keep(model=model, optimizer=optimizer, schedule=schedule, own=own, words=words, dice=dice)
        session.keep(average=average, count=count, best=best)
        for x, y in session.steps(loader_of(kind, session)):
            optimizer.zero_grad()
            with session.clock("forward"):
                loss = F.cross_entropy(model(x + 0.1 * torch.rand(3, generator=own)), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            average.mul_(0.9).add_(0.1 * (words.random() + dice.random()))
            count += 1
            best |= {"loss": min(best["loss"], loss.item()), "step": session.step}
            session.log(loss=loss, learning_rate=optimizer.param_groups[0]["lr"], drawn=torch.rand(1))
            if session.every(4):
                session.evaluation(higher={"accuracy": 0.5}, lower={"error": loss})
    rest = {"average": average, "count": torch.from_numpy(count), "best": torch.tensor(list(best.values()))}
    return {**model.state_dict(), **rest}


def losses(path: Path) -> np.ndarray:
    return read_run(path).columns["loss"]


@pytest.mark.parametrize("kind", ["ours", "shuffled", "generator", "workers"])
def test_what_goes_on_in_the_middle_of_an_epoch_ends_with_the_same_bits(tmp_path, kind):
    straight = script(tmp_path / "straight", 13, kind)
    for steps in (8, 10):  # the second ends with an epoch
        script(tmp_path / "cut", steps, kind)
        shutil.rmtree(Checkpoints(tmp_path / "cut/checkpoints", 1).path(8)) if steps == 8 else None  # as if killed at 6
    resumed = script(tmp_path / "cut", 13, kind)
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name
    for column in ("loss", "drawn", "learning_rate"):
        both = (read_run(tmp_path / name).columns[column] for name in ("straight", "cut"))
        np.testing.assert_array_equal(*both, err_msg=column)


def test_schedule_free_is_saved_at_its_mean_and_no_checkpoint_moves_it(tmp_path):
    """Checkpoints in between, and a stop with a new start, leave every bit of the training."""
    schedule_free = pytest.importorskip("schedulefree")

    def ended(name: str, steps: int = 7, **run) -> dict[str, torch.Tensor]:
        with hpcopt.Session(tmp_path / name, steps=steps, world=alone(), device="cpu", **run) as session:
            model = network()
            optimizer = schedule_free.AdamWScheduleFree(model.parameters(), lr=0.1)
            session.keep(model=model, optimizer=optimizer)
            optimizer.train()
            for x, y in session.steps(DataLoader(LINE, batch_sampler=session.sampler(LINE, batch=8))):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                assert optimizer.param_groups[0]["train_mode"]
        return {name: value.clone() for name, value in model.state_dict().items()}

    straight, often = ended("straight"), ended("often", checkpoint_every=2)
    ended("cut", steps=3)
    for name, value in ended("cut").items():
        assert torch.equal(value, straight[name])
        assert torch.equal(often[name], straight[name])
    run = open_run(tmp_path / "straight")
    assert torch.equal(run.weights()["0.weight"], straight["0.weight"])


def distributed(path: Path, steps: int, config=None, batch: int = 12, **options):
    """The same classifier on any number of ranks; gives what each rank's model became."""

    def program(transport) -> torch.Tensor:
        world = World(transport)
        with hpcopt.Session(path, steps=steps, world=world, device="cpu", **options) as session:
            generator = torch.Generator().manual_seed(world.rank)  # rank 0's parameters count
            weight = torch.nn.Linear(3, 2)
            torch.nn.init.normal_(weight.weight, generator=generator)
            torch.nn.init.zeros_(weight.bias)
            optimizer = torch.optim.SGD(weight.parameters(), lr=0.5)
            session.keep(model=weight, optimizer=optimizer)
            exchange = session.exchange(weight, config)
            sampler = session.sampler(LINE, batch, uneven=batch % world.size > 0)
            for x, y in session.steps(DataLoader(LINE, batch_sampler=sampler)):
                exchange.zero()
                loss = session.weight * F.cross_entropy(weight(x), y)
                loss.backward()
                exchange.finish()
                optimizer.step()
                session.log(loss=loss, samples_here=Scalar(len(y), "sum"), most=Scalar(float(len(y)), "max"))
            correct, seen = session.sum((weight(x).argmax(1) == y).sum(), len(y))
            session.evaluation(higher={"accuracy": correct / seen})
        return weight.weight.detach().clone()

    return program


@pytest.mark.parametrize("batch", [12, 13])
def test_the_same_script_has_the_same_curve_on_one_and_three_ranks(tmp_path, batch):
    for ranks in (1, 3):
        found = run_ranks(ranks, distributed(tmp_path / f"on-{ranks}", 7, batch=batch))
        assert all(torch.equal(found[0], other) for other in found)
    one, three = losses(tmp_path / "on-1"), losses(tmp_path / "on-3")
    np.testing.assert_allclose(one, three, rtol=1e-5)
    run = read_run(tmp_path / "on-3")
    np.testing.assert_array_equal(run.columns["samples_here"], batch)
    np.testing.assert_array_equal(run.columns["most"], -(-batch // 3))
    assert run.sent_bytes.min() > 0 and run.better == {"accuracy": "higher"}
    assert summarise(run).loss == pytest.approx(three[-1])


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    config = TwoPhaseConfig(codec=QSGD(bits=4))
    run_ranks(1, distributed(tmp_path / "one", 8))
    run_ranks(3, distributed(tmp_path / "run", 4))
    run_ranks(2, distributed(tmp_path / "run", 8))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "one"), rtol=1e-5)
    run_ranks(3, distributed(tmp_path / "straight", 8, config))
    for steps in (4, 8):
        run_ranks(3, distributed(tmp_path / "cut", steps, config))
    np.testing.assert_array_equal(losses(tmp_path / "cut"), losses(tmp_path / "straight"))
    run_ranks(3, distributed(tmp_path / "vote", 4, VoteConfig()))
    assert np.isfinite(losses(tmp_path / "vote")).all()


def trained_apart(path: Path, steps: int):
    """Local steps, in rounds of three whose means land a step late; gives what all ranks have in common."""

    def program(transport) -> torch.Tensor:
        with hpcopt.Session(path, steps=steps, world=World(transport), device="cpu") as session:
            model = torch.nn.Linear(3, 2)
            for p in model.parameters():
                torch.nn.init.zeros_(p)  # ranks that are threads share a generator
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
            session.keep(model=model, optimizer=optimizer)
            local = session.local(model, optimizer, LocalStepsConfig(every=3, delay=1))
            for x, y in session.steps(DataLoader(LINE, batch_sampler=session.sampler(LINE, 12))):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                local.step()
                session.log(loss=loss)
        with local.stated():
            return model.weight.detach().clone()

    return program


def test_local_steps_go_on_within_a_round_and_on_other_ranks(tmp_path):
    """Stopped after 6 steps, a mean is under way."""
    straight = run_ranks(2, trained_apart(tmp_path / "straight", 8))
    run_ranks(2, trained_apart(tmp_path / "cut", 6))
    cut = run_ranks(2, trained_apart(tmp_path / "cut", 8))
    assert torch.equal(straight[0], straight[1])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(straight, cut, strict=True))
    more = run_ranks(3, trained_apart(tmp_path / "cut", 11))
    assert all(torch.equal(more[0], other) and other.isfinite().all() for other in more)


class Opaque:
    def state_dict(self):
        return {"function": print}

    def load_state_dict(self, state):
        pass


REFUSED = {
    "function": (print, "of type builtin_function_or_method: a checkpoint holds data"),
    "number": (3, "of type int: a checkpoint holds data, so it must be a module"),
    "class": (torch.nn.Linear, "of type type: a checkpoint holds data"),
    "state": (Opaque(), r"its state is not data \(tree\[0\]\['function'\]: a checkpoint holds data, not builtin_func"),
    "dict": ({"model": object()}, r"its state is not data .*not object"),
    "array": (np.array(["a"]), "its state is not data"),
}


@pytest.mark.parametrize("thing", REFUSED)
def test_what_cannot_be_kept_is_refused_with_the_reason_on_every_rank(tmp_path, thing):
    value, reason = REFUSED[thing]

    def program(transport):
        with hpcopt.Session(tmp_path / "run", steps=1, world=World(transport), device="cpu") as session:
            with pytest.raises(HpcoptError, match=reason):
                session.keep(it=value)
            session.keep(it=torch.zeros(1))

    run_ranks(2, program)


def begin(path: Path, steps: int = 4, **options) -> hpcopt.Session:
    return hpcopt.Session(path, steps=steps, world=alone(), device="cpu", **options)


def kept_for_a_step(path: Path, steps: int, **things) -> None:
    with begin(path, steps) as session:
        session.keep(**things)
        for step in session.steps():
            session.log(loss=1 / step)


def test_names_and_values_in_a_checkpoint_are_those_that_are_kept(tmp_path, capsys):
    kept_for_a_step(tmp_path, 1, a=torch.zeros(2), b={"x": 1})
    with pytest.raises(CheckpointError, match=r"has no `c`, only a, b: keep the same things .*--fresh"):
        kept_for_a_step(tmp_path, 2, c=torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"does not fit the script's `a`: it is of shape \(2,\), not \(3,\)"):
        kept_for_a_step(tmp_path, 2, a=torch.zeros(3))
    with pytest.raises(CheckpointError, match="does not fit the script's `b`"):
        kept_for_a_step(tmp_path, 2, b=torch.nn.Linear(1, 1))
    kept_for_a_step(tmp_path, 2, a=torch.zeros(2))
    assert "warning: the checkpoint also has b, which nobody keeps any more" in capsys.readouterr().out
    with begin(tmp_path / "other") as session:
        session.keep(a={})
        with pytest.raises(JobError, match="there is one of that name"):
            session.keep(a={})
        next(iter(session.steps()))
        with pytest.raises(JobError, match="stands before the loop"):
            session.keep(b={})
        with pytest.raises(JobError, match="one loop"):
            next(iter(session.steps()))


def settings_said(path: Path, capsys, lr: float, gamma: float | None = None) -> str:
    """What a start says; it trains two steps on."""
    capsys.readouterr()
    done = 0 if not path.exists() else Checkpoints(path / "checkpoints", 1).steps()[-1]
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with begin(path, done + 2) as session:
        more = {} if gamma is None else {"schedule": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)}
        session.keep(model=model, optimizer=optimizer, **more)
        for _ in session.steps():
            optimizer.step()
            for schedule in more.values():
                schedule.step()
    return capsys.readouterr().out


def test_another_learning_rate_than_the_checkpoints_is_said(tmp_path, capsys):
    assert "where the script has" not in settings_said(tmp_path / "own", capsys, 0.5)
    assert "where the script has" not in settings_said(tmp_path / "own", capsys, 0.5)
    said = settings_said(tmp_path / "own", capsys, 0.25)
    assert "`optimizer` goes on with the checkpoint's lr = 0.5, where the script has 0.25" in said
    assert "momentum" not in said
    for _ in range(2):
        assert "where the script has" not in settings_said(tmp_path / "scheduled", capsys, 0.5, gamma=0.5)


def wrapped(path: Path, steps: int) -> list:
    """Parameters of two replicas whose gradients travel in 2 bits, after so many steps."""

    def program(t):
        with hpcopt.Session(path, steps=steps, world=World(t), device="cpu", checkpoint_every=3) as session:
            replicator = hpcopt.Replicator(session.world)
            model = torch.nn.Linear(3, 2)
            for p in model.parameters():
                torch.nn.init.zeros_(p)  # ranks that are threads share a generator
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            replicator.wrap_optimizer(optimizer, TwoPhaseConfig(codec=TopK(fraction=0.2)))
            session.keep(model=model, optimizer=optimizer)
            for step in session.steps():
                optimizer.zero_grad()
                rows = slice(step % 5 * 8 + 4 * t.rank, step % 5 * 8 + 4 * t.rank + 4)
                F.cross_entropy(model(FEATURES[rows]), LABELS[rows]).backward()
                optimizer.step()
            return [p.detach().clone() for p in model.parameters()]

    return run_ranks(2, program)


def test_what_the_exchange_of_a_wrapped_optimizer_owes_is_kept(tmp_path):
    undisturbed = wrapped(tmp_path / "whole", 8)
    wrapped(tmp_path / "parts", 5)
    for mine, theirs in zip(wrapped(tmp_path / "parts", 8), undisturbed, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_a_state_of_each_ranks_own_needs_as_many_ranks(tmp_path):
    class Count:
        def __init__(self, n):
            self.n = n

        def state_dict(self):
            return {"n": self.n}

        def load_state_dict(self, state):
            self.n = state["n"]

    def program(steps):
        def of_rank(transport):
            count, generator = Count(transport.rank), np.random.default_rng(transport.rank)
            with hpcopt.Session(tmp_path / "run", steps=steps, world=World(transport), device="cpu") as session:
                session.keep(generator=generator)
                session.keep_own(count=count)
                for _ in session.steps():
                    count.n += 10
                    session.log(drawn=generator.random())
            return count.n

        return of_rank

    assert run_ranks(2, program(1)) == [10, 11]
    assert run_ranks(2, program(2)) == [20, 21]
    with pytest.raises(CheckpointError, match="Count is each rank's own, 2 ranks saved theirs, and now there are 3"):
        run_ranks(3, program(3))


def test_a_signal_checkpoints_and_asks_for_a_requeue(tmp_path):
    straight = script(tmp_path / "straight", 9)

    def stopped(self, **scalars):
        log(self, **scalars)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)

    log = hpcopt.Session.log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpcopt.Session, "log", stopped)
        with pytest.raises(Requeue) as ended:
            script(tmp_path / "run", 9)
    assert ended.value.code == 85
    about = read_run(tmp_path / "run").attributes
    assert (about["exit_code"], about["outcome"]) == (85, "told to stop by a signal")
    assert Checkpoints(tmp_path / "run/checkpoints", 1).steps()[0] == 5
    resumed = script(tmp_path / "run", 9)
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_time_budget_a_target_and_a_break_end_a_run(tmp_path):
    with pytest.raises(Requeue), begin(tmp_path / "time", time_budget=1e-3) as session:
        for _ in session.steps():
            session.log(loss=1.0)
        pytest.fail("what follows the loop is for a run that is at its end")
    target = {"metric": "error", "value": 0.3, "better": "lower"}
    for _ in range(2):  # the second time it has been reached
        with begin(tmp_path / "target", 9, stop_at=target) as session:
            for step in session.steps():
                session.evaluation(lower={"error": 1 / step})
    assert read_run(tmp_path / "target").evaluations["error"].tolist() == pytest.approx([1, 0.5, 1 / 3, 0.25])
    with begin(tmp_path / "break") as session:
        for step in session.steps():
            if step == 3:
                break
            session.log(loss=1.0)
            if step == 2:
                break
    assert Checkpoints(tmp_path / "break/checkpoints", 1).steps() == [2]
    assert read_run(tmp_path / "break").attributes["outcome"] == "ended by its script"


def test_a_loss_that_is_not_finite_ends_all_ranks(tmp_path):
    def program(transport):
        world = World(transport)
        with hpcopt.Session(tmp_path / "run", steps=9, world=world, device="cpu", checkpoint_every=1) as session:
            session.keep(state={})
            for step in session.steps():
                session.log(loss=float("nan") if (step, world.rank) == (3, 1) else 1.0)

    with pytest.raises(DivergedError, match="the loss became nan at step 3; the checkpoints of step 1 are kept"):
        run_ranks(2, program)
    assert read_run(tmp_path / "run").attributes["outcome"] == "diverged"
    with (
        pytest.raises(DivergedError, match=r"model\.weight on rank 0 is not finite"),
        begin(tmp_path / "bad") as session,
    ):
        model = torch.nn.Linear(1, 1)
        session.keep(model=model)
        for _ in session.steps():
            model.weight.data.fill_(float("nan"))


BAD_SETTINGS = [
    ({}, "Session.*give steps or epochs"),
    ({"steps": 0}, r"Session\(..., steps\): Input should be greater"),
    ({"stps": 3}, r"Session\(..., stps\): there is no such setting; there are backend"),
    ({"steps": 1, "settings": {"x": {1, 2}, "y": float("nan")}}, "no plain data"),
    ({"steps": 1, "stop_at": {"metric": "a", "value": 1}}, 'say better="higher"'),
    ({"steps": 1, "resume": True}, "--resume, but .* has no checkpoint"),
    ({"epochs": 2}, "nobody knows how long a pass"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_one_sentence(tmp_path, settings, message):
    with (
        pytest.raises(JobError, match=message),
        hpcopt.Session(tmp_path, world=alone(), **{"device": "cpu", **settings}) as session,
    ):
        next(iter(session.steps()))


def test_bad_input_in_the_loop(tmp_path):
    with (
        pytest.raises(MetricsError, match=r"`loss` is no number but a tensor of shape \(2,\)"),
        begin(tmp_path / "a") as s,
    ):
        for _ in s.steps():
            s.log(loss=torch.zeros(2))
    with pytest.raises(MetricsError, match="a loss is a mean or a sum"), begin(tmp_path / "b") as s:
        for _ in s.steps():
            s.log(loss=Scalar(1.0, "max"))
    with pytest.raises(DataError, match="pass 2 through the generator gave no batch"), begin(tmp_path / "c") as s:
        for _ in s.steps(x for x in range(2)):
            pass
    with pytest.raises(JobError, match="in the loop or after it"), begin(tmp_path / "d") as s:
        s.evaluation(higher={"a": 1})


def test_a_sampler_refuses_what_would_bend_the_curve(tmp_path):
    def program(batch, uneven=False):
        def of_rank(transport):
            with hpcopt.Session(tmp_path / "run", steps=1, world=World(transport), device="cpu") as session:
                return session.sampler(LINE, batch, uneven=uneven)

        return of_rank

    with pytest.raises(JobError, match=r"batch = 13 on 3 ranks.* Take 12 or 15; or say uneven=True.*session.weight"):
        run_ranks(3, program(13))
    for batch in (2, 41):
        with pytest.raises(JobError, match=f"batch = {batch} of 40 samples on 3 ranks"):
            run_ranks(3, program(batch))
    samplers = run_ranks(3, program(13, uneven=True))
    assert sum(sampler.weight(0) for sampler in samplers) == pytest.approx(3)
    assert sorted(i for sampler in samplers for i in next(iter(sampler))) == sorted(
        int(i) for i in samplers[0]._order.indices(0, 0, 1)
    )


def test_another_order_of_samples_is_refused(tmp_path):
    run_ranks(1, distributed(tmp_path / "run", 2))
    with pytest.raises(JobError, match="made with batch = 12, not 8"):
        run_ranks(1, distributed(tmp_path / "run", 3, batch=8))
    with pytest.raises(JobError, match=r"\[run\] seed = 0, not 1"):
        run_ranks(1, distributed(tmp_path / "run", 3, seed=1))


def test_commands_treat_the_run_like_any_other(tmp_path, capsys, monkeypatch):
    trained = script(tmp_path / "run", 4, settings={"width": 5, "none": None})
    run = hpcopt.open_run(tmp_path / "run")
    assert run.described["settings"] == {"width": 5}
    assert all(torch.equal(run.weights()[name], trained[name]) for name in run.weights())
    assert run.metrics()["loss"].shape == (4,)
    with pytest.raises(JobError, match=r"a run of a script, not of a job.*weights\(\)"):
        _ = run.job
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        run.weights("best")
    assert checkpoint_command(["verify", str(tmp_path / "run")]) == 0
    assert checkpoint_command(["ls", str(tmp_path / "run")]) == 0
    assert checkpoint_command(["export", str(tmp_path / "run"), str(tmp_path / "model.pt")]) == 0
    assert "step_00000004" in (out := capsys.readouterr().out) and "model.pt: 4 tensors" in out
    monkeypatch.chdir(tmp_path)
    Path("my train.py").write_text("import hpcopt")
    assert submit_command(["my train.py", "--array", "0-3", "--dry-run", "--", "--lr", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "export HPCOPT_SEED=$SLURM_ARRAY_TASK_ID" in lines
    assert "export HPCOPT_RUN_DIR=runs/'my train'-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" in lines
    assert """run_ranks "$RANKS" python 'my train.py' --lr 0.1""" in lines
    Path("bad.py").write_text("import (")
    for arguments, message in {
        ("bad.py",): "bad.py is no Python",
        ("none.py",): "cannot read the script",
        ("my train.py", "--set", "run.steps=1"): "stand after --",
        ("job.toml", "--", "x"): "only a script has arguments",
    }.items():
        assert submit_command([arguments[0], "--dry-run", *arguments[1:]]) == 2
        assert message in capsys.readouterr().err


def test_a_batch_script_names_the_directory_and_the_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCOPT_RUN_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("HPCOPT_SEED", "7")
    kept_for_a_step(tmp_path / "mine", 1, a={})
    assert not (tmp_path / "mine").exists()
    assert hpcopt.open_run(tmp_path / "theirs").described["run"]["seed"] == 7
    monkeypatch.setenv("HPCOPT_SEED", "seven")
    with pytest.raises(JobError, match="HPCOPT_SEED=seven"):
        kept_for_a_step(tmp_path / "mine", 1, a={})


def test_damage_is_passed_over_as_in_a_job(tmp_path, capsys):
    straight = script(tmp_path / "straight", 9)
    script(tmp_path / "run", 9)
    part, _ = Checkpoints(tmp_path / "run/checkpoints", 1).place(9, "shared")
    part.write_bytes(part.read_bytes()[:-50])
    resumed = script(tmp_path / "run", 9)
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    said = capsys.readouterr().out
    assert "checkpoint of step 9 cannot be used" in said and "resumed at step 6" in said
    (tmp_path / "run/metrics.h5").unlink()
    script(tmp_path / "run", 10, fresh=True)
    assert len(list(tmp_path.glob("run.before-*"))) == 1


def test_settings_that_differ_between_ranks_are_named(tmp_path):
    """Else ranks would checkpoint at different steps, and wait for each other."""

    def program(transport):
        every = 3 + transport.rank
        session = hpcopt.Session(tmp_path / "run", steps=4, checkpoint_every=every, world=World(transport))
        with pytest.raises(JobError, match="3 on rank 0, 4 on rank 1: give all ranks the same"), session:
            raise AssertionError
        return not (tmp_path / "run").exists()

    assert run_ranks(2, program) == [True, True]
