"""The property suite catches what has gone wrong in published codes: each mistake is put into a copy of a kernel's
source, and a check must fail.

The first is ATOMO's public QSGD, which rounds up when the dice is above the fraction.
"""

import ast
import inspect
import re
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest

from hpcopt import kernels
from hpcopt.compress import QSGD, AdaComp, ExponentialDithering, Half, Natural, RandomK, Sign, TernGrad, TopK
from hpcopt.testing.codec import check_bound, check_every_kind_of_value, check_mean, check_telescoping
from hpcopt.testing.values import gaussian, hard_cases
from tests.compress import test_codecs
from tests.compress.properties import check_variance

X = gaussian(700)


def bounds(codec) -> None:
    for x in hard_cases(700):
        check_bound(codec, x, count=50)


MUTATIONS: dict[str, tuple[str, str, str, list[tuple[str, str]], Callable[[], None]]] = {
    "inverted rounding": (
        "levels",
        "level = rng.shift_right(np.int32(fixed + dice), fraction_bits)",
        "level = np.int32((fixed >> (32 - bits)) + (dice > (fixed & ((1 << (32 - bits)) - 1))))",
        [],
        lambda: check_mean(QSGD(), X, count=300),
    ),
    "always rounding down": (
        "levels",
        "np.int32(fixed + dice)",
        "np.int32(fixed)",
        [],
        lambda: check_mean(TernGrad(), X, count=300),
    ),
    "random numbers that repeat in every block": (
        "levels",
        "rng.start(first + b * bucket + i, low)",
        "rng.start(0, low)",
        [],
        lambda: check_variance_of_the_sum(),
    ),
    "missing scale": (
        "levels",
        "np.float32(np.float64(scales[b]) * weight / levels)",
        "np.float32(weight / levels)",
        [],
        lambda: check_mean(QSGD(), X, count=300),
    ),
    "steps whose multiples leave the range": (
        "levels",
        "step = within(np.float32(np.float64(scales[b]) * weight / levels), levels)",
        "step = np.float32(np.float64(scales[b]) * weight / levels)",
        [],
        lambda: check_every_kind_of_value(QSGD(bits=6)),
    ),
    "rounding up to Inf": (
        "bfloat16",
        "if magnitude > TOP and magnitude < INF:",
        "if False:",
        [],
        lambda: check_every_kind_of_value(Half()),
    ),
    "swapped halves of a byte": (
        "packing",
        "uint8(field << uint8(width * row))",
        "uint8(field << uint8(8 - width - width * row))",
        [("levels", "encode")],
        lambda: check_mean(QSGD(), X, count=300),
    ),
    "rows of a block of codes in the wrong order": (
        "levels",
        "k = row * lanes + j",
        "k = (8 // bits - 1 - row) * lanes + j",
        [],
        lambda: check_mean(QSGD(), X, count=300),
    ),
    "rows of a block of signs in the wrong order": (
        "powers",
        "np.uint32(bits[row * lanes + j])",
        "np.uint32(bits[(7 - row) * lanes + j])",
        [],
        lambda: check_mean(Natural(), X, count=300),
    ),
    "swapped bit order": (
        "bits",
        "words[k] = masks.negative(x, k * LANES)",
        "words[k] = reverse(masks.negative(x, k * LANES))",
        [],
        lambda: test_codecs.test_signs_are_packbits(512),
    ),
    "feedback of the wrong sign": (
        "bits",
        "unpack(ballot, -scales[b], np.bool_(True), owed)",
        "unpack(ballot, scales[b], np.bool_(True), owed)",
        [],
        lambda: check_telescoping(Sign()),
    ),
    "dice of 24 bits for a mantissa of 23": (
        "powers",
        "high), np.uint32(9)))\n            exponents",
        "high), np.uint32(8)))\n            exponents",
        [],
        lambda: check_mean(Natural(), X, count=300),
    ),
    "no levels below the smallest": (
        "powers",
        "level = small if",
        "level = np.int32(0) if",
        [],
        lambda: check_variance(ExponentialDithering(bits=3), X, count=300),
    ),
    "values equal to the threshold forgotten": (
        "select",
        "        ties -= 1\n",
        "        return count, ties\n",
        [],
        lambda: bounds(TopK(fraction=0.1)),
    ),
    "a residue that starts anew": (
        "bins",
        "total[j] += term[j]",
        "total[j] = term[j]",
        [],
        lambda: check_telescoping(AdaComp(bin=50)),
    ),
    "the same place of every stretch": (
        "sampling",
        "rng.uniform(first + j, low, high)",
        "0.0",
        [],
        lambda: test_codecs.test_random_k_draws_every_place_as_often(0.1),
    ),
    "stretches that do not turn": (
        "sampling",
        "shift = np.int64(rng.uniform(first + k, low, high) * n)",
        "shift = 0",
        [],
        lambda: check_mean(RandomK(fraction=0.4), gaussian(7)),
    ),
    "a residue that keeps what was sent": (
        "bins",
        "_mark(word, i, sent)\n                number",
        "_mark(word & ~np.uint64(1), i, sent)\n                number",
        [],
        lambda: check_telescoping(AdaComp(bin=50)),
    ),
}

REVERSE = """

@njit(inline="always")
def reverse(word):
    turned = np.uint64(0)
    for j in range(64):
        turned |= (word >> np.uint64(j) & np.uint64(1)) << np.uint64(63 - j)
    return turned
"""


def check_variance_of_the_sum() -> None:
    """The errors of equal values in different blocks are independent."""
    codec = QSGD()
    x = gaussian(512).repeat(8)
    errors = [
        float((codec.decode(codec.encode(x, seed=seed), 4096) - x).view(8, 512)[:, 5].sum()) for seed in range(400)
    ]
    single = [float((codec.decode(codec.encode(x, seed=seed), 4096) - x)[5]) for seed in range(400)]
    assert np.var(errors) < 16 * np.var(single)


def compiled(name: str, old: str = "", new: str = "", *, also: set[str] = frozenset()) -> ModuleType:
    """A copy of a kernel module with one piece of its source replaced, which must be there. Compiling takes seconds, so
    only those functions are the copy's own that the piece stands in, that call these, or that ``also`` names.
    """
    original = import_module(f"hpcopt.kernels.{name}")
    source = inspect.getsource(original)
    assert old in source, f"{name}: the source has changed, and this mutation with it"
    text = (source.replace(old, new) + REVERSE).replace("cache=True", "cache=False")
    copy = ModuleType(f"mutated_{name}")
    exec(compile(text, original.__file__, "exec"), copy.__dict__)
    before, after = functions(source), functions(text.replace("cache=False", "cache=True"))
    mine = {function for function in after if after[function] != before.get(function)} | also
    while more := {f for f, code in after.items() if f not in mine and mine & set(re.findall(r"\w+", code))}:
        mine |= more
    for function in set(before) - mine:
        setattr(copy, function, getattr(original, function))
    return copy


def functions(source: str) -> dict[str, str]:
    """Source of each function of a module."""
    return {n.name: ast.unparse(n) for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_the_mistake_is_caught(mistake, monkeypatch):
    name, old, new, users, check = MUTATIONS[mistake]
    check()  # the true kernel passes
    monkeypatch.setattr(kernels, name, compiled(name, old, new))
    for user, function in users:
        monkeypatch.setattr(kernels, user, compiled(user, also={function}))
    with pytest.raises(AssertionError):
        check()
