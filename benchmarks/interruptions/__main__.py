"""Interrupt a small job at random microseconds, bring it back, and hold its end against the undisturbed run.

    python -m benchmarks.interruptions --cases 500 --out FILE.jsonl     a line a case; the same command goes on
    python -m benchmarks.interruptions --launcher srun --out FILE.jsonl the same on the hosts of the development cluster
    python -m benchmarks.interruptions --only 17 --keep FOLDER          one case again, and what it left
    python -m benchmarks.interruptions --table FILE.jsonl               what was interrupted where, and how it ended

A case is a job on 2 to 4 ranks under slurm/train.sh and mpirun; one to three of its starts are met by USR1, TERM or
KILL of a rank, the launcher, the script, half of the ranks or all processes. On the cluster, which must be up, hosts
and their slurmd are lost too, and scancel and scontrol requeue interrupt. Six of ten interruptions are aimed at a place
(MPI_Init, backward, a checkpoint's commit, the requeue, ...), the others come at any moment. At its end the run
must have the undisturbed run's parameters, optimizer state and random numbers to the last bit, each row of each table
once, one log, and nothing left behind.
"""

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.interruptions.cases import COLD_SHARE, SETTINGS, TARGETS, Case, Setting, draw
from benchmarks.interruptions.cluster import ClusterQueue
from benchmarks.interruptions.demands import End, complaints, end_of
from benchmarks.interruptions.queue import Queue, QueueHere
from benchmarks.interruptions.warm import warm_process

MOST_STARTS = 12  # that a case may take after its interruptions
QUEUES: dict[str, type[Queue]] = {"mpirun": QueueHere, "srun": ClusterQueue}  # by launcher


class Cases:
    """Plays cases, with the undisturbed runs beside them, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        seed: int,
        settings: list[Setting] = SETTINGS,
        cold_share: float = COLD_SHARE,
        launcher: str = "mpirun",
    ) -> None:
        self.folder, self._seed, self._settings, self._cold_share = folder, seed, settings, cold_share
        self._launcher = launcher
        self._jobs, self._ends, self._visits = dict[Setting, Path](), dict[Setting, End](), {}
        self._lasts_s: dict[bool, float] = {}
        for number, setting in enumerate(settings):
            self._jobs[setting] = folder / f"job{number}.toml"
            self._jobs[setting].write_text(setting.text(data), encoding="utf-8")
        self._open = ExitStack()

    def __enter__(self) -> "Cases":
        first = {setting.method: job for setting, job in self._jobs.items()}
        self.warm = self._open.enter_context(warm_process(list(first.values())))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def prepare(self) -> None:
        """Run every setting undisturbed, one of them with ranks that import for themselves."""
        took_s = []
        for setting in self._settings:
            queue = self._queue(f"undisturbed{len(self._ends)}", setting)
            start = queue.start()
            assert start.exit_code == 0, (queue.folder / "said").read_text(encoding="utf-8")
            self._visits[setting], self._ends[setting] = queue.visits(), end_of(queue.folder / "run")
            took_s.append(start.took_s)
        self._lasts_s = {False: sorted(took_s)[len(took_s) // 2]}
        queue = self._queue("undisturbed-cold", self._settings[0])
        start = queue.start(cold=True)
        found = complaints(queue.folder / "run", self._ends[self._settings[0]])
        assert start.exit_code == 0, (queue.folder / "said").read_text(encoding="utf-8")
        assert not found, f"a forked rank is not like one that imports: {found}"
        self._lasts_s[True] = start.took_s

    def play(self, number: int) -> dict[str, Any]:
        """One case, from its first start to its end; what became of it as plain data."""
        case = draw(self._seed, number, self._settings, self._cold_share, self._lasts_s, self._visits, self._launcher)
        begin_s, queue = time.monotonic(), self._queue(f"case{number}", case.setting)
        found = []
        try:
            self._bring_to_end(queue, case)
            found = complaints(queue.folder / "run", self._ends[case.setting])
        except Exception as error:  # whatever it is, the case has failed
            found = [f"{type(error).__name__}: {error}"]
        return {
            "case": number,
            "method": case.setting.method,
            "ranks": case.setting.ranks,
            "cold": case.cold,
            "interruptions": [
                {
                    "signal": i.signal,
                    "target": i.target,
                    "aim": i.aim,
                    "delay_ms": round(1e3 * i.delay_s, 3),
                    "met": s.met,
                }
                for i, s in zip(case.interruptions, queue.starts, strict=False)
            ],
            "starts": [[s.exit_code, s.requeued, s.left_over] for s in queue.starts],
            "took_s": round(time.monotonic() - begin_s, 2),
            "complaints": found,
        }

    def _bring_to_end(self, queue: Queue, case: Case) -> None:
        for number in range(len(case.interruptions) + MOST_STARTS):
            interruption = case.interruptions[number] if number < len(case.interruptions) else None
            start = queue.start(interruption, cold=case.cold and number == 0)
            if start.exit_code == 0 and not start.requeued:
                return
        raise RuntimeError("it does not come to its end")

    def _queue(self, name: str, setting: Setting) -> Queue:
        folder = self.folder / name
        folder.mkdir()
        return QUEUES[self._launcher](folder, self._jobs[setting], setting.ranks, self.warm)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How many cases held, and how many interruptions met a rank at which place."""
    held = sum(not row["complaints"] for row in rows)
    yield f"{held} of {len(rows)} cases ended as the undisturbed run"
    all_of_them = [i for row in rows for i in row["interruptions"]]
    met = [i for i in all_of_them if i["met"]]
    yield f"{len(met)} of {len(all_of_them)} interruptions met a running job"
    places = Counter(place for i in met for place in {p for where in i["met"] for p in where.split("+")})
    for i in met:
        if i["aim"] in ("requeue", "accounting"):
            places[i["aim"]] += 1
    yield from (f"| {place} | {count} |" for place, count in places.most_common())
    kinds = Counter(f"{i['signal']} of {i['target'].split()[0]}" for i in met)
    yield from (f"| {kind} | {count} |" for kind, count in kinds.most_common())


