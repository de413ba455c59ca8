"""What a run that was interrupted must have in common with one that was not, and what it must not leave behind."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from hpcopt.checkpoint import leaves
from hpcopt.store.checkpoint import Checkpoints

STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ( .*)?")
KNOWN = {"job.toml", "metrics.h5", "checkpoints", "log.txt", "lock", "stalls"}  # the last tells of a slow machine
# Columns that differ from run to run: when rows are written, which takes messages, is for the clock to say.
OF_THE_CLOCK = {"time_s", "step_s", "phase_s", "energy_j", "sent_bytes", "dense_bytes"}


@dataclass(frozen=True)
class End:
    """What a finished run has to show.

    Attributes:
        state: parts of the last checkpoint, leaf by leaf, but for the seconds that the run took.
        tables: columns of metrics.h5, but for OF_THE_CLOCK.
    """

    state: dict[str, Any]
    tables: dict[str, np.ndarray]


def end_of(run: Path) -> End:
    """Read it from a run directory."""
    checkpoints, state = Checkpoints(run / "checkpoints", 1), {}
    step = checkpoints.steps()[0]
    for part in checkpoints.parts(step):
        for name, value in leaves(checkpoints.read_part(step, part)):
            if not name.endswith("elapsed_s"):
                state[f"{part}: {name}"] = value
    with h5py.File(run / "metrics.h5") as file:
        groups = {name: group for name, group in file.items() if name != "starts"}
        tables = {
            f"{name}/{column}": values[:]
            for name, group in groups.items()
            for column, values in group.items()
            if column not in OF_THE_CLOCK
        }
    return End(state, tables)


def complaints(run: Path, undisturbed: End) -> list[str]:
    """All that is not as it should be, nothing if a run that was interrupted is as good as the undisturbed one."""
    found = [f"beside the run stands {path.name}" for path in run.parent.glob(f"{run.name}.*")]
    found += [f"left behind: {path.name}" for path in run.iterdir() if path.name not in KNOWN]
    found += [f"left behind: {path.name}" for path in (run / "checkpoints").iterdir() if not _committed(path)]
    mine = end_of(run)
    for kind, ours, theirs in (("state", mine.state, undisturbed.state), ("metrics", mine.tables, undisturbed.tables)):
        if ours.keys() != theirs.keys():
            found.append(f"{kind}: {sorted(ours.keys() ^ theirs.keys())} not in both")
        found += [f"{kind}: other {name}" for name in theirs if name in ours and not _same(ours[name], theirs[name])]
    with h5py.File(run / "metrics.h5") as file:
        times, starts = file["steps/time_s"][:], file["starts/step"][:]
        if (np.diff(times) <= 0).any():
            found.append("metrics: the steps' times do not rise")
        if starts[0] != 0 or (np.diff(starts) < 0).any():
            found.append(f"metrics: starts at {starts.tolist()}")
        if file.attrs.get("exit_code") != 0:
            found.append(f"metrics: the outcome is {file.attrs.get('outcome')}")
    lines = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    found += [f"log: {line!r}" for line in lines if not STAMPED.fullmatch(line)]
    if not any("all steps done" in line or "nothing to do" in line for line in lines):  # in the last breath, or after
        found.append("log: no end")
    return found


def _committed(path: Path) -> bool:
    return path.name == "latest" or re.fullmatch(r"step_\d{8}", path.name) is not None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        a, b = (x.new_empty(x.numel()).copy_(x.flatten()).view(torch.uint8).numpy() for x in (a, b))  # of any strides
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype == object:  # texts
            return a.tolist() == b.tolist()
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b or (a != a and b != b))  # NaN is what there is not
