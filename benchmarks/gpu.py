"""What a GPU shows that a CPU cannot, in at most 470 s: the machine and its ceilings, codecs' bytes and rates, K-FAC's
steps and memory, ranks that share the card, NCCL, sanitizers, a run that goes on. ``docs/howto/measure_gpu.md`` tells
how.

    python benchmarks/gpu.py --all --out FOLDER
    python benchmarks/gpu.py machine rates --out FOLDER
    python benchmarks/gpu.py --all --device cpu --out FOLDER     a rehearsal, in which figures mean nothing

Each part is a process of its own with its own limit, and writes a line of JSON for each thing that it finds, at once,
into FOLDER/gpu.jsonl: what is there when the time is up stays there. What it says besides goes to gpu.log; in the end
there is a table, gpu.md.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TOTAL_S = 470.0


class Limit(NamedTuple):
    """Of a part.

    Attributes:
        seconds: that it may take.
        ranks: processes that it wants.
    """

    seconds: float
    ranks: int = 1


LIMITS = {
    "machine": Limit(25),
    "payloads": Limit(85),
    "rates": Limit(60),
    "kfac": Limit(130),
    "two_ranks": Limit(45, ranks=2),
    "four_ranks": Limit(45, ranks=4),
    "nccl": Limit(15),
    "sanitizer": Limit(35),
    "resume": Limit(30),
}


class Record:
    """The folder that everything goes to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rows, self._log, self._table = (folder / f"gpu.{kind}" for kind in ("jsonl", "log", "md"))
        self._rows.write_text("")

    def run(self, part: str, command: list[str], limit_s: float | None) -> str:
        """Run a part, and say how it ended; what it leaves running, and the part when its time is up, is killed."""
        start_s = time.monotonic()
        with self._rows.open("a") as rows, self._log.open("a") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=_environment(), stdout=rows, stderr=log, start_new_session=True
            )
            code = None
            try:
                code = process.wait(limit_s)
                ended = "done" if code == 0 else f"failed with exit code {code}: see gpu.log"
            except subprocess.TimeoutExpired:
                ended = f"stopped after its {limit_s:.0f} s"
            finally:
                kill_all_of(process)
        ended += f", after {time.monotonic() - start_s:.1f} s"
        with self._rows.open("a") as rows:
            rows.write("\n" + json.dumps({"part": part, "what": "ended", "found": ended, "held": code == 0}) + "\n")
        return ended

    def table(self) -> str:
        """Write the rows as a table, and give it; a line in which a part was killed is no row."""
        lines = ["part | what | found | goal | held", "--- | --- | --- | --- | ---"]
        for row in filter(None, map(parsed, self._rows.read_text().splitlines())):
            found = row["found"] if isinstance(row["found"], str) else f"{row['found']:.4g} {row.get('unit', '')}"
            held = {True: "yes", False: "NO", None: ""}[row.get("held")]
            lines.append(" | ".join([row["part"], row["what"], found.strip(), row.get("goal", ""), held]))
        self._table.write_text("\n".join(lines) + "\n")
        return "\n".join(lines)


def parsed(line: str) -> dict[str, Any]:
    """A row, empty if the line is none."""
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return row


def kill_all_of(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def command_of(part: str, limit: Limit, device: str) -> list[str]:
    """What runs a part: as many processes as it wants ranks, where there is MPI."""
    launcher = []
    if limit.ranks > 1 and device != "sim" and shutil.which("mpiexec"):
        launcher = ["mpiexec", "-n", str(limit.ranks)]
    return [*launcher, sys.executable, "-m", "benchmarks.on_gpu", part, "--device", device]


def _environment() -> dict[str, str]:
    """With our packages in reach of a child, and Open MPI willing to run as root and with more ranks than cores."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    willing = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    willing |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    return {**os.environ, **willing, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", metavar="PART", help=", ".join(LIMITS))
    p.add_argument("--all", action="store_true", help="all parts")
    p.add_argument("--out", type=Path, required=True, help="folder for what is found")
    p.add_argument("--device", default="cuda", help="cuda; cpu or sim, the simulated device of the tests, to rehearse")
    options = p.parse_args()
    if not (options.all or options.parts) or not set(options.parts) <= LIMITS.keys():
        p.error(f"name --all, or some of {', '.join(LIMITS)}")
    record, end_s = Record(options.out), time.monotonic() + TOTAL_S
    for part in LIMITS if options.all else options.parts:
        limit = LIMITS[part]
        left_s = max(1.0, min(limit.seconds, end_s - time.monotonic())) if options.device == "cuda" else None
        ended = record.run(part, command_of(part, limit, options.device), left_s)
        print(f"{part}: {ended}", flush=True)
    print(record.table())


if __name__ == "__main__":
    main()
