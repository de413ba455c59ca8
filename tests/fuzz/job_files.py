"""Job files: good ones of every family, and ways to spoil them."""

import datetime
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import tomli_w
from hypothesis import strategies as st

from hpcopt.config import Config
from hpcopt.families import CODECS, EXCHANGES, IMAGE_MODELS, OPTIMIZERS, SCHEDULES, SOLVERS, WORKLOADS
from hpcopt.job import Job
from hpcopt.trainer.run import RunConfig, StopAt

Tree = dict[str, Any]

FAMILIES = (WORKLOADS, IMAGE_MODELS, SOLVERS, OPTIMIZERS, SCHEDULES, EXCHANGES, CODECS)
DOTTED = (
    "os:path",
    "hpcopt.optim.first_order:SgdConfig",
    "nowhere:Thing",
    "json:",
    ":",
    "a.b.c:d.e",
    "torch.nn:Linear",
)
LONG = frozenset(  # of loops and waits, which a job may well ask for: large ones are no fault, and last for ever
    {"z_steps", "code_steps", "sweeps", "blocks", "calibration_s", "delay_s", "batch", "depth", "rank", "threads"}
)
EXTREME = (-1, 0, 1, 2, 7, 64, 2**31, 2**53, 2**63 - 1, 2**64, 10**400, 0.0, -0.0, 1e-300, 1e300, 5e-324)
EXTREME_FLOATS = (float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "off", "none", "nan", "..", "/", "\0", "\x1b[31m", "é\u2028\u202e", "a" * 300, "x=y", "[a]", '"')


def example_job(steps: int = 2, **run: Any) -> Tree:
    """A job of two steps on the tiny data."""
    return {
        "run": {"name": "fuzz", "steps": steps, **run},
        "workload": {"data": "tiny", "batch": 8, "model": {"name": "mlp", "hidden": [6]}},
    }


@cache
def good_solvers() -> tuple[Tree, ...]:
    """Sections of solvers and exchanges that go together."""
    sgd, adamw = {"name": "sgd", "lr": 0.05, "momentum": 0.9}, {"name": "adamw", "lr": 0.01}
    signum, parallel = {"name": "signum", "lr": 0.01}, {"name": "data_parallel"}
    two_phase = [
        {"solver": {**parallel, "optimizer": sgd}, "exchange": {"name": "two_phase", "codec": {"name": codec}}}
        for codec in ("dense", "half", "qsgd", "natural", "topk", "powersgd", "shared_terngrad")
    ]
    alone = [{"solver": {"name": name}} for name in ("kaisa", "block_admm", "altmin", "bcd", "dladmm", "gossip")]
    return (
        {},
        {"solver": {**parallel, "optimizer": {**sgd, "nesterov": True}, "clip_norm": 1.0}},
        {"solver": {**parallel, "optimizer": adamw, "schedule": {"name": "cosine", "warmup": 1}}},
        {"solver": {**parallel, "optimizer": {"name": "lamb", "lr": 0.01}}, "exchange": {"name": "native"}},
        {"solver": {**parallel, "optimizer": signum}, "exchange": {"name": "vote"}},
        {"exchange": {"name": "auto", "codec": {"name": "half"}, "calibration_s": 0.01}},
        {"run": {"debug": True, "stop_at": {"metric": "test_accuracy", "value": 0.9}}},
        *two_phase,
        *alone,
    )


def classes() -> dict[str, type[Config]]:
    """The classes of all families by their short names."""
    return {name: found for family in FAMILIES for name, found in family.choices(object).items() if ":" not in name}


@cache
def known_keys() -> tuple[str, ...]:
    """Every key of every section."""
    known = [Job, RunConfig, StopAt, *classes().values()]
    return tuple(sorted({key for found in known for key in found.model_fields}))


def own_keys(section: Tree) -> tuple[str, ...]:
    """The keys of a section's own class, where that can be told."""
    name = section.get("name")
    found = classes().get(name) if isinstance(name, str) else None
    return tuple((RunConfig if "steps" in section or found is None else found).model_fields)


def names() -> st.SearchStrategy[str]:
    """Names of classes, of any family and of none."""
    return st.sampled_from([*classes(), *DOTTED, *TEXTS])


