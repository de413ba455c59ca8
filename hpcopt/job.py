"""A job: the typed description of a run. TOML in, objects out; a wrong key stops it before anything starts."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from hpcopt.config import Config
from hpcopt.errors import JobError
from hpcopt.exchange import ExchangeConfig, RingConfig
from hpcopt.families import EXCHANGES, SOLVERS, WORKLOADS
from hpcopt.family import Family
from hpcopt.shapes.solver import SolverConfig
from hpcopt.shapes.workload import WorkloadConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.trainer.run import RunConfig


class Job(Config):
    """All choices of a run, one section each."""

    run: RunConfig = Field(description="how long, how often, where to")
    workload: Annotated[WorkloadConfig, WORKLOADS] = Field(description="what is trained")
    solver: Annotated[SolverConfig, SOLVERS] = Field(
        DataParallelConfig(), description="how a batch becomes new parameters"
    )
    exchange: Annotated[ExchangeConfig, EXCHANGES] = Field(
        RingConfig(), description="how gradients travel; by default what the backend does best"
    )

    @model_validator(mode="before")
    @classmethod
    def _horovod_sums_by_itself(cls, sections: Any) -> Any:
        """Horovod is a backend, and the exchange is then its own: to name one of the two means both."""
        if not isinstance(sections, dict):
            return sections
        run, exchange = sections.get("run"), sections.get("exchange", {})
        if not isinstance(run, dict) or not isinstance(exchange, dict):
            return sections
        if exchange.get("name") == "horovod":
            if run.get("backend", "horovod") != "horovod":
                raise ValueError('[exchange] name = "horovod" needs [run] backend = "horovod", or none')
            run, exchange = {**run, "backend": "horovod"}, {**exchange, "name": "native"}
        elif run.get("backend") == "horovod":
            exchange = {"name": "native", **exchange}
        return {**sections, "run": run, "exchange": exchange}

    @model_validator(mode="after")
    def _exchange_fits_backend(self) -> "Job":
        if self.run.backend == "horovod" and self.exchange.name != "native":
            raise ValueError(
                f'[exchange] name = "{self.exchange.name}" needs messages between two ranks, which Horovod lacks; '
                'use name = "native", or [run] backend = "mpi"'
            )
        return self

    def check_ranks(self, ranks: int) -> None:
        """Raise JobError if there are more ranks than samples in a batch: each needs one of every batch."""
        if self.workload.batch < ranks:
            raise JobError(
                f"[workload] batch = {self.workload.batch} cannot be shared by {ranks} ranks: "
                f"give each at least one sample, --set workload.batch={ranks} or more"
            ).everywhere()

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain data, without those that are off."""
        return self.model_dump(mode="json", exclude_none=True)

    def as_toml(self) -> str:
        """Every setting as a job file."""
        import tomli_w

        return tomli_w.dumps(self.as_dict())


def read_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """Read a job file, then apply ``section.key=value`` settings over it.

    Raises:
        JobError: the file cannot be read, or a key, type or range is wrong; the message names each and what would be
        right.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not TOML: {error}") from None
    changed = {_apply(raw, setting) for setting in settings}
    try:
        return Job.model_validate(raw)
    except ValidationError as error:
        complaints = [_complaint(e["loc"], e["type"], e["msg"], raw, path, changed) for e in error.errors()]
        raise JobError("\n".join(complaints)) from None


def _apply(raw: dict[str, Any], setting: str) -> tuple[str, ...]:
    """Put one setting into the raw job; give the path of what that made: its key, or the first section that is new."""
    key, equals, text = setting.partition("=")
    names = tuple(key.strip().split("."))
    if not equals or not all(names):
        raise JobError(f"--set {setting}: write --set section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    section, depth = raw, len(names)
    for index, name in enumerate(names[:-1], 1):
        if name not in section:
            depth = min(depth, index)
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise JobError(f"--set {setting}: {name} is a value, not a section")
    section[names[-1]] = value
    return names[:depth]


def _complaint(
    location: Sequence[Any], kind: str, message: str, raw: Any, path: Path, changed: set[tuple[str, ...]]
) -> str:
    """One error as a person reads it: where, which key, and what would be right."""
    names = [str(part) for part in location]
    where = "--set" if any(tuple(names[: len(prefix)]) == prefix for prefix in changed) else str(path)
    key = ".".join(names) or "job"
    if kind == "extra_forbidden":
        keys = _known_keys(location, raw)
        near = difflib.get_close_matches(names[-1], keys, n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(sorted(keys))}"
        return f'{where}: unknown key "{key}"; {hint}'
    if kind == "missing":
        return f'{where}: "{key}" is missing'
    return f"{where}: {key}: {message.removeprefix('Value error, ')}"


def _known_keys(location: Sequence[Any], raw: Any) -> list[str]:
    """The keys that the section around a location knows."""
    model: type[BaseModel] | None = Job
    for part in location[:-1]:
        raw = raw.get(part) if isinstance(raw, Mapping) else raw[part]
        if isinstance(part, str) and model is not None:
            model = _section_of(model, part, raw)
    return [] if model is None else list(model.model_fields)


def _section_of(model: type[BaseModel], key: str, raw: Any) -> type[BaseModel] | None:
    """The config class of a key's value."""
    field = model.model_fields[key]
    kinds = [field.annotation, *field.metadata, *_parts(field.annotation)]
    for kind in kinds:
        if isinstance(kind, Family):
            return kind.class_of(raw)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _parts(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of, however deep."""
    for inner in (*get_args(annotation), *getattr(annotation, "__metadata__", ())):
        yield inner
        yield from _parts(inner)


def schema() -> str:
    """The JSON schema of a job file."""
    return json.dumps(Job.model_json_schema(), indent=2)
