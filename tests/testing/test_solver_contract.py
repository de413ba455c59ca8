"""Every solver of the house keeps the solvers' contract, and the contract notices those that do not."""

import copy
from contextlib import suppress
from functools import cache, cached_property
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from hpcopt.comm import dense
from hpcopt.compress import QSGD, ChunkedTopK
from hpcopt.errors import PeerError
from hpcopt.exchange import TwoPhaseConfig, VoteConfig
from hpcopt.families import SOLVERS
from hpcopt.models.nmf import FactorMlpConfig
from hpcopt.optim import AdamWConfig, SgdConfig, SignumConfig
from hpcopt.shapes import Context, Solver, SolverConfig, Task, Workload
from hpcopt.solvers.amp.solver import AmpConfig
from hpcopt.solvers.annealing.solver import AnnealingConfig
from hpcopt.solvers.block_admm.deepfacto import DeepFactoConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallel, DataParallelConfig
from hpcopt.solvers.gossip import GossipConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig
from hpcopt.solvers.leader.solver import LeaderConfig
from hpcopt.solvers.local.solver import LocalConfig
from hpcopt.solvers.mixing import MixingConfig
from hpcopt.solvers.pipeline.local_parallel import LocalParallelConfig
from hpcopt.solvers.pipeline.solver import PipelineConfig
from hpcopt.solvers.relu_network.relu_altmin import ReluAltMinConfig
from hpcopt.solvers.relu_network.tensor_init import TensorInitConfig
from hpcopt.solvers.snvrg import SnvrgConfig
from hpcopt.solvers.splitting.altmin import AltMinConfig
from hpcopt.solvers.splitting.bcd import BcdConfig
from hpcopt.solvers.splitting.dladmm import DlAdmmConfig
from hpcopt.testing.problem import CLASSES, FEATURES, Problem
from hpcopt.testing.solver import (
    Trial,
    check_bytes,
    check_damage,
    check_equal_on_all_ranks,
    check_let_go,
    check_lost_rank,
    check_resume,
    check_solver,
)
from hpcopt.workloads.teacher import TeacherConfig
from tests.solvers.annealing.walkers import Signs


@cache
def _factor_network() -> nn.Module:
    torch.manual_seed(0)
    return FactorMlpConfig(hidden=(24, 16), factors=6).build((FEATURES,), CLASSES)


@cache
def _relu_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


WHOLE = Problem(batch=44, model=lambda: copy.deepcopy(_relu_network()))  # all samples in every batch
SIGNS = Problem(model=Signs)
FACTORS = Problem(batch=44, model=lambda: copy.deepcopy(_factor_network()))


class OfTeacher(Problem):
    """Samples of a teacher, all in every batch."""

    def task(self) -> Task:
        made = self._made
        return Task(copy.deepcopy(made.model), made.loss, made.by_index())

    def batches(self, rank: int, size: int, steps: int, first: int = 0) -> list[Any]:
        return list(islice(self._made.train_batches(rank, size, first), steps))

    @cached_property
    def _made(self) -> Workload:
        return TeacherConfig(
            inputs=FEATURES, hidden=(3,), train=self.samples, batch=self.batch, noise=0.1, dtype="float32"
        ).build(Context())


TEACHER = OfTeacher(batch=211, samples=211)

CASES: dict[str, list[tuple[SolverConfig, dict[str, Any]]]] = {
    "data_parallel": [
        (DataParallelConfig(), {}),
        (DataParallelConfig(optimizer=AdamWConfig(eps=1e-3), accumulate=2), {}),
        (DataParallelConfig(), {"problem": Problem(batch=2), "ranks": (1, 3)}),  # a rank without samples
        (DataParallelConfig(), {"exchange": TwoPhaseConfig(), "same_curve": False}),
        (DataParallelConfig(optimizer=SignumConfig(lr=0.01)), {"exchange": VoteConfig(), "same_curve": False}),
    ],
    "kaisa": [
        (KaisaConfig(factor_every=1, inverse_every=2), {}),
        (KaisaConfig(factor_every=1, inverse_every=2), {"problem": Problem(batch=2), "ranks": (1, 3)}),
        (KaisaConfig(method="muon", optimizer=AdamWConfig(eps=1e-3), fraction=0.5), {}),
        (KaisaConfig(method="newton_muon", optimizer=AdamWConfig(eps=1e-3), fraction=0.5, factor_every=1), {}),
    ],
    "pipeline": [
        (PipelineConfig(), {}),
        (
            PipelineConfig(optimizer=AdamWConfig(eps=1e-3), order="gpipe", accumulate=2, clip_norm=0.5),
            {"ranks": (2, 4)},
        ),
        (PipelineConfig(stages=1), {"problem": Problem(batch=2), "ranks": (1, 3)}),  # a rank without samples
        (PipelineConfig(codec=QSGD(bits=8)), {"ranks": (2,), "same_curve": False}),
    ],
    "local_parallel": [
        (LocalParallelConfig(), {}),
        (LocalParallelConfig(reach=2, accumulate=2, optimizer=AdamWConfig(eps=1e-3)), {"ranks": (1, 3)}),
        (LocalParallelConfig(reach=2, staleness=2), {"ranks": (2, 3)}),
        (LocalParallelConfig(reach=3, stages=1), {"problem": Problem(batch=2), "ranks": (1, 3)}),
    ],
    "block_admm": [(BlockAdmmConfig(), {})],
    "deepfacto": [(DeepFactoConfig(), {"problem": FACTORS, "ranks": (1, 2), "same_curve": False})],
    "gossip": [(GossipConfig(), {"ranks": (1, 2), "same_curve": False})],
    "snvrg": [
        (SnvrgConfig(lengths=(2, 2), restart_every=1), {}),
        (SnvrgConfig(lengths=(3,), reference="all"), {"problem": Problem(batch=2), "ranks": (1, 3)}),
    ],
    "local": [
        (LocalConfig(every=1, optimizer=SgdConfig(momentum=0), outer=SgdConfig(lr=1, momentum=0)), {}),
        (
            LocalConfig(every=3, every_at_end=4, optimizer=AdamWConfig()),
            {"exchange": TwoPhaseConfig(codec=ChunkedTopK(bucket=64, k=8)), "ranks": (1, 3), "same_curve": False},
        ),
        (LocalConfig(every=2, gossip=MixingConfig()), {"ranks": (1, 2), "same_curve": False}),
    ],
    "leader": [(LeaderConfig(every=2), {"same_curve": False})],
    "amp": [(AmpConfig(max_active_keys=1, min_update_frequency=3), {"ranks": (1, 3)})],
    "tensor_init": [(TensorInitConfig(), {"problem": TEACHER})],
    "relu_altmin": [
        (ReluAltMinConfig(), {"problem": TEACHER}),
        (ReluAltMinConfig(), {"problem": OfTeacher(batch=2, samples=2), "ranks": (1, 3)}),  # a rank without samples
    ],
    "altmin": [(AltMinConfig(), {"ranks": (1,)})],
    "bcd": [(BcdConfig(), {"problem": WHOLE, "ranks": (1,)})],
    "dladmm": [(DlAdmmConfig(), {"problem": WHOLE, "ranks": (1,)})],
    "annealing": [
        (AnnealingConfig(moves=3), {"problem": SIGNS}),
        (AnnealingConfig(method="simulated_annealing", chains=2, moves=3), {"problem": SIGNS, "ranks": (1, 3)}),
    ],
}


