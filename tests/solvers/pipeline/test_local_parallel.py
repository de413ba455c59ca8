"""What blocks learn from: their own loss, those of so many above them, and no other's."""

import copy
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.world import World, alone, connect
from hpcopt.compress import Half
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig
from hpcopt.job import read_job
from hpcopt.models.heads import AutoHeadConfig, HeadConfig, PooledHeadConfig, TokensHeadConfig
from hpcopt.optim import AdamWConfig, SgdConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.pipeline.local_parallel import LocalParallelConfig
from hpcopt.solvers.pipeline.solver import PipelineConfig
from hpcopt.testing.problem import CLASSES, FEATURES, Problem, flat
from hpcopt.testing.solver import AFTER, Trial
from tests.solvers.pipeline.test_pipeline import ADAM, DEEP, NORMED, STEPS, TRANSFORMER, deep

BLOCKS = 5
PLAIN = SgdConfig(lr=0.1, momentum=0, weight_decay=0)
FORMS = ({}, {"reach": 2}, {"reach": 3}, {"reach": 2, "staleness": 2}, {"reach": BLOCKS, "accumulate": 2})


def build(config, world=None, problem=DEEP, steps=STEPS):
    return config.build(problem.task(), Context(world=world or alone(), exchange=RingConfig(), steps=steps))


