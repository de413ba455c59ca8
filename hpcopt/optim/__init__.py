"""Serial optimizers and learning-rate schedules; they know nothing of ranks."""

from hpcopt.lean_torch import keep_dynamo_out
from hpcopt.optim.first_order import OptimizerConfig, SgdConfig
from hpcopt.optim.schedule import ScheduleConfig
from hpcopt.optim.signum import SignumConfig

keep_dynamo_out()

__all__ = ["OptimizerConfig", "ScheduleConfig", "SgdConfig", "SignumConfig"]
