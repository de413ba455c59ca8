"""A study under kills, and the cost of many small points.

    python benchmarks/study.py kills      20 kills at random moments, of two ranks; then what became of 800 points
    python benchmarks/study.py points     10,000 points: seconds to do them, and to read their table

The moments are drawn by ``--seed``: within the start of the ranks, or after so many further points and up to 60 ms.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hpcopt.study import Study, read_study, run_study

N, SEEDS = 40, 20
FILE = """\
[study]
function = "benchmarks.study:noted"
seeds = {seeds}
[base]
log = "{log}"
[[axes]]
n = {values}
"""


def noted(point: dict[str, Any]) -> dict[str, float]:
    """Leave a line when it begins, then take 10 to 50 ms."""
    place = f"{point['n']} {point['seed']}"
    with Path(point["log"]).open("a", encoding="utf-8") as log:
        log.write(f"{place}\n")
    time.sleep(random.Random(place).uniform(0.01, 0.05))
    return {"value": point["n"] * 1000 + point["seed"]}


def kills(seed: int, times: int, folder: Path) -> None:
    """Kill a command of two ranks again and again, then let it come to its end, and count."""
    draw, log, file = random.Random(seed), folder / "log", folder / "kills.toml"
    file.write_text(FILE.format(seeds=SEEDS, log=log, values=list(range(N))), encoding="utf-8")
    command = ["mpirun", "-n", "2", sys.executable, "-m", "hpcopt.study", str(file), "--out", str(folder / "out")]

    def begun() -> int:
        return log.read_text(encoding="utf-8").count("\n") if log.exists() else 0

    for number in range(1, times + 1):
        before, more = begun(), draw.choice([0, 0, 1, 2, 5, 10, 20, 35, 50])
        process = subprocess.Popen(command, env={**os.environ, "STUDY_KILLS": str(folder)}, start_new_session=True)
        if more == 0:
            time.sleep(draw.uniform(0.5, 6))
        while begun() < before + more and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.06))
        end(process, str(folder))
        print(f"kill {number} after {begun() - before} points more", flush=True)
    subprocess.run(command, check=True)
    table, begins = read_study(folder / "out"), Counter(log.read_text(encoding="utf-8").splitlines())
    assert sorted(map(tuple, (p.values() for p in table.points))) == [(n, s) for n in range(N) for s in range(SEEDS)]
    assert np.array_equal(table.results["value"], table.axes["n"] * 1000 + table.axes["seed"])
    twice = sum(count > 1 for count in begins.values())
    print(f"{len(table)} points, each with one row and its own result; {twice} were begun more than once")


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill a command and its ranks, which a launcher may have put into other sessions, all at once."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"STUDY_KILLS={mark}".encode() in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)
        except OSError:
            continue
    process.wait()


def points(folder: Path) -> None:
    """What 10,000 points that do nothing cost, and their table."""
    axes = [{"n": list(range(50))}, {"k": [1, 2, 3, 4, 5]}, {"method": ["altmin", "descent"]}]
    study = Study("points", axes, tuple(range(20)), {}, lambda p: {"error": p["n"] / 1e3, "steps": p["k"], "loss": 0.1})
    for what in ("done", "looked at again"):
        start_s = time.perf_counter()
        table = run_study(study, folder / "out")
        print(f"{len(table)} points {what} in {time.perf_counter() - start_s:.2f} s")
    seconds = []
    for _ in range(9):
        start_s = time.perf_counter()
        read_study(folder / "out")
        seconds.append(time.perf_counter() - start_s)
    size = (folder / "out/table.h5").stat().st_size
    print(f"read in {median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), {size / 1e3:.0f} kB")


def main() -> None:
    """Measure."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["kills", "points"])
    p.add_argument("--seed", type=int, default=23)
    p.add_argument("--times", type=int, default=20, help="of kills")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "kills":
            kills(options.seed, options.times, Path(folder))
        else:
            points(Path(folder))


if __name__ == "__main__":
    main()
