"""How a flat tensor is cut into parts: nearly equal, each beginning at a multiple of a grain."""

from itertools import pairwise
from typing import NamedTuple


class Cut(NamedTuple):
    """n values in parts of ``each`` grains, the first ``longer`` of them of one more; the last ones may be empty.

    >>> Cut.of(1000, 3, 64).stretches()
    [slice(0, 384, None), slice(384, 704, None), slice(704, 1000, None)]
    """

    n: int
    parts: int
    grain: int
    each: int
    longer: int

    @classmethod
    def of(cls, n: int, parts: int, grain: int = 1) -> "Cut":
        """As equal as the grain lets them be."""
        return cls(n, parts, grain, *divmod(-(-n // grain), parts))

    @classmethod
    def rows(cls, count: int, length: int) -> "Cut":
        """So many parts of one length; of length 0, one row of nothing."""
        return cls(count * length, count, max(1, length), 1, 0)

    @property
    def longest(self) -> int:
        """Values in the longest part."""
        return min(self.n, self.grain * (self.each + (self.longer > 0)))

    def stretches(self) -> list[slice]:
        """The parts."""
        starts = [min(self.n, self.grain * (p * self.each + min(p, self.longer))) for p in range(self.parts + 1)]
        return [slice(begin, end) for begin, end in pairwise(starts)]

    def groups(self) -> list[tuple[slice, slice, int]]:
        """Runs of parts of one length, at most three: the parts, where their values are, and the length."""
        found: list[tuple[slice, slice, int]] = []
        for p, s in enumerate(self.stretches()):
            if s.stop == s.start:
                continue
            if found and found[-1][2] == s.stop - s.start:
                parts, values, length = found[-1]
                found[-1] = slice(parts.start, p + 1), slice(values.start, s.stop), length
            else:
                found.append((slice(p, p + 1), s, s.stop - s.start))
        return found
