"""The script of the page about a loop of one's own, as it stands there: the same curve on one rank and three."""

import re

import h5py
import numpy as np

from tests.docs.pieces import DOCS
from tests.launching import mpirun


def test_the_script(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "howto" / "own_loop.md").read_text(), re.DOTALL)
    (tmp_path / "own.py").write_text(code)
    losses = []
    for ranks in (1, 3):
        run = tmp_path / f"on-{ranks}"
        done = mpirun(ranks, str(tmp_path / "own.py"), HPCOPT_RUN_DIR=str(run))
        assert done.returncode == 0, done.stderr + done.stdout
        with h5py.File(run / "metrics.h5") as file:
            losses.append(file["steps/loss"][:])
    assert len(losses[0]) == 60 and losses[0][-1] < losses[0][0] / 2
    np.testing.assert_allclose(*losses, rtol=1e-4)
