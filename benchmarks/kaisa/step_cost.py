"""What a K-FAC step costs beside an SGD step, and what it keeps: one thread, kinds of step interleaved in one run.

    python benchmarks/kaisa/step_cost.py [--rounds 5]

Models: ResNet-20 with BatchNorm on 32x32 images, batch 64; a Transformer with d = 256, 4 layers, 64 tokens, batch 16,
8192 words, its projections nn.Linear, words and output layer first-order. "1/10" refreshes factors every step and
inverses every tenth, "10/100" every tenth and hundredth; both are put together from the kinds of step.
Each kind is run twice in a row, as it mostly is in a training, and the second counts: how a step left the memory makes
the next one up to a tenth dearer or cheaper. Of the rounds the least counts: what else a machine does adds to a step.
Memory is of four ranks.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hpcopt
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone

NARROW = {"factor_dtype": "bfloat16", "inverse_dtype": "bfloat16"}
WAYS = {
    "all samples": {},
    "all samples, bfloat16": NARROW,
    "all samples, low rank": {"method": "low_rank"},
    "every 4th sample, bfloat16": {"batch_every": 4, **NARROW},
}


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
        return F.relu(h + x)


def resnet20() -> nn.Sequential:
    blocks = [Block(i, o) for i, o in zip([16] * 4 + [32] * 3 + [64] * 2, [16] * 3 + [32] * 3 + [64] * 3, strict=True)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(256, 256) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(256), nn.LayerNorm(256)
        self.wide, self.narrow = nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(2, (4, 64)).transpose(1, 2) for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.o(h))
        return self.norm2(x + self.narrow(F.relu(self.wide(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8192, 256)
        self.body = nn.Sequential(*(Attention() for _ in range(4)))
        self.decoder = nn.Linear(256, 8192)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.body(self.words(x)))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "ResNet-20": (resnet20, lambda: (torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,)))),
    "Transformer": (Transformer, lambda: (torch.randint(0, 8192, (16, 64)), torch.randint(0, 8192, (16, 64)))),
}
KINDS = {"sgd": None, "plain": 1, "factors": 10, "inverses": 100}  # the step number that makes K-FAC do it


def step_s(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], kaisa: hpcopt.Kaisa, kind: str
):
    """CPU and wall seconds of one step of a kind."""
    number = KINDS[kind]
    kaisa.steps = number or 1
    start_cpu, start = time.process_time(), time.perf_counter()
    optimizer.zero_grad()
    outputs = model(data[0])
    F.cross_entropy(outputs.flatten(0, -2), data[1].flatten()).backward()
    if number is not None:
        kaisa.step(terms=data[1].numel())
    optimizer.step()
    return time.process_time() - start_cpu, time.perf_counter() - start


def cost(name: str, settings: dict, rounds: int) -> str:
    make, data = MODELS[name]
    torch.manual_seed(0)
    model, batch = make(), data()
    options = {"skip": ("decoder", "words"), **settings}
    kaisa = hpcopt.Kaisa(model, alone(), lr=0.01, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    kaisa.steps = 0
    seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for round_ in range(-1, rounds):
        for kind in ("inverses", "sgd", "plain", "factors") if round_ % 2 else ("inverses", "factors", "plain", "sgd"):
            step_s(model, optimizer, batch, kaisa, kind)
            measured = step_s(model, optimizer, batch, kaisa, kind)
            if round_ >= 0:
                seconds[kind].append(measured)
    cells = []
    for clock in (0, 1):
        sgd, plain, factors, inverses = (min(s[clock] for s in seconds[kind]) for kind in KINDS)
        often, seldom = (9 * factors + inverses) / 10, (90 * plain + 9 * factors + inverses) / 100
        cells += [f"{sgd:.3f}", *(f"{x / sgd:.2f}" for x in (plain, factors, inverses)), f"**{often / sgd:.2f}**"]
        cells += [f"**{seldom / sgd:.2f}**"]
    return " | ".join(cells)


def memory(name: str) -> str:
    make, _ = MODELS[name]
    text = []
    for label, fraction in (("1/4", 0.25), ("1/2", 0.5), ("1", 1.0)):
        plans = run_ranks(
            4, lambda t, f=fraction: hpcopt.Kaisa(make(), World(t), fraction=f, skip=("decoder", "words")).memory
        )
        held, passing = max(m.held_bytes for m in plans), max(m.passing_bytes for m in plans)
        text.append(f"f = {label}: {held / 1e6:.2f} MB kept, {passing / 1e6:.1f} MB in passing")
    return "; ".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=list(MODELS), nargs="*", default=list(MODELS))
    parser.add_argument("--way", choices=list(WAYS), nargs="*", default=list(WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = "plain | factors | inverses | 1/10 | 10/100"
    print(f"| model | statistics | SGD CPU s | {kinds} | SGD wall s | {kinds} |\n" + "|---" * 14 + "|")
    for name in arguments.model:
        for way in arguments.way:
            print(f"| {name} | {way} | {cost(name, WAYS[way], arguments.rounds)} |", flush=True)
    for name in arguments.model:
        print(f"\n{name}, four ranks: {memory(name)}")


if __name__ == "__main__":
    main()
