"""Ranks that misbehave on purpose, for experiments: what they bring to the exchange is not their gradient.

The vote tolerates fewer than half of the ranks if their lies do not depend on the honest gradients (Bernstein et al.
2019, arXiv:1810.05291, theorem 2): flipped, random or missing signs, late ranks. A mean tolerates none that scales up.
"""

import time
from typing import Literal

import torch
from pydantic import Field

from hpcopt.config import Config
from hpcopt.exchange.bucket import Bucket
from hpcopt.seeds import derive


class AdversaryConfig(Config):
    """Chosen ranks falsify every bucket before it is exchanged."""

    ranks: tuple[int, ...] = Field(description="who misbehaves")
    kind: Literal["sign_flip", "random", "nan", "delay"] = Field(
        "sign_flip", description="the gradient turned round, Gaussian values of its norm, NaN, or the truth too late"
    )
    scale: float = Field(1.0, gt=0, description="sign_flip and random: factor on what is brought")
    delay_s: float = Field(0.0, ge=0, description="delay: seconds before each bucket")

    def falsify(self, bucket: Bucket, rank: int, step: int, seed: int) -> None:
        """Change the bucket's values, if this rank is one of the chosen."""
        if rank not in self.ranks:
            return
        values = bucket.values
        if self.kind == "sign_flip":
            values.mul_(-self.scale)
        elif self.kind == "nan":
            values.fill_(float("nan"))
        elif self.kind == "delay":
            time.sleep(self.delay_s)
        else:
            generator = torch.Generator().manual_seed(derive(seed, step, rank, f"lie in {bucket.name}"))
            noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
            values.copy_(noise.to(values.device).mul_(self.scale * values.norm() / max(1.0, values.numel() ** 0.5)))
