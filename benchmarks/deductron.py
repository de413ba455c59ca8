"""The deductron on the W-language: found by random moves, trained by Adam, and beside networks of its size.

    python benchmarks/deductron.py annealing METHOD   moves of 4 chains to a network without an error in training
    python benchmarks/deductron.py adam MODEL         errors after Adam, on strings plain and stretched
    python benchmarks/deductron.py table FILE         medians and quartiles of what the others wrote

METHOD is tempering, cooling or fixed; MODEL is deductron, tanh_rnn or frame_mlp. What each seed gives is a line of JSON
in ``--out``; seeds that are there already are left out. A network is tested on all 510 strings up to 8 letters, plain
and stretched up to 5 times, and on 1,000 of 100 letters, stretched up to 3 times.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import nn

from hpcopt.exchange import RingConfig
from hpcopt.models import DeductronConfig, FrameMlpConfig, FrameModelConfig, TanhRnnConfig
from hpcopt.models.deductron import Deductron, HardDeductron
from hpcopt.optim import AdamWConfig, CosineConfig
from hpcopt.shapes import Context, Task
from hpcopt.solvers import AnnealingConfig, DataParallelConfig
from hpcopt.workloads import WLanguageConfig
from hpcopt.workloads.w_language import WLanguage, batch_of, wrong
from hpcopt.workloads.w_strings import draw_string, stretched

SPACE = 64  # distinct frames of pixels
COLDEST, HOTTEST, MOVES = 0.02, 0.1, 25  # as in jobs/deductron_annealing.toml
WALKS = {
    "tempering": {"method": "parallel_tempering", "coldest": COLDEST, "hottest": HOTTEST},
    "cooling": {"method": "simulated_annealing", "coldest": COLDEST, "hottest": HOTTEST},
    "fixed": {"method": "simulated_annealing", "coldest": 0.04, "hottest": 0.04},
}
MODELS: dict[str, FrameModelConfig] = {
    "deductron": DeductronConfig(units=8),  # 130 parameters
    "tanh_rnn": TanhRnnConfig(units=8),  # 146
    "frame_mlp": FrameMlpConfig(hidden=14),  # 128
}


def tests() -> dict[str, list[Any]]:
    """Batches of drawings by the name of the set, the same at every call."""
    draw = np.random.default_rng(12345)
    short = ["".join(letters) for n in range(1, 9) for letters in product("XO", repeat=n)]
    long = ["".join("XO"[k] for k in draw.integers(2, size=100)) for _ in range(1000)]
    sets = {"all to 8": (short, 1), "all to 8, stretched": (short, 5), "1,000 of 100": (long, 1)}
    sets["1,000 of 100, stretched"] = (long, 3)
    found = {}
    for name, (texts, most) in sets.items():
        drawings = []
        for text in texts:
            heights, targets = draw_string(text)
            drawings.append(stretched(heights, targets, draw.integers(1, most + 1, len(heights))))
        parts = [drawings[at : at + 125] for at in range(0, len(drawings), 125)]
        found[name] = [batch_of(part, torch.arange(len(part)), len(part)) for part in parts]
    return found


@torch.no_grad()
def errors(model: nn.Module, sets: dict[str, list[Any]]) -> dict[str, int]:
    """Strings of each set with a mark too many or too few."""
    return {
        name: sum(int(wrong(model(batch.tensors["frames"]), batch).sum()) for batch in batches)
        for name, batches in sets.items()
    }


class Counted(HardDeductron):
    """A hard deductron whose energy is the loss of W-strings, wrong marks over strings, counted in a compiled loop."""

    def energy(self, loss: Any, batch: Any) -> float:
        """The same number as that of the loss."""
        if batch is not self._batch:
            self._batch = batch
            frames, targets = batch.tensors["frames"].numpy().astype(np.int64), batch.tensors["targets"].numpy()
            self._kinds = frames @ (1 << np.arange(frames.shape[-1]))
            self._targets = targets.astype(np.int64) @ np.array([1, 2])
            self._lengths = batch.tensors["mask"].numpy().sum((1, 2)).astype(np.int64)
        parameters = [p.detach().numpy() for p in self._all]
        return wrong_marks(*parameters, self._kinds, self._lengths, self._targets) / len(batch)


@numba.njit
def wrong_marks(w1: Any, b1: Any, w2: Any, b2: Any, kinds: Any, lengths: Any, targets: Any) -> int:
    """Marks too many or too few in all frames that strings have; bit i of a kind of frame is its i'th pixel."""
    units = w2.shape[1]
    sets, keeps, marks = np.zeros(SPACE, np.int64), np.zeros(SPACE, np.int64), np.zeros(1 << units, np.int64)
    for kind in range(SPACE):
        for unit in range(units):
            left, right = b1[unit], b1[units + unit]
            for pixel in range(w1.shape[1]):
                if kind >> pixel & 1:
                    left += w1[unit, pixel]
                    right += w1[units + unit, pixel]
            if left <= 0.5:
                sets[kind] |= 1 << unit
            elif right > 0.5:
                keeps[kind] |= 1 << unit
    for z in range(1 << units):
        for output in range(2):
            a = b2[output]
            for unit in range(units):
                if z >> unit & 1:
                    a += w2[output, unit]
            if a <= 0.5:
                marks[z] |= 1 << output
    count = 0
    for string in range(len(lengths)):
        z = 0
        for t in range(lengths[string]):
            missed = marks[z] ^ targets[string, t]
            count += (missed & 1) + (missed >> 1)
            z = (z & keeps[kinds[string, t]]) | sets[kinds[string, t]]
    return count


