"""Where torch's random generators stand on this rank: that of the CPU, and that of its GPU if it computes on one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """The generators' states, for a checkpoint."""
    state = {"rng": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda_rng"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Go on from a ``random_state``; what it does not hold, of another device, stays as it is."""
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state["cuda_rng"])


@contextmanager
def replayed(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, draw once more what was drawn from a ``random_state`` on; after it, as if nothing had been drawn."""
    now = random_state()
    set_random_state(state)
    try:
        yield
    finally:
        set_random_state(now)
