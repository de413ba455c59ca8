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
from hpcopt.exchange import ExchangeConfig
from hpcopt.solvers.block_admm.deepfacto import DeepFactoConfig
from hpcopt.solvers.block_admm.solver import BlockAdmmConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig
from hpcopt.solvers.splitting.altmin import AltMinConfig
from hpcopt.solvers.splitting.bcd import BcdConfig
from hpcopt.solvers.splitting.dladmm import DlAdmmConfig
from hpcopt.trainer.run import RunConfig
from hpcopt.workloads.bert_pretraining import BertPretrainingConfig
from hpcopt.workloads.image_classification import ImageClassificationConfig
from hpcopt.workloads.segmentation import SegmentationConfig

WorkloadConfig = Annotated[
    ImageClassificationConfig | SegmentationConfig | BertPretrainingConfig, Field(discriminator="name")
]
SolverConfig = Annotated[
    DataParallelConfig | KaisaConfig | BlockAdmmConfig | DeepFactoConfig | AltMinConfig | BcdConfig | DlAdmmConfig,
    Field(discriminator="name"),
]


class Job(Config):
    """All choices of a run, one section each."""

    run: RunConfig = Field(description="how long, how often, where to")
    workload: WorkloadConfig = Field(description="what is trained")
    solver: SolverConfig = Field(DataParallelConfig(), description="how a batch becomes new parameters")
    exchange: ExchangeConfig = Field(description="how gradients travel; by default what the backend does best")

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, sections: Any) -> Any:
        if not isinstance(sections, dict):
            return sections
        defaults = {"workload": "image_classification", "solver": "data_parallel"}
        named = {
            key: {"name": defaults[key], **sections[key]} for key in defaults if isinstance(sections.get(key), dict)
        }
        return {**sections, **named}

    @model_validator(mode="before")
    @classmethod
    def _default_exchange(cls, sections: Any) -> Any:
        exchange = sections.get("exchange", {}) if isinstance(sections, dict) else None
        if isinstance(exchange, dict) and exchange.get("name") == "horovod":  # its sums are native to its transport
            run = sections["run"] if isinstance(sections.get("run"), dict) else {}
            if run.get("backend", "horovod") != "horovod":
                raise ValueError('[exchange] name = "horovod" needs [run] backend = "horovod", or none')
            return {**sections, "run": {**run, "backend": "horovod"}, "exchange": {**exchange, "name": "native"}}
        if isinstance(exchange, dict) and "name" not in exchange:
            backend = sections["run"].get("backend") if isinstance(sections.get("run"), dict) else None
            name = "native" if backend == "horovod" else "ring"
            return {**sections, "exchange": {"name": name, **exchange}}
        return sections

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
    names, keys = _locate(location, raw)
    where = "--set" if any(tuple(names[: len(prefix)]) == prefix for prefix in changed) else str(path)
    key = ".".join(names) or "job"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], keys, n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(sorted(keys))}"
        return f'{where}: unknown key "{key}"; {hint}'
    if kind == "missing":
        return f'{where}: "{key}" is missing'
    return f"{where}: {key}: {message.removeprefix('Value error, ')}"


def _locate(location: Sequence[Any], raw: Any) -> tuple[list[str], list[str]]:
    """Turn pydantic's location, which goes through union tags, into the job's keys; also give the keys that its section
    knows.
    """
    names: list[str] = []
    models: list[type[BaseModel]] = [Job]
    known: list[str] = []
    for depth, part in enumerate(location):
        tagged = [m for m in models if "name" in m.model_fields and m.model_fields["name"].default == part]
        if tagged and not (isinstance(raw, dict) and part in raw):
            models = tagged
            continue
        names.append(str(part))
        known = [key for m in models for key in m.model_fields]
        if depth < len(location) - 1:
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [inner for field in fields for inner in _models(field.annotation)]
            raw = raw.get(part) if isinstance(raw, Mapping) else None
    return names, known


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config classes in an annotation, which may be a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def schema() -> str:
    """The JSON schema of a job file."""
    return json.dumps(Job.model_json_schema(), indent=2)
