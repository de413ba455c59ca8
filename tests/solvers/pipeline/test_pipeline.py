"""A pipeline takes the path of one process: the bits of it, where nothing is added up in another order."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.comm.alpha_beta import Line
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.rehearsal import RehearsalTransport
from hpcopt.comm.world import World, alone
from hpcopt.compress import Half
from hpcopt.errors import JobError
from hpcopt.exchange import RingConfig
from hpcopt.models.vit import VitConfig
from hpcopt.optim import AdamWConfig
from hpcopt.optim.by_pattern import GroupConfig
from hpcopt.pipeline import spread
from hpcopt.pipeline.cut import cut, outputs
from hpcopt.pipeline.measured import SAMPLES, measured_links, measured_s
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.pipeline.local_parallel import LocalParallelConfig
from hpcopt.solvers.pipeline.solver import PipelineConfig
from hpcopt.testing.problem import CLASSES, FEATURES, Problem, flat
from hpcopt.testing.solver import Trial

ADAM, STEPS = AdamWConfig(lr=0.01, eps=1e-3), 5


def deep() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = (FEATURES, 8, 7, 6, 8, CLASSES)
        layers = [[nn.Linear(a, b), nn.Tanh()] for a, b in itertools.pairwise(widths)]
        return nn.Sequential(*itertools.chain(*layers))[:-1]


def normed() -> nn.Sequential:
    model = deep()
    return nn.Sequential(model[:2], nn.BatchNorm1d(8), model[2:4], nn.BatchNorm1d(7), model[4:])


def transformer() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), *VitConfig(patch=1, layers=2, width=8, heads=2).build((1, 2, 3), CLASSES)
        )


DEEP, NORMED, TRANSFORMER = Problem(model=deep), Problem(batch=12, model=normed), Problem(model=transformer)


@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
@pytest.mark.parametrize("problem", [DEEP, NORMED, TRANSFORMER], ids=["perceptron", "batch norm", "transformer"])
def test_stages_have_the_bits_of_one_process(problem, order):
    """Batch norm, too: its statistics are those of a micro-batch, and its running ones are the stage's."""
    one = Trial(DataParallelConfig(optimizer=ADAM, accumulate=3), problem).first(1)[0]
    for size in (1, 2, 4) if problem is DEEP else (3,):
        config = PipelineConfig(optimizer=ADAM, accumulate=3, order=order, stages=size)
        for run in Trial(config, problem).first(size):
            assert run.losses == one.losses
            assert torch.equal(run.parameters, one.parameters)
            for name, value in one.shared["model"].items():
                assert torch.equal(run.shared["model"][name], value), name


@pytest.mark.parametrize("clip_norm", [None, 0.2])
def test_stages_beside_replicas_take_the_path_of_one_process(clip_norm):
    """To rounding: gradients are summed over the ranks of a stage, norms over the stages."""
    groups = (GroupConfig(pattern="0.*", lr_factor=0.5), GroupConfig(pattern="*.bias", weight_decay=0.0))
    problem = Problem(model=deep, dtype=torch.float64)
    settings = {"optimizer": ADAM, "clip_norm": clip_norm, "groups": groups}
    one = Trial(DataParallelConfig(**settings), problem).first(1)[0]
    run = Trial(PipelineConfig(**settings, stages=2, accumulate=2), problem).first(4)[3]
    assert run.losses == pytest.approx(one.losses, rel=1e-6)
    torch.testing.assert_close(run.parameters, one.parameters, rtol=1e-6, atol=1e-9)


