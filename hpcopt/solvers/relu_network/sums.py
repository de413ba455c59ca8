"""Sums over ranks that say whose part is not finite."""

from torch import Tensor

from hpcopt.comm.world import World
from hpcopt.errors import NonFiniteError


def summed(world: World, mine: Tensor, what: str) -> Tensor:
    """Replace a rank's part by the sum over all ranks. Collective: an all-reduce.

    Args:
        what: words for the parts, in the plural, for the message.

    Raises:
        NonFiniteError: on all ranks: the sum is not finite; the message names the ranks whose parts are not.
    """
    finite = bool(mine.isfinite().all())
    total = world.all_reduce(mine)
    if not bool(total.isfinite().all()):
        bad = [rank for rank, said in enumerate(world.gather_text("" if finite else what)) if said]
        whose = f"of ranks {bad} hold Inf or NaN" if bad else "are finite, and their sum is too large"
        raise NonFiniteError(f"{what} {whose}: are the inputs and targets finite?").everywhere()
    return total
