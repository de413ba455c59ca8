"""A run on the digits, whose test samples are the evidence from before operation, and a stream of demands beside it."""

from pathlib import Path

import numpy as np
import pytest

from hpcopt.train import main

JOB = """
[run]
name = "digits"
steps = 60
[workload]
data = "DATA/digits"
batch = 64
[workload.model]
name = "mlp"
hidden = [16]
"""


@pytest.fixture(scope="session")
def run(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("assured")
    (folder / "job.toml").write_text(JOB.replace("DATA", str(digits)))
    assert main([str(folder / "job.toml"), "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def write_demands(path: Path, n: int, failed: int, seed: int = 0, mode: str = "w") -> Path:
    """Demands of ten classes alike, of which some fail."""
    rng = np.random.default_rng(seed)
    failures = rng.permutation(np.arange(n) < failed).astype(int)
    rows = "".join(f"{failure},{kind}\n" for failure, kind in zip(failures, rng.integers(0, 10, n), strict=True))
    with path.open(mode) as file:
        file.write(("failure,class\n" if mode == "w" else "") + rows)
    return path
