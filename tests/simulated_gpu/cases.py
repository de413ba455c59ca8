"""What trains on the simulated device: every solver, exchange, codec and optimizer of the house, on small problems."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from hpcopt.compress import QSGD, ChunkedTopK, Half
from hpcopt.compress.codec import CodecConfig
from hpcopt.exchange import AutoConfig, ExchangeConfig, NativeConfig, RingConfig, TwoPhaseConfig, VoteConfig
from hpcopt.exchange.lgc.reducer import LgcConfig
from hpcopt.families import CODECS
from hpcopt.lean_torch import keep_dynamo_out
from hpcopt.models.nmf import FactorMlpConfig
from hpcopt.optim import AdamWConfig, SgdConfig, SignumConfig
from hpcopt.optim.adahessian import AdaHessianConfig
from hpcopt.optim.any_torch import AnyTorchConfig
from hpcopt.optim.lamb import LambConfig
from hpcopt.optim.rsg import ArsgConfig, RsgConfig
from hpcopt.optim.svag import MSvagConfig, SvagConfig
from hpcopt.shapes import SolverConfig
from hpcopt.shapes.workload import Precision, Workload
from hpcopt.solvers.actor_critic.solver import ActorCriticConfig
from hpcopt.solvers.actor_critic.td3 import Td3Config
from hpcopt.solvers.amp.solver import AmpConfig
from hpcopt.solvers.annealing.solver import AnnealingConfig
from hpcopt.solvers.block_admm.deepfacto import DeepFactoConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.full_graph.solver import FullGraphConfig
from hpcopt.solvers.gist.solver import GistConfig
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
from tests.simulated_gpu.workloads import ACTING, GRAPHS, MODELS, WORKLOADS, OfHouse, OfProblem

keep_dynamo_out()
RING = RingConfig()


class Images(nn.Module):
    """Every kind of layer that K-FAC knows, for the problem's features as an image of 2 by 3."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 8)
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1, groups=2), nn.GroupNorm(2, 8)
        )
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolutions(x.unflatten(1, (1, 2, 3))).flatten(2).transpose(1, 2)
        h = h + self.words((x[:, :6] > 0).long())
        out: Tensor = self.head(self.norm(self.attention(h, h, h, need_weights=False)[0]).mean(1))
        return out


