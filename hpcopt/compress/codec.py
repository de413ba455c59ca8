"""What a collective may ask of a codec.

A codec turns a flat float32 tensor into a payload, a contiguous uint8 tensor that travels as it is, and back. It
knows nothing of ranks. Its promises (unbiased, linear, contraction) are data, so that a collective can pick its
algorithm from them and refuse what would be wrong.

Three rules hold for every codec:

- The same (settings, x, seed, first) gives the same bytes on any machine, with any number of threads, and value i
  draws the same random number in whatever bucket it travels (``first`` is the index of x[0] in the whole tensor).
- Inf and NaN are refused with NonFiniteError. Only ``dense`` and ``half`` carry them.
- A payload says itself where it ends, so it may travel in a slot that is longer; that of an empty tensor is empty. A
  damaged one gives PayloadError or other values, never a write out of bounds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.config import Choice
from hpcopt.errors import NonFiniteError, PayloadError, UnsupportedError
from hpcopt.kernels.cut import Cut

ALIGNMENT = 8  # bytes; where a payload may begin in a larger buffer
LARGEST_PAYLOAD = 1 << 48  # bytes; no machine has as many
NOT_FINITE = 0x7F800000  # the bits of Inf; magnitudes that are not finite are at or above it

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class CodecConfig(Choice):
    """How gradients become short, as a job says it: a ``Codec``, a choice among codecs, or a compressor in rounds."""

    carries_not_finite: ClassVar[bool] = False  # Inf and NaN come out as they went in
    on_device: ClassVar[bool] = False  # it works where a tensor is; else one of a GPU goes by way of main memory


class Codec(CodecConfig, ABC):
    """Tensor -> payload -> tensor. Stateless: a codec and its settings are one frozen object.

    A codec of one's own derives from this class, declares its settings as fields (numbers and texts, with defaults) and
    gives three methods:

    - ``max_bytes(n)``, an upper bound of a payload's size;
    - ``_encode(x, seed, first, payload)``: fill the head of ``payload``, uint8, max_bytes(n) long, from x, float32,
      (n,), n > 0, and return the bytes used. x must stay as it is. What it draws depends on (seed, first + i) alone.
      Inf and NaN raise ``NonFiniteError``, unless they are carried on;
    - ``_decode(payload, out, weight, add)``: write weight times the values to out, float32, (n,), or add that to what
      is there. The payload may be followed by other bytes; one that is cut short raises ``PayloadError``
      (``require_bytes``), and one that is damaged must not write out of bounds.

    It says what else is true of it: ``variance`` if it is unbiased, ``contraction``, ``gain`` if it enlarges,
    ``linear`` with ``summable``, ``shared_seed``. A field ``bucket`` has tensors cut at its multiples. Optional are
    ``_encode_feedback``, error feedback in one sweep, and with ``on_device``, for GPUs, ``_encode_on_device`` and
    ``_decode_on_device``, or with ``in_parts`` ``_encode_parts`` and ``_decode_parts``.
    ``hpcopt.testing.codec.check_codec`` holds a codec to all this; docs/concepts/codecs.md has an example.
    """

    wire_version: ClassVar[int] = 1  # of the payload's layout (docs/concepts/codecs.md); another layout, a new version
    linear: ClassVar[bool] = False  # payloads may be summed on the way: their decoded sum is the sum of the decoded
    shared_seed: ClassVar[bool] = False  # all ranks must encode with the same seed

    def model_post_init(self, _context: Any) -> None:
        """Raise ValueError, for pydantic, if its settings cannot tell it apart from another."""
        try:
            hash(self)
        except TypeError as error:
            raise ValueError(f"a codec's settings are compared by their hash: {error}; take a tuple") from None

    @property
    def in_parts(self) -> bool:
        """Whether, on a GPU, it works on all parts of a tensor at once (``hpcopt.compress.parts``). Payloads then are
        ``max_bytes`` long.
        """
        return False

    @property
    def unbiased(self) -> bool:
        """Whether the mean of decode(encode(x)) over seeds is x."""
        return self.variance(1) is not None

    def variance(self, n: int) -> float | None:
        """The omega of ``E |C(x) - x|^2 <= omega |x|^2`` of an unbiased codec for n values; None if it is biased.

        The zeta of arXiv:2002.12410 is 1 + omega. Holds for magnitudes in the normal range of float32.
        """
        return None

    def contraction(self, n: int) -> float | None:
        """The delta in (0, 1] of ``E |C(x) - x|^2 <= (1 - delta) |x|^2`` for n values, or None if the codec does not
        contract.

        An unbiased codec with omega < 1 contracts as it is; one with a larger omega contracts if what it decodes is
        divided by 1 + omega.
        """
        omega = self.variance(n)
        return None if omega is None or omega >= 1 else 1 - omega

    def gain(self, n: int) -> float:
        """The most by which a decoded magnitude may exceed the largest of the n values: ``|C(x)|_inf <= gain |x|_inf``.
        Exchanges refuse values that so could leave the range of float32.
        """
        return 1.0

    @abstractmethod
    def max_bytes(self, n: int) -> int:
        """Upper bound of the payload's size in bytes for n values."""

    def encode(self, x: Tensor, *, seed: int, first: int = 0, out: Tensor | None = None) -> Tensor:
        """Turn x into its payload.

        Args:
            x: shape (n,), float32, contiguous; in main memory or on a GPU, where the payload then is too, of the same
                bytes.
            seed: 0 <= seed < 2^63; ``hpcopt.seeds.derive`` makes one from (seed, step, rank, name).
            first: index of x[0] in the whole tensor, if x is a part; a multiple of the codec's bucket.
            out: uint8, at least max_bytes(n) long, beginning at a multiple of 8 bytes; the payload is its head.

        Returns:
            The payload, shape (<= max_bytes(n),), uint8.

        Raises:
            NonFiniteError: x holds Inf or NaN.
            UnsupportedError: x is not what is asked for above.
        """
        require_flat(x)
        room = self._room(x, out)
        if not x.numel():
            return room[:0]
        if on_host(x):
            return self._head(room, self._encode(float_array(x), seed, first, room.numpy()))
        if not self.on_device:
            return _copied(self.encode(x.cpu(), seed=seed, first=first), room)
        return room[: self._encode_on_device(x.detach(), seed, first, room)]

    def decode(self, payload: Tensor, n: int, out: Tensor | None = None) -> Tensor:
        """Turn a payload back into n float32 values, written to out, shape (n,), if it is given.

        Raises:
            PayloadError: the payload is not one of this codec for n values.
        """
        out = torch.empty(n, device=payload.device) if out is None else out
        self._decode_anywhere(payload, out, 1.0, False)
        return out

    def decode_add(self, payload: Tensor, out: Tensor, weight: float = 1.0) -> None:
        """Add weight times the decoded values to out, shape (n,), float32."""
        self._decode_anywhere(payload, out, weight, True)

    def summable(self, payload: Tensor) -> Tensor:
        """The part of a linear codec's payload that is to be summed over ranks, as a view in the dtype to sum in.

        Raises:
            UnsupportedError: the codec is not linear.
        """
        raise UnsupportedError(
            f"payloads of codec {self.name!r} cannot be summed on the way: use a two-phase or gathering collective"
        )

    def encode_feedback(
        self, x: Tensor, residual: Tensor | None, *, seed: int, first: int = 0, out: Tensor | None = None
    ) -> Tensor:
        """Encode x + residual, and leave in residual what the payload does not carry (error feedback,
        arXiv:2002.12410, alg. 1).

        Afterwards ``decode(payload) + residual`` is what ``x + residual`` was, to rounding. After an error residual
        is not usable. Without a residual, as ``encode``.
        """
        if residual is None:
            return self.encode(x, seed=seed, first=first, out=out)
        require_flat(x)
        require_flat(residual)
        if residual.numel() != x.numel():
            raise UnsupportedError(f"a residual of {residual.numel()} values does not belong to {x.numel()} values")
        room = self._room(x, out)
        if not x.numel():
            return room[:0]
        if on_host(x):
            size = self._encode_feedback(float_array(x), float_array(residual), seed, first, room.numpy())
            return self._head(room, size)
        if not self.on_device:
            with through_main_memory(residual) as owed:
                payload = self.encode_feedback(x.cpu(), owed, seed=seed, first=first)
            return _copied(payload, room)
        residual.add_(x)
        size = self._encode_on_device(residual, seed, first, room)
        self._decode_on_device(room[:size], residual, -1.0, True)
        return room[:size]

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> "Codec":
        """The codec for the parameter of this name and shape: this one, unless it chooses by tensor (``PerTensor``)
        or needs the shape.
        """
        return self

    def warm(self) -> Self:
        """Compile the loops that this codec needs, or load them from the cache."""
        payload = self.encode(torch.ones(1), seed=0)
        self.decode(payload, 1)
        self.decode_add(payload, torch.zeros(1))
        self.encode_feedback(torch.ones(1), torch.zeros(1), seed=0)
        return self

    @abstractmethod
    def _encode(self, x: Floats, seed: int, first: int, payload: Bytes) -> int:
        """Fill the head of payload, max_bytes(n) long, and return the bytes used; n > 0."""

    def _encode_feedback(self, x: Floats, residual: Floats, seed: int, first: int, payload: Bytes) -> int:
        """As ``_encode`` of x + residual, which keeps the rest."""
        np.add(residual, x, out=residual)
        size = self._encode(residual, seed, first, payload)
        self._decode(payload[:size], residual, -1.0, True)
        return size

    @abstractmethod
    def _decode(self, payload: Bytes, out: Floats, weight: float, add: bool) -> None:
        """Write (or add) weight times the decoded values to out; n > 0."""

    def _encode_on_device(self, x: Tensor, seed: int, first: int, payload: Tensor) -> int:
        """As ``_encode``, the same bytes, for tensors outside main memory, if ``on_device``."""
        worst = torch.zeros(1, dtype=torch.int32, device=x.device)
        self._encode_parts(x, Cut.rows(1, x.numel()), _as_slot(payload), seed, first, worst)
        if not self.carries_not_finite:
            require_finite(NOT_FINITE if int(worst) else 0, self)
        return payload.numel()

    def _decode_on_device(self, payload: Tensor, out: Tensor, weight: float, add: bool) -> None:
        """As ``_decode``, for tensors outside main memory, if ``on_device``."""
        size = self.max_bytes(out.numel())
        require_bytes(payload, size, self)
        self._decode_parts(_as_slot(payload[:size]), Cut.rows(1, out.numel()), out, weight, add)

    def _encode_parts(self, x: Tensor, cut: Cut, slots: Tensor, seed: int, first: int, worst: Tensor) -> None:
        """Fill the head of each slot, of slots, (parts, stride), uint8, with the payload of its part of x, in so many
        launches whatever the number of parts; if ``in_parts``. worst, (1,), int32, becomes positive if there is Inf or
        NaN in x.
        """
        raise NotImplementedError

    def _decode_parts(self, slots: Tensor, cut: Cut, out: Tensor, weight: float, add: bool) -> None:
        """Write (or add) weight times each slot's decoded values to its part of out."""
        raise NotImplementedError

    def _decode_anywhere(self, payload: Tensor, out: Tensor, weight: float, add: bool) -> None:
        require_flat(out)
        require_payload(payload)
        if not out.numel():
            return
        if on_host(out):
            self._decode(payload.numpy(), float_array(out), weight, add)
        elif not self.on_device:
            with through_main_memory(out.detach()) as values:
                self._decode(payload.cpu().numpy(), float_array(values), weight, add)
        else:
            self._decode_on_device(payload, out.detach(), weight, add)

    def _room(self, x: Tensor, out: Tensor | None) -> Tensor:
        size = self.max_bytes(x.numel())
        if not 0 <= size < LARGEST_PAYLOAD:
            raise UnsupportedError(f"codec {self.name!r}: max_bytes({x.numel()}) = {size} is no size of a payload")
        if out is None:
            return torch.empty(size, dtype=torch.uint8, device=x.device)
        if out.dtype != torch.uint8 or out.numel() < size or out.data_ptr() % ALIGNMENT:
            raise UnsupportedError(
                f"codec {self.name!r}: {x.numel()} values need a uint8 buffer of {size} bytes that begins at a "
                f"multiple of {ALIGNMENT} bytes, got {out.dtype} of {out.numel()}"
            )
        return out[:size]

    def _head(self, room: Tensor, size: int) -> Tensor:
        if not 0 <= size <= room.numel():
            raise UnsupportedError(f"codec {self.name!r}: _encode used {size} of {room.numel()} bytes")
        return room[:size]


