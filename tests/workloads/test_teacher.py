"""Teachers: samples of an index, recovery over all permutations, starts at a known distance."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from hpcopt.errors import JobError
from hpcopt.models.mlp import MlpConfig
from hpcopt.models.relu_student import ReluStudent, ReluStudentConfig
from hpcopt.shapes.context import Context
from hpcopt.testing.workload import check_workload
from hpcopt.workloads.normal import normals
from hpcopt.workloads.recovery import recovery_error
from hpcopt.workloads.teacher import TeacherConfig

SMALL = {"inputs": 6, "hidden": (3,), "train": 22, "batch": 11, "test": 10}


@pytest.mark.parametrize(
    "settings",
    [{}, {"skip": True, "noise": 0.1}, {"hidden": (4, 2)}, {"dtype": "float32"}, {"batch": 22}],
    ids=["plain", "skip", "deep", "float32", "all samples"],
)
def test_the_contract(settings):
    check_workload(TeacherConfig(**{**SMALL, **settings}))


def test_a_row_is_normal_and_its_own():
    rows = normals(5, np.arange(20_000), 3)
    assert kstest(rows.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(rows.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(rows[:-1, 0], rows[1:, 0])[0, 1]) < 0.03
    some = np.array([7, 3, 4, 5, 19_999, 0])
    assert np.array_equal(normals(5, some, 3), rows[some])
    assert not np.isin(normals(6, some, 3), rows).any()
    assert normals(5, some[:0], 3).shape == (0, 3)


def test_targets_are_the_teachers_with_noise_and_test_targets_without():
    workload = TeacherConfig(train=4000, batch=4000, noise=0.2).build(Context(run_seed=1))
    batch = next(workload.train_batches(0, 1, 0))
    noise = batch.tensors["targets"] - workload.teacher(batch.tensors["inputs"])
    assert float(noise.std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float(noise.mean())) < 0.2 * 3 / 4000**0.5
    test = next(workload.test_batches(0, 1))
    assert torch.equal(test.tensors["targets"], workload.teacher(test.tensors["inputs"]))
    assert not np.isin(test.tensors["inputs"].numpy(), batch.tensors["inputs"].numpy()).any()


def test_teachers_are_as_near_to_orthonormal_as_asked():
    for hidden, skip in (((5,), False), ((25,), False), ((5,), True)):
        config = TeacherConfig(hidden=hidden, skip=skip, perturbation=0.0)
        (rows,) = config.build(Context(run_seed=2)).teacher.totals()
        gram = rows[:10] @ rows[:10].T
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_error_is_the_least_over_all_permutations():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    every = [float((ours[list(p)] - theirs).norm() / theirs.norm()) for p in itertools.permutations(range(4))]
    assert recovery_error([ours], [theirs]) == pytest.approx(min(every), rel=1e-12)
    assert recovery_error([theirs[[2, 0, 3, 1]]], [theirs]) == 0


def test_the_same_network_by_other_names_has_no_error():
    torch.manual_seed(0)
    teacher = ReluStudent(5, (4, 3)).double()
    first, second = (w.detach() for w in teacher.layers)
    scales, places = torch.tensor([0.5, 2.0, 3.0, 0.1], dtype=torch.float64), [3, 1, 0, 2]
    student = [(scales[:, None] * first)[places], (second / scales)[[2, 0, 1]][:, places]]
    assert recovery_error(student, [first, second]) < 1e-15
    assert recovery_error([first, -second], [first, second]) > 0.5


def test_units_that_one_of_the_two_lacks_count():
    w = 2 * torch.eye(3)
    assert recovery_error([w[:2]], [w]) == pytest.approx((1 / 3) ** 0.5)
    assert recovery_error([torch.cat([w, torch.ones(1, 3)])], [w]) == pytest.approx((3 / 12) ** 0.5)
    assert recovery_error([torch.full((3, 3), float("nan"))], [w]) != recovery_error([w], [w])


@pytest.mark.parametrize("skip", [False, True])
def test_a_start_is_at_its_distance(skip):
    workload = TeacherConfig(start=1e-3, skip=skip).build(Context())
    assert recovery_error(workload.model.totals(), workload.teacher.totals()) == pytest.approx(1e-3, rel=1e-9)


def test_other_students_have_a_loss_alone():
    wide = TeacherConfig(**SMALL, model=ReluStudentConfig(hidden=(7,))).build(Context())
    deep = TeacherConfig(**SMALL, model=ReluStudentConfig(hidden=(3, 3))).build(Context())
    assert [*wide.scores] == ["test_loss", "recovery_error"]
    assert [*deep.scores] == ["test_loss"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"batch": 23}, "batch = 23, but train = 22"),
        ({"skip": True, "hidden": (7,)}, r"\[workload\] hidden: .*at most 6 units"),
        ({"model": ReluStudentConfig(hidden=(8,), skip=True)}, r"\[workload.model\]: .*at most 6 units"),
        ({"start": 0.5, "model": ReluStudentConfig(hidden=(4,))}, "start begins near the teacher"),
    ],
)
def test_what_cannot_be_is_refused(settings, complaint):
    with pytest.raises(JobError, match=complaint):
        TeacherConfig(**{**SMALL, **settings}).build(Context())


def test_images_networks_are_no_students():
    with pytest.raises(ValueError, match="does not fit here"):
        TeacherConfig(model={"name": f"{MlpConfig.__module__}:MlpConfig"})


def test_without_scipy_it_is_said_at_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JobError, match="the extra `teacher`"):
        TeacherConfig(**SMALL).build(Context())
