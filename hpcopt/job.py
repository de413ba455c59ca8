"""A job: the typed description of a run. TOML in, objects out; a wrong key stops it before anything starts."""

import difflib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticSerializationError

from hpcopt.comm.launch import launch_from
from hpcopt.config import OFF, Choice, Config
from hpcopt.errors import JobError
from hpcopt.exchange import ExchangeConfig, NativeConfig, RingConfig
from hpcopt.exchange.virtual import refusal
from hpcopt.families import EXCHANGES, SOLVERS, WORKLOADS
from hpcopt.family import Family
from hpcopt.job_text import Keys, Setting, read_toml
from hpcopt.shapes.solver import SolverConfig
from hpcopt.shapes.workload import WorkloadConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.trainer.run import RunConfig

C = TypeVar("C", bound=Config)
TEXT_EXPECTED = {"string_type", "path_type"}  # pydantic's words
GOSSIP_IS_A_SOLVER = (
    '[exchange] name = "gossip" is a solver now: write [solver] name = "gossip", with the keys of this section beside '
    "its optimizer, its schedule and the rest, and leave [exchange] out"
)


def _default_exchange(sections: dict[str, Any]) -> ExchangeConfig | None:
    if "run" not in sections or "solver" not in sections or not sections["solver"].needs:
        return None
    return RingConfig() if sections["run"].backend == "mpi" else NativeConfig()