def anneal(method: str, seed: int, most: int, sets: dict[str, list[Any]]) -> dict[str, Any]:
    """Walk until a chain comes to a network without an error in training."""
    config = WLanguageConfig(
        train=32, batch=32, lengths=(1, 3), stretch=3, model=DeductronConfig(units=4, gates="hard")
    )
    context = Context(run_seed=seed, steps=most // (4 * MOVES))
    workload = config.build(context)
    counted = Counted(6, 2, 4)
    counted.load_state_dict(workload.model.state_dict())
    workload.model = counted
    solver = AnnealingConfig(chains=4, moves=MOVES, **WALKS[method]).build(task(workload), context)
    started = time.process_time()
    for _ in range(context.total_steps):
        stats = solver.step(None)
        if stats.scalars["best"] == 0:
            break
    cpu_s = time.process_time() - started
    solver.gather()
    return {
        "best": stats.scalars["best"],
        "moves": stats.scalars["moves"],
        "cpu_s": cpu_s,
        **errors(solver.model, sets),
    }


def train(model: str, lr: float, seed: int, steps: int, sets: dict[str, list[Any]]) -> dict[str, Any]:
    """Adam on 32 of 512 training strings in a step, at a rate that falls to 0."""
    config = WLanguageConfig(train=512, batch=32, lengths=(1, 5), stretch=3, model=MODELS[model])
    context = Context(run_seed=seed, steps=steps, exchange=RingConfig())
    workload = config.build(context)
    adam = DataParallelConfig(optimizer=AdamWConfig(lr=lr, weight_decay=0.0), schedule=CosineConfig())
    solver = adam.build(task(workload), context)
    started = time.process_time()
    for batch, _ in zip(workload.train_batches(0, 1, 0), range(steps), strict=False):
        loss = float(solver.step(batch).loss)
    found = {"lr": lr, "loss": loss, "cpu_s": time.process_time() - started, **errors(solver.model, sets)}
    if isinstance(solver.model, Deductron):
        hard = HardDeductron(6, 2, solver.model.readout.in_features)
        hard.load_state_dict(solver.model.state_dict())
        found |= {f"{name}, hardened": n for name, n in errors(hard, sets).items()}
    return found


def task(workload: WLanguage) -> Task:
    """What a solver knows of the workload."""
    return Task(workload.model, workload.loss, workload.by_index())


def table(path: Path) -> None:
    """Print what the seeds of each method gave."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        print(f"{what}: {len(mine)} seeds")
        for key in ("moves", "best", "loss", "cpu_s"):
            values = [row[key] for row in mine if key in row]
            if values:
                low, median, high = np.percentile(values, [25, 50, 75])
                print(f"  {key}: median {median:.4g}, quartiles {low:.4g} and {high:.4g}, largest {max(values):.4g}")
        for name in mine[0]:
            if name.startswith(("all", "1,000")):
                wrongs = [row[name] for row in mine]
                print(f"  {name}: {wrongs.count(0)} without an error; median {np.median(wrongs):g}, {sorted(wrongs)}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["annealing", "adam", "table"])
    parser.add_argument("which", help="METHOD, MODEL or FILE")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 20), metavar=("FIRST", "END"))
    parser.add_argument("--moves", type=int, default=200_000, help="most, of all chains")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--out", type=Path, default=Path("deductron.jsonl"))
    options = parser.parse_args()
    if options.what == "table":
        return table(Path(options.which))
    torch.set_num_threads(1)
    what = (
        f"{options.which}"
        if options.what == "annealing"
        else f"{options.which}, lr {options.lr:g}, {options.steps} steps"
    )
    there = set()
    if options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
        there = {row["seed"] for row in rows if row["what"] == what}
    sets = tests()
    for seed in sorted(set(range(*options.seeds)) - there):
        if options.what == "annealing":
            found = anneal(options.which, seed, options.moves, sets)
        else:
            found = train(options.which, options.lr, seed, options.steps, sets)
        with options.out.open("a", encoding="utf-8") as out:
            print(json.dumps({"what": what, "seed": seed, **found}), file=out)
    return None


if __name__ == "__main__":
    main()
