"""Serial optimizers and learning-rate schedules; they know nothing of ranks."""

from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.lamb import Lamb, LambConfig
from hpcopt.optim.schedule import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    PolynomialConfig,
    ScheduleConfig,
    StepConfig,
)
from hpcopt.optim.signum import Signum, SignumConfig

__all__ = [
    "AdamWConfig",
    "ConstantConfig",
    "CosineConfig",
    "Lamb",
    "LambConfig",
    "LinearConfig",
    "OptimizerConfig",
    "PolynomialConfig",
    "ScheduleConfig",
    "SgdConfig",
    "Signum",
    "SignumConfig",
    "StepConfig",
    "decay_matrices_only",
]
