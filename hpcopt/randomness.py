"""Where random generators stand on this rank: torch's, that of the CPU and that of its GPU if it computes on one; and
numpy's and Python's own, from which data sets like to draw.
"""

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PYTHON: random.Random = random._inst
_TURN = threading.RLock()  # one who has it may draw by another seed inside


def random_state() -> dict[str, Tensor]:
    """The states of torch's generators."""
    state = {"rng": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda_rng"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Go on from a ``random_state``; what it does not hold, of another device, stays as it is."""
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state["cuda_rng"])


def all_random_states() -> dict[str, Any]:
    """The states of all of them, for a checkpoint."""
    return {**random_state(), "python_rng": python_state(), "numpy_rng": np.random.get_state(legacy=False)}


def set_all_random_states(state: Mapping[str, Any]) -> None:
    """Go on from ``all_random_states``; what it does not hold stays as it is."""
    set_random_state(state)
    if "python_rng" in state:
        set_python_state(state["python_rng"])
    if "numpy_rng" in state:
        np.random.set_state(state["numpy_rng"])


def python_state(generator: random.Random = _PYTHON) -> dict[str, Any]:
    """Where a generator of Python's stands, by default the one that all share, as a checkpoint takes it."""
    version, words, gauss = generator.getstate()
    return {"version": version, "words": np.array(words, np.uint64), "gauss": gauss}


def set_python_state(state: Mapping[str, Any], generator: random.Random = _PYTHON) -> None:
    """Go on from a ``python_state``."""
    generator.setstate((state["version"], tuple(map(int, state["words"])), state["gauss"]))


def seed_draws(seed: int) -> None:
    """Let what follows be drawn by a seed; the GPU's generator is left alone."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_all(seed: int) -> None:
    """Let what follows be drawn by a seed, on any device."""
    seed_draws(seed)
    torch.manual_seed(seed)


@contextmanager
def draws_kept() -> Iterator[None]:
    """What is drawn inside leaves all of them where they were."""
    kept = all_random_states()
    try:
        yield
    finally:
        set_all_random_states(kept)


@contextmanager
def replayed(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, draw once more what was drawn from a ``random_state`` on; after it, as if nothing had been drawn."""
    now = random_state()
    set_random_state(state)
    try:
        yield
    finally:
        set_random_state(now)


@contextmanager
def drawn() -> Iterator[list[str]]:
    """Lists, in the end, the generators of the CPU that were drawn from inside; after it, as if nothing had been."""
    names: list[str] = []
    with draws_kept():
        before = _comparable()
        yield names
        names += [name for name, state in _comparable().items() if state != before[name]]


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """Within it, what is drawn follows a seed; after it, as if nothing had been drawn. Ranks that are threads of one
    process take turns.
    """
    with _TURN, draws_kept():
        seed_all(seed)
        yield


@contextmanager
def drawing_by(seed: int) -> Iterator[None]:
    """As ``drawn_by``, where nobody goes on with what was there before: generators of the CPU stay as they are left."""
    with _TURN:
        seed_draws(seed)
        yield


def _comparable() -> dict[str, Any]:
    numpy = np.random.get_state(legacy=False)
    return {
        "torch": bytes(torch.get_rng_state().numpy()),
        "numpy": (bytes(numpy["state"]["key"]), numpy["state"]["pos"]),
        "random": random.getstate(),
    }
