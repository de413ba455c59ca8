"""What all exchanges that overlap with backward have in common in a job file."""

from abc import ABC, abstractmethod
from pathlib import Path

from pydantic import Field

from hpcopt.exchange.adversary import AdversaryConfig
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.reducer import Reducer


class Overlap(ExchangeConfig, ABC):
    """Buckets, and when they go."""

    bucket_mb: float = Field(4.0, gt=0, description="MB of gradients in one bucket, about")
    overlap: bool = Field(True, description="exchange buckets while the backward pass goes on")
    trace: Path | None = Field(None, description="folder for a timeline of every bucket, for chrome://tracing")
    adversary: AdversaryConfig | None = Field(None, description="ranks that misbehave, for experiments")

    @abstractmethod
    def build(self) -> Reducer:
        """Make the reducer."""
