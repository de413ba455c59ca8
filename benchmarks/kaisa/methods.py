"""What Muon, SOAP and Shampoo keep on a rank and what their steps cost, beside SGD and AdamW.

    python benchmarks/kaisa/methods.py memory
    python benchmarks/kaisa/methods.py steps [--ranks 1 4] [--rounds 5] [--names muon soap]

The model is the Transformer of step_cost.py; its words, norms and output layer go by AdamW. Ranks are threads that
share out a batch of 16 times 64 tokens. A step's seconds are the CPU seconds of a rank's own thread, of the rank that
has most, and of the rounds the median; kinds of step take turns. "1/10" is nine steps with new factors and one with
new bases or roots as well. "soap, peer" is pytorch-optimizer's, on one rank.
"""

import argparse
import time
from typing import Any

import torch
import torch.nn.functional as F
from step_cost import Transformer
from torch import Tensor, nn

import hpcopt
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone

SKIP = ["words", "decoder"]
FIRST_ORDER = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
METHODS: dict[str, dict[str, Any]] = {
    "muon": {"method": "muon"},
    "muon, minimax": {"method": "muon", "muon": {"polynomials": "minimax", "iterations": 4}},
    "muon, heads": {"method": "muon", "heads": {"[.][qkv]$": 4}},
    "soap": {"method": "soap"},
    "soap, short": {"method": "soap", "soap": {"sides": "short"}},  # the long side of feed-forward maps has no basis
    "shampoo": {"method": "shampoo"},
}
PEER = "soap, peer"
PEER_STEPS = {"plain": 1, "factors": 1, "inverses": 10}  # it has new factors at every step, new bases at every tenth
KINDS = {"plain": 1, "factors": 10, "inverses": 100}  # the step number that makes KAISA do it
BATCH, TOKENS, WORDS = 16, 64, 8192


class Training:
    """One rank's model, and its optimizers."""

    def __init__(self, name: str, world: World) -> None:
        torch.manual_seed(0)
        self.model, self.world = Transformer(), world
        self.kaisa: hpcopt.Kaisa | None = None
        if name in FIRST_ORDER:
            self.optimizers = [FIRST_ORDER[name](self.model.parameters(), lr=1e-3)]
        elif name == PEER:
            from pytorch_optimizer import SOAP

            moved = [p for p in self.model.body.parameters() if p.ndim == 2]
            rest = [p for p in self.model.parameters() if not any(p is m for m in moved)]
            self.optimizers = [SOAP(moved, lr=1e-3, weight_decay=0.0), torch.optim.AdamW(rest, lr=1e-3)]
        else:
            self.kaisa = hpcopt.Kaisa(self.model, world, **METHODS[name], skip=SKIP, fraction=1 / world.size)
            moved = {p for layer in self.kaisa.layers.found for p in layer.parameters()}
            rest = [p for p in self.model.parameters() if p not in moved]
            inner = torch.optim.SGD([*moved], lr=1e-3, momentum=0.9 if name == "shampoo" else 0)
            self.optimizers = [inner, torch.optim.AdamW(rest, lr=1e-3)]

    def step(self, kind: str = "plain") -> float:
        """Do one; give this thread's seconds."""
        if self.kaisa is not None:
            self.kaisa.steps = KINDS[kind]
        elif "step" in (group := self.optimizers[0].param_groups[0]):
            group["step"] = PEER_STEPS[kind]
        x = torch.randint(0, WORDS, (BATCH // self.world.size, TOKENS))
        before = time.thread_time()
        self.model.zero_grad()
        F.cross_entropy(self.model(x).flatten(0, 1), x.flatten()).backward()
        if self.world.size > 1:
            flat = nn.utils.parameters_to_vector([p.grad for p in self.model.parameters()])
            self.world.all_reduce(flat.div_(self.world.size))
            for p, g in zip(
                self.model.parameters(), flat.split([p.numel() for p in self.model.parameters()]), strict=True
            ):
                p.grad.copy_(g.view_as(p))
        if self.kaisa is not None:
            self.kaisa.step()
        for optimizer in self.optimizers:
            optimizer.step()
        return time.thread_time() - before


def steps(ranks: int, rounds: int, names: list[str]) -> None:
    often = [name for name in names if not name.startswith("muon")]
    kinds = [(name, "plain") for name in (*FIRST_ORDER, *names)]
    kinds += [(name, kind) for name in often for kind in ("factors", "inverses")]

    def program(t) -> list[list[float]]:
        world = World(t)
        trainings = {name: Training(name, world) for name in (*FIRST_ORDER, *names)}
        for name, training in trainings.items():
            for kind in ("plain",) if name in FIRST_ORDER else ("inverses", "plain"):
                training.step(kind)
        found = []
        for _ in range(rounds):
            found.append([])
            for name, kind in kinds:
                trainings[name].step(kind)
                found[-1].append(trainings[name].step(kind))
        return found

    by_rank = torch.tensor(run_ranks(ranks, program))  # ranks, rounds, kinds
    seconds = dict(zip(kinds, by_rank.amax(0).median(0).values.tolist(), strict=True))
    print(f"{ranks} ranks, {BATCH} x {TOKENS} tokens in all, {rounds} rounds")
    for (name, kind), s in seconds.items():
        print(f"{name:14} {kind:9} {s:.4f} s, {s / seconds['sgd', 'plain']:.3f} of SGD, ", end="")
        print(f"{s / seconds['adamw', 'plain']:.3f} of AdamW")
    for name in often:
        s = 0.9 * seconds[name, "factors"] + 0.1 * seconds[name, "inverses"]
        print(f"{name:14} 1/10      {s / seconds['sgd', 'plain']:.3f} of SGD")


def memory() -> None:
    """Bytes on the fullest of four ranks, planned, and those of the tensors that a rank has; beside those that one rank
    keeps of plain square matrices.
    """
    for method in ("muon", "soap", "shampoo"):

        def program(t, method: str = method) -> tuple[int, int]:
            training = Training(method, World(t))
            training.step("inverses")
            assert training.kaisa is not None
            tensors = [x for part in training.kaisa.rank_state_dict().values() for x in part.values()]
            return training.kaisa.memory.held_bytes, sum(x.nbytes for x in tensors if isinstance(x, Tensor))

        layers = Training(method, alone()).kaisa.layers.found
        squares = sum(f.matrices * f.size**2 for layer in layers for f in (layer.a, layer.g))
        carried = sum(layer.numel for layer in layers)
        values = 2 * squares if method == "shampoo" else carried if method == "muon" else 2 * carried + 2 * squares
        for ranks in (1, 4):
            planned, measured = (max(x) for x in zip(*run_ranks(ranks, program), strict=True))
            print(
                f"{method:14} P = {ranks}: planned {planned:,}, measured {measured:,}, ratio {measured / planned:.4f}; "
            )
            print(f"{'':14} {measured / (4 * values):.3f} of {4 * values:,}, the whole in square matrices")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "steps"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", nargs="+", choices=[*METHODS, PEER], default=[*METHODS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "memory":
        memory()
    else:
        for size in arguments.ranks:
            steps(size, arguments.rounds, arguments.names)
