"""Without lock-step nothing is summed after a step, and a stop signal still reaches all ranks at one step."""

import itertools

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.phases import PhaseClock
from hpcopt.shapes import Context, StepStats, TensorBatch
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.metrics import MetricsFile, read
from hpcopt.trainer.loop import Outcome, Trainer
from hpcopt.trainer.meetings import Meetings
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.signals import StopSignals
from tests.trainer.idle import Idle

RANKS, STEPS = 3, 40


class Counting(World):
    """Counts sums over the ranks."""

    sums = 0

    def all_reduce(self, *arguments, **settings):
        self.sums += 1
        return super().all_reduce(*arguments, **settings)


class Alone(Idle):
    """Every rank by itself; rank 1 is told to stop at its seventh step."""

    def __init__(self, world: Counting, signals: StopSignals, lockstep: bool) -> None:
        super().__init__(world.rank, world.size)
        self.lockstep = lockstep
        self._world, self._signals, self._done = world, signals, 0
        self.sums_before_the_signal = 0

    def step(self, batch):
        self._done += 1
        if self._done == 7:
            self.sums_before_the_signal = self._world.sums
            if self.data_rank == 1:
                self._signals.received = "TERM"
        return StepStats(1.0 + self.data_rank)


class NoData:
    """Batches of nothing."""

    batch, steps_per_epoch, train_samples, test_samples = 4, 10, 40, 4
    scores, model = {"zero": "lower"}, torch.nn.Identity()

    def train_batches(self, rank, size, start):
        return itertools.repeat(TensorBatch({}, torch.zeros(1, dtype=torch.int64), 1))

    def test_batches(self, rank, size):
        return [None]

    def score(self, model, batch):
        return {"zero": torch.zeros(())}

    def finish(self, sums):
        return {name: float(value) for name, value in sums.items()}

    def state_dict(self):
        return {}


def train(folder, lockstep: bool, every_s: float):
    def program(transport):
        world, signals, clock = Counting(transport), StopSignals(), PhaseClock()
        solver = Alone(world, signals, lockstep)
        file = MetricsFile(folder / "metrics.h5")
        if world.rank == 0:
            file.create(RANKS, clock.phases, {"title": "t", "hostnames": ["a"] * RANKS})
        transport.barrier()
        with Progress(folder / "log.txt", speaks=world.rank == 0, every_s=1000) as progress:
            progress.begin(STEPS)
            outcome = Trainer(
                run=RunConfig(steps=STEPS, log_every_s=every_s, evaluate_every=1000),
                context=Context(world=world, clock=clock, steps=STEPS),
                workload=NoData(),
                solver=solver,
                checkpoints=Checkpoints(folder / "checkpoints", 1),
                recorder=Recorder(world, file, clock, 0.0),
                progress=progress,
                position=Position(),
                signals=signals,
            )
            return outcome.train(), solver._done, solver.sums_before_the_signal

    return run_ranks(RANKS, program)


def test_in_lockstep_ranks_meet_after_every_step(tmp_path):
    for outcome, done, sums in train(tmp_path, lockstep=True, every_s=1000):
        assert (outcome, done, sums) == (Outcome.SIGNAL, 7, 6)


@pytest.mark.parametrize("every_s", [1e-9, 0.001])
def test_without_it_a_signal_ends_all_ranks_at_the_same_step(tmp_path, every_s):
    ends = train(tmp_path, lockstep=False, every_s=every_s)
    assert {outcome for outcome, *_ in ends} <= {Outcome.SIGNAL, Outcome.DONE}
    assert len({(outcome, done) for outcome, done, _ in ends}) == 1


def test_without_it_nothing_is_summed_between_meetings(tmp_path):
    for _, _, sums in train(tmp_path, lockstep=False, every_s=1000):
        assert sums == 2  # after the first step, and after the second, once it is known how long one takes


def test_the_file_has_the_global_loss_all_the_same(tmp_path):
    train(tmp_path, lockstep=False, every_s=1000)
    assert read(tmp_path / "metrics.h5", lambda file: sorted(set(file["steps/loss"][:].tolist()))) == [1.0 + 2.0 + 3.0]


def test_rank_0_wishes_for_as_many_steps_as_fill_the_time():
    meetings = Meetings(lockstep=False, every_s=10)
    assert meetings.due(1)
    assert meetings.wish([]) == 1
    assert meetings.wish([0.5, 0.5, 9.0]) == 20
    assert meetings.wish([100.0]) == 1
    meetings.met(1, 20)
    assert [step for step in range(2, 25) if meetings.due(step)] == [21, 22, 23, 24]
    assert Meetings(lockstep=True, every_s=10).wish([0.5]) == 1


def test_quick_steps_at_the_start_do_not_put_the_next_meeting_off_for_long():
    meetings, met = Meetings(lockstep=False, every_s=10), []
    for step in range(1, 20_001):
        if meetings.due(step):
            met.append(step)
            meetings.met(step, meetings.wish([1e-5]))
    gaps = [after - before for before, after in itertools.pairwise(met)]
    assert all(gap <= max(100, step // 10) for step, gap in zip(met, gaps, strict=False)) and len(met) < 100