def values(key: str = "") -> st.SearchStrategy[Any]:
    """What TOML can say, of any kind and size."""
    if key in LONG:
        return st.sampled_from([-1, 0, 1, 2, 3, 0.5, "off", [], {}, True])
    plain = st.one_of(
        st.sampled_from([*EXTREME, *EXTREME_FLOATS, *TEXTS, True, False, [], {}]),
        st.floats(0, 1),
        names(),
        st.text(max_size=8),
        st.sampled_from([datetime.date(1, 1, 1), datetime.time(1), datetime.datetime(2026, 1, 1)]),
    )
    return st.one_of(
        plain, st.lists(plain, max_size=3), st.dictionaries(st.sampled_from(["name", "lr", "0"]), plain, max_size=2)
    )


@st.composite
def jobs(draw: st.DrawFn, spoiled: int = 3) -> Tree:
    """A good job with up to so many things wrong."""
    job = example_job(checkpoint_every=1)
    for section, keys in deepcopy(draw(st.sampled_from(good_solvers()))).items():
        job[section] = {**job.get(section, {}), **keys}
    for _ in range(draw(st.integers(0, spoiled))):
        section, key = draw(st.sampled_from(list(places(job))))
        draw(st.sampled_from(WAYS))(draw, section, key)
    return job


def places(section: Tree) -> Any:
    """Every section in a tree, with each of its keys."""
    for key, value in section.items():
        yield section, key
        if isinstance(value, dict):
            yield from places(value)


def _set(draw: st.DrawFn, section: Tree, key: str) -> None:
    section[key] = draw(values(key))


def _rename(draw: st.DrawFn, section: Tree, key: str) -> None:
    other = draw(st.one_of(st.sampled_from(known_keys()), st.text(max_size=5)))
    section[other] = section.pop(key)


def _add(draw: st.DrawFn, section: Tree, key: str) -> None:
    known = known_keys() if draw(st.booleans()) else own_keys(section)
    other = draw(st.sampled_from(known))
    section[other] = draw(values(other))


def _delete(draw: st.DrawFn, section: Tree, key: str) -> None:
    if len(section) > 1:
        del section[key]


def _swap(draw: st.DrawFn, section: Tree, key: str) -> None:
    other = draw(st.sampled_from(list(section)))
    section[key], section[other] = section[other], section[key]


def _name(draw: st.DrawFn, section: Tree, key: str) -> None:
    found = section[key] if isinstance(section[key], dict) else section
    found["name"] = draw(names())


WAYS: list[Callable[[st.DrawFn, Tree, str], None]] = [_set, _set, _rename, _add, _add, _delete, _swap, _name]


def as_toml(job: Tree) -> bytes:
    """A job as the bytes of a file."""
    return tomli_w.dumps(job).encode("utf-8", "surrogatepass")


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A job file; its text may be spoiled too."""
    content = as_toml(draw(jobs()))
    at = draw(st.integers(0, len(content)))
    text = content.decode("utf-8", "replace")
    return draw(
        st.sampled_from(
            [
                *[content] * 8,
                b"\xef\xbb\xbf" + content,
                text.encode("utf-16"),
                text.encode("utf-16-be"),
                f"# \xe9\n{text}".encode("latin-1", "replace"),
                content[:at],
                content[:at] + b"\0" + content[at:],
                content[:at] + draw(st.binary(max_size=6)) + content[at:],
                content + content,
                content + b"x = " + b"[" * 9000,
                content + b"x = " + b"9" * 5000,
                content.replace(b"\n", b"\r\n"),
                content.replace(b"\n", b"\r"),
            ]
        )
    )


def settings_texts() -> st.SearchStrategy[str]:
    """What may stand behind ``--set``."""
    sections = st.sampled_from(["run", "workload", "workload.model", "solver", "solver.optimizer", "solver.schedule"])
    section = st.one_of(sections, st.sampled_from(["exchange", "exchange.codec", "exchange.adversary", "run.stop_at"]))
    key = st.one_of(st.sampled_from(known_keys()), st.just("name"), st.text(max_size=5))
    text = st.one_of(
        values().map(lambda value: tomli_w.dumps({"v": value}).partition("=")[2].strip()),
        names(),
        st.text(max_size=8),
        st.sampled_from(["[" * 9000, "9" * 5000, "'", '"', "{", "2024", "nan", "off", "\udc80", "1e999", "''''''"]),
    )
    return st.one_of(st.builds(lambda s, k, t: f"{s}.{k}={t}", section, key, text), st.text(max_size=12), section, key)


def is_quick(text: str) -> bool:
    """Whether a setting asks for no loop that would last for ever."""
    return not any(key in text.partition("=")[0] for key in LONG)