def test_half_the_bytes_in_half_precision():
    """Straight through the codec, up and down: close to the exact path, at exactly half of its bytes."""
    exact, half = (Trial(PipelineConfig(stages=2, accumulate=1, codec=codec), DEEP) for codec in (None, Half()))
    (up, down), (short_up, short_down) = ([run.sent_bytes for run in trial.first(2)] for trial in (exact, half))
    assert up == down == [4 * 11 * 7] * STEPS  # where the perceptron is 7 wide, the cut falls
    assert (short_up, short_down) == ([b // 2 for b in up], [b // 2 for b in down])
    torch.testing.assert_close(half.first(2)[0].parameters, exact.first(2)[0].parameters, rtol=0, atol=1e-3)
    assert not torch.equal(half.first(2)[0].parameters, exact.first(2)[0].parameters)


def build(config, world, problem=DEEP):
    return config.build(problem.task(), Context(world=world, exchange=RingConfig(), steps=STEPS))


def test_not_a_number_of_one_stage_is_in_the_loss_of_that_step():
    def program(t):
        solver = build(PipelineConfig(), World(t))
        if t.rank == 0:
            with torch.no_grad():
                next(solver.pieces[0].tensors())[1].fill_(torch.nan)
        return solver.step(DEEP.batches(0, 1, 1)[0])

    *lower, last = run_ranks(3, program)
    assert all(stats.loss is None for stats in lower)
    assert np.isnan(last.loss)


def test_every_stage_tells_for_what_share_it_waited():
    def program(t):
        return build(PipelineConfig(), World(t)).step(DEEP.batches(0, 1, 1)[0]).scalars

    for stage, scalars in enumerate(run_ranks(3, program)):
        assert list(scalars) == [f"idle_{stage}"]
        assert 0 <= scalars[f"idle_{stage}"].value < 1


def test_stages_are_where_the_job_says():
    def starts(**settings):
        return run_ranks(2, lambda t: build(PipelineConfig(**settings), World(t)).spread.mesh.starts)[0]

    assert starts(balance="layers") == (0, 2)
    assert starts(cuts=["6"]) == (0, 1)  # two blocks
    assert starts(stages=1) == (0,)
    with pytest.raises(JobError, match="a rank would have none"):
        starts(blocks=1, stages=2)


def test_a_group_of_parameters_that_are_nowhere_is_refused():
    with pytest.raises(JobError, match="matches no parameter"):
        build(PipelineConfig(groups=(GroupConfig(pattern="nowhere.*", lr=1.0),)), World(RehearsalTransport(1)))


def test_a_loss_that_needs_more_than_outputs_is_refused():
    task = DEEP.task()
    with pytest.raises(JobError, match="function of the model's outputs"):
        PipelineConfig().build(
            Task(task.model, lambda model, batch: task.loss(model, batch)), Context(exchange=RingConfig(), steps=1)
        )


def test_the_plan_says_what_stages_hold_send_keep_and_wait():
    plan = build(PipelineConfig(accumulate=4), World(RehearsalTransport(3))).plan(1.0)
    assert plan["blocks"] == "5 on 3 ranks, 1 data groups of those"
    assert plan["boundaries"] == "32, 24 bytes a sample and way, before a codec"
    assert plan["micro-batches"].startswith("4, 1f1b: at most 3 x ")
    assert plan["bubble"].startswith("33% of a step with equal stages")


def test_another_number_of_stages_goes_on_with_each_block_s_optimizer():
    """Blocks are what a checkpoint is made of: from three stages to two, bit for bit."""
    config = PipelineConfig(optimizer=ADAM, accumulate=2)
    trial = Trial(config, DEEP)
    saved, straight = trial.first(3), trial.run(3, STEPS + 3)
    resumed = trial.run(2, 3, first=STEPS, saved=copy.deepcopy(saved))
    assert torch.equal(resumed[0].parameters, straight[0].parameters)
    assert flat(DEEP.task().model).shape == resumed[0].parameters.shape


@pytest.mark.parametrize("config", [PipelineConfig, LocalParallelConfig], ids=["pipeline", "local parallel"])
def test_a_run_goes_on_with_the_stages_that_a_clock_has_dealt_it(config, monkeypatch):
    """Norms that are clipped are summed by stage, so other stages would give other bits."""
    seconds = iter([[1.0, 1, 1, 9, 1]] * 3 + [[9.0, 1, 1, 1, 1]] * 3)
    monkeypatch.setattr(spread, "measured_s", lambda blocks, examples, world: next(seconds))
    clipped = {"clip_norm": 0.2} if config is PipelineConfig else {"reach": 2, "staleness": 1}
    trial = Trial(config(optimizer=ADAM, timed=True, stages=3, **clipped), DEEP)
    saved = trial.first(3)
    assert saved[0].shared["ranks"] == [3, 3, 0, 3, 4]
    resumed = trial.run(3, 4, first=5, saved=saved)
    assert resumed[0].shared["ranks"] == [3, 3, 0, 3, 4]
    seconds = iter([[1.0, 1, 1, 9, 1]] * 3)
    straight = trial.run(3, 9)
    assert torch.equal(resumed[0].parameters, straight[0].parameters)


def test_a_slow_link_gets_a_narrow_place(monkeypatch):
    """The widths are 6, 8, 7, 6, 8: the third block's inputs have 7 values, the fourth's 6."""
    monkeypatch.setattr(spread, "measured_s", lambda blocks, examples, world: [1.0, 1, 1, 1, 1])
    quick, slow = Line(0.0, 1e12), Line(0.0, 4 * SAMPLES * 8 / 9.0)  # 8 values take 9 s
    config = PipelineConfig(optimizer=ADAM, timed=True, stages=2)
    for links, starts in (([quick], (0, 2)), ([slow], (0, 3))):
        monkeypatch.setattr(spread, "measured_links", lambda world, stages, device, links=links: links)
        assert build(config, World(RehearsalTransport(2))).spread.mesh.starts == starts


def test_links_are_measured_and_all_ranks_know_them():
    cpu = torch.device("cpu")
    found = run_ranks(4, lambda transport: measured_links(World(transport), 2, cpu))
    assert all(links == found[0] for links in found)
    assert len(found[0]) == 1 and 0 < found[0][0](1 << 20) < 60


def test_blocks_are_measured_and_stay_as_they_are():
    blocks = cut(normed(), torch.ones(1, FEATURES))
    blocks[0].append(nn.Dropout(0.5))
    before = [x.clone() for block in blocks for x in block.state_dict().values()]
    drawn = torch.get_rng_state()
    seconds = measured_s(blocks, [torch.ones(1, FEATURES), *outputs(blocks, torch.ones(1, FEATURES))], alone())
    assert len(seconds) == len(blocks) and min(seconds) > 0
    after = (x for block in blocks for x in block.state_dict().values())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert all(p.grad is None for block in blocks for p in block.parameters())
    assert torch.equal(drawn, torch.get_rng_state()) and all(block.training for block in blocks)