def step_of(settings, loss_of=None):
    """The gradient of each block that one step leaves, where the losses of all blocks but ``loss_of`` count nothing."""
    solver = build(LocalParallelConfig(optimizer=PLAIN, **settings))
    batch = DEEP.batches(0, 1, 1)[0]
    if loss_of is not None:
        for t, head in solver._more.items():
            if t != loss_of:
                nn.init.zeros_(head[-1].weight)  # then no gradient comes back through it
        if loss_of != BLOCKS - 1:
            nn.init.zeros_(solver.spread.blocks[-1][0].weight)
    solver.step(batch)
    return [float(torch.stack([p.grad.norm() for p in block.parameters()]).norm()) for block in solver.spread.blocks]


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_a_loss_trains_its_block_and_so_many_below_it(reach):
    """And none above, none further down: their gradients are zero, where those of reached blocks are not."""
    for loss_of in range(1, BLOCKS - 1):
        norms = step_of({"reach": reach}, loss_of)
        reached = {t for t in range(BLOCKS - 1) if loss_of - reach < t <= loss_of}
        others = {t for t in range(BLOCKS - 1) if t < loss_of} - reached
        assert all(norms[t] > 0 for t in reached)
        assert all(norms[t] == 0 for t in others)


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_gradients_are_those_of_the_definition(reach):
    """Autograd over the whole network, with the input of each loss's lowest block detached, where blocks further up
    get no gradient at all: it is None.
    """
    solver = build(LocalParallelConfig(optimizer=PLAIN, reach=reach))
    twin, batch = copy.deepcopy((solver.spread.blocks, solver._more)), DEEP.batches(0, 1, 1)[0]
    blocks, heads = twin
    for k in range(BLOCKS):
        x = batch.tensors["x"]
        with torch.no_grad():
            for block in blocks[: max(0, k - reach + 1)]:
                x = block(x)
        for block in blocks[max(0, k - reach + 1) : k + 1]:
            x = block(x)
        parameters = [p for block in blocks for p in block.parameters()]
        loss = F.cross_entropy(heads[k](x) if k in heads else x, batch.tensors["labels"])
        found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        seen = {id(p) for block in blocks[max(0, k - reach + 1) : k + 1] for p in block.parameters()}
        assert [g is not None for g in found] == [id(p) in seen for p in parameters]
        for p, g in zip(parameters, found, strict=True):
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g
    solver.step(batch)
    for block, own in zip(blocks, solver.spread.blocks, strict=True):
        for p, q in zip(block.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("problem", [DEEP, NORMED, TRANSFORMER], ids=["perceptron", "batch norm", "transformer"])
def test_one_chunk_has_the_bits_of_back_propagation(problem):
    settings = {"optimizer": ADAM, "accumulate": 2}
    one = Trial(DataParallelConfig(**settings), problem).first(1)[0]
    chunk = Trial(LocalParallelConfig(blocks=1, **settings), problem).first(1)[0]
    assert chunk.losses == one.losses
    assert torch.equal(chunk.parameters, one.parameters)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_ranks_have_the_bits_of_one_process(form):
    """Without waiting for each other they take batches at different times, and still meet the same weights."""
    config = LocalParallelConfig(optimizer=ADAM, **form)
    one = Trial(config, DEEP).first(1)[0]
    for size in (2, 4):
        run = Trial(config.model_copy(update={"stages": size}), DEEP).first(size)[0]
        assert run.losses == one.losses
        assert torch.equal(run.parameters, one.parameters)


def test_all_forms_answer_alike_for_equal_weights():
    """Before the first update, heads and gradients change nothing in what the network gives."""
    losses = {Trial(LocalParallelConfig(**form), DEEP).run(1, 1)[0].losses[0] for form in FORMS}
    assert len(losses) == 1


class Depth:
    """Counts the tensors that autograd keeps at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self):
        depth = self

        class Kept:
            def __init__(self, x):
                self.x = x
                depth.now += x.numel()
                depth.most = max(depth.most, depth.now)

            def __del__(self):
                depth.now -= self.x.numel()

        self._hooks = torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)


def test_what_a_worker_keeps_does_not_grow_with_the_depth():
    """Of a network twice as deep greedy blocks keep no more at a time; back-propagation keeps about twice as much."""

    def most(config, layers):
        def network():
            torch.manual_seed(0)
            hidden = [m for _ in range(layers) for m in (nn.Linear(FEATURES, FEATURES), nn.Tanh())]
            return nn.Sequential(*hidden, nn.Linear(FEATURES, CLASSES))

        problem = Problem(model=network)
        solver = build(config, problem=problem)
        with Depth() as depth:
            solver.step(problem.batches(0, 1, 1)[0])
        return depth.most

    greedy = [most(LocalParallelConfig(), layers) for layers in (4, 8)]
    back = [most(DataParallelConfig(), layers) for layers in (4, 8)]
    assert greedy[0] == greedy[1]
    assert back[1] > 1.7 * back[0]


def test_back_propagation_fits_random_labels_better_than_greedy_blocks():
    """Narrow blocks, so that what the first of them keep for themselves is missing further up."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(64, FEATURES, generator=generator), torch.randint(0, CLASSES, (64,), generator=generator)
    batch = TensorBatch({"x": x, "labels": y}, torch.arange(64), 64)

    def loss_after(**settings):
        solver = build(LocalParallelConfig(optimizer=AdamWConfig(lr=0.02, weight_decay=0), **settings), steps=150)
        return [solver.step(batch).loss for _ in range(150)][-1]

    everything, greedy = loss_after(blocks=1), loss_after()
    assert everything < 0.8 * greedy


def test_heads_are_dropped_and_their_training_is_saved():
    trial = Trial(LocalParallelConfig(optimizer=ADAM, reach=2, staleness=1), DEEP)
    run = trial.first(2)[0]
    assert run.shared["model"].keys() == deep().state_dict().keys()
    assert list(run.own["heads"]["0"]) == ["1.weight", "1.bias"]
    head = run.own["heads"]["0"]["1.weight"]
    assert not torch.equal(head, trial.run(2, 1)[0].own["heads"]["0"]["1.weight"])


def test_late_gradients_go_on_at_another_number_of_stages():
    """Nothing owed is lost: three stages saved, two go on with the same bits."""
    trial = Trial(LocalParallelConfig(optimizer=ADAM, reach=2, staleness=2), DEEP)
    saved, straight = trial.first(3), trial.run(3, STEPS + 3)
    resumed = trial.run(2, 3, first=STEPS, saved=saved)
    assert torch.equal(resumed[0].parameters, straight[0].parameters)


@pytest.mark.parametrize("reach", [1, 2])
def test_only_activations_go_up_and_neighbours_gradients_come_down(reach):
    """44 bytes a feature and batch of 11 in float32, half that in half precision; one byte that a batch is taken."""
    for codec, width_bytes in ((None, 4), (Half(), 2)):
        config = LocalParallelConfig(reach=reach, stages=2, accumulate=1, codec=codec)
        lower, upper = (run.sent_bytes for run in Trial(config, DEEP).first(2))
        assert lower == [11 * 7 * width_bytes] * STEPS
        assert upper == [11 * 7 * width_bytes if reach == 2 else 1] * STEPS


def test_a_rank_runs_ahead_by_no_more_than_it_may():
    """The lower rank does its batches while the upper one has taken none, until so many are out."""
    done, two = [], threading.Event()

    def program(t):
        solver = build(LocalParallelConfig(ahead=2, stages=2), World(t))
        batches = DEEP.batches(0, 1, STEPS)
        if t.rank == 1:
            two.wait()  # the other one comes so far by itself
            assert len(done) == 2
        for batch in batches:
            solver.step(batch)
            if t.rank == 0:
                done.append(batch)
            if len(done) == 2:
                two.set()
        solver.gather()
        return flat(solver.model)

    first, second = run_ranks(2, program)
    assert torch.equal(first, second)


def test_not_a_number_of_one_block_is_in_the_last_one_s_loss():
    def program(t):
        solver = build(LocalParallelConfig(), World(t))
        if t.rank == 0:
            with torch.no_grad():
                next(solver.pieces[0].tensors())[1].fill_(torch.nan)
        return solver.step(DEEP.batches(0, 1, 1)[0])

    *_, last = run_ranks(3, program)
    assert np.isnan(last.loss)


def test_every_block_tells_its_loss():
    stats = build(LocalParallelConfig()).step(DEEP.batches(0, 1, 1)[0])
    assert [name for name in stats.scalars if name.startswith("loss")] == [f"loss_{t}" for t in range(BLOCKS - 1)]
    assert stats.scalars["loss_0"].value > 0


class OwnHead(HeadConfig):
    """Two layers."""

    def build(self, features, outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(features[0], 4), nn.Tanh(), nn.Linear(4, *outputs))


def test_heads_suit_the_block():
    assert [type(m).__name__ for m in AutoHeadConfig().build((8, 4, 4), (3,))] == [
        "AdaptiveAvgPool2d",
        "Flatten",
        "Linear",
    ]
    assert AutoHeadConfig().build((5, 8), (3,))(torch.zeros(2, 5, 8)).shape == (2, 3)
    assert AutoHeadConfig().build((5, 8), (5, 30))(torch.zeros(2, 5, 8)).shape == (2, 5, 30)
    assert AutoHeadConfig().build((7,), (2, 3))(torch.zeros(4, 7)).shape == (4, 2, 3)
    for config in (PooledHeadConfig(), TokensHeadConfig()):
        with pytest.raises(JobError, match="is for features of"):
            build(LocalParallelConfig(head=config))
    solver = build(LocalParallelConfig(head=OwnHead()))
    assert len(solver._more[0]) == 4


def test_a_job_names_a_head_of_its_own(tmp_path):
    job, head = tmp_path / "job.toml", f'head = {{ name = "{__name__}:OwnHead" }}'
    job.write_text(f'[run]\nsteps = 1\n[workload]\ndata = "data/digits"\n[solver]\nname = "local_parallel"\n{head}\n')
    assert isinstance(read_job(job).solver.head, HeadConfig)


def test_what_has_no_meaning_here_is_refused():
    with pytest.raises(ValidationError, match="staleness goes with reach = 2"):
        LocalParallelConfig(reach=3, staleness=1)
    with pytest.raises(ValidationError, match="gradient of the whole network"):
        LocalParallelConfig(clip_norm=1.0)


def test_the_plan_tells_of_heads_and_of_what_is_kept():
    plan = build(LocalParallelConfig(reach=2), World(RehearsalTransport(3))).plan(1.0)
    assert plan["heads"] == "4, of 99 parameters, dropped from the model"
    assert plan["gradients"].startswith("from above those of 1 blocks above, 0 batches late")


@pytest.mark.parallel([2, 3])
def test_mpi_ranks_have_the_bits_of_one_process():
    """All the way back, and by late gradients from one block above."""
    world = connect()
    for config in (
        PipelineConfig(optimizer=ADAM, accumulate=2),
        LocalParallelConfig(optimizer=ADAM),
        LocalParallelConfig(optimizer=ADAM, reach=2, staleness=1),
    ):
        one = Trial(config, DEEP).first(1)[0]
        solver = build(config.model_copy(update={"stages": world.size}), world, steps=STEPS + AFTER)
        for batch in DEEP.batches(0, 1, STEPS):
            solver.step(batch)
        solver.gather()
        assert torch.equal(flat(solver.model), one.parameters)
    world.close()
