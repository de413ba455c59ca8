"""LGC's three phases (arXiv:2103.08870, section 4): dense sums; top-k while the autoencoder learns; codes.

The parameters that come first stay dense, and those that come last go by top-k alone. All places are one rank's choice,
another one's at each step, in the order of its values: so what ranks have in common is a smooth curve. Error feedback
keeps what a rank's decoded contribution lacks. An autoencoder that errs too much, or is left out, carries nothing: then
the values themselves travel, as in shared top-k, and it learns from them.
"""

from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hpcopt.comm import dense, doubling
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import Residuals
from hpcopt.compress.codec import float_array
from hpcopt.compress.finite import BOUND_BYTES, can_be_sent, refuse
from hpcopt.compress.topk import largest
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.config import ExchangeConfig
from hpcopt.exchange.lgc.instances import Instance, Ring, Server
from hpcopt.exchange.lossy import agreed_bound
from hpcopt.exchange.reducer import Reducer, Tree, shared_out

GAIN = 4.0  # sums and what is owed may grow by it on their way
TINY = 1e-30  # of the largest magnitude, that a scale has at least
UNKNOWN = 1.0  # the error of an autoencoder that has not learnt


Role = Literal["dense", "topk", "coded"]


class LgcConfig(ExchangeConfig):
    """Learned gradient compression: an autoencoder learns what the ranks' largest gradients have in common."""

    name: Literal["lgc"] = "lgc"
    instance: Literal["ring", "server"] = Field(
        "ring", description="ring: codes are summed; server: one rank's code, and each rank's few largest values"
    )
    fraction: float = Field(0.001, gt=0, le=1, description="of the values whose places are shared")
    dense_steps: int = Field(200, ge=0, description="steps of dense sums at the start")
    learning_steps: int = Field(300, ge=0, description="steps after them in which the autoencoder learns beside top-k")
    first: int = Field(1, ge=0, description="parameters at the beginning of the model that stay dense")
    last: int = Field(2, ge=0, description="parameters at its end that go by top-k alone")
    innovation: float = Field(0.1, gt=0, le=1, description="server: of the shared places, each rank's own largest")
    worst: float = Field(
        0.5, ge=0, description="relative squared error from which on the values travel instead of codes; 0: always"
    )

    carries_not_finite: ClassVar[bool] = False

    def k(self, n: int) -> int:
        """How many of n values are sent."""
        return min(n, max(1, round(self.fraction * n)))

    def build(self, seed: int) -> Reducer:
        """Make the reducer."""
        return LgcReducer(self, seed)


