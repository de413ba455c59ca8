"""How a batch becomes new parameters across the ranks."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.solvers.actor_critic.solver import ActorCriticConfig
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
    from hpcopt.solvers.local.steps import LocalSteps, LocalStepsConfig
    from hpcopt.solvers.pipeline.local_parallel import LocalParallelConfig
    from hpcopt.solvers.pipeline.solver import PipelineConfig
    from hpcopt.solvers.relu_network.relu_altmin import ReluAltMinConfig
    from hpcopt.solvers.relu_network.tensor_init import TensorInitConfig
    from hpcopt.solvers.snvrg import SnvrgConfig
    from hpcopt.solvers.splitting.altmin import AltMinConfig
    from hpcopt.solvers.splitting.bcd import BcdConfig
    from hpcopt.solvers.splitting.dladmm import DlAdmmConfig

__all__ = [
    "ActorCriticConfig",
    "AltMinConfig",
    "AmpConfig",
    "AnnealingConfig",
    "BcdConfig",
    "BlockAdmmConfig",
    "DataParallelConfig",
    "DeepFactoConfig",
    "DlAdmmConfig",
    "FullGraphConfig",
    "GistConfig",
    "GossipConfig",
    "KaisaConfig",
    "LeaderConfig",
    "LocalConfig",
    "LocalParallelConfig",
    "LocalSteps",
    "LocalStepsConfig",
    "PipelineConfig",
    "ReluAltMinConfig",
    "SnvrgConfig",
    "TensorInitConfig",
]

__getattr__ = lazily(
    __name__,
    {
        "ActorCriticConfig": "actor_critic.solver",
        "AnnealingConfig": "annealing.solver",
        "AltMinConfig": "splitting.altmin",
        "AmpConfig": "amp.solver",
        "BcdConfig": "splitting.bcd",
        "BlockAdmmConfig": "block_admm.solver",
        "DataParallelConfig": "data_parallel",
        "DeepFactoConfig": "block_admm.deepfacto",
        "DlAdmmConfig": "splitting.dladmm",
        "FullGraphConfig": "full_graph.solver",
        "GistConfig": "gist.solver",
        "GossipConfig": "gossip",
        "KaisaConfig": "kaisa.solver",
        "LeaderConfig": "leader.solver",
        "LocalConfig": "local.solver",
        "LocalParallelConfig": "pipeline.local_parallel",
        "LocalSteps": "local.steps",
        "LocalStepsConfig": "local.steps",
        "PipelineConfig": "pipeline.solver",
        "ReluAltMinConfig": "relu_network.relu_altmin",
        "SnvrgConfig": "snvrg",
        "TensorInitConfig": "relu_network.tensor_init",
    },
)
