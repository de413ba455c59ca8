"""Teachers are found: by tensor initialisation with gradient descent, and by alternating minimisation."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError, NonFiniteError
from hpcopt.exchange import RingConfig
from hpcopt.optim import SgdConfig
from hpcopt.shapes import Context, Solver, SolverConfig, Task
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.relu_network.least_squares import Products
from hpcopt.solvers.relu_network.relu_altmin import ReluAltMinConfig
from hpcopt.solvers.relu_network.tensor_init import TensorInitConfig
from hpcopt.testing.problem import Problem
from hpcopt.workloads.recovery import recovery_error
from hpcopt.workloads.teacher import Teacher, TeacherConfig

ALTMIN, TENSOR = ReluAltMinConfig(), TensorInitConfig()


def started(
    solver: SolverConfig, world: World | None = None, seed: int = 0, steps: int = 200, **settings
) -> tuple[Teacher, Solver]:
    """A workload whose batches are all of its samples, and a solver of it."""
    config = TeacherConfig(**{"batch": settings["train"], **settings})
    workload = config.build(Context(run_seed=seed))
    task = Task(workload.model, workload.loss, workload.by_index())
    context = Context(world=world or alone(), exchange=RingConfig(), steps=steps, run_seed=seed)
    return workload, solver.build(task, context)


def errors(workload: Teacher, solver: Solver, steps: int) -> list[float]:
    """Of recovery, after each step."""
    batches = workload.train_batches(solver.data_rank, solver.data_size, 0)
    found = []
    for _ in range(steps):
        solver.step(next(batches))
        found.append(recovery_error(workload.model.totals(), workload.teacher.totals()))
    return found


def test_without_noise_the_error_falls_at_a_linear_rate():
    falls = np.log(errors(*started(TENSOR, train=4000), 120))
    rate = np.polyfit(np.arange(40, 120), falls[40:], 1)[0]
    assert math.exp(rate) < 0.97
    assert np.abs(np.diff(falls[40:]) - rate).max() < 0.02
    assert math.exp(falls[-1]) < 0.01


def test_what_noise_leaves_is_proportional_to_it():
    low, high = (errors(*started(TENSOR, train=4000, noise=noise, seed=3), 200)[-1] for noise in (0.02, 0.04))
    assert high / low == pytest.approx(2, rel=0.1)


def test_a_single_unit_is_found_exactly():
    assert errors(*started(TENSOR, inputs=5, hidden=(1,), train=500), 100)[-1] < 1e-10


def test_the_skip_form_can_begin_at_the_moments_too():
    start = errors(*started(TENSOR, train=4000, skip=True), 1)[0]
    plain = errors(*started(DataParallelConfig(optimizer=SgdConfig(lr=0.5, momentum=0)), train=4000), 1)[0]
    assert start < 0.3 < plain


@pytest.mark.parametrize("skip", [False, True])
def test_with_the_teachers_patterns_one_step_is_the_teacher(skip):
    workload, solver = started(ALTMIN, inputs=20, hidden=(4,), train=400, skip=skip)
    model, (truth,) = workload.model, workload.teacher.totals()
    lengths = torch.tensor([[0.1], [1.0], [3.0], [0.5]], dtype=torch.float64)
    with torch.no_grad():
        model.layers[0].copy_(lengths * truth - model.added(truth))  # the same patterns, other weights
    assert errors(workload, solver, 1)[0] < 1e-14


def test_it_has_no_settings():
    assert {*ReluAltMinConfig.model_fields} == {"name"}


def test_with_held_patterns_the_objective_never_rises():
    workload, solver = started(ALTMIN, inputs=8, hidden=(6, 3), train=200, start=0.5, noise=0.3, perturbation=1.0)
    batch = next(workload.train_batches(0, 1, 0))
    x, y, model = batch.tensors["inputs"], batch.tensors["targets"], workload.model
    for _ in range(5):
        old = model.layers[0].detach().clone().ravel()
        rows = Products(*model.held(0, x))
        solver.step(batch)
        new, best = model.layers[0].detach(), _least(rows, y)
        missed = float((rows.times(new.ravel()) - y).norm())
        assert missed <= float((rows.times(old) - y).norm())
        assert missed == pytest.approx(float((rows.times(best) - y).norm()), rel=1e-9)


def _least(rows: Products, y: torch.Tensor) -> torch.Tensor:
    matrix = (rows.c[:, :, None] * rows.h[:, None, :]).flatten(1)
    return torch.linalg.lstsq(matrix, y[:, None], driver="gelsd").solution.ravel()


def test_a_step_is_the_papers():
    """B written down, and numpy's least squares; also with fewer samples than unknowns. Of a sample on a neuron's edge
    rounding says whether it counts there, so either is right.
    """
    for train in (300, 30):
        workload, solver = started(ALTMIN, inputs=10, hidden=(4,), train=train, perturbation=1.0)
        batch = next(workload.train_batches(0, 1, 0))
        x, y = (batch.tensors[name].numpy() for name in ("inputs", "targets"))
        for _ in range(4):
            w = workload.model.layers[0].detach().numpy().copy()
            active, edges = x @ w.T > 0, np.abs(x @ w.T) < 1e-12
            solver.step(batch)
            found, right = workload.model.layers[0].detach().numpy(), False
            for sides in product((False, True), repeat=int(edges.sum())):
                active[edges] = sides
                matrix = np.concatenate([a[:, None] * x for a in active.T], 1)
                expected = np.linalg.lstsq(matrix, y)[0].reshape(w.shape)
                right |= np.allclose(found, expected, rtol=1e-7, atol=1e-9)
            assert right


def test_targets_of_another_scale_have_weights_of_that_scale():
    ends = []
    for scale in (1.0, 8.0):
        workload, solver = started(ALTMIN, inputs=10, hidden=(3,), train=200, noise=0.1)
        batch = next(workload.train_batches(0, 1, 0))
        batch.tensors["targets"].mul_(scale)
        for _ in range(3):
            solver.step(batch)
        ends.append(workload.model.layers[0].detach())
    assert torch.equal(8 * ends[0], ends[1])


def test_teachers_are_recovered():
    assert errors(*started(ALTMIN, inputs=20, hidden=(3,), train=600, start=0.5), 10)[-1] < 1e-12
    assert errors(*started(ALTMIN, inputs=20, hidden=(5,), train=1000, skip=True, perturbation=0.5), 12)[-1] < 1e-12


def test_a_deeper_teacher_is_approached_layer_by_layer():
    found = errors(*started(ALTMIN, hidden=(5, 3), train=1500, skip=True), 20)
    assert found[-1] < 1e-3 < 1e-2 < found[0]


@pytest.mark.parametrize("solver", [ALTMIN, TENSOR])
def test_one_path_at_any_number_of_ranks(solver):
    settings = {"inputs": 6, "hidden": (3,), "train": 211, "noise": 0.1}

    def program(transport) -> torch.Tensor:
        workload, made = started(solver, World(transport), **settings)
        errors(workload, made, 4)
        return workload.model.layers[0].detach()

    (one,) = run_ranks(1, program)
    for size in (2, 3):
        found = run_ranks(size, program)
        assert all(torch.equal(each, found[0]) for each in found)
        torch.testing.assert_close(found[0], one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", [ALTMIN, TENSOR])
def test_who_holds_nan_is_named(solver):
    def program(transport) -> None:
        world = World(transport)
        workload, made = started(solver, world, inputs=4, hidden=(2,), train=60)
        batch = next(workload.train_batches(world.rank, world.size, 0))
        if world.rank == 1:
            batch.tensors["targets"][3] = math.nan  # kept by the workload
        with pytest.raises(NonFiniteError, match=r"of ranks \[1\] hold Inf or NaN"):
            made.step(batch)

    run_ranks(3, program)


@pytest.mark.parametrize(
    ("solver", "settings", "complaint"),
    [
        (TENSOR, {"hidden": (4, 3)}, "one ReLU layer"),
        (TENSOR, {"inputs": 4, "hidden": (5,)}, "not 5 with 4"),
    ],
)
def test_what_has_no_moments_is_refused(solver, settings, complaint):
    with pytest.raises(JobError, match=complaint):
        started(solver, train=50, **settings)


@pytest.mark.parametrize("solver", [ALTMIN, TENSOR])
def test_other_networks_are_refused(solver):
    with pytest.raises(JobError, match='name = "teacher"'):
        solver.build(Problem().task(), Context(exchange=RingConfig(), steps=1))


def test_moments_need_all_samples():
    workload = TeacherConfig().build(Context())
    with pytest.raises(JobError, match="by index"):
        TENSOR.build(Task(workload.model, workload.loss), Context(exchange=RingConfig(), steps=1))