class Job(Config):
    """All choices of a run, one section each."""

    run: RunConfig = Field(description="how long, how often, where to")
    workload: Annotated[WorkloadConfig, WORKLOADS] = Field(description="what is trained")
    solver: Annotated[SolverConfig, SOLVERS] = Field(
        DataParallelConfig(), description="how a batch becomes new parameters"
    )
    exchange: Annotated[ExchangeConfig, EXCHANGES] | None = Field(
        default_factory=_default_exchange,
        description="how gradients travel, where the solver needs that; by default what the backend does best",
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
        if exchange.get("name") == "gossip":
            raise ValueError(GOSSIP_IS_A_SOLVER)
        if exchange.get("name") == "horovod":
            if run.get("backend", "horovod") != "horovod":
                raise ValueError('[exchange] name = "horovod" needs [run] backend = "horovod", or none')
            run, exchange = {**run, "backend": "horovod"}, {**exchange, "name": "native"}
        elif run.get("backend") == "horovod" and exchange:
            exchange = {"name": "native", **exchange}
        return {**sections, "run": run, **({"exchange": exchange} if exchange else {})}

    @model_validator(mode="after")
    def _exchange_fits_backend(self) -> "Job":
        if self.run.backend == "horovod" and (self.exchange is None or self.exchange.needs_messages):
            section, named = ("exchange", self.exchange) if self.exchange else ("solver", self.solver)
            raise ValueError(
                f'[{section}] name = "{named.name}" as it is here needs messages between two ranks, which Horovod '
                'lacks; use [exchange] name = "native", or "two_phase" without by_nodes, or [run] backend = "mpi"'
            )
        return self

    @model_validator(mode="after")
    def _device_fits_backend(self) -> "Job":
        if self.run.backend == "nccl" and self.run.device == "cpu":
            raise ValueError('[run] backend = "nccl" is for GPUs: leave device = "cpu" out, or use backend = "mpi"')
        return self

    @model_validator(mode="after")
    def _exchange_fits_solver(self) -> "Job":
        """The one place where what the solver needs of an exchange meets what it gives."""
        needs, solver = self.solver.needs, f'[solver] name = "{self.solver.name}"'
        if self.exchange is None:
            if needs:
                raise ValueError(f"{solver} needs an [exchange]")
        elif not needs:
            raise ValueError(f"{solver} exchanges no gradients: leave [exchange] out")
        elif self.exchange.gives not in needs:
            raise ValueError(
                f"{solver} as it is here steps by {' or '.join(sorted(needs))} of gradients, and [exchange] name = "
                f'"{self.exchange.name}" gives {self.exchange.gives}. Sums come by "ring", "two_phase", "native" and '
                '"auto"; signs, by "vote" or by "auto" with signs = true, suit [solver] name = "data_parallel" with '
                '[solver.optimizer] name = "signum" and without clip_norm'
            )
        return self

    @model_validator(mode="after")
    def _runs_on_virtual_ranks(self) -> "Job":
        """With [run] reproducible, what depends on the number of ranks is refused by name."""
        run, workload = self.run, self.workload
        if run.reproducible is None:
            return self
        reasons = {f'[solver] name = "{self.solver.name}"': self.solver.tied_to_ranks}
        if self.exchange is not None:
            reasons["[exchange]"] = refusal(self.exchange)
        if workload.compile:
            reasons["[workload] compile"] = "it translates a model for the shapes that it sees first"
        for what, reason in reasons.items():
            if reason:
                raise ValueError(
                    f'[run] reproducible = "any ranks" does not go with {what}: {reason}; it goes with [solver] name = '
                    '"data_parallel" or "kaisa" and [exchange] name = "ring" (codec dense or bounded), "native" or '
                    '"vote"'
                )
        if workload.batch < run.virtual_ranks:
            raise ValueError(
                f"[run] virtual_ranks = {run.virtual_ranks} share a [workload] batch of {workload.batch}: give each at "
                f"least one sample, virtual_ranks = {workload.batch} or less"
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
        """Every setting as plain data, without those that are off.

        Raises:
            JobError: a section of somebody's gives none.
        """
        try:
            return self.model_dump(mode="json", exclude_none=True)
        except PydanticSerializationError as cause:
            said = str(cause).rpartition("JobError: ")[2]
            raise JobError(f"a section of the job cannot be written: {said}") from cause

    def as_toml(self) -> str:
        """Every setting as a job file."""
        import tomli_w

        return tomli_w.dumps(self.as_dict())


def read_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """Read a job file, then apply ``section.key=value`` settings over it. What they leave out of the file, rank 0 says
    on standard error.

    Raises:
        JobError: the file cannot be read, or a key, type or range is wrong; the message names each and what would be
        right.
    """
    left_out: list[str] = []
    job = job_of(read_toml(path), [Setting.of(text) for text in settings], path, left_out)
    if left_out and launch_from().rank == 0:
        print("\n".join(left_out), file=sys.stderr, flush=True)
    return job


def job_of(raw: dict[str, Any], given: Sequence[Setting], path: Path, left_out: list[str]) -> Job:
    """Make a job of the content of a file, which is changed, and of settings over it.

    Args:
        raw: the content.
        given: the settings.
        path: of the file, for messages.
        left_out: gets a line for whatever a setting leaves out of the content.

    Raises:
        JobError: as ``read_job`` does.
    """
    before = [_section_around(setting.keys, raw) for setting in given]
    changed = {setting.apply(raw): setting for setting in given}
    for setting, model in zip(given, before, strict=True):
        if setting.keys[-1] == "name" and len(setting.keys) > 1 and _section_around(setting.keys, raw) is not model:
            left_out += _leave_out(raw, setting, changed, path)
    return validated(Job, raw, path, changed)


def validated(kind: type[C], raw: dict[str, Any], path: Path, changed: Mapping[Keys, Setting] | None = None) -> C:
    """The content of a file as a config; a complaint says which key of the file, or which setting, is wrong.

    Args:
        kind: of the config.
        raw: the content.
        path: of the file, for messages.
        changed: what settings have changed.

    Raises:
        JobError: a key, type or range is wrong.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        try:
            found = error.errors()
        except UnicodeEncodeError as cause:
            raise JobError(f"{path}: a complaint of somebody's class has no text: {cause}").everywhere() from None
        complaints = [
            _complaint(e, kind, raw, path, changed or {})
            for e in found
            if e["type"] != "default_factory_not_called"  # what it follows from is said
        ]
        raise JobError("\n".join(complaints)).everywhere() from None


def _leave_out(raw: dict[str, Any], setting: Setting, changed: Mapping[Keys, Setting], path: Path) -> list[str]:
    """Another class takes a section over: leave out the file's keys that are none of its own; give a line about it."""
    model = _section_around(setting.keys, raw)
    way, section = setting.keys[:-1], raw
    for name in way:
        section = section.get(name, {}) if isinstance(section, dict) else {}
    if model is None or not isinstance(section, dict):  # there is none of that name, as will be said
        return []
    set_here = {keys[len(way)] for keys in changed if keys[: len(way)] == way and len(keys) > len(way)}
    foreign = [key for key in section if key not in model.model_fields and key not in set_here]
    for key in foreign:
        del section[key]
    return [f"hpcopt: {setting} leaves out {', '.join(foreign)} of {path}, which it does not know"] if foreign else []


def _complaint(error: ErrorDetails, root: type[Config], raw: Any, path: Path, changed: Mapping[Keys, Setting]) -> str:
    """One error as a person reads it: where, which key, and what would be right."""
    names = [str(part) for part in error["loc"]]
    setting = next((made for keys, made in changed.items() if tuple(names[: len(keys)]) == keys), None)
    where, key = str(path) if setting is None else setting.source, ".".join(names) or "job"
    model = _section_around(error["loc"], raw, root)
    if error["type"] == "extra_forbidden":
        keys = [] if model is None else list(model.model_fields)
        near = difflib.get_close_matches(names[-1], keys, n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(sorted(keys))}"
        if names[-1] in ("seed", "codec_seed"):
            hint = "[run] seed decides all that is drawn at random"
        return f'{where}: unknown key "{key}"; {hint}'
    if error["type"] == "missing":
        return f'{where}: "{key}" is missing'
    said = f"{where}: {key}: {error['msg'].removeprefix('Value error, ')}"
    if setting is not None and error["type"] in TEXT_EXPECTED and not isinstance(error["input"], str | dict | list):
        return f"{said}; text that looks like something else stands in quotes: {setting.quoted}"
    if names and model is not None and issubclass(model, Config) and model.may_be_off(names[-1]):
        return f'{said}; or "{OFF}"'
    return said


def _section_around(location: Sequence[Any], raw: Any, root: type[Config] = Job) -> type[BaseModel] | None:
    """The config class of the section that a location lies in, as far as that can be told."""
    model: type[BaseModel] | None = root
    for part in location[:-1]:
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        if isinstance(part, str) and model is not None:
            model = _section_of(model, part, raw)
    return model


def _section_of(model: type[BaseModel], key: str, raw: Any) -> type[BaseModel] | None:
    """The config class of a key's value."""
    field = model.model_fields.get(key)
    if field is None:
        return None
    if isinstance(field.default, Choice) and isinstance(raw, Mapping) and "name" not in raw:
        return type(field.default)
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
