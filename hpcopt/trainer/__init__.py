"""The training loop: steps, evaluation, checkpoints, metrics, signals."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.trainer.housekeeping import Housekeeping
    from hpcopt.trainer.run import RunConfig
    from hpcopt.trainer.services import Services

__all__ = ["Housekeeping", "RunConfig", "Services"]

__getattr__ = lazily(
    __name__,
    {
        "Housekeeping": "housekeeping",
        "RunConfig": "run",
        "Services": "services",
    },
)
