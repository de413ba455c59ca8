"""Triton compiles its kernels for a card also where there is none: to PTX, in which arithmetic can be looked up that
would give other bits than the CPU's.
"""

import json
import os
import subprocess
import sys

EVERYTHING = "HPCOPT_EVERY_CARD" in os.environ  # each kernel for each card, by hand: two seconds each
PROGRAM = (
    f"everything = {EVERYTHING}"
    + """
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from hpcopt.kernels.cuda import bits, levels, powers, sums

FLOATS, BYTES, WORDS = "*fp32", "*u8", "*i32"
TYPES = {"x": FLOATS, "out": FLOATS, "scales": FLOATS, "matrix": FLOATS, "packed": BYTES, "words": WORDS}
TYPES |= dict.fromkeys(("n", "each", "longer", "grain", "stride", "programs", "rows", "after", "start", "high"), "i32")
TYPES |= {"worst": WORDS, "weight": "fp32"}
WEIGHT_IN_BITS = (levels._decode, bits._unpack)
BUCKET = {"BUCKET": 512}
KERNELS = [
    (levels._encode, BUCKET | {"BITS": 7, "UNITS": 63 * 2.0**25, "L2": True, "CLIP": 2.3}),
    (levels._encode, BUCKET | {"BITS": 4, "UNITS": 7 * 2.0**28, "L2": False, "CLIP": 0.0}),
    (levels._decode, BUCKET | {"BITS": 7, "ADD": True}),
    (powers._encode, {"NEAREST": False}),
    (powers._decode, {"ADD": True}),
    (powers._dither, BUCKET | {"BITS": 4, "UNITS": 64.0}),
    (powers._undither, BUCKET | {"BITS": 4, "ADD": True}),
    (bits._pack, {}),
    (bits._unpack, BUCKET | {"ADD": True}),
    (bits._encode, BUCKET),
    (sums._add_rows, {}),
]
CARDS = 80, 90, 100
found = {card: {} for card in CARDS}
for turn, (kernel, constants) in enumerate(KERNELS):
    types = {name: "constexpr" if name in constants else TYPES[name] for name in kernel.arg_names}
    if kernel in WEIGHT_IN_BITS:
        types["weight"] = "i64"
    source = ASTSource(kernel, types, constexprs=constants)
    for card in CARDS if everything or turn == 0 else CARDS[turn % 3 :][:1]:
        made = compile(source, target=GPUTarget("cuda", card, 32), options={"enable_fp_fusion": False})
        found[card][f"{kernel.__module__}.{kernel.__name__}.{constants}"] = made.asm["ptx"]
print(json.dumps(found))
"""
)

INEXACT = (
    *("fma.rn.f32", "fma.rn.f64", "div.full", "div.approx", "rcp.approx", "sqrt.approx", "rsqrt.approx"),
    *("ex2.approx", "lg2.approx", "sin.approx", "cos.approx", "tanh.approx", ".ftz"),
)


def test_kernels_compile_for_cards_and_round_as_the_cpu_does(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    cards = json.loads(done.stdout)
    assert list(cards) == ["80", "90", "100"]
    assert len(set().union(*cards.values())) == 11
    assert all(len(found) == 11 if EVERYTHING else len(found) > 2 for found in cards.values())
    for card, found in cards.items():
        assert "div.rn.f32" in next(ptx for name, ptx in found.items() if "levels._encode" in name)
        for name, ptx in found.items():
            assert f".target sm_{card}" in ptx
            assert not [word for word in INEXACT if word in ptx], (card, name)
