"""What a job says of updates."""

from typing import Annotated

from pydantic import Field

from hpcopt.families import OPTIMIZERS
from hpcopt.optim import AdamWConfig, OptimizerConfig
from hpcopt.solvers.first_order import Scheduled


class Learning(Scheduled):
    """Updates of an agent from transitions."""

    optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = Field(
        AdamWConfig(lr=3e-4, weight_decay=0.0), description="of critics, policy and features, each their own"
    )
    batch_size: int = Field(256, ge=1, description="transitions in an update, over all learners")
    discount: float = Field(0.99, ge=0, le=1, description="gamma: what a reward is worth a step later")
    tau: float = Field(0.005, gt=0, le=1, description="share of the way that targets follow in an update")
    units_every: int = Field(
        1000, ge=0, description="updates from one look at effective ranks and dormant units to the next; 0: none"
    )
