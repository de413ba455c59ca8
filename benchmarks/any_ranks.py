"""What the same bits on any number of ranks cost: CPU seconds of a step on virtual ranks beside an ordinary one's.

    python benchmarks/any_ranks.py JOB [--ranks 1,2,4] [--steps 4] [--rounds 5] [--set section.key=value ...]

Ranks are threads of one process, which sleep while they wait: its CPU time is that of all ranks and of their exchange's
threads. Both modes take turns within each round. Prints a JSON line for each number of ranks: the median seconds of
both, and the median and the range of the rounds' ratios.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from hpcopt.build import build
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World
from hpcopt.job import read_job
from hpcopt.trainer.virtual import virtual_batches

MODES = {"ordinary": "run.reproducible=off", "any ranks": "run.reproducible=any ranks"}


def measure(options: argparse.Namespace, size: int) -> dict[str, list[float]]:
    """CPU seconds of a step, of both modes, round by round."""

    def program(transport) -> dict[str, list[float]]:
        world = World(transport)
        loops, seconds = {}, {mode: [] for mode in MODES}
        for mode, setting in MODES.items():
            built = build(read_job(options.job, [*options.set, setting]), world, verify=False)
            solver, virtual = built.solver, built.context.virtual
            if virtual is None:
                loops[mode] = solver, built.workload.train_batches(world.rank, world.size, 0)
            else:
                loops[mode] = solver, virtual_batches(built.workload, virtual, 0)
        for number in range(options.rounds + 1):
            for mode in list(MODES) if number % 2 else list(MODES)[::-1]:
                solver, batches = loops[mode]
                world.barrier()
                start_s = time.process_time()
                for _ in range(options.steps):
                    solver.step(next(batches))
                world.barrier()
                if number:  # the first one warms up
                    seconds[mode].append((time.process_time() - start_s) / options.steps)
        return seconds

    return run_ranks(size, program)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--steps", type=int, default=4, help="of each mode in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in map(int, options.ranks.split(",")):
        seconds = measure(options, size)
        ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
        line = {"job": options.job.name, "set": options.set, "ranks": size}
        line |= {f"{mode}_s": statistics.median(values) for mode, values in seconds.items()}
        line |= {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
