"""The loop with a solver that tells what it likes."""

import math
import threading

import numpy as np
import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import DivergedError
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.late import Late
from hpcopt.shapes.stats import Rows, StepStats
from hpcopt.shapes.workload import Workload
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.metrics import MetricsFile
from hpcopt.trainer.loop import Outcome, Trainer
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position
from hpcopt.trainer.run import RunConfig, StopAt
from hpcopt.trainer.signals import StopSignals
from tests.launching import PATIENCE_S
from tests.trainer.idle import Idle


class Telling(Idle):
    """Does nothing, and says that its losses are these."""

    def __init__(self, losses: list[float | None], rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._losses = iter(losses)

    def step(self, batch):
        return StepStats(next(self._losses))


class OnAGpu(Late):
    """A loss that notes after how many steps it is read."""

    def __init__(self, value: float, solver: "TellingLate") -> None:
        self._value, self._solver = value, solver

    def __float__(self) -> float:
        self._solver.read.append(self._solver.steps)
        return self._value


class TellingLate(Telling):
    """As if a GPU computed the losses."""

    def __init__(self, losses: list[float | None], rank: int, size: int) -> None:
        super().__init__(losses, rank, size)
        self.read: list[int] = []
        self.steps = 0

    def step(self, batch):
        self.steps += 1
        loss = next(self._losses)
        return StepStats(None if loss is None else OnAGpu(loss, self))


class Warns(Rows):
    """A table of one step with something to say."""

    def lines(self):
        return [f"warning: {self.values['of'][0]}"]


class TellingTables(Telling):
    """Warns in the second step and in the fourth."""

    def step(self, batch):
        loss = next(self._losses)
        return StepStats(loss, tables={"warned": Warns({"of": [loss]})} if loss in (0.5, 0.125) else {})


class Work(Workload):
    """A score that falls by a tenth at every evaluation."""

    batch, train_samples, test_samples, steps_per_epoch, scores = 4, 40, 2, 10, {"bits_per_char": "lower"}

    def __init__(self) -> None:
        self.told, self.model = 1.0, torch.nn.Linear(1, 1)

    def train_batches(self, rank, size, start):
        while True:
            yield TensorBatch({}, torch.zeros(2, dtype=torch.int64), 4)

    def test_batches(self, rank, size):
        self.told -= 0.1
        yield TensorBatch({}, torch.zeros(1, dtype=torch.int64), 2)

    def score(self, model, batch):
        return {"bits_per_char": torch.tensor(self.test_samples * self.told)}


def trained(
    folder, losses: list[list[float | None]], kind: type[Telling] = Telling, solvers: list[Telling] | None = None, **run
) -> list[Outcome]:
    """Train on as many ranks as there are lists of losses, into a folder."""
    file = MetricsFile(folder / "metrics.h5")
    file.create(len(losses), Context().clock.phases, {"title": "told"})

    def program(transport):
        world = World(transport)
        late = kind is TellingLate and world.rank == 0  # one rank has a GPU
        device = torch.device("meta" if late else "cpu")
        context = Context(world=world, steps=len(losses[0]), device=device)
        solver = (Telling if kind is TellingLate and not late else kind)(losses[world.rank], world.rank, world.size)
        if solvers is not None:
            solvers.append(solver)
        with Progress(folder / "log.txt", speaks=world.rank == 0, every_s=1e-6) as progress:
            progress.begin(len(losses[0]))
            return Trainer(
                run=RunConfig(steps=len(losses[0]), **run),
                context=context,
                workload=Work(),
                solver=solver,
                checkpoints=Checkpoints(folder / "checkpoints", 1),
                recorder=Recorder(world, file, context.clock, 0.0),
                progress=progress,
                position=Position(),
                signals=StopSignals(),
            ).train()

    return run_ranks(len(losses), program)


@pytest.mark.parametrize("losses", [[None, None, 0.5, None, 0.25], [math.nan, None, None, None, None]])
def test_a_loss_that_no_rank_has_is_missing_and_neither_zero_nor_a_divergence(tmp_path, losses):
    nothing = [None] * 5
    if losses[0] is not None:
        with pytest.raises(DivergedError, match="the loss became nan at step 1"):
            trained(tmp_path, [nothing, losses])
        return
    assert trained(tmp_path, [nothing, losses]) == [Outcome.DONE] * 2
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.columns["loss"], [np.nan, np.nan, 0.5, np.nan, 0.25])
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "step=" in line and "loss=" in line]
    told = [line.split("loss=")[1].split()[0] for line in lines]
    assert told[:5] == ["-", "-", "0.5", "-", "0.25"]


