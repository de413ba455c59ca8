"""Generators go on where they stood; that of a GPU is one more, played here by a second one of the CPU."""

import random

import numpy as np
import pytest
import torch

from hpcopt.randomness import (
    all_random_states,
    draws_kept,
    random_state,
    replayed,
    seed_draws,
    set_all_random_states,
    set_random_state,
)
from hpcopt.store.tree import pack


@pytest.fixture
def card(monkeypatch) -> torch.Generator:
    generator = torch.Generator().manual_seed(5)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: generator.get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", generator.set_state)
    return generator


def test_both_generators_go_on(card):
    state = random_state()
    drawn = torch.rand(3), torch.rand(3, generator=card)
    set_random_state(state)
    assert torch.equal(torch.rand(3), drawn[0]) and torch.equal(torch.rand(3, generator=card), drawn[1])


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="this process computes on a GPU")
def test_a_run_on_the_cpu_neither_has_nor_wants_the_gpus():
    assert random_state().keys() == {"rng"}
    set_random_state({"rng": torch.get_rng_state(), "cuda_rng": torch.zeros(16, dtype=torch.uint8)})


def test_replayed_draws_come_again_and_leave_no_trace(card):
    state = random_state()
    drawn = torch.rand(3), torch.rand(3, generator=card)
    before = random_state()
    with pytest.raises(ArithmeticError), replayed(state):
        assert torch.equal(torch.rand(3), drawn[0]) and torch.equal(torch.rand(3, generator=card), drawn[1])
        raise ArithmeticError
    assert all(torch.equal(random_state()[name], value) for name, value in before.items())


def test_a_data_set_may_draw_from_pythons_and_numpys_generators_too():
    """Such draws go on in a resumed run; they come back from a checkpoint as data."""
    random.gauss(0, 1)  # leaves the second of a pair behind
    state = all_random_states()
    pack(state)
    drawn = random.gauss(0, 1), random.random(), np.random.normal(), torch.rand(1)
    set_all_random_states(state)
    assert (random.gauss(0, 1), random.random(), np.random.normal(), torch.rand(1)) == drawn
    with draws_kept():
        seed_draws(3)
    with draws_kept():
        drawn = random.random(), np.random.normal(), torch.rand(1)
    assert (random.random(), np.random.normal(), torch.rand(1)) == drawn
