"""A run whose loop is a script: its settings, what a batch script tells it, and what stands in the place of a job."""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpcopt.comm.world import World
from hpcopt.errors import JobError
from hpcopt.trainer.run import RunConfig

RUN_DIR, SEED = "HPCOPT_RUN_DIR", "HPCOPT_SEED"  # by which a batch script names a directory and a seed of its own
WORDS = {
    "--fresh": "Session(..., fresh=True)",
    "--resume": "Session(..., resume=True)",
    "name another --run-dir": "name another directory",
    "name a writable --run-dir": "name a writable directory",
}


def run_config(settings: Mapping[str, Any], path: Path) -> RunConfig:
    """Settings as a job's ``[run]`` section.

    Raises:
        JobError: on all ranks: one is unknown or wrong.
    """
    named = {"name": path.name} if re.fullmatch(r"[\w+-][\w.+-]*", path.name) else {}
    try:
        run = RunConfig.model_validate({**named, **settings})
    except ValidationError as error:
        raise JobError("\n".join(map(_complaint, error.errors()))).everywhere() from None
    if run.stop_at is not None and run.stop_at.better is None:
        raise JobError('Session(..., stop_at=...): say better="higher" or better="lower"').everywhere()
    return run


def _complaint(error: ErrorDetails) -> str:
    key = "".join(f", {name}" for name in error["loc"][:1])
    if error["type"] == "extra_forbidden":
        return f"Session(...{key}): there is no such setting; there are {', '.join(sorted(RunConfig.model_fields))}"
    return f"Session(...{key}): {error['msg'].removeprefix('Value error, ')}"


def told_by_batch_script(path: Path, run: RunConfig, world: World) -> tuple[Path, RunConfig]:
    """The directory and the settings, unless the batch script that started this names others. Collective.

    Directory and seed are rank 0's. All else must be the same on all ranks, which otherwise would wait for each other.

    Raises:
        JobError: on all ranks: it is not.
    """
    seed = os.environ.get(SEED, "")
    if seed and not re.fullmatch(r"\d{1,18}", seed):
        raise JobError(f"{SEED}={seed}: a seed is a whole number")
    others = run.model_dump(mode="json", exclude={"seed"})
    mine = {"path": os.environ.get(RUN_DIR) or str(path), "seed": int(seed) if seed else run.seed, "run": others}
    all_ranks = list(map(json.loads, world.gather_text(json.dumps(mine))))
    told = all_ranks[0]
    for rank, theirs in enumerate(all_ranks):
        for key, value in told["run"].items():
            if theirs["run"].get(key) != value:
                raise JobError(
                    f"Session(..., {key}=...): {value!r} on rank 0, {theirs['run'].get(key)!r} on rank {rank}: give "
                    "all ranks the same"
                ).everywhere()
    return Path(told["path"]), run.model_copy(update={"seed": told["seed"]})


def job_of(run: RunConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stands where a job would: in job.toml, metrics.h5 and checkpoints.

    Raises:
        JobError: on all ranks: the script's own settings are no plain data.
    """
    kept = {name: value for name, value in settings.items() if value is not None}
    try:
        kept = json.loads(json.dumps(kept, default=str, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise JobError(f"Session(..., settings=...): they are no plain data: {error}").everywhere() from None
    script = {"script": Path(sys.argv[0]).name or "python"}
    return {"run": run.model_dump(mode="json", exclude_none=True), "session": script, "settings": kept}


def in_a_script(text: str) -> str:
    """A message in the words of a script, where it speaks of a command's options."""
    for option, words in WORDS.items():
        text = text.replace(option, words)
    return text
