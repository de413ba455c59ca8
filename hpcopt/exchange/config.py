"""What every ``[exchange]`` section has."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

from pydantic import Field

from hpcopt.config import Choice
from hpcopt.exchange.adversary import AdversaryConfig
from hpcopt.exchange.reducer import Reducer

Gives = Literal["sums", "signs"]  # the ranks' gradients added up, or nearly so; the signs that most of them have


class ExchangeConfig(Choice, ABC):
    """How gradients travel between ranks: what they become, in buckets of which size, and when those go."""

    bucket_mb: float = Field(4.0, gt=0, description="MB of gradients in one bucket, about")
    overlap: bool = Field(True, description="exchange buckets while the backward pass goes on")
    trace: Path | None = Field(None, description="folder for a timeline of every bucket, for chrome://tracing")
    adversary: AdversaryConfig | None = Field(None, description="ranks that misbehave, for experiments")

    @property
    def gives(self) -> Gives:
        """What a gradient becomes, for solvers to say whether they can work with it."""
        return "sums"

    @property
    def needs_messages(self) -> bool:
        """Whether it takes a transport with messages between two ranks; else one with collectives will do."""
        return True

    @abstractmethod
    def build(self, seed: int) -> Reducer:
        """Make the reducer. All that it draws at random comes from the seed, the same on all ranks."""
