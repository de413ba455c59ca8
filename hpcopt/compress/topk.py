"""Top-k: the k values of largest magnitude, with their places.

``|C(x) - x|^2 <= (1 - k/n) |x|^2`` (arXiv:2002.12410, lemma 8). Biased; meant for error feedback.

A threshold guessed from a sample leaves few candidates after one sweep of memory; ``exact`` then cuts the candidates
to exactly k (ties: lowest index first), and falls back to counting all magnitudes if the guess was too high.
``sampled`` sends the candidates as they are, between k/2 and 5/4 k of them.

``values`` gives the selected values to a second codec, as in top-k with exponential dithering (ibid., sec. 2) or
top-k with QSGD.

Payload, version 1: uint32 count, uint32 zero, count uint32 places in ascending order (padded with a zero to a
multiple of 8 bytes), then the values: count float32, or the payload of the second codec. ``SharedTopK`` sends k
uint32 places as int32 (to be broadcast), then k float32 (to be summed).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hpcopt import kernels
from hpcopt.compress.codec import Bytes, Codec, Floats, float_array, require_bytes, require_finite
from hpcopt.compress.half import Half
from hpcopt.compress.natural import BiasedRounding, ExponentialDithering, Natural
from hpcopt.compress.qsgd import QSGD
from hpcopt.compress.residuals import Layout, Residuals
from hpcopt.compress.rounds import Reduction, RoundsConfig, agree
from hpcopt.compress.sign import Sign
from hpcopt.compress.terngrad import TernGrad
from hpcopt.errors import PayloadError
from hpcopt.kernels import cuda
from hpcopt.kernels.cut import Cut

RUN = 16  # sampled neighbours: a cache line
SAMPLED_HITS = 600  # sampled values above the threshold: it is then off by 4 % or so
AIM, ROOM = 1.15, 1.5  # candidates aimed at, and room for them, as multiples of k
MOST = 1.25  # of k, that a sampled selection may send

Places = NDArray[np.uint32]
ValueCodec = Annotated[
    QSGD | TernGrad | Half | Natural | BiasedRounding | ExponentialDithering | Sign, Field(discriminator="name")
]


def sample_size(n: int, k: float) -> int | None:
    """How many of n values to sample for a threshold that k reach; None if n is too small for that."""
    wanted = max(n // 256, int(SAMPLED_HITS * n / k))
    return wanted if wanted * 4 <= n else None


def guess_threshold(bits: NDArray[np.int32], k: float) -> int | None:
    """The magnitude (float32 bits) that about k of n values reach, from a sample; None if n is too small to sample."""
    wanted = sample_size(bits.size, k)
    if wanted is None:
        return None
    sample = np.empty(wanted + 2 * RUN, np.int32)
    stride = -(-bits.size // (wanted // RUN))
    sample = sample[: kernels.select.sample(bits, RUN, stride, sample)]
    place = max(0, sample.size - max(1, round(k * sample.size / bits.size)))
    return int(np.partition(sample, place)[place])


def largest(x: Floats, k: int) -> Places:
    """The places of the k largest magnitudes of x, ascending; of equal ones the first. 0 <= k <= n."""
    bits = x.view(np.int32)
    places = np.empty(int(ROOM * k) + 64, np.uint32)
    guess = guess_threshold(bits, AIM * k) if k else None
    count = kernels.select.compact(bits, np.int32(guess), bits.size, places) if guess else 0
    if k <= count <= places.size:
        candidates = places[:count]
        kept = _count_out(bits[candidates], k)
        return candidates[kept]
    return _count_out(bits, k)


def _count_out(bits: NDArray[np.int32], k: int) -> Places:
    places = np.empty(k, np.uint32)
    if k == 0:
        return places
    threshold, above = kernels.select.kth_largest(bits, k)
    return places[: kernels.select.compact(bits, np.int32(threshold), k - above, places)]


def about_largest(x: Floats, k: int) -> Places:
    """Between k/2 and 5/4 k places of the largest magnitudes of x (there is a threshold that all and only they
    reach), ascending.
    """
    bits = x.view(np.int32)
    places = np.empty(int(MOST * k), np.uint32)
    guess = guess_threshold(bits, k) if k else None
    count = kernels.select.compact(bits, np.int32(guess), bits.size, places) if guess else 0
    return places[:count] if k <= 2 * count and count <= places.size else largest(x, k)


class TopK(Codec):
    """A share of the values, the largest ones."""

    on_device: ClassVar[bool] = True

    name: Literal["topk"] = "topk"
    fraction: float = Field(0.01, gt=0, le=1, description="of the values that is sent")
    threshold: Literal["exact", "sampled"] = Field(
        "exact", description="sampled: between k/2 and 5/4 k values, found faster"
    )
    values: ValueCodec | None = Field(None, description="the codec of the selected values; None: float32")

    def k(self, n: int) -> int:
        """Values sent of n."""
        return min(n, max(1, round(self.fraction * n)))

    def contraction(self, n: int) -> float | None:
        """k/n, or half of that with a sampled threshold, times the contraction of the second codec."""
        k = self.k(n)
        share = 1.0 if n == 0 else k / n if self.threshold == "exact" else max(1, k / 2) / n
        inner = 1.0 if self.values is None else self.values.contraction(self._most(n))
        return None if inner is None else share * inner

    def max_bytes(self, n: int) -> int:
        """Exact with an exact threshold."""
        most = self._most(n)
        return _places_end(most) + (4 * most if self.values is None else self.values.max_bytes(most))

    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        places = (largest if self.threshold == "exact" else about_largest)(x, self.k(x.size))
        selected = np.empty(places.size, np.float32)
        require_finite(kernels.select.gather(x, places, selected), self)
        payload[:8].view(np.uint32)[:] = places.size, 0
        end = _places_end(places.size)
        payload[8:end].view(np.uint32)[: places.size] = places
        payload[8 + 4 * places.size : end] = 0
        if self.values is None:
            payload[end : end + 4 * places.size].view(np.float32)[:] = selected
            return end + 4 * places.size
        rest = torch.from_numpy(payload[end:])
        return end + self.values.encode(torch.from_numpy(selected), seed=seed, first=first, out=rest).numel()

    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        require_bytes(payload, 8, self)
        count = int(payload[:4].view(np.uint32)[0])
        end = _places_end(count)
        require_bytes(payload, end + (4 * count if self.values is None else self.values.max_bytes(count)), self)
        places = payload[8 : 8 + 4 * count].view(np.uint32)
        if self.values is None:
            selected = payload[end : end + 4 * count].view(np.float32)
        else:
            selected = self.values.decode(torch.from_numpy(payload[end:]), count).numpy()
        if not add:
            out[:] = 0
        if not kernels.sparse.scatter(selected, places, np.float32(weight), out):
            raise PayloadError(
                f"codec {self.name!r}: a place in the payload is beyond the {out.size} values of the tensor"
            )

    @property
    def in_parts(self) -> bool:
        """How many values a sampled threshold selects, the host has to wait for."""
        return self.threshold == "exact" and self.values is None

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        for parts, where, length in cut.groups():
            rows, k = x[where].view(-1, length), self.k(length)
            places = cuda.select.largest_of_rows(cuda.select.magnitudes(rows), k)
            values, slot, end = rows.gather(1, places), slots[parts], _places_end(k)
            torch.maximum(worst, cuda.select.not_finite(values), out=worst)
            words = slot[:, : end + 4 * k].view(torch.int32)
            words[:, 0], words[:, 1], words[:, 2 + k : end // 4] = k, 0, 0
            words[:, 2 : 2 + k].copy_(places)
            words[:, end // 4 :].view(torch.float32).copy_(values)

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        for parts, where, length in cut.groups():
            rows, k = out[where].view(-1, length), self.k(length)
            words = slots[parts, : _places_end(k) + 4 * k].view(torch.int32)
            if not add:
                rows.zero_()
            places = words[:, 2 : 2 + k].long().clamp(0, length - 1)  # of a damaged payload
            rows.scatter_add_(1, places, words[:, _places_end(k) // 4 :].view(torch.float32) * weight)

    def _encode_on_device(self, x: Tensor, seed: int, first: int, payload: Tensor) -> int:
        if self.in_parts:
            return super()._encode_on_device(x, seed, first, payload)
        places = self._places_on_device(x)
        selected, count = x[places], len(places)
        require_finite(cuda.levels.worst(selected), self)
        payload[:8].view(torch.int32).copy_(torch.tensor([count, 0]))
        end = _places_end(count)
        payload[8 + 4 * count : end] = 0
        payload[8 : 8 + 4 * count].view(torch.int32).copy_(places)
        if self.values is None:
            payload[end : end + 4 * count].view(torch.float32).copy_(selected)
            return end + 4 * count
        return end + self.values.encode(selected, seed=seed, first=first, out=payload[end:]).numel()

    def _places_on_device(self, x: Tensor) -> Tensor:
        """As ``largest`` or ``about_largest``, int64."""
        exact, n, k, magnitudes = self.threshold == "exact", x.numel(), self.k(x.numel()), cuda.select.magnitudes(x)
        aim = AIM * k if exact else k
        sampled = sample_size(n, aim)
        if sampled is not None:
            sample = cuda.select.sample(magnitudes, RUN, -(-n // (sampled // RUN)))
            place = max(0, len(sample) - max(1, round(aim * len(sample) / n)))
            guess = int(sample.kthvalue(place + 1).values)
            candidates = cuda.select.at_least(magnitudes, guess) if guess else magnitudes[:0]
            if exact and k <= len(candidates) <= int(ROOM * k) + 64:
                return candidates[cuda.select.count_out(magnitudes[candidates], k)]
            if not exact and k <= 2 * len(candidates) and len(candidates) <= int(MOST * k):
                return candidates
        return cuda.select.count_out(magnitudes, k)

    def _decode_on_device(self, payload: Tensor, out: Tensor, weight: float, add: bool) -> None:
        if self.in_parts:
            super()._decode_on_device(payload, out, weight, add)
            return
        require_bytes(payload, 8, self)
        count = int(payload[:4].view(torch.int32)) & 0xFFFFFFFF
        end = _places_end(count)
        require_bytes(payload, end + (4 * count if self.values is None else self.values.max_bytes(count)), self)
        places = payload[8 : 8 + 4 * count].view(torch.int32).long() & 0xFFFFFFFF
        if count and int(places.max()) >= out.numel():
            raise PayloadError(
                f"codec {self.name!r}: a place in the payload is beyond the {out.numel()} values of the tensor"
            )
        if self.values is None:
            selected = payload[end : end + 4 * count].view(torch.float32)
        else:
            selected = self.values.decode(payload[end:], count)
        if not add:
            out.zero_()
        out.index_add_(0, places, selected * weight)

    def _most(self, n: int) -> int:
        return self.k(n) if self.threshold == "exact" else max(self.k(n), int(MOST * self.k(n)))


def _places_end(count: int) -> int:
    return 8 + 8 * -(-count // 2)


class SharedTopK(RoundsConfig):
    """Top-k at the places that one rank chooses for all: two rounds, and a sum of k values instead of a gathering of
    all ranks' choices.

    With error feedback, since the places are chosen for one rank's values.
    """

    name: Literal["shared_topk"] = "shared_topk"
    fraction: float = Field(0.01, gt=0, le=1, description="of the values that is sent")

    def build(self) -> "SharedTopKState":
        """The residuals' owner."""
        return SharedTopKState(self)


class SharedTopKState:
    """What ``SharedTopK`` describes, with the residuals by parameter name."""

    shared_seed = True

    def __init__(self, config: SharedTopK) -> None:
        self.config = config
        self._residuals = Residuals()

    def rounds(self, bucket: Tensor, layout: Layout, *, seed: int) -> Iterator[Reduction]:
        """The broadcast of the places, then the sum of the values."""
        n = bucket.numel()
        owed = self._residuals.flat(layout, bucket.device)
        if not (yield from agree(self.config, 1.0, bucket, owed)):
            return
        owed.add_(bucket)
        k = min(n, max(1, round(self.config.fraction * n)))
        places = torch.from_numpy(largest(float_array(owed), k).view(np.int32))
        yield Reduction("broadcast", places)
        chosen = places.long()
        values = owed[chosen]
        owed[chosen] = 0
        yield Reduction("sum", values)
        bucket.zero_()
        bucket[chosen] = values

    def settle(self, bucket: Tensor, layout: Layout) -> None:
        """Add what earlier payloads lacked."""
        self._residuals.settle(bucket, layout)

    def state_dict(self) -> dict[str, Tensor]:
        """The residuals by parameter name."""
        return self._residuals.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict``."""
        self._residuals.load_state_dict(state)