def _as_slot(payload: Tensor) -> Tensor:
    """As the one of a row of slots, shape (1, bytes)."""
    stride = ALIGNMENT * -(-payload.numel() // ALIGNMENT)
    return payload.as_strided((1, payload.numel()), (stride, 1), payload.storage_offset())


def _copied(payload: Tensor, room: Tensor) -> Tensor:
    return room[: payload.numel()].copy_(payload)


@contextmanager
def through_main_memory(x: Tensor) -> Iterator[Tensor]:
    """Give x, or for a tensor outside main memory a copy there; what is done to it is x's in the end."""
    host = x.cpu()
    yield host
    if host is not x:
        x.copy_(host)


def on_host(x: Tensor) -> bool:
    """Whether a codec's loops for the CPU can work on x."""
    return x.is_cpu


def require_finite(worst_bits: int, codec: Codec, limit_bits: int = NOT_FINITE) -> None:
    """Raise NonFiniteError if the largest magnitude of a tensor, given as the bits of a float32, is Inf or NaN."""
    if worst_bits >= limit_bits:
        raise NonFiniteError(
            f"codec {codec.name!r} was given Inf, NaN or a magnitude beyond its range: lower the learning rate, "
            "clip the gradient, or use codec 'dense' or 'half', which carry such values on"
        )


def require_bytes(payload: Bytes | Tensor, size: int, codec: Codec) -> None:
    """Raise PayloadError if a payload is shorter than its content must be."""
    if len(payload) < size:
        raise PayloadError(
            f"codec {codec.name!r} expects a payload of {size} bytes and got {len(payload)}: "
            "do all ranks run the same job file?"
        )


def require_flat(x: Tensor) -> None:
    """Raise UnsupportedError if x is not flat, contiguous and float32."""
    if x.dtype != torch.float32 or x.dim() != 1 or not x.is_contiguous():
        raise UnsupportedError(
            f"codecs take flat, contiguous float32 tensors, got {x.dtype} of shape {tuple(x.shape)} "
            f"with strides {x.stride()}: pass x.float().contiguous().view(-1)"
        )


def float_array(x: Tensor) -> Floats:
    """The numpy view of a flat float32 tensor in main memory, or UnsupportedError."""
    require_flat(x)
    if not x.is_cpu:
        raise UnsupportedError(f'this needs tensors in main memory, not on {x.device}: use [run] device = "cpu"')
    array: Floats = x.detach().numpy()
    return array


def require_payload(payload: Tensor) -> None:
    """Raise UnsupportedError if a payload is not flat, contiguous, uint8 and aligned."""
    if (
        payload.dtype != torch.uint8
        or payload.dim() != 1
        or not payload.is_contiguous()
        or payload.data_ptr() % ALIGNMENT
    ):
        raise UnsupportedError("a payload is a flat, contiguous uint8 tensor that begins at a multiple of 8 bytes")
