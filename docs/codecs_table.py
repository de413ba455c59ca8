"""Write the table in docs/concepts/codecs.md: python docs/codecs_table.py [codecs.h5]

The promises and the bits come from the codecs; the speeds from the file that ``benchmarks/codecs.py --out`` wrote, or
else they stay as they are in the page.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from hpcopt.compress import (
    BHQ,
    PSQ,
    QSGD,
    AdaComp,
    AdaptiveRandom,
    Atomo,
    BiasedRounding,
    ChunkedTopK,
    Codec,
    Dense,
    ExponentialDithering,
    Half,
    Natural,
    RandomK,
    Sign,
    SignBits,
    TernGrad,
    TopK,
)

PAGE = Path(__file__).parent / "concepts/codecs.md"
BEGIN, END = "<!-- table: python docs/codecs_table.py -->", "<!-- end of table -->"
N = 1_000_000

HEAD = """\
| codec | unbiased | linear | omega | delta | bits a value | encode | decode |
|---|---|---|---|---|---|---|---|
"""

# the codec, and its operations in benchmarks/codecs.py
ROWS: list[tuple[Codec, str, str]] = [
    (Dense(), "", ""),
    (Half(), "bf16: encode", "bf16: decode"),
    (Half(format="fp16"), "fp16: encode", ""),
    (Sign(), "sign: encode with feedback", "sign: decode"),
    (SignBits(), "sign bits: pack", "sign bits: unpack"),
    (QSGD(bits=2), "", ""),
    (QSGD(), "qsgd 4 bits: encode", "qsgd 4 bits: decode"),
    (QSGD(bits=8), "qsgd 8 bits: encode", "qsgd 8 bits: decode"),
    (QSGD(norm="l2"), "", ""),
    (PSQ(), "psq 4 bits: encode", "psq 4 bits: decode"),
    (PSQ(bits=5), "psq 5 bits: encode", "psq 5 bits: decode"),
    (PSQ(bits=8), "psq 8 bits: encode", "psq 8 bits: decode"),
    (BHQ(), "bhq 4 bits: encode", "bhq 4 bits: decode"),
    (BHQ(bits=5), "bhq 5 bits: encode", "bhq 5 bits: decode"),
    (TernGrad(), "terngrad: encode", "terngrad: decode"),
    (TernGrad(clip=2.5), "terngrad clipped: encode", "terngrad: decode"),
    (Natural(), "natural: encode", "natural: decode"),
    (BiasedRounding(), "biased rounding: encode", "natural: decode"),
    (ExponentialDithering(), "exponential dithering: encode", "exponential dithering: decode"),
    (TopK(), "top 1 % exact: encode", "top 1 %: decode"),
    (TopK(threshold="sampled"), "top 1 % sampled: encode", "top 1 %: decode"),
    (TopK(values=ExponentialDithering()), "", ""),
    (ChunkedTopK(), "", ""),
    (RandomK(), "random 1 %: encode", ""),
    (RandomK(scaled=False), "random 1 %: encode", ""),
    (AdaptiveRandom(), "adaptive random: encode", ""),
    (AdaComp(bin=50), "adacomp 50: with feedback", ""),
    (AdaComp(bin=500), "adacomp 500: with feedback", ""),
    (Atomo(basis="entries"), "", ""),
    (Atomo(basis="fourier"), "", ""),
    (Atomo(basis="svd"), "", ""),
]


def promises() -> list[list[str]]:
    """The columns that do not depend on a machine."""
    x = torch.randn(N, generator=torch.Generator().manual_seed(0))
    rows = []
    for codec, _, _ in ROWS:
        size = codec.max_bytes(N)
        if isinstance(codec, AdaComp) or (isinstance(codec, TopK) and codec.threshold == "sampled"):
            size = codec.encode(x, seed=0).numel()  # Gaussian values, no residual
        rows.append(
            [
                title(codec),
                "yes" if codec.unbiased else "no",
                "yes" if codec.linear else "no",
                number(codec.variance(N)),
                number(codec.contraction(N)),
                f"{8 * size / N:.3g}",
            ]
        )
    return rows


def title(codec: Codec) -> str:
    """The codec as a job file names it, with the settings that are not the defaults."""
    settings = {key: getattr(codec, key) for key in codec.model_dump(exclude_defaults=True, exclude={"name"})}
    inner = [f"{key} = {value.name if isinstance(value, Codec) else value}" for key, value in settings.items()]
    return f"`{codec.name}`" + (f" {', '.join(inner)}" if inner else "")


def number(value: float | None) -> str:
    """Three figures, or a dash for a promise that is not made."""
    return "-" if value is None else f"{value:.3g}" if value < 0.9 or value == 1 else f"{value:.6g}"


def speeds(path: str) -> list[list[str]]:
    """GB/s of float32 and the ratio to a copy, at the largest size that was measured."""
    import h5py

    with h5py.File(path) as file:
        names = zip(file["operation"].asstr()[:], file["by"].asstr()[:], strict=True)
        cells = [
            f"{gb:.1f} ({r:.2f})"
            for gb, r in zip(file["float32_gb_per_s"][:, -1], file["ratio_to_copyto"][:, -1], strict=True)
        ]
        found = {name: cell for (name, by), cell in zip(names, cells, strict=True) if by == "hpcopt"}
    return [[found.get(encode, ""), found.get(decode, "")] for _, encode, decode in ROWS]


def table_of(page: str) -> list[list[str]]:
    """The cells of the table that the page holds now."""
    text = page.split(BEGIN)[1].split(END)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()[2:]]


def main(arguments: list[str]) -> None:
    """Rewrite the page."""
    page = PAGE.read_text()
    before = {row[0]: row[-2:] for row in table_of(page)}
    timed = speeds(arguments[0]) if arguments else [before.get(title(codec), ["", ""]) for codec, _, _ in ROWS]
    rows = [made + time for made, time in zip(promises(), timed, strict=True)]
    table = HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}{END}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main(sys.argv[1:])
