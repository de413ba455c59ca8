"""What every rank saved, as a sequence over the ranks: a state is read when it is first asked for, and then kept."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self, overload


class SavedParts(Sequence[Any]):
    """The states of the ranks that saved, or what stands in them under some keys.

    Views of one another (``under``, slices) share what was read, so a file is read once however many look into
    it. Nobody may change what it gets.
    """

    def __init__(self, read: Callable[[int], Any], ranks: Sequence[int], keys: tuple[str, ...] = ()) -> None:
        """Show ranks' states.

        Args:
            read: gives a saved rank's state; raises what reading raises.
            ranks: numbers for ``read``, in the order of the sequence.
            keys: the way into each state.
        """
        self._read, self._ranks, self._keys = read, ranks, keys

    @classmethod
    def once(cls, read: Callable[[int], Any], ranks: int) -> Self:
        """Show the states of ranks 0 to ranks - 1, each read at most once."""
        return cls(functools.cache(read), range(ranks))

    @classmethod
    def of(cls, states: Sequence[Any]) -> Self:
        """Show states that are in memory already; a SavedParts is itself."""
        return states if isinstance(states, cls) else cls(states.__getitem__, range(len(states)))

    def under(self, *keys: str) -> Self:
        """Show what stands under a key of every state, and under further keys in there.

        A state that lacks a key raises KeyError when it is asked for.
        """
        return type(self)(self._read, self._ranks, self._keys + keys)

    def __len__(self) -> int:
        return len(self._ranks)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(self._read, self._ranks[index], self._keys)
        state = self._read(self._ranks[index])
        for key in self._keys:
            state = state[key]
        return state
