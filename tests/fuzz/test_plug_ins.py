"""Whatever a part of somebody's does, the training ends in a sentence, or in a traceback that names their file."""

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given

from hpcopt import families, plugins
from hpcopt.family import Family
from tests.fuzz.commands import run, scratch
from tests.fuzz.job_files import as_toml
from tests.fuzz.plug_ins import FINE, HEAD, PARTS, Plugin, plug_ins

MODULE = "fuzzed_part"


@pytest.fixture(scope="module")
def fine(ground) -> Path:
    """The folder of a network and a data set that are as they should be."""
    module, name = FINE["network"].split(":")[0], FINE["train"].split(":")[1]
    text = HEAD + PARTS["network"].replace("Part", "Net") + PARTS["train"].replace("Part", name)
    (ground / f"{module}.py").write_text(text)
    return ground


@contextlib.contextmanager
def undone() -> Iterator[None]:
    """What a module changes in this process is put back."""
    folder, path, environment, limit = Path.cwd(), list(sys.path), dict(os.environ), sys.getrecursionlimit()
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate(), np.geterr()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            sys.setrecursionlimit(limit)
            os.chdir(folder)
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)
            sys.modules.pop(MODULE, None)
            plugins.LOADED.clear()
            for family in vars(families).values():
                if isinstance(family, Family):
                    family._plugged_in.clear()
            torch.set_default_dtype(torch.float32)
            torch.set_grad_enabled(True)
            torch.set_rng_state(kept[0])
            np.random.set_state(kept[1])
            random.setstate(kept[2])
            np.seterr(**kept[3])


@given(plugin=plug_ins())
def test_plug_ins(fine, plugin):
    attempt(fine, plugin)


def attempt(fine: Path, plugin: Plugin) -> None:
    """Plan a job with the part, train with it, and go on from the checkpoint."""
    with scratch() as folder:
        module, job = folder / f"{MODULE}.py", folder / "job.toml"
        module.write_bytes(plugin.source.encode("utf-8", "surrogatepass"))
        job.write_bytes(as_toml(plugin.job(MODULE)))
        for arguments in (["--dry-run"], [], ["--set=run.steps=3"]):
            with undone():
                sys.path[:0] = [str(folder), str(fine)]
                outcome = run("train", str(job), "--run-dir", str(folder / "run"), *arguments)
            outcome.require_sentence(theirs=module)
            if outcome.exit_code:
                break
