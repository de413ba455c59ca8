"""What a metrics file says of its run, as a report may use it: of the right kind, and without what a terminal obeys."""

import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcopt.store import strict_json

KINDS: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "config": (str,),
    "plugins": (str,),
    "hostnames": (list,),
    "ranks": (int,),
    "outcome": (str,),
    "exit_code": (int,),
    "elapsed_s": (float, int),
    "date_created": (str,),
    "mpi_library": (str,),
    "threads": (int,),
    "threads_per_core": (float, int),
    "oversubscribed": (bool, int),
    "peak_memory_bytes": (np.ndarray, int),
    "device_peak_memory_bytes": (np.ndarray, int),
    "energy_of": (str,),
}
SECTIONS = ("run", "workload", "solver", "exchange")
OBEYED = ("Cc", "Cf", "Zl", "Zp")  # control codes, marks that turn the direction of writing, other ends of lines


def printable(text: str) -> str:
    """Text on one line without anything that a terminal or a reader would obey."""
    return "".join(" " if unicodedata.category(c) in OBEYED else c for c in text)


def known(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Give the attributes that are of the kind that a run writes, and the names of the others."""
    kept = {name: clean(value) for name, value in attributes.items() if _is(name, value)}
    return kept, tuple(sorted(printable(name) for name in attributes.keys() - kept.keys()))


def job_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The job, by sections; empty if it cannot be read."""
    job = _mapping(attributes.get("config", "{}"))
    job = {name: value for name, value in job.items() if name not in SECTIONS or isinstance(value, dict)}
    workload = job.get("workload", {})
    if not isinstance(workload.get("batch", 0), int):
        del workload["batch"]
    return job


def plugins_of(attributes: Mapping[str, Any]) -> dict[str, str]:
    """What was plugged in, a text a class: nothing of it is imported."""
    found = _mapping(attributes.get("plugins", "{}"))
    return {
        name: " ".join(
            str(said[key])[:length]
            for key, length in (("distribution", 80), ("version", 40), ("digest", 8))
            if said.get(key)
        )
        for name, said in found.items()
        if isinstance(said, dict)
    }


def clean(value: Any) -> Any:
    """Plain data with all its texts made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [clean(v) for v in value]
    if isinstance(value, dict):
        return {printable(str(k)): clean(v) for k, v in value.items()}
    return value


def _mapping(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = clean(strict_json.mapping(text))
    except RecursionError:
        return {}
    return found


def _is(name: str, value: Any) -> bool:
    if isinstance(value, np.ndarray) and (value.dtype.kind not in "iuf" or value.ndim > 1):
        return False
    if name == "ranks" and isinstance(value, int) and value < 1:
        return False
    return name not in KINDS or isinstance(value, KINDS[name])
