"""Nested variance reduction against its paper's pseudo-code, SVRG, and sums over all samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig
from hpcopt.optim import AdaHessianConfig, SgdConfig
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes import Context, Samples, Task, TensorBatch
from hpcopt.solvers.snvrg import Snvrg, SnvrgConfig, drawn, gradients_of_an_epoch, level_of
from hpcopt.testing.problem import Problem, flat

LR, STEPS = 0.1, 20
PROBLEM = Problem(batch=2, samples=44, dtype=torch.float64)
SGD = SgdConfig(lr=LR, momentum=0.0)


def solver(config: SnvrgConfig, problem: Problem = PROBLEM, steps: int = STEPS, task: Task | None = None) -> Snvrg:
    return config.build(task or problem.task(), Context(exchange=RingConfig(), steps=steps))


def gradient_at(point: torch.Tensor, numbers: np.ndarray, problem: Problem = PROBLEM) -> torch.Tensor:
    """By autograd, on one process."""
    task = problem.task()
    nn.utils.vector_to_parameters(point, task.model.parameters())
    task.loss(task.model, problem.at(numbers, len(numbers))).backward()
    return torch.cat([p.grad.reshape(-1) for p in task.model.parameters()])


def estimate(s: Snvrg) -> torch.Tensor:
    """v of the last step."""
    return torch.cat([p.grad.reshape(-1) for p in s.model.parameters()])


def drawn_at(step: int, size: int, problem: Problem = PROBLEM) -> np.ndarray:
    return drawn(problem.samples, size, derive(Context().seed("snvrg"), step, EVERY_RANK, "samples"))


def test_the_order_of_the_levels_is_the_papers():
    assert [level_of(t, (2, 2)) for t in range(4)] == [0, 2, 1, 2]
    assert [level_of(t, (2, 3)) for t in range(6)] == [0, 2, 2, 1, 2, 2]
    assert [level_of(t, (2, 2, 2)) for t in range(8)] == [0, 3, 2, 3, 1, 3, 2, 3]
    s = solver(SnvrgConfig(lengths=(2, 3), optimizer=SGD))
    assert [s.step(None).scalars["level"] for _ in range(8)] == [0, 2, 2, 1, 2, 2, 0, 2]


@pytest.mark.parametrize(("reference", "first"), [("all", 44), (20, 20)], ids=["SVRG", "SCSG"])
def test_one_level_is_svrg_or_scsg(reference, first):
    m = 4
    s = solver(SnvrgConfig(lengths=(m,), reference=reference, optimizer=SGD))
    x = flat(s.model)
    for step in range(10):
        if step % m == 0:
            snapshot, v = x, gradient_at(x, drawn_at(step, first))
            mean = v
        else:
            numbers = drawn_at(step, 2)
            v = gradient_at(x, numbers) - gradient_at(snapshot, numbers) + mean
        x = x - LR * v
        s.step(None)
        torch.testing.assert_close(flat(s.model), x, rtol=0, atol=1e-12)


def test_three_levels_are_the_papers_pseudo_code():
    """Written down once more as the paper has it: every level that is looked at is drawn, also where it is 0."""
    lengths, sizes = (2, 2, 2), [32, 16, 8, 4]
    s = solver(SnvrgConfig(lengths=lengths, reference=32, batches=(16, 8), optimizer=SGD), replace(PROBLEM, batch=4))
    x = flat(s.model)
    points, g = [x] * 4, [torch.zeros_like(x)] * 4
    for t in range(8):
        r = 0 if t == 0 else min(j for j in range(4) if t % np.prod(lengths[j:], dtype=int) == 0)
        points[r:] = [x] * (4 - r)
        for level in range(r, 4):
            numbers = drawn_at(t, sizes[level])
            g[level] = gradient_at(points[level], numbers)
            if level:
                g[level] = g[level] - gradient_at(points[level - 1], numbers)
        x = x - LR * sum(g)
        s.step(None)
        torch.testing.assert_close(flat(s.model), x, rtol=0, atol=1e-12)


def test_with_all_samples_everywhere_every_estimate_is_the_whole_gradient():
    s = solver(
        SnvrgConfig(lengths=(2, 3), batches=(44,), reference="all", optimizer=SGD), Problem(44, dtype=torch.float64)
    )
    for _ in range(12):
        x = flat(s.model)
        s.step(None)
        torch.testing.assert_close(estimate(s), gradient_at(x, np.arange(44)), rtol=0, atol=1e-14)


def test_given_its_references_the_estimate_has_the_whole_gradient_for_a_mean_and_little_variance():
    """Over all samples that the innermost level may draw, one by one; the references are of all."""
    s = solver(SnvrgConfig(lengths=(2, 4), batches=(44,), reference="all", optimizer=SGD))
    for _ in range(6):
        s.step(None)
    whole = gradient_at(flat(s.model), np.arange(44))
    estimates, plain = [], []
    for i in range(44):
        s._derivatives.gradient(np.array([i]), less_at=s._points[1])
        estimates.append(torch.cat([(p.grad + g).reshape(-1) for p, g in zip(s._parameters, s._sums[1], strict=True)]))
        plain.append(gradient_at(flat(s.model), np.array([i])))
    torch.testing.assert_close(torch.stack(estimates).mean(0), whole, rtol=0, atol=1e-12)
    noise = (torch.stack(estimates) - whole).square().sum(1).mean()
    assert noise < 0.02 * (torch.stack(plain) - whole).square().sum(1).mean()


def test_the_gradients_are_counted():
    read = []
    task = PROBLEM.task()

    def at(numbers, whole):
        read.append(len(numbers))
        return PROBLEM.at(numbers, whole)

    s = solver(SnvrgConfig(lengths=(2, 3)), task=Task(task.model, task.loss, Samples(44, 2, at)))
    counted = [s.step(None).scalars["gradients"] for _ in range(6)]
    assert counted == [12, 16, 20, 32, 36, 40]  # B, then twice 2, 2, 6, 2, 2
    assert counted[-1] == gradients_of_an_epoch((2, 3), (12, 6, 2)) == 12 + 2 * (1 * 6 + 4 * 2)
    assert sum(read) == 12 + 6 + 4 * 2  # one reading serves both points


def test_it_keeps_one_gradient_a_level():
    s = solver(SnvrgConfig(lengths=(2, 2, 2)))
    s.step(None)
    kept = [t for group in (*s._points, *s._sums) for t in group]
    assert sum(t.numel() for t in kept) == 2 * 3 * len(flat(s.model))  # the last, v, stands in grad


@pytest.mark.parametrize("restart_every", [1, 2])
def test_restarts_contract_on_least_squares(restart_every):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    y = x @ torch.arange(4.0, dtype=torch.float64) + 0.5 * torch.randn(64, generator=generator, dtype=torch.float64)
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    model = nn.Linear(4, 1, bias=False).double()
    at = lambda n, whole: TensorBatch({"x": x[n], "y": y[n]}, torch.from_numpy(n), whole)  # noqa: E731
    task = Task(model, lambda m, b: (m(b.tensors["x"])[:, 0] - b.tensors["y"]).square().mean(), Samples(64, 4, at))
    config = SnvrgConfig(lengths=(2, 8), reference="all", batches=(32,), restart_every=restart_every, optimizer=SGD)
    s = config.build(task, Context(exchange=RingConfig(), steps=1000))
    gaps = []
    for turn in range(8):
        start = (flat(model) - best).norm()
        path = []
        for _ in range(16 * restart_every):
            path.append(flat(model))
            s.step(None)
        assert sum(torch.equal(flat(model), p) for p in path) == 1, f"turn {turn} ends at none of its iterates"
        gaps.append(float((flat(model) - best).norm() / start))
    assert max(gaps) <= 1 and np.prod(gaps) < 1e-4, gaps


def test_bad_input_is_one_message_on_every_rank():
    task = PROBLEM.task()
    for config, given, said in [
        (SnvrgConfig(), Task(task.model, task.loss), "finite sum of samples that can be read by index"),
        (SnvrgConfig(lengths=(4, 8)), task, "level 0 takes 64 samples, and there are 44: shorten lengths"),
        (SnvrgConfig(reference=50), task, "level 0 takes 50 samples"),
        (SnvrgConfig(lengths=(2, 2), batches=(45,)), task, "level 1 takes 45 samples"),
    ]:

        def program(transport, config=config, given=given):
            with pytest.raises(JobError) as caught:
                config.build(given, Context(world=World(transport), exchange=RingConfig(), steps=1))
            return str(caught.value), caught.value.on_every_rank

        for message, everywhere in run_ranks(2, program):
            assert said in message and everywhere
    with pytest.raises(ValidationError, match="2 lengths have 1 batches between"):
        SnvrgConfig(lengths=(2, 2), batches=())
    with pytest.raises(ValidationError, match="asks for"):
        SnvrgConfig(optimizer=AdaHessianConfig())
