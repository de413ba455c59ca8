"""Serial optimizers and learning-rate schedules; they know nothing of ranks."""

from hpcopt.optim.first_order import AdamWConfig, OptimizerConfig, SgdConfig
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.lamb import Lamb, LambConfig
from hpcopt.optim.schedule import ScheduleConfig
from hpcopt.optim.signum import Signum, SignumConfig

__all__ = [
    "AdamWConfig",
    "Lamb",
    "LambConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SgdConfig",
    "Signum",
    "SignumConfig",
    "decay_matrices_only",
]
