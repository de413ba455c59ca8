"""Quantizers of gradients, measured on a small network on handwritten digits.

    python benchmarks/quantizers.py variance    of one output gradient, by quantizer and bits, from exact formulas
    python benchmarks/quantizers.py training    loss and accuracy at the end, by quantizer and bits, three seeds

``variance`` takes the gradient at the first hidden layer of a trained network, as samples by units.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hpcopt.lowbit import QuantizedConfig, grid
from hpcopt.models import MlpConfig
from hpcopt.optim import CosineConfig

HIDDEN, EPOCHS, BATCH, TRAIN = (128, 64), 30, 128, 1437
KINDS = ("ptq", "psq", "bhq")


def digits() -> tuple[Tensor, Tensor]:
    """All pictures, (n, 64), from -1 to 1, and labels, (n,)."""
    pictures, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pictures).float() / 8 - 1, torch.from_numpy(labels).long()


def trained(data: tuple[Tensor, Tensor], seed: int, rewrite: QuantizedConfig | None) -> tuple[nn.Module, float]:
    """The network after its epochs by SGD, and its loss on all training samples."""
    x, labels = data
    torch.manual_seed(seed)
    model: nn.Module = MlpConfig(hidden=HIDDEN).build(tuple(x.shape[1:]), 10)
    if rewrite is not None:
        model = rewrite.apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps, schedule = EPOCHS * (len(x) // BATCH), CosineConfig()
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step % (len(x) // BATCH) == 0:
            places = torch.randperm(len(x), generator=order)
        optimizer.param_groups[0]["lr"] = 0.1 * schedule.factor(step, steps)
        mine = places[step * BATCH % (len(x) // BATCH * BATCH) :][:BATCH]
        optimizer.zero_grad()
        F.cross_entropy(model(x[mine]), labels[mine]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return model, float(F.cross_entropy(model(x), labels))


def variance() -> None:
    """Print the table of variances."""
    x, labels = digits()
    rows = {kind: {bits: list[float]() for bits in (8, 5, 4, 2)} for kind in KINDS}
    ratios, places = [], {bits: list[float]() for bits in (8, 5, 4, 2)}
    for seed in range(3):
        model, _ = trained((x, labels), seed, None)
        assert isinstance(model, nn.Sequential)
        hidden = model[:2](x[:BATCH]).detach()  # after Flatten and the first layer
        hidden.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model[2:](hidden), labels[:BATCH]), hidden)
        ranges = g.amax(1) - g.amin(1)
        ratios.append(float(ranges.max() / ranges.median()))
        for kind, by_bits in rows.items():
            for bits, found in by_bits.items():
                found.append(float(grid(g, kind, bits).variance(g)))
        for bits, where in places.items():
            one = grid(g, "ptq", bits)
            where.append(float((-one.zero / one.step) % 1))
    print(f"largest range of a sample over the median: {statistics.median(ratios):.0f} (median of 3 seeds)\n")
    print("| bits | PTQ | PSQ | BHQ | PTQ / PSQ | PSQ / BHQ | zero between levels of PTQ |")
    print("|---|---|---|---|---|---|---|")
    for bits in (8, 5, 4, 2):
        ptq, psq, bhq = (statistics.median(rows[kind][bits]) for kind in KINDS)
        zero = " ".join(f"{place:.2f}" for place in places[bits])
        print(f"| {bits} | {ptq:.1e} | {psq:.1e} | {bhq:.1e} | {ptq / psq:.0f} | {psq / bhq:.1f} | {zero} |")


def training() -> None:
    """Print the table of ends."""
    x, y = digits()
    data, test, labels = (x[:TRAIN], y[:TRAIN]), x[TRAIN:], y[TRAIN:]
    ways: list[tuple[str, QuantizedConfig | None]] = [("float32", None), ("exact", QuantizedConfig(gradient="exact"))]
    for bits in (8, 5, 4, 3, 2):
        ways += [(f"{kind} {bits}", QuantizedConfig(gradient=kind, bits=bits)) for kind in KINDS]
    print("| output gradients | training loss | test accuracy, 3 seeds |\n|---|---|---|")
    for name, rewrite in ways:
        ends = [trained(data, seed, rewrite) for seed in range(3)]
        with torch.no_grad():
            right = [float((model(test).argmax(1) == labels).double().mean()) for model, _ in ends]
        seeds = " ".join(f"{share:.4f}" for share in right)
        print(f"| {name} | {statistics.median(loss for _, loss in ends):.5f} | {seeds} |", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("variance", "training"))
    {"variance": variance, "training": training}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
