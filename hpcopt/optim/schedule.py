"""Learning-rate schedules: a factor on the optimizer's rate, a pure function of the step."""

import math
from typing import Literal

from pydantic import Field

from hpcopt.config import Config


class ScheduleConfig(Config):
    """Linear warm-up, then a decay over the steps that remain."""

    name: Literal["constant", "cosine", "linear", "polynomial", "step"] = Field(
        "constant", description="shape of the decay"
    )
    warmup: float = Field(0.0, ge=0, le=1, description="fraction of all steps over which the rate rises from 0")
    final: float = Field(0.0, ge=0, le=1, description="factor that cosine, linear and polynomial end at")
    power: float = Field(0.5, gt=0, description="exponent of polynomial; the published recipe for BERT has 0.5")
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="fractions of all steps where step decays")
    decay: float = Field(0.1, gt=0, le=1, description="factor of one decay of step")

    def factor(self, step: int, steps: int) -> float:
        """The factor on the learning rate at step, 0 <= step < steps."""
        progress = step / steps
        if progress < self.warmup:
            return (step + 1) / math.ceil(self.warmup * steps)
        rest = (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0
        match self.name:
            case "cosine":
                return self.final + (1 - self.final) * (1 + math.cos(math.pi * rest)) / 2
            case "linear":
                return self.final + (1 - self.final) * (1 - rest)
            case "polynomial":
                return self.final + (1 - self.final) * math.pow(1 - rest, self.power)
            case "step":
                return self.decay ** sum(progress >= milestone for milestone in self.milestones)
            case _:
                return 1.0
