"""Run parts in this process: ``python -m benchmarks.on_gpu PART ... [--device cpu]``. A row is a line of JSON."""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from functools import partial

from benchmarks.gpu import LIMITS
from benchmarks.on_gpu import kfac, machine, nccl, payloads, ranks, rates, resume, sanitizer
from benchmarks.on_gpu.rig import rig_of

PROCESSES = "MPI_LOCALNRANKS" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ
ROWS = {
    "machine": machine.rows,
    "payloads": payloads.rows,
    "rates": rates.rows,
    "kfac": kfac.rows,
    "two_ranks": partial(ranks.rows, ranks=2, processes=PROCESSES),
    "four_ranks": partial(ranks.rows, ranks=4, processes=PROCESSES),
    "nccl": nccl.rows,
    "sanitizer": sanitizer.rows,
    "resume": resume.rows,
}


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("parts", nargs="*", default=[*LIMITS], metavar="PART", help=", ".join(LIMITS))
    p.add_argument("--device", default="cuda", help="cuda; cpu or sim, the simulated device of the tests, to rehearse")
    options = p.parse_args()
    with rig_of(options.device, rehearsed=options.device != "cuda") as rig:
        for part in options.parts:
            start_s = time.perf_counter(), time.process_time()
            for row in ROWS[part](rig):
                print(json.dumps({"part": part, **asdict(row)}), flush=True)
            took_s = time.perf_counter() - start_s[0], time.process_time() - start_s[1]
            print(f"{part}: {took_s[0]:.1f} s, {took_s[1]:.1f} s of processors", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
