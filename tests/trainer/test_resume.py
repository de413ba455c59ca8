"""A checkpoint is saved by all ranks, restored by all or by none, and by another number of ranks."""

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, HpcoptError, JobError
from hpcopt.phases import PhaseClock
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.resume import Position, restore
from hpcopt.trainer.saver import Saver


class Counter:
    """A solver with a number that all share and one of each rank's own."""

    optimizers = ()

    def __init__(self, rank: int) -> None:
        self.shared, self.own = 0, rank
        self.loaded: list[int] = []

    def gather(self):
        pass

    def state_dict(self):
        return {"shared": self.shared}

    def rank_state_dict(self):
        return {"own": self.own}

    def load_state_dict(self, shared, parts):
        self.shared, self.loaded = shared["shared"], [part["own"] for part in parts]


def saved(folder, ranks: int, step: int, background: bool = False) -> None:
    def program(transport):
        world = World(transport)
        solver = Counter(transport.rank)
        solver.shared = 10 * step
        saver = Saver(world, Checkpoints(folder, 3), background, 0, clock=PhaseClock())
        saver.save(Position(step=step, ranks=ranks, scores={"a": 0.5}), solver)
        saver.finish()
        assert saver.saved_step == step

    run_ranks(ranks, program)


def restored(folder, ranks: int):
    def program(transport):
        said: list[str] = []
        solver = Counter(transport.rank)
        position = restore(World(transport), Checkpoints(folder, 3), solver, said.append)
        return position, solver, said

    return run_ranks(ranks, program)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_gets_everyones_part(tmp_path, ranks, background):
    saved(tmp_path, 2, 7, background)
    for position, solver, said in restored(tmp_path, ranks):
        assert (position.step, position.ranks, position.scores) == (7, 2, {"a": 0.5})
        assert (solver.shared, solver.loaded) == (70, [0, 1])
        assert said == ["resumed at step 7"]


def test_nothing_there(tmp_path):
    assert [position for position, _, _ in restored(tmp_path, 2)] == [None, None]


def test_one_ranks_damage_makes_all_fall_back(tmp_path):
    saved(tmp_path, 2, 1)
    saved(tmp_path, 2, 2)
    part = tmp_path / "step_00000002" / "rank00001.h5"
    part.write_bytes(part.read_bytes()[:-10])
    for position, solver, said in restored(tmp_path, 2):
        assert (position.step, solver.shared) == (1, 10)
        assert "step 2 cannot be used" in said[0]


def test_no_whole_checkpoint_is_an_error_on_every_rank(tmp_path):
    saved(tmp_path, 1, 1)
    (tmp_path / "step_00000001" / "shared.h5").unlink()
    with pytest.raises(HpcoptError, match="--fresh"):
        restored(tmp_path, 2)


def test_the_random_numbers_go_on(tmp_path):
    torch.manual_seed(3)
    saved(tmp_path, 1, 1)
    expected = torch.rand(3)
    torch.manual_seed(4)
    restored(tmp_path, 1)
    assert torch.equal(torch.rand(3), expected)


def test_other_samples_are_another_run():
    job = {"run": {"seed": 0}, "workload": {"name": "x", "batch": 4, "data": "here"}}
    position = Position()
    position.take_over(job, 3)
    moved = {"run": {"seed": 0}, "workload": {"name": "x", "batch": 4, "data": "there"}}
    position.take_over(moved, 4)
    assert (position.ranks, position.job) == (4, moved)
    with pytest.raises(JobError, match="seed"):
        position.take_over({"run": {"seed": 1}, "workload": job["workload"]}, 4)
    with pytest.raises(JobError, match="batch"):
        position.take_over({"run": {"seed": 0}, "workload": {"name": "x", "batch": 8, "data": "here"}}, 4)


def test_a_state_that_does_not_fit_is_an_error_on_every_rank(tmp_path):
    saved(tmp_path, 1, 1)

    class Misfit(Counter):
        def load_state_dict(self, shared, parts):
            raise CheckpointError("does not fit")

    def program(transport):
        restore(World(transport), Checkpoints(tmp_path, 3), Misfit(transport.rank), print)

    with pytest.raises(CheckpointError, match="does not fit"):
        run_ranks(2, program)
