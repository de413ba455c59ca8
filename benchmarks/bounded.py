"""Sums on a grid against float64, a thousand million values: the bound is never violated, and the bits never differ.

    python benchmarks/bounded.py [--values 1e9] [--ranks 2,3,4,5,6,7] [--first 0]

Values come in pieces of half a million a rank, of every scale that float32 has, Gaussian, heavy-tailed, sparse and with
lone huge ones; bounds from 3e-7 to 1, relative and absolute. Each piece is summed by ranks that are threads, and again
with the ranks in another order. Prints the largest error, as a share of the bound, for each number of ranks.
"""

import argparse

import numpy as np
import torch

from hpcopt.comm import on_grid
from hpcopt.comm.loopback import run_ranks
from hpcopt.compress import Bounded
from hpcopt.errors import HpcoptError

PIECE = 1 << 19


def part(random: np.random.Generator, kind: int, scale: int) -> np.ndarray:
    """Values of one rank, float32, (PIECE,)."""
    values = random.standard_normal(PIECE, dtype=np.float32)
    if kind == 1:
        values = random.standard_cauchy(PIECE).clip(-1e4, 1e4).astype(np.float32)
    elif kind == 2:
        values[random.random(PIECE) < 0.95] = 0
    elif kind == 3:
        values[random.integers(PIECE, size=3)] = 1e4
    return np.ldexp(values, scale)


def worst_share(size: int, piece: int) -> float:
    """The largest error of one piece's sum, as a share of its bound."""
    random = np.random.default_rng([size, piece])
    kind, scale = piece % 4, int(random.integers(-90, 100))
    parts = [torch.from_numpy(part(random, kind, scale)) for _ in range(size)]
    largest = max(float(x.abs().max()) for x in parts)
    relative = float(10 ** random.uniform(-6.5, 0))
    bound = relative * size * largest
    codec = Bounded(bound=relative) if piece % 2 else Bounded(bound=bound, of="sum")
    grid = codec.grid(largest, size)
    outcomes = []
    for order in (range(size), random.permutation(size)):
        ranks = run_ranks(size, lambda t, order=order: on_grid.all_reduce(t, parts[order[t.rank]].clone(), grid))
        outcomes += ranks
    if not all(torch.equal(x, outcomes[0]) for x in outcomes):
        raise HpcoptError(f"piece {piece} on {size} ranks: the bits differ")
    exact = torch.stack(parts).double().sum(0)
    return float((outcomes[0].double() - exact).abs().max()) / bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=float, default=1e9, help="of all ranks together")
    parser.add_argument("--ranks", default="2,3,4,5,6,7")
    parser.add_argument("--first", type=int, default=0, help="piece to begin with, to go on from an earlier run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(size) for size in options.ranks.split(",")]
    for size in sizes:
        pieces = -(-int(options.values) // (len(sizes) * size * PIECE))
        shares = [worst_share(size, piece) for piece in range(options.first, options.first + pieces)]
        values = pieces * size * PIECE
        print(f"{size} ranks, {values:,} values: the largest error is {max(shares):.6f} of the bound", flush=True)
        if max(shares) > 1:
            raise SystemExit("the bound is violated")


if __name__ == "__main__":
    main()
