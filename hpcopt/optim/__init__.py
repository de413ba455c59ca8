"""Serial optimizers and learning-rate schedules; they know nothing of ranks."""

from hpcopt.optim.adahessian import AdaHessian, AdaHessianConfig
from hpcopt.optim.any_torch import AnyTorchConfig
from hpcopt.optim.by_pattern import GroupConfig
from hpcopt.optim.config import OptimizerConfig
from hpcopt.optim.first_order import AdamWConfig, SgdConfig
from hpcopt.optim.groups import decay_matrices_only
from hpcopt.optim.lamb import Lamb, LambConfig
from hpcopt.optim.rsg import Arsg, ArsgConfig, Rsg, RsgConfig
from hpcopt.optim.schedule import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    PolynomialConfig,
    ScheduleConfig,
    StepConfig,
)
from hpcopt.optim.signum import Signum, SignumConfig
from hpcopt.optim.svag import MSvagConfig, Svag, SvagConfig

__all__ = [
    "AdaHessian",
    "AdaHessianConfig",
    "AdamWConfig",
    "AnyTorchConfig",
    "Arsg",
    "ArsgConfig",
    "ConstantConfig",
    "CosineConfig",
    "Lamb",
    "GroupConfig",
    "LambConfig",
    "LinearConfig",
    "MSvagConfig",
    "OptimizerConfig",
    "PolynomialConfig",
    "Rsg",
    "RsgConfig",
    "ScheduleConfig",
    "SgdConfig",
    "Signum",
    "SignumConfig",
    "StepConfig",
    "Svag",
    "SvagConfig",
    "decay_matrices_only",
]
