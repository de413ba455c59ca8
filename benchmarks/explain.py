"""10,000 inputs through integrated gradients on one rank and on two, and every method against random rankings.

    python benchmarks/explain.py RUN [--ranks 2] [--rows 10000] [--steps 32]      seconds, interleaved, medians
    hpcopt explain RUN --rows 0:64 --html page.html                               the table of docs/results/explain.md

RUN is a run on images, such as that of jobs/fashion_resnet.toml. Take it on a quiet machine with a core for each rank.
What is timed is the whole command, with its start: imports, data, network, and the joining of the file.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(run: Path, ranks: int, rows: int, steps: int) -> float:
    """Of one command; the launcher's rank count is all that differs."""
    mpirun = Path(sys.executable).with_name("mpirun")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(mpirun), "-n", str(ranks), sys.executable, "-m", "hpcopt.explain", str(run)]
        command += ["--rows", f"0:{rows}", "--methods", "integrated", "--steps", str(steps)]
        command += ["--curves", "0", "--scored", "0", "--out", f"{folder}/e.h5"]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=32, help="points on the line of integrated gradients")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    taken: dict[int, list[float]] = {1: [], options.ranks: []}
    for repeat in range(options.repeats):
        for ranks, times in taken.items():
            times.append(seconds(options.run, ranks, options.rows, options.steps))
            print(f"repeat {repeat + 1}: {ranks} ranks, {times[-1]:.1f} s", flush=True)
    one, many = (statistics.median(times) for times in taken.values())
    print(f"{options.rows} inputs: {one:.1f} s on 1 rank, {many:.1f} s on {options.ranks}: {one / many:.2f} times")


if __name__ == "__main__":
    main()
