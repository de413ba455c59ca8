"""What is done at a point: a function is called, or a job is run; either gives numbers by name."""

import argparse
import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpcopt.comm.world import World, alone
from hpcopt.errors import EXIT_DONE, HpcoptError, JobError
from hpcopt.plugins import import_object
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.store.files import remove
from hpcopt.study.folder import Folder
from hpcopt.study.grid import Point, filled, usable
from hpcopt.study.study_file import Study
from hpcopt.trainer.signals import StopSignals

Results = dict[str, float]


class Trial(Protocol):
    """What is done at a point."""

    def __call__(self, number: int, point: Point, *, again: bool) -> Results | None:
        """Give the results of the point of a number, or None if it was told to stop before the end.

        Args:
            number: of the point.
            point: its place on the axes.
            again: whether it has failed before.
        """
        ...


class FunctionTrial:
    """A function is called with the base and the point's values, as a dict that it may change."""

    def __init__(self, study: Study) -> None:
        """Import the function.

        Raises:
            JobError: it cannot be imported, or is none; or an axis has no place in the base.
        """
        self._study, name = study, study.function
        filled(study.base, study.points[0])  # all points have the same keys
        if callable(name):
            self._function: Callable[[dict[str, Any]], Mapping[str, Any]] = name
            return
        name = str(name)
        if name.count(":") != 1:
            raise JobError(f'{study.path}: [study] function = "{name}": write "package.module:function"')
        try:
            self._function = import_object(name)
        except ValueError as error:
            raise JobError(f"{study.path}: [study] function = {error}") from None
        if not callable(self._function):
            raise JobError(f'{study.path}: [study] function = "{name}" cannot be called: it is {self._function!r}')

    def __call__(self, number: int, point: Point, *, again: bool) -> Results | None:
        return kept(self._function(filled(self._study.base, point)), self._study.keep, point)


class JobTrial:
    """A job is run on one rank, in a run directory of its own, without a word on standard output."""

    def __init__(self, study: Study, folder: Folder, world: World, signals: StopSignals) -> None:
        """Get ready.

        Args:
            study: that the points are of.
            folder: for run directories.
            world: the ranks that share the machines with this one.
            signals: that a run listens for.
        """
        self._study, self._folder, self._signals = study, folder, signals
        self._world = alone()
        self._world.local_rank = world.local_rank  # decides the GPU, and how many cores a rank has
        self._world.local_size = world.local_size

    def __call__(self, number: int, point: Point, *, again: bool) -> Results | None:
        from hpcopt.training import train

        directory = self._folder.run_directory(number)
        options = argparse.Namespace(run_dir=directory, fresh=False, resume=False)
        if again:
            remove(directory)
        with contextlib.redirect_stdout(io.StringIO()):
            exit_code = train(self._study.job(point, []), self._world, options, self._signals)
        if exit_code != EXIT_DONE:
            if self._signals.received is not None:
                return None
            raise JobError(f"the run left before its end, exit code {exit_code}: is [run] time_budget too short?")
        results = kept(results_of(directory), self._study.keep or usual(directory), point)
        if not self._study.keep_runs:
            remove(directory)
        return results


def trial_of(study: Study, folder: Folder, world: World, signals: StopSignals) -> Trial:
    """What is done at the points of a study.

    Raises:
        JobError: it cannot be done.
    """
    return FunctionTrial(study) if study.function is not None else JobTrial(study, folder, world, signals)


def results_of(directory: Path) -> Results:
    """Numbers of a run by name: those of its summary, the last value of every column, and its last and best scores."""
    run = read_run(directory)
    summary = summarise(run)
    plain = {name: value for name, value in summary.as_dict().items() if isinstance(value, int | float)}
    last = {name: _last(values) for name, values in run.columns.items()}
    best = {f"best_{name}": value for name, value in summary.best.items()}
    return {**last, **plain, **best, **summary.scores}


def usual(directory: Path) -> tuple[str, ...]:
    """What is kept of a run where nobody says: loss, steps and scores."""
    return ("loss", "steps", *summarise(read_run(directory)).scores)


def kept(found: Any, keep: Sequence[str], point: Point) -> Results:
    """The results that a study keeps, as floats.

    Raises:
        ValueError: they are no dict of numbers, or one is missing, or cannot be called that.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"the point gave {type(found).__name__}, not a dict of numbers by name")
    if missing := [name for name in keep if name not in found]:
        raise ValueError(f"the point gave no {missing[0]}; it gave {', '.join(map(str, found)) or 'nothing'}")
    results = {}
    for name in keep or found:
        if not isinstance(name, str) or not usable(name) or name in point:
            raise ValueError(f"a result cannot be called {name!r}: the table has the name for something else")
        try:
            results[name] = _number(found[name])
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"the result {name} is {found[name]!r}, not a number") from None
    return results


def _number(value: Any) -> float:
    """As float() has it, but for texts of digits. Raises TypeError: it is a text."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is a text")
    return float(value)


def said(error: BaseException) -> str:
    """A failure in a line."""
    text = str(error) if isinstance(error, HpcoptError) else f"{type(error).__name__}: {error}"
    return (
        " ".join(text.split())[:400].encode("utf-8", "backslashreplace").decode()
    )  # a file's name may be of any bytes


def _last(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else math.nan
