"""What biased codecs need in order to converge: error feedback and EF21, around any codec.

- Error feedback (Seide et al. 2014; Stich et al. 2018; Beznosikov et al. 2020, arXiv:2002.12410, alg. 1):
  ``p = e + x; send C(p); e = p - C(p)``. Over time, what was sent plus what is still owed is the sum of what came in.
- EF21 (Richtarik et al. 2021, arXiv:2106.05203, alg. 2): every rank keeps an estimate g_i of its x, sends
  ``c_i = C(x - g_i)`` and adds it to g_i; receivers add the mean of the c_i to their estimate g of the mean. No sum
  of errors is kept, and no bound on gradients is assumed.

A collective calls ``outgoing`` on its own bucket, moves the payload, and passes the mean of what all ranks decoded
through ``incoming``. State is keyed by parameter name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from hpcopt.compress.codec import Codec
from hpcopt.compress.residuals import Layout, Residuals
from hpcopt.config import Config
from hpcopt.errors import CheckpointError


class Feedback(ABC):
    """A codec with the state that it needs between steps."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    @abstractmethod
    def outgoing(self, bucket: Tensor, layout: Layout, *, seed: int, out: Tensor | None = None) -> Tensor:
        """The payload to send for a flat float32 bucket, which is left as it is; ``seed`` and ``out`` as for
        ``Codec.encode``.
        """

    def incoming(self, mean: Tensor, layout: Layout) -> Tensor:
        """Turn the mean over the ranks of the decoded payloads, in place, into the estimate of the bucket's mean."""
        return mean

    def state_dict(self) -> dict[str, Tensor]:
        """State by (prefixed) parameter name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict``."""
        if state:
            raise CheckpointError(
                "the checkpoint holds error-feedback state, and this job sets none: set the same feedback"
            )


class NoFeedback(Feedback):
    """The codec as it is: for unbiased codecs, and for votes."""

    def outgoing(self, bucket: Tensor, layout: Layout, *, seed: int, out: Tensor | None = None) -> Tensor:
        """Encode."""
        return self.codec.encode(bucket, seed=seed, out=out)


class ErrorFeedback(Feedback):
    """Adds what earlier payloads lacked."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec)
        self.residuals = Residuals()

    def outgoing(self, bucket: Tensor, layout: Layout, *, seed: int, out: Tensor | None = None) -> Tensor:
        """Encode bucket + residual and keep the rest."""
        return self.codec.encode_feedback(bucket, self.residuals.flat(layout, bucket.device), seed=seed, out=out)

    def state_dict(self) -> dict[str, Tensor]:
        """The residuals by parameter name."""
        return self.residuals.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict``."""
        self.residuals.load_state_dict(state)


class EF21(Feedback):
    """Sends compressed changes of an estimate."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec)
        self._own, self._mean = Residuals(), Residuals()

    def outgoing(self, bucket: Tensor, layout: Layout, *, seed: int, out: Tensor | None = None) -> Tensor:
        """Encode bucket - estimate and move the estimate by what the payload carries."""
        own = self._own.flat(layout, bucket.device)
        payload = self.codec.encode(bucket - own, seed=seed, out=out)
        self.codec.decode_add(payload, own)
        return payload

    def incoming(self, mean: Tensor, layout: Layout) -> Tensor:
        """Add the mean change to the estimate of the mean."""
        return mean.copy_(self._mean.flat(layout, mean.device).add_(mean))

    def state_dict(self) -> dict[str, Tensor]:
        """Both estimates, under ``own/`` and ``mean/`` and the parameter name."""
        own, mean = self._own.state_dict(), self._mean.state_dict()
        return {f"own/{name}": t for name, t in own.items()} | {f"mean/{name}": t for name, t in mean.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict``."""
        for prefix, residuals in (("own/", self._own), ("mean/", self._mean)):
            residuals.load_state_dict(
                {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            )


class NoFeedbackConfig(Config):
    """Send the codec's output as it is."""

    name: Literal["none"] = "none"

    def build(self, codec: Codec) -> NoFeedback:
        """Wrap a codec."""
        return NoFeedback(codec)


class ErrorFeedbackConfig(Config):
    """Error feedback."""

    name: Literal["error_feedback"] = "error_feedback"

    def build(self, codec: Codec) -> ErrorFeedback:
        """Wrap a codec."""
        return ErrorFeedback(codec)


class EF21Config(Config):
    """EF21."""

    name: Literal["ef21"] = "ef21"

    def build(self, codec: Codec) -> EF21:
        """Wrap a codec."""
        return EF21(codec)


FeedbackConfig = Annotated[NoFeedbackConfig | ErrorFeedbackConfig | EF21Config, Field(discriminator="name")]
