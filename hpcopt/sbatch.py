"""What sbatch takes in a batch script, checked before it is asked: limits, arrays, words of ``#SBATCH`` lines.

The rules are those of sbatch's manual page.
"""

import re
from collections.abc import Container

from hpcopt.errors import JobError

_INDICES = re.compile(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?")
_LONGEST_LEAD_S = 65535


def check_limit(limit: str, lead_s: int) -> None:
    """Hold a time limit against the seconds before it at which the job is asked to end.

    Raises:
        JobError: it is no time, or the job would be asked to end as soon as it starts.
    """
    limit_s = seconds(limit)
    if lead_s > _LONGEST_LEAD_S:
        raise JobError(f"--lead {lead_s}: SLURM gives a job at most {_LONGEST_LEAD_S} seconds of warning")
    if limit_s is not None and limit_s <= lead_s:
        raise JobError(
            f"--time {limit} is {limit_s} s, and --lead {lead_s} would ask it to end before it begins: give a longer "
            "--time, or a --lead just longer than a step and a checkpoint take"
        )


def seconds(limit: str) -> int | None:
    """A time limit as sbatch writes it, in seconds; None where there is none ("UNLIMITED", or 0).

    Raises:
        JobError: it is no time.
    """
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return None
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", limit, re.ASCII):
        raise JobError(
            f"--time {limit}: write minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or "
            "days-hours:minutes:seconds"
        )
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not days and len(parts) < 3:
        parts.insert(0, 0)  # without days the first is minutes, unless there are three
    hours, minutes, rest_s = [*parts, 0, 0][:3]
    return (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + rest_s or None


def check_array(indices: str) -> None:
    """Find what is wrong with the indices of a job array.

    Raises:
        JobError: they are none, or go backwards.
    """
    listed, per_cent, at_once = indices.partition("%")
    found = [_INDICES.fullmatch(part) for part in listed.split(",")]
    backwards = any(part and part[2] and int(part[2]) < int(part[1]) for part in found)
    if not all(found) or backwards or (per_cent and not re.fullmatch(r"[1-9]\d*", at_once)):
        raise JobError(f"--array {indices}: write indices as 0-9, 0-9:3, 1,3,5 or 0-99%4")


def check_option(option: str, taken: Container[str]) -> None:
    """Hold a further option against those that the script has already.

    Raises:
        JobError: it is not one option, or it is one of ``taken``.
    """
    form = re.fullmatch(r"--([a-z][a-z-]*)(=.*)?", option)
    if form is None or not option.isprintable():
        raise JobError(f"--sbatch={option}: write one option in its long form, as in --sbatch=--account=abc123")
    if form[1] in taken:
        raise JobError(
            f"--sbatch={option}: the script has a --{form[1]} of its own; `hpcopt submit --help` lists its options"
        )


def check_name(name: str) -> None:
    """Find what is wrong with a job's name, which is also its log's.

    Raises:
        JobError: it has characters that SLURM cannot take, or takes for its own, however they are written.
    """
    if not name.isprintable() or "\\" in name:
        raise JobError(f"{name!r} cannot be a job's name in SLURM: rename the job file")


def word(text: str) -> str:
    """A word of an ``#SBATCH`` line. Unlike in a shell, a blank ends a word also behind a backslash, and a backslash
    escapes also between quotes.
    """
    if not re.search(r"[\s'\"\\#]", text):
        return text
    return '"' + re.sub(r"[\"\\]", r"\\\g<0>", text) + '"'


def file_name(text: str) -> str:
    """A part of a log's name: ``%`` begins what SLURM fills in unless it is doubled."""
    return text.replace("%", "%%")