def made_once(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same parameters at every call, on threads too."""

    @cache
    def first() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return lambda: copy.deepcopy(first())


IMAGES = Problem(batch=12, model=made_once(Images))
FACTORS = Problem(
    batch=44, model=made_once(lambda: FactorMlpConfig(hidden=(24, 16), factors=6).build((FEATURES,), CLASSES))
)
RELU = Problem(
    batch=44,
    model=made_once(lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))),
)


@dataclass(frozen=True)
class Case:
    """A job.

    Attributes:
        steady: whether its counts are the same at every run.
    """

    solver: SolverConfig = field(default_factory=lambda: DataParallelConfig(optimizer=SgdConfig(lr=0.05)))
    exchange: ExchangeConfig = RING
    problem: Problem | OfHouse = field(default_factory=Problem)
    ranks: int = 2
    steady: bool = True
    precision: Precision = "float32"

    def workload(self) -> Workload:
        """What is trained, anew, the same at every call."""
        return OfProblem(self.problem) if isinstance(self.problem, Problem) else self.problem()


def by_a_codec(codec: type[CodecConfig], **settings: object) -> Case:
    """Sums through a codec, by the exchange that can carry it."""
    made = codec(**settings)
    try:
        return Case(exchange=RingConfig(codec=made))
    except ValueError:
        return Case(exchange=TwoPhaseConfig(codec=made))


OPTIMIZERS = [
    *(SgdConfig(), AdamWConfig(), LambConfig(), SignumConfig(), RsgConfig(), ArsgConfig(), SvagConfig()),
    *(MSvagConfig(), AdaHessianConfig(), AnyTorchConfig(type="torch.optim:Muon", lr=0.01, others=AdamWConfig())),
]
KAISA = (
    *({}, {"method": "eigen"}, {"method": "ekfac"}, {"method": "low_rank", "rank": 2}),
    *({"fisher": "sampled", "fraction": 0.5}, {"damping_every": 1, "accumulate": 2}),
    {"fisher": "sampled", "distribution": "bernoulli", "refresh_tolerance": 0.1, "graft": True},
    {"inverse_lag": 1, "factor_dtype": "bfloat16"},
    *({"max_size": 4, "large": "blocked"}, {"sharing": "reduce", "batch_every": 2, "position_every": 2}),
    *({"method": "muon", "fraction": 0.5}, {"method": "shampoo", "shampoo": {"epsilon": 1e-3}}),
    *({"method": "newton_muon", "fraction": 0.5}, {"method": "kl_shampoo", "kl_shampoo": {"epsilon": 1e-2}}),
    {"method": "soap", "soap": {"factors": "kfac", "eps": 1.0}},
    {"method": "soap", "inverse_lag": 1, "soap": {"eps": 1.0}},  # or rounding in singular factors decides
    {"method": "shampoo", "shampoo": {"roots": "newton"}, "methods": {"Linear": "cholesky"}},
)
OFTEN = {"factor_every": 1, "inverse_every": 2}
BUILTIN_CODECS = {name: codec for name, codec in CODECS.choices(CodecConfig).items() if ":" not in name}
SETTINGS: dict[str, dict[str, object]] = {
    "powersgd": {"rank": 1, "min_compression": 1},
    "chunked_topk": {"bucket": 64, "k": 8},
    "per_tensor": {"otherwise": {"name": "qsgd"}, "rules": [{"max_numel": 8, "codec": {"name": "dense"}}]},
    **{name: {"fraction": 0.3} for name in ("topk", "random_k", "shared_topk")},
}
CASES: dict[str, Case] = {
    "native": Case(exchange=NativeConfig()),
    "three ranks": Case(ranks=3),
    "alone": Case(ranks=1),
    "qsgd on three ranks": Case(exchange=TwoPhaseConfig(), ranks=3),
    "qsgd by nodes": Case(exchange=TwoPhaseConfig(by_nodes=True)),
    "lgc": Case(exchange=LgcConfig(fraction=0.1, dense_steps=1, learning_steps=1, worst=1.0)),
    "vote": Case(DataParallelConfig(optimizer=SignumConfig()), VoteConfig()),
    "auto": Case(exchange=AutoConfig(codec=QSGD(), calibration_s=0.2), steady=False),
    "clipped, in micro-batches": Case(DataParallelConfig(optimizer=AdamWConfig(), clip_norm=0.5, accumulate=2)),
    "images": Case(problem=IMAGES),
    **{f"codec {name}": by_a_codec(codec, **SETTINGS.get(name, {})) for name, codec in BUILTIN_CODECS.items()},
    **{f"optimizer {each.name}": Case(DataParallelConfig(optimizer=each)) for each in OPTIMIZERS},
    **{f"kaisa {settings or ''}".strip(): Case(KaisaConfig(**OFTEN, **settings), problem=IMAGES) for settings in KAISA},
    "bfloat16": Case(problem=WORKLOADS["image_classification"], precision="bfloat16"),
    **{f"model {name}": Case(problem=workload, ranks=1) for name, workload in MODELS.items()},
    **{
        f"workload {name} on {ranks}": Case(problem=workload, ranks=ranks)
        for name, workload in WORKLOADS.items()
        for ranks in (1, 2)
    },
    "kaisa on three ranks": Case(KaisaConfig(**OFTEN), problem=IMAGES, ranks=3),
    "kaisa, a plain step": Case(KaisaConfig(factor_every=9, inverse_every=9), problem=IMAGES, ranks=1),
    "kaisa, a factor step": Case(KaisaConfig(factor_every=1, inverse_every=9), problem=IMAGES, ranks=1),
    "kaisa, a refresh": Case(KaisaConfig(factor_every=1, inverse_every=1), problem=IMAGES, ranks=1),
    "gossip": Case(GossipConfig()),
    "gossip, choco": Case(GossipConfig(mixing="choco", graph="ring")),
    "snvrg": Case(SnvrgConfig(lengths=(2, 2), restart_every=1)),
    "local": Case(LocalConfig(every=1, optimizer=SgdConfig(lr=0.05), outer=SgdConfig(lr=1, momentum=0))),
    "local, chunked top-k": Case(
        LocalConfig(every=2, optimizer=AdamWConfig()), TwoPhaseConfig(codec=ChunkedTopK(bucket=64, k=8))
    ),
    "local, by gossip": Case(LocalConfig(every=1, gossip=MixingConfig())),
    "leader": Case(LeaderConfig(every=1)),
    "pipeline": Case(PipelineConfig(accumulate=2)),
    "pipeline, half precision": Case(PipelineConfig(accumulate=2, codec=Half())),
    "local_parallel": Case(LocalParallelConfig()),
    "local_parallel, late": Case(LocalParallelConfig(reach=2, staleness=1)),
    **{f"graph {name}": Case(problem=graph) for name, graph in GRAPHS.items()},
    # one rank: ranks here are threads with one backward thread of the device for all, in which halos would wait
    "full_graph": Case(FullGraphConfig(), problem=GRAPHS["graphsage"], ranks=1),
    "gist": Case(GistConfig(every=1, optimizer=AdamWConfig()), problem=RELU),
    "block_admm": Case(BlockAdmmConfig(measure_every=1), problem=RELU),
    "block_admm, stored": Case(BlockAdmmConfig(auxiliaries="stored", in_flight=2), problem=RELU),
    "deepfacto": Case(DeepFactoConfig(plain=0.3, code_steps=2, sweeps=2), problem=FACTORS),
    "amp": Case(AmpConfig(max_active_keys=1)),
    "tensor_init": Case(TensorInitConfig(), problem=WORKLOADS["teacher"]),
    "relu_altmin": Case(ReluAltMinConfig(), problem=WORKLOADS["teacher"]),
    "altmin": Case(AltMinConfig(), ranks=1),
    "bcd": Case(BcdConfig(), problem=RELU, ranks=1),
    "dladmm": Case(DlAdmmConfig(), problem=RELU, ranks=1),
    "annealing": Case(AnnealingConfig(chains=3, moves=2), problem=MODELS["deductron"]),
    "actor_critic": Case(ActorCriticConfig(warmup=4, batch_size=8), problem=ACTING, ranks=1),
    "actor_critic, two that collect": Case(ActorCriticConfig(warmup=4, batch_size=8), problem=ACTING, ranks=3),
    "actor_critic, td3": Case(ActorCriticConfig(warmup=4, batch_size=8, method=Td3Config()), problem=ACTING),
}
