"""Views of what ranks saved share what was read, and look no different from a list."""

import pytest

from hpcopt.store.saved_parts import SavedParts


def test_a_state_is_read_when_first_asked_for_and_once():
    read = []

    def state(rank):
        read.append(rank)
        return {"a": {"b": 10 * rank}, "c": rank}

    parts = SavedParts.once(state, 4)
    deep, others = parts.under("a", "b"), parts[1::2]
    assert (len(parts), len(deep), len(others)) == (4, 4, 2)
    assert read == []
    assert deep[2] == parts.under("a").under("b")[2] == 20
    assert list(others.under("c")) == [1, 3]
    assert parts[-1]["c"] == 3
    assert deep[3] == 30
    assert read == [2, 1, 3]


def test_a_list_is_shown_as_it_is():
    parts = SavedParts.of([{"a": 1}, {"a": 2}])
    assert SavedParts.of(parts) is parts
    assert list(parts.under("a")) == [1, 2]
    with pytest.raises(IndexError):
        parts[2]
    with pytest.raises(KeyError):
        parts.under("b")[0]