def test_losses_that_are_read_a_step_late_are_those_of_their_steps(tmp_path):
    solvers: list[Telling] = []
    halves, quarters = [2.0**-step for step in range(6)], [0.25] * 6
    assert trained(tmp_path, [halves, quarters], TellingLate, solvers, evaluate_every=4) == [Outcome.DONE] * 2
    np.testing.assert_array_equal(read_run(tmp_path).columns["loss"], np.add(halves, quarters))
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "step=" in line and "loss=" in line]
    told = {
        line.split("step=")[1].split("/")[0]: line.split("loss=")[1].split()[0] for line in lines if "bits" not in line
    }
    assert told == {"0": "-"} | {str(step + 1): f"{loss + 0.25:.4g}" for step, loss in enumerate(halves)}
    (late,) = (solver for solver in solvers if isinstance(solver, TellingLate))
    assert list(dict.fromkeys(late.read)) == [2, 3, 4, 5, 6]  # step 4 is evaluated, and its loss is read at once
    assert late.read[0] == 2


def test_what_a_table_of_a_step_says_is_in_the_log_each_time(tmp_path):
    assert trained(tmp_path, [[2.0**-step for step in range(5)]] * 2, TellingTables) == [Outcome.DONE] * 2
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if line.startswith("warning")] == ["warning: 0.5", "warning: 0.125"]


@pytest.mark.parametrize("kind", [Telling, TellingLate])
@pytest.mark.parametrize(("every", "left"), [(1, [1]), (2, []), (3, [])])
def test_what_a_loss_shows_to_be_bad_is_not_saved(tmp_path, kind, every, left):
    """Late or not: the checkpoint of step 2 does not count, and there is none of step 3."""
    solvers: list[Telling] = []
    with pytest.raises(DivergedError, match="the loss became nan at step 3"):
        trained(tmp_path, [[1.0, 1.0, math.nan, 1.0, 1.0, 1.0], [1.0] * 6], kind, solvers, checkpoint_every=every)
    assert Checkpoints(tmp_path / "checkpoints", 1).steps() == left
    assert max(getattr(solver, "steps", 3) for solver in solvers) <= 4


def test_the_last_loss_is_the_last_that_there_was(tmp_path):
    trained(tmp_path, [[0.5, 0.25, None]])
    assert summarise(read_run(tmp_path)).loss == 0.25


def test_a_target_of_a_score_that_falls_is_reached_from_above(tmp_path):
    target = StopAt(metric="bits_per_char", value=0.75)
    assert trained(tmp_path, [[1.0] * 9], evaluate_every=1, stop_at=target) == [Outcome.TARGET]
    run = read_run(tmp_path)
    assert (run.steps, run.better, run.guessed) == (3, {"bits_per_char": "lower"}, ())


def test_nothing_is_written_into_a_run_once_its_loop_has_failed(tmp_path, monkeypatch):
    begun, gate, written = threading.Event(), threading.Event(), []
    write = Checkpoints.write_part

    def slow(self, step, name, tree):
        begun.set()
        gate.wait(PATIENCE_S)
        write(self, step, name, tree)
        written.append(name)

    def step(self, batch):
        loss = next(self._losses)
        if loss is None:
            begun.wait(PATIENCE_S)
            threading.Timer(0.05, gate.set).start()
            raise ValueError("theirs")
        return StepStats(loss)

    monkeypatch.setattr(Checkpoints, "write_part", slow)
    monkeypatch.setattr(Telling, "step", step)
    with pytest.raises(ValueError, match="theirs"):
        trained(tmp_path, [[0.5, None, 0.5]], checkpoint_every=1)
    assert written == ["rank00000", "shared"]
