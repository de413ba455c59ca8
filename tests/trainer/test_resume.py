"""A checkpoint is saved by all ranks, restored by all or by none, and by another number of ranks."""

import math

import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import CheckpointError, DivergedError, HpcoptError, JobError
from hpcopt.phases import PhaseClock
from hpcopt.shapes.solver import Solver
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.trainer.resume import Position, restore
from hpcopt.trainer.saver import Saver


class Counter:
    """A solver with a number that all share and one of each rank's own."""

    optimizers = ()
    must_be_finite = Solver.must_be_finite

    def __init__(self, rank: int) -> None:
        self.model = torch.nn.Linear(2, 1)
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
        position = restore(World(transport), Checkpoints(folder, 3), solver, {}, said.append)
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
    for position, _, said in restored(tmp_path, 2):
        assert position is None
        assert said == [f"no checkpoint in {tmp_path}: starting at step 0"]


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
    position = Position(job=job)
    moved = {"run": {"seed": 0}, "workload": {"name": "x", "batch": 4, "data": "there"}}
    position.require_same_samples(moved)
    assert position.changes(moved) == ["workload.data = 'there', was 'here'"]
    with pytest.raises(JobError, match="seed"):
        position.require_same_samples({"run": {"seed": 1}, "workload": job["workload"]})
    with pytest.raises(JobError, match="batch"):
        position.require_same_samples({"run": {"seed": 0}, "workload": {"name": "x", "batch": 8, "data": "here"}})


def test_a_state_that_does_not_fit_is_an_error_on_every_rank(tmp_path):
    saved(tmp_path, 1, 1)

    class Misfit(Counter):
        def load_state_dict(self, shared, parts):
            raise CheckpointError("does not fit")

    def program(transport):
        restore(World(transport), Checkpoints(tmp_path, 3), Misfit(transport.rank), {}, print)

    with pytest.raises(CheckpointError, match="does not fit"):
        run_ranks(2, program)


@pytest.mark.parametrize("cause", [KeyError("betas"), TypeError("list indices"), AttributeError("'int' has no items")])
def test_whatever_a_solver_raises_on_anothers_state_is_one_error_that_names_the_change(tmp_path, cause):
    saved(tmp_path, 1, 1)

    class Foreign(Counter):
        def load_state_dict(self, shared, parts):
            raise cause

    def program(transport):
        job = {"solver": {"name": "kaisa"}}
        restore(World(transport), Checkpoints(tmp_path, 3), Foreign(transport.rank), job, print)

    with pytest.raises(CheckpointError, match=r"(?s)does not fit.*--fresh.*solver\.name = 'kaisa', was None"):
        run_ranks(2, program)


BAD = (math.inf, -math.inf, math.nan)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("value", BAD)
def test_nothing_that_is_not_finite_takes_the_place_of_a_good_checkpoint(tmp_path, value, background):
    """One rank's one value is enough, in the parameters or in what the optimizer keeps."""

    def program(transport):
        world, solver = World(transport), Counter(transport.rank)
        optimizer = torch.optim.SGD(solver.model.parameters(), lr=0.1, momentum=0.9)
        solver.model.weight.grad = torch.zeros(1, 2)
        optimizer.step()
        solver.optimizers = (optimizer,)
        saver = Saver(world, Checkpoints(tmp_path, 1), background, 0, clock=PhaseClock())
        assert "no checkpoint was made" in saver.kept()
        saver.save(Position(step=1, ranks=2), solver)
        saver.finish()
        momentum = optimizer.state[solver.model.weight]["momentum_buffer"]
        for tensor, name in ((solver.model.bias.data, "bias"), (momentum, "momentum_buffer of the optimizer")):
            if transport.rank == 1:
                tensor.view(-1)[-1] = value
            with pytest.raises(DivergedError, match=rf"{name} on rank 1 is not finite after step 2.*step 1 are kept"):
                saver.save(Position(step=2, ranks=2), solver)
            tensor.zero_()

    run_ranks(2, program)
    assert Checkpoints(tmp_path, 1).steps() == [1]


def test_a_checkpoint_that_is_not_finite_is_passed_over(tmp_path):
    """Such were written once."""
    saved(tmp_path, 1, 1)
    saved(tmp_path, 1, 2)

    class Loads(Counter):
        def load_state_dict(self, shared, parts):
            super().load_state_dict(shared, parts)
            self.model.bias.data.fill_(math.nan if shared["shared"] == 20 else 1.0)

    def program(transport):
        said, solver = [], Loads(transport.rank)
        return restore(World(transport), Checkpoints(tmp_path, 3), solver, {}, said.append).step, said[0]

    assert run_ranks(2, program) == [(1, "checkpoint of step 2 cannot be used: bias on rank 0 is not finite")] * 2


FOREIGN = {
    "another program's tree": {"weights": torch.zeros(3)},
    "no tree": [1, 2, 3],
    "a position of other kinds": {"position": {"step": "two"}, "solver": {}},
    "another step": {"position": {"step": 9, "ranks": 1}, "solver": {}},
    "more ranks than wrote": {"position": {"step": 1, "ranks": 10**9}, "solver": {}},
    "no ranks": {"position": {"step": 1, "ranks": 0}, "solver": {}},
    "no solver": {"position": {"step": 1, "ranks": 1}},
}


@pytest.mark.parametrize("tree", FOREIGN.values(), ids=FOREIGN)
def test_a_checkpoint_that_is_not_a_jobs_is_passed_over(tmp_path, tree):
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.begin(1)
    for name in ("shared", "rank00000"):
        checkpoints.write_part(1, name, tree)
    checkpoints.commit(1, ["shared", "rank00000"])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used"):
        restored(tmp_path, 2)
    saved(tmp_path, 1, 0)
    for position, _, said in restored(tmp_path, 2):
        assert position.step == 0
        assert "step 1 cannot be used" in said[0] and "is not a checkpoint of a job" in said[0]
