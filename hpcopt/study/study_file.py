"""A study as it is written: a TOML file with what all points have, the axes of the grid, and what is kept."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hpcopt.config import Config
from hpcopt.errors import JobError
from hpcopt.job import Job, job_of, validated
from hpcopt.job_text import Setting, read_toml
from hpcopt.study.grid import SEED, Axis, Point, axes_of, count, label, points_of, usable


def _seeds(given: Any) -> Any:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 < given <= 1_000_000:
            raise ValueError("give a number of seeds, at least 1, or a list of them")
        return tuple(range(given))
    if isinstance(given, list) and len(set(map(str, given))) < len(given):
        raise ValueError("a seed is there twice")
    return given


class StudyConfig(Config):
    """What is done at each point, and what is kept of it."""

    name: str | None = Field(
        None, pattern=r"^[\w+-][\w.+-]*$", description="names the folder, studies/NAME; by default that of the file"
    )
    function: str | None = Field(
        None, description='"package.module:function", which is given a point and gives a dict of numbers'
    )
    job: Path | None = Field(
        None, description="job file that [base] and the points change; without one, [base] is a job"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], BeforeValidator(_seeds)] = Field(
        (), description="how many, 0 and on, or a list: an axis of its own, over which the report takes medians"
    )
    keep: tuple[str, ...] = Field(
        (), description="names of results; by default loss, steps and all scores of a run, all that a function gives"
    )
    keep_runs: bool = Field(False, description="leave the run directories of the points in the folder")


class StudyFile(Config):
    """All of a study file."""

    study: StudyConfig = Field(description="what is done at each point, and what is kept of it")
    base: dict[str, Any] = Field({}, description="what all points have: sections of a job, or keys for the function")
    axes: tuple[dict[str, Any], ...] = Field((), description="of the grid; lists of keys of one axis go together")


@dataclass(frozen=True)
class Study:
    """A grid of points, and what is done at each.

    Attributes:
        name: of the study.
        axes: of the grid, each a dict of lists by dotted key.
        seeds: the last axis, if any.
        base: what all points have: keys for the function, or the whole of a job as plain data.
        function: "package.module:function", or the function itself; None where points are jobs.
        keep: names of results; () keeps the usual ones.
        keep_runs: leave run directories where they are.
        path: of the file, for messages.
    """

    name: str
    axes: Sequence[Axis]
    seeds: Sequence[int] = ()
    base: dict[str, Any] = field(default_factory=dict)
    function: str | Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    keep: Sequence[str] = ()
    keep_runs: bool = False
    path: Path = Path("study")

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", axes_of(self.axes))
        count(self.axes, self.seeds)
        for name in self.keep:
            if not usable(name) or name == SEED or any(name in axis for axis in self.axes):
                raise JobError(f'keep has "{name}", which is a column of every table: leave it out')

    @cached_property
    def points(self) -> list[Point]:
        """All of the grid, in its order."""
        return list(points_of(self.axes, self.seeds))

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the results beside the points, as plain data."""
        function = self.function
        if callable(function):
            function = f"{function.__module__}:{function.__qualname__}"
        return {"function": function, "base": self.base, "keep": list(self.keep)}

    def job(self, point: Point, left_out: list[str]) -> Job:
        """The job of a point.

        Raises:
            JobError: there is none such.
        """
        given = [
            Setting(tuple(key.split(".")) if key != SEED else ("run", SEED), str(value), copy.deepcopy(value), "axis")
            for key, value in point.items()
        ]
        try:
            return job_of(copy.deepcopy(self.base), given, self.path, left_out)
        except JobError as error:
            raise JobError(f"{self.path}, at {label(point) or 'the only point'}:\n{error}") from None


def read_study_file(path: Path, settings: Sequence[str] = ()) -> Study:
    """Read a study file, then apply ``section.key=value`` settings over it.

    Raises:
        JobError: it cannot be read, or a key, type or axis is wrong; on all ranks.
    """
    raw = read_toml(path)
    changed = {setting.apply(raw): setting for setting in map(Setting.of, settings)}
    file = validated(StudyFile, raw, path, changed)
    about, base = file.study, file.base
    if about.function is not None and about.job is not None:
        raise JobError(f"{path}: [study] has a function and a job: a point is one of them").everywhere()
    if about.job is not None:
        base = merged(read_toml(about.job), base)
    try:
        return Study(
            name=about.name or path.stem,
            axes=file.axes,
            seeds=about.seeds,
            base=base,
            function=about.function,
            keep=about.keep,
            keep_runs=about.keep_runs,
            path=path,
        )
    except JobError as error:
        raise JobError(f"{path}: {error}").everywhere() from None


def merged(below: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections over sections: what both have is the second's."""
    whole = dict(below)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(whole.get(key), dict)
        whole[key] = merged(whole[key], value) if both else value
    return whole