class LgcReducer(Reducer):
    """Owner of the autoencoder, its errors by bucket, and of what is owed."""

    def __init__(self, config: LgcConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._owed = Residuals()
        self._instance: Instance
        self._roles: dict[str, Role] = {}
        self._errors: list[float] = []  # when each bucket went last; the same on all ranks
        self._coded: list[bool] = []  # whether it went as a code

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """Make the autoencoder, and see which parameters come first and last in the model."""
        c = self._config
        ring, ranks = c.instance == "ring", world.size
        self._instance = Ring(ranks, self._seed) if ring else Server(ranks, self._seed, c.innovation)
        backwards = [name for bucket in buckets for name in bucket.layout]
        self._roles = dict.fromkeys(backwards, "coded")
        self._roles |= dict.fromkeys(backwards[: c.last], "topk")
        self._roles |= dict.fromkeys(backwards[max(0, len(backwards) - c.first) :], "dense")
        self._errors, self._coded = [UNKNOWN] * len(buckets), [False] * len(buckets)

    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        if bucket.values.dtype != torch.float32:
            dense.all_reduce(transport, bucket.values)
            return
        values = bucket.values
        if transport.size == 1:
            self._owed.settle(values, bucket.layout)
            return
        owed = self._owed.flat(bucket.layout, values.device)
        bound = agreed_bound(transport, values, owed)
        if not can_be_sent(bound, GAIN, self._config):
            refuse(values, self._config)
        owed += values
        for role, where in self._stretches(bucket):
            if role == "dense" or step < self._config.dense_steps:
                values[where] = owed[where]
                owed[where] = 0
                dense.all_reduce(transport, values[where])
            else:
                index = bucket.index if role == "coded" else None
                self._at_shared_places(transport, index, owed[where], values[where], step, bound)

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        return transport.size == 1

    def _at_shared_places(
        self, transport: Transport, index: int | None, owed: Tensor, out: Tensor, step: int, bound: float
    ) -> None:
        """Sum a stretch at the places of one rank's largest values; all else stays owed. Collective.

        Args:
            index: of the bucket, if the autoencoder may carry it.
            owed: of this rank, with this step's gradient.
            out: gets the sum.
            bound: no magnitude of a sum is above.
        """
        leader = step % transport.size
        places, scale = _shared_places(transport, owed, self._config.k(owed.numel()), leader)
        x = owed[places]
        if index is None or self._config.worst == 0:
            total, own = dense.all_reduce(transport, x.clone()), x
        else:
            total, own = self._by_code(transport, index, x, max(scale, TINY * bound) or 1.0, step)
        out.zero_()
        out[places] = total.clamp(-bound, bound)
        owed[places] = x - own.clamp(-bound, bound)

    def _by_code(self, transport: Transport, index: int, x: Tensor, scale: float, step: int) -> tuple[Tensor, Tensor]:
        """The sum, and this rank's part of it: by code, if the autoencoder is good enough for this bucket; else all
        ranks see all values, and it learns. Collective.
        """
        c, leader, good = self._config, step % transport.size, self._errors[index] < self._config.worst
        self._coded[index] = good and step >= c.dense_steps + c.learning_steps
        if self._coded[index]:
            total, own, self._errors[index] = self._instance.carry(transport, x / scale, leader)
            return total * scale, own * scale
        rows = x.new_empty(transport.size, x.numel())
        with transport.traffic.waiting():
            transport.all_gather(x, rows)
        with transport.traffic.encoding():
            self._errors[index] = self._instance.learn(rows / scale, leader)
        return rows.sum(0), x

    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """Those of the phase that sends most."""
        whole = dense.planned_bytes(bucket.nbytes, size, rank)
        if bucket.values.dtype != torch.float32 or size == 1:
            return whole
        later = 0
        for role, where in self._stretches(bucket):
            n = where.stop - where.start
            k = self._config.k(n)
            sums = dense.planned_bytes(4 * (n if role == "dense" else k), size, rank)
            if role == "coded":
                sums = max(sums, 4 * k * (size - 1), self._instance.planned_bytes(k, size, rank))
            later += sums if role == "dense" else sums + 4 * (k + 1)
        return doubling.planned_bytes(BOUND_BYTES, size, rank) + max(whole, later)

    def metrics(self) -> dict[str, float]:
        """How many buckets went as codes, and the mean error of the autoencoder."""
        errors = self._errors or [UNKNOWN]
        return {"coded_buckets": float(sum(self._coded)), "autoencoder_error": sum(errors) / len(errors)}

    def state_dict(self) -> Tree:
        return {
            "owed": self._owed.state_dict(),
            "autoencoder": self._instance.autoencoder.tensors(),
            "errors": list(self._errors),
        }

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """Shares out what was owed. Decoders of ranks that are new have to learn first."""
        shared = parts[rank % len(parts)]
        self._owed.load_state_dict(shared_out(parts, "owed", rank, size))
        if "autoencoder" not in shared:  # another exchange's
            return
        self._instance.autoencoder.load(shared["autoencoder"])
        as_before = len(shared["errors"]) == len(self._errors) and (
            self._config.instance == "ring" or len(parts) == size
        )
        if as_before:
            self._errors = [float(error) for error in shared["errors"]]

    def _stretches(self, bucket: Bucket) -> list[tuple[Role, slice]]:
        """The bucket cut where parameters of another role begin."""
        found: list[tuple[Role, slice]] = []
        begin = 0
        for name, shape in bucket.layout.items():
            role, end = self._roles[name], begin + prod(shape)
            if found and found[-1][0] == role:
                found[-1] = role, slice(found[-1][1].start, end)
            else:
                found.append((role, slice(begin, end)))
            begin = end
        return [(role, where) for role, where in found if where.stop > where.start]


def _shared_places(transport: Transport, owed: Tensor, k: int, leader: int) -> tuple[Tensor, float]:
    """The leader's places, in the order of its values, and the mean of their magnitudes. Collective."""
    message = torch.empty(k + 1, dtype=torch.int32)
    if transport.rank == leader:
        with transport.traffic.encoding():
            chosen = torch.from_numpy(largest(float_array(owed), k).astype("int64"))
            values, order = owed[chosen].sort(descending=True, stable=True)
            message[:k] = chosen[order]
            message[k:] = values.abs().mean().view(1).view(torch.int32)
    with transport.traffic.waiting():
        transport.broadcast(message, leader)
    return message[:k].long(), float(message[k:].view(torch.float32))
