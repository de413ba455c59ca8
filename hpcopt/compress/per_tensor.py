"""Another codec for another kind of parameter: by name, size or number of dimensions.

In a job file, small and one-dimensional tensors dense and the rest in 4 bits:

    [exchange.codec]
    name = "per_tensor"
    otherwise = { name = "qsgd", bits = 4 }

    [[exchange.codec.rules]]
    max_dims = 1

    [[exchange.codec.rules]]
    max_numel = 1024
"""

from fnmatch import fnmatchcase
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from hpcopt.compress.codec import Codec, CodecConfig
from hpcopt.compress.identity import Dense
from hpcopt.config import Config
from hpcopt.families import CODECS


class Rule(Config):
    """Parameters that meet all conditions given get this codec."""

    pattern: str = Field("*", description="shell pattern of the parameter's name, such as *.bias")
    max_numel: int | None = Field(None, ge=0, description="at most this many values")
    max_dims: int | None = Field(None, ge=0, description="at most this many dimensions")
    codec: Annotated[Codec, CODECS] = Field(Dense(), description="the codec of those that meet all conditions given")

    def applies(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a parameter of this name and shape meets the conditions."""
        return (
            fnmatchcase(name, self.pattern)
            and (self.max_numel is None or prod(shape) <= self.max_numel)
            and (self.max_dims is None or len(shape) <= self.max_dims)
        )


class PerTensor(CodecConfig):
    """The first rule that applies decides, or ``otherwise``."""

    name: Literal["per_tensor"] = "per_tensor"
    otherwise: Annotated[Codec, CODECS] = Field(description="the codec of parameters that no rule applies to")
    rules: tuple[Rule, ...] = Field(description="the first that applies decides")

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Codec:
        """The codec for a parameter; an exchange puts those with equal codecs into common buckets."""
        codec = next((rule.codec for rule in self.rules if rule.applies(name, shape)), self.otherwise)
        return codec.for_tensor(name, shape)
