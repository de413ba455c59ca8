"""The script of the page about a loop of one's own, as it stands there: the same curve on one rank and three."""

import re
import runpy
from functools import partial

import numpy as np
import pytest

import hpcopt
from hpcopt.comm.world import alone
from hpcopt.report.read import read_run
from tests.docs.pieces import DOCS


@pytest.mark.parallel(3)
def test_the_script(shared_tmp_path, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "howto" / "own_loop.md").read_text(), re.DOTALL)
    (tmp_path / "own.py").write_text(code)
    sessions = {tmp_path / "one": partial(hpcopt.Session, world=alone()), shared_tmp_path / "three": hpcopt.Session}
    losses = []
    for run, session in sessions.items():
        monkeypatch.setattr(hpcopt, "Session", session)
        monkeypatch.setenv("HPCOPT_RUN_DIR", str(run))
        runpy.run_path(str(tmp_path / "own.py"), run_name="__main__")
        losses.append(read_run(run).columns["loss"])
    assert len(losses[0]) == 60 and losses[0][-1] < losses[0][0] / 2
    np.testing.assert_allclose(*losses, rtol=1e-4)
