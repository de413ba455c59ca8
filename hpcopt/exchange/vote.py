"""Exchange of votes: every rank votes the signs of its own momentum, and the gradient becomes the majority's sign
(Signum with majority vote; Bernstein et al. 2019, arXiv:1810.05291, alg. 1).

``m <- momentum m + (1 - momentum) g`` on each rank by itself; ``V = majority of sign(m)``. The optimizer behind it,
``signum``, then does ``x <- x - lr (V + weight_decay x)``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from hpcopt.comm import vote
from hpcopt.comm.transport import Transport
from hpcopt.compress import Residuals
from hpcopt.errors import UnsupportedError
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.overlap import Overlap
from hpcopt.exchange.reducer import Reducer, Tree, shared_out


class VoteConfig(Overlap):
    """One bit a value each way: the majority of the ranks' signs."""

    name: Literal["vote"] = "vote"
    weights: tuple[int, ...] | None = Field(
        None, description="votes of each rank, integers of at least 0; by default one each"
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="set by the solver: that of signum, each rank's own")

    def build(self) -> Reducer:
        """Make the reducer."""
        return VoteReducer(self)


class VoteReducer(Reducer):
    """Owner of this rank's momentum."""

    grain = vote.WORD

    def __init__(self, config: VoteConfig) -> None:
        self._config = config
        self._momentum = Residuals()

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        weights, beta = self._config.weights, self._config.momentum
        if weights is not None and len(weights) != transport.size:
            raise UnsupportedError(
                f"[exchange] weights names {len(weights)} ranks, the job has {transport.size}"
            ).everywhere()
        with transport.traffic.encoding():
            if bucket.values.dtype != torch.float32:
                raise UnsupportedError(f"votes need float32 parameters, not {bucket.values.dtype}").everywhere()
            if beta:
                momentum = self._momentum.flat(bucket.layout)
                momentum.mul_(beta).add_(bucket.values, alpha=1 - beta)
                bucket.values.copy_(momentum)
        vote.all_reduce(transport, bucket.values, weights)

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        return vote.planned_bytes(bucket.values.numel(), size, rank)

    def state_dict(self) -> Tree:
        return {"momentum": self._momentum.state_dict()}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """The momentum that this rank had; with more ranks than saved, the new ones begin at zero."""
        self._momentum.load_state_dict(shared_out(parts, "momentum", rank, size))
