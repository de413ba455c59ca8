"""Standard normal numbers of an index: a row is the same whoever draws it, alone or among others.

Words are those of Philox, a generator that is a function of a key and a counter; each row has counters of its own.
Pairs of words become pairs of normal numbers by the transform of Box and Muller.
"""

import numpy as np
from numpy.typing import NDArray

WORDS = 4  # that Philox makes of one counter


def normals(key: int, indices: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Rows of independent standard normal numbers, (n, count), each a function of the key and its index alone.

    Args:
        key: of 63 bits, see ``hpcopt.seeds.derive``.
        indices: of the rows, (n,), not negative. Runs of consecutive ones are drawn at once.

    >>> bool((normals(7, np.arange(9), 3)[[4, 2]] == normals(7, np.array([4, 2]), 3)).all())
    True
    """
    counters = -(-count // WORDS)
    words = np.empty((len(indices), counters * WORDS), np.uint64)
    ends = np.flatnonzero(np.diff(indices) != 1) + 1
    for run in np.split(np.arange(len(indices)), ends) if len(indices) else ():
        stream = np.random.Philox(key=key, counter=int(indices[run[0]]) * counters)
        words[run[0] : run[-1] + 1] = stream.random_raw(words[run[0] : run[-1] + 1].size).reshape(len(run), -1)
    uniform = ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53  # above 0
    length, angle = np.sqrt(-2 * np.log(uniform[:, ::2])), 2 * np.pi * uniform[:, 1::2]
    return np.concatenate([length * np.cos(angle), length * np.sin(angle)], 1)[:, :count]
