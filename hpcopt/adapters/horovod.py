"""A codec in Horovod's place for compression, ``hvd.DistributedOptimizer(..., compression=HorovodCompressor(codec))``.

Horovod adds up compressed tensors inside MPI or NCCL, and knows nothing of them but a dtype. So of hpcopt's codecs only
linear ones fit, whose payloads are numbers that can be added: ``half`` in fp16, and ``random_k``. Codes with scales
(qsgd, sign, terngrad), top-k and PowerSGD must be decoded, or summed in rounds, before they can be added: for these an
``Exchange`` takes the place of Horovod's optimizer, over the same ranks.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from hpcopt.compress import Codec, Half, RandomK
from hpcopt.errors import UnsupportedError
from hpcopt.seeds import EVERY_RANK, derive


class HorovodCompressor:
    """What ``hvd.Compression.fp16`` is, for one of hpcopt's codecs.

    >>> import torch
    >>> compressor = HorovodCompressor(Half(format="fp16"), [])
    >>> small, context = compressor.compress(torch.tensor([1.0, 1e6]))
    >>> small.dtype, compressor.decompress(small, context).tolist()  # Horovod's own has inf here
    (torch.float16, [1.0, 65504.0])
    """

    def __init__(self, codec: Codec, named_parameters: Iterable[tuple[str, nn.Parameter]], *, seed: int = 0) -> None:
        """Take a codec.

        Args:
            codec: ``Half(format="fp16")`` or ``RandomK()``.
            named_parameters: those that the optimizer got. Random choices go by their names and steps, so that all
                ranks draw the same ones in whatever order gradients become ready.
            seed: of all that the codec draws at random, the same on all ranks.

        Raises:
            UnsupportedError: the codec's payloads cannot be added up by Horovod.
        """
        fits = isinstance(codec, RandomK) or (isinstance(codec, Half) and codec.format == "fp16")
        if not fits:
            raise UnsupportedError(
                f"Horovod adds up what it is given, and payloads of codec {codec.name!r} cannot be added: take "
                '"half" with format "fp16", or "random_k"; for others use hpcopt.Exchange in place of '
                "hvd.DistributedOptimizer"
            )
        self._codec, self._seed = codec, seed
        self._parameters = list(named_parameters)
        self._steps: Counter[str] = Counter()

    def compress(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """What Horovod is to add up, shape (k,), and what ``decompress`` needs for it.

        Raises:
            UnsupportedError: random choices for a tensor that is no named parameter's gradient.
        """
        flat = tensor.detach().reshape(-1).float()
        payload = self._codec.encode(flat, seed=self._seed_of(tensor) if self._codec.shared_seed else 0)
        return self._codec.summable(payload), (payload, tensor.shape, tensor.dtype)

    def decompress(self, tensor: Tensor, ctx: Any) -> Tensor:
        """The gradient, of the shape and dtype that ``compress`` got."""
        payload, shape, dtype = ctx
        self._codec.summable(payload).copy_(tensor)
        return self._codec.decode(payload, shape.numel()).view(shape).to(dtype)

    def _seed_of(self, gradient: Tensor) -> int:
        name = next((name for name, p in self._parameters if p.grad is gradient), None)
        if name is None:
            raise UnsupportedError("random_k needs to know whose gradient this is: give the model's named_parameters()")
        self._steps[name] += 1
        return derive(self._seed, self._steps[name], EVERY_RANK, name)