def main() -> None:
    """Play cases, or show what became of them."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", type=int, default=500)
    p.add_argument("--seed", type=int, default=27)
    p.add_argument("--launcher", choices=[*TARGETS], default="mpirun", help="of the ranks; srun: on the cluster")
    p.add_argument("--out", type=Path, help="a line a case; cases that it has are not played again")
    p.add_argument("--for", dest="seconds", type=float, default=float("inf"), help="stop after so many seconds")
    p.add_argument("--only", type=int, help="play this case alone")
    p.add_argument("--keep", type=Path, help="a new folder for what runs leave; otherwise it goes")
    p.add_argument("--table", type=Path, help="show a file's results")
    options = p.parse_args()
    if options.table:
        print("\n".join(table(rows_of(options.table))))
        return
    done = {row["case"] for row in rows_of(options.out)} if options.out else set()
    numbers = [options.only] if options.only is not None else [n for n in range(options.cases) if n not in done]
    begin_s, played = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        failed, data = 0, digits(folder.absolute())
        with Cases(folder.absolute(), data, options.seed, launcher=options.launcher) as cases:
            cases.prepare()
            for number in numbers:
                if time.monotonic() > begin_s + options.seconds:
                    break
                row = cases.play(number)
                failed, played = failed + bool(row["complaints"]), played + 1
                line = json.dumps(row)
                if options.out:
                    with options.out.open("a", encoding="utf-8") as out:
                        out.write(f"{line}\n")
                if row["complaints"] or not options.out:
                    print(line, flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{played} cases in {time.monotonic() - begin_s:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time"
    )
    raise SystemExit(1 if failed else 0)


def digits(folder: Path) -> Path:
    """The handwritten digits, prepared in a folder."""
    from hpcopt.prepare import prepare

    prepare("digits", folder)
    return folder / "digits"


if __name__ == "__main__":
    main()
