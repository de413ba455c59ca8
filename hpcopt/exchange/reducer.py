"""What stands behind every ``[exchange]``: how one bucket becomes its sum over the ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor, nn

from hpcopt.comm.roll_call import RollCall
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.compress import Codec
from hpcopt.errors import UnsupportedError
from hpcopt.exchange.bucket import Bucket
from hpcopt.exchange.choices import Choices
from hpcopt.held import Held

Tree = Any  # dicts of tensors, as a checkpoint holds them


class Reducer(Held, ABC):
    """Sums buckets over the ranks, and owns what that needs between steps.

    Attributes:
        grain: values; each parameter begins at a multiple of it in its bucket.
        choices: what each bucket takes, if that was measured.
        roll_call: who is present in each step, if ranks may be absent.
    """

    grain: int = 1
    choices: Choices | None = None
    roll_call: RollCall | None = None

    def kind(self, name: str, parameter: nn.Parameter) -> Hashable:
        """What parameters must have in common to share a bucket."""
        return None

    def prepare(self, world: World, transport: Transport, buckets: Sequence[Bucket]) -> None:
        """Get ready for these buckets, before the first of them. Collective.

        Args:
            transport: of the exchange's thread, over the world's ranks.
        """
        return

    def warm(self, size: int, buckets: Sequence[Bucket]) -> None:
        """Compile the loops that these buckets need on ``size`` ranks, or load them from the cache; as a rule those of
        the codecs that buckets are kept apart by.
        """
        for codec in {bucket.kind for bucket in buckets if isinstance(bucket.kind, Codec) and bucket.values.is_cpu}:
            codec.warm()

    def on_device(self, transport: Transport, bucket: Bucket) -> bool:
        """Whether ``reduce`` can work where a bucket outside main memory is; if not, it is given a copy in it."""
        return False

    @abstractmethod
    def reduce(self, transport: Transport, bucket: Bucket, step: int) -> None:
        """Replace the bucket's values by their sum over the ranks, bit-equal on all of them. Collective.

        A value that is Inf or NaN on one rank is not finite on any rank afterwards, and leaves no trace in later steps.
        """

    def finish_step(self, transport: Transport, buckets: Sequence[Bucket], step: int) -> None:
        """Look at all buckets once the last of a step is reduced: for what all ranks keep together. Collective."""
        return

    @abstractmethod
    def planned_bytes(self, bucket: Bucket, size: int, rank: int) -> int:
        """Bytes that a rank of ``size`` sends for the bucket; where the payload's length depends on the values, the
        most that it can be.
        """

    def finish_bytes(self, size: int, rank: int) -> int:
        """The most bytes that a rank sends in ``finish_step``."""
        return 0

    def packed_signs(self, momentum: float) -> Callable[[Bucket, nn.Parameter], Tensor]:
        """See ``Exchange.signs``.

        Raises:
            UnsupportedError: on all ranks: this exchange decides no signs.
        """
        raise UnsupportedError("this exchange decides no signs: use a VoteConfig").everywhere()

    def plan(self) -> str:
        """How buckets go, for a person, where the job does not say it already."""
        return ""

    def metrics(self) -> dict[str, float]:
        """Scalars to record of a step, the same on all ranks."""
        return {}

    def state_dict(self) -> Tree:
        """This rank's own state, by parameter name."""
        return {}

    def load_state_dict(self, parts: Sequence[Tree], rank: int, size: int) -> None:
        """Take over the states of all ranks that saved, read on access; there may be more or fewer than now. What all
        ranks kept together is in each of them.

        Raises:
            CheckpointError: a state is damaged or of another model.
        """
        return


def shared_out(parts: Sequence[Tree], key: str, rank: int, size: int) -> Tree:
    """This rank's part of what the saved ranks owed: its own, if they were as many as now; else of old ranks r, r + P,
    ... the sum, so that nothing that was owed is lost.
    """
    total: dict[str, Any] = {}
    for old in range(rank, len(parts), size):
        for name, tensor in parts[old].get(key, {}).items():
            total[name] = total[name] + tensor if name in total else tensor
    return total
