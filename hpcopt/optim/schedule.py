"""Learning-rate schedules: a factor on the optimizer's rate, a pure function of the step."""

import math
from abc import ABC, abstractmethod
from typing import Literal

from pydantic import Field

from hpcopt.config import Choice


class ScheduleConfig(Choice, ABC):
    """Linear warm-up, then a decay over the steps that remain."""

    warmup: float = Field(0.0, ge=0, le=1, description="fraction of all steps over which the rate rises from 0")

    def factor(self, step: int, steps: int) -> float:
        """The factor on the learning rate at step, 0 <= step < steps."""
        progress = step / steps
        if progress < self.warmup:
            return (step + 1) / math.ceil(self.warmup * steps)
        return self.decayed(progress, (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0)

    @abstractmethod
    def decayed(self, progress: float, rest: float) -> float:
        """The factor after the warm-up.

        Args:
            progress: fraction of all steps that are done.
            rest: fraction of the steps after the warm-up that are done.
        """


class ConstantConfig(ScheduleConfig):
    """No decay."""

    name: Literal["constant"] = "constant"

    def decayed(self, progress: float, rest: float) -> float:
        return 1.0


class CosineConfig(ScheduleConfig):
    """Half a period of a cosine (arXiv:1608.03983, without restarts)."""

    name: Literal["cosine"] = "cosine"
    final: float = Field(0.0, ge=0, le=1, description="factor at the end")

    def decayed(self, progress: float, rest: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * rest)) / 2


class LinearConfig(ScheduleConfig):
    """A straight line."""

    name: Literal["linear"] = "linear"
    final: float = Field(0.0, ge=0, le=1, description="factor at the end")

    def decayed(self, progress: float, rest: float) -> float:
        return self.final + (1 - self.final) * (1 - rest)


class PolynomialConfig(ScheduleConfig):
    """A power of what is left."""

    name: Literal["polynomial"] = "polynomial"
    final: float = Field(0.0, ge=0, le=1, description="factor at the end")
    power: float = Field(0.5, gt=0, description="exponent; the published recipe for BERT has 0.5")

    def decayed(self, progress: float, rest: float) -> float:
        return self.final + (1 - self.final) * math.pow(1 - rest, self.power)


class StepConfig(ScheduleConfig):
    """Decays at milestones."""

    name: Literal["step"] = "step"
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="fractions of all steps where the rate decays")
    decay: float = Field(0.1, gt=0, le=1, description="factor of one decay")

    def decayed(self, progress: float, rest: float) -> float:
        return self.decay ** sum(progress >= milestone for milestone in self.milestones)