@pytest.mark.parametrize(
    ("config", "settings"),
    [case for cases in CASES.values() for case in cases],
    ids=[f"{name}-{number}" for name, cases in CASES.items() for number in range(len(cases))],
)
def test_every_solver_keeps_the_contract(config, settings):
    check_solver(config, **settings)


ELSEWHERE = {"gist", "full_graph", "actor_critic"}  # with problems of their own, see their tests


def test_no_solver_is_left_out():
    assert CASES.keys() | ELSEWHERE == {name for name in SOLVERS.choices(SolverConfig) if ":" not in name}


class Forgetful(DataParallel):
    """Keeps nothing of its optimizer."""

    def load_state_dict(self, shared, parts):
        before = copy.deepcopy(self._optimizer.state_dict())
        super().load_state_dict(shared, parts)
        self._optimizer.load_state_dict(before)


class Careless(DataParallel):
    """Takes whatever it finds in a state."""

    def load_state_dict(self, shared, parts):
        self.model.load_state_dict(shared["model"])


class Apart(DataParallel):
    """Lets ranks differ."""

    def step(self, batch):
        stats = super().step(batch)
        with torch.no_grad():
            next(self.model.parameters()).add_(1e-6 * self.data_rank)
        return stats


class Untold(DataParallel):
    """Keeps a norm to itself that it sums with a transport of its own."""

    def __init__(self, config, task, context):
        super().__init__(config, task, context)
        self._own = context.world.transport.duplicate()

    def step(self, batch):
        stats = super().step(batch)
        dense.all_reduce(self._own, torch.ones(5))
        return stats


class Twice(DataParallel):
    """Counts what it sends beside those who count it."""

    def __init__(self, config, task, context):
        super().__init__(config, task, context)
        self._traffic = context.world.traffic

    def step(self, batch):
        stats = super().step(batch)
        self._traffic.sent_bytes += self._exchange.planned_bytes()
        return stats


class Kept(DataParallel):
    """Listens to a parameter."""

    def __init__(self, config, task, context):
        super().__init__(config, task, context)
        for p in self.model.parameters():
            p.register_post_accumulate_grad_hook(self._note)

    def _note(self, p):
        pass


class Secretive(DataParallel):
    """Tells rank 0's part alone."""

    def state_dict(self):
        return {**super().state_dict(), "secret": 7 if self.data_rank == 0 else None}


class Stubborn(DataParallel):
    """Goes on alone."""

    def step(self, batch):
        with suppress(PeerError):
            return super().step(batch)

    def gather(self):
        pass


class Wrong(DataParallelConfig):
    """Builds one of the above."""

    kind: str

    def build(self, task: Task, context: Context) -> Solver:
        return WRONG[self.kind](self, task, context)


WRONG = {
    "forgetful": Forgetful,
    "careless": Careless,
    "apart": Apart,
    "untold": Untold,
    "twice": Twice,
    "kept": Kept,
    "secretive": Secretive,
    "stubborn": Stubborn,
}


@pytest.mark.parametrize(
    ("kind", "check", "size", "complaint"),
    [
        ("forgetful", check_resume, 1, "ends with other bits"),
        ("careless", check_damage, 1, "KeyError|is not refused"),
        ("apart", check_equal_on_all_ranks, 2, "rank 1 of 2 differs"),
        ("secretive", check_equal_on_all_ranks, 2, "state_dict of rank 1 of 2 is not rank 0's"),
        ("untold", check_bytes, 2, "rank 0 of 2 sent .* and recorded"),
        ("twice", check_bytes, 3, "rank 0 of 3 sent .* and recorded"),
        ("kept", check_let_go, 2, "stays in memory"),
        ("stubborn", check_lost_rank, 3, r"ranks \[0, 1\] come to their end without rank 2"),
    ],
)
def test_what_breaks_the_contract_is_noticed(kind, check, size, complaint):
    with pytest.raises((AssertionError, KeyError), match=complaint):
        check(Trial(Wrong(kind=kind)), size)
