"""How much is tried, and what it is tried on: tiny data, and runs that have ended well.

CI tries the same 200 examples each time, shared by the tests; by hand it is any number, new ones for each seed:

    HPCOPT_FUZZ=10000 python -m pytest tests/fuzz --hypothesis-seed=7
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from hpcopt.prepare.dataset import image_classes
from hpcopt.store.shards import write_shards
from tests.fuzz.commands import run
from tests.fuzz.job_files import as_toml, example_job

EXAMPLES, TESTS = int(os.environ.get("HPCOPT_FUZZ", "200")), 4

settings.register_profile(
    "hpcopt",
    max_examples=-(-EXAMPLES // TESTS),
    derandomize="HPCOPT_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("hpcopt")


@pytest.fixture(scope="package")
def ground(tmp_path_factory) -> Path:
    """A folder with data, that relative paths of jobs are in."""
    folder = tmp_path_factory.mktemp("fuzz")
    draw = np.random.default_rng(3)
    images, labels = draw.integers(0, 17, (56, 1, 8, 8)).astype(np.uint8), draw.integers(0, 10, 56)
    data = image_classes(
        (images[:40], labels[:40]), (images[40:], labels[40:]), scale=1 / 16, classes=[str(n) for n in range(10)]
    )
    for split, arrays in data.arrays.items():
        write_shards(folder / "tiny", split, arrays, rows_per_shard=40, attributes=data.attributes, about=data.about)
    return folder


@pytest.fixture(scope="module", autouse=True)
def there(ground) -> Iterator[None]:
    """Commands run where their relative paths are."""
    with contextlib.chdir(ground):
        yield


@pytest.fixture(scope="package")
def runs(ground) -> dict[str, Path]:
    """Two finished runs of unlike jobs."""
    found = {}
    for name, optimizer in (("good", "sgd"), ("other", "adamw")):
        job = example_job(steps=4, checkpoint_every=2)
        job["solver"] = {"name": "data_parallel", "optimizer": {"name": optimizer, "lr": 0.01}}
        job["run"]["name"] = name
        (ground / f"{name}.toml").write_bytes(as_toml(job))
        with contextlib.chdir(ground):
            assert run("train", f"{name}.toml").exit_code == 0
        found[name] = ground / "runs" / name
    return found
