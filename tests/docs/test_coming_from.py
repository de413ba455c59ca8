"""The comparison with other libraries: its lines are counted, ours are the fewest, and the scripts run."""

import os
import re
import runpy

import pytest

from tests.launching import ROOT, mpirun

FOLDER = ROOT / "examples/compare"


def test_the_table_is_what_the_script_counts():
    counted = runpy.run_path(str(FOLDER / "count.py"))["table"]()
    page = (ROOT / "docs/howto/coming_from.md").read_text()
    assert page.split("<!-- begin lines -->\n")[1].split("\n<!-- end lines -->")[0] == counted
    ours, *others = [int(found) for found in re.findall(r"\| (\d+) \| \d+ \|", counted)]
    assert len(others) == 3 and ours < min(others)


@pytest.mark.parametrize("script", ["ours", "with_horovod", "ddp"])
def test_the_scripts_reach_the_same_accuracy(script, tmp_path):
    pytest.importorskip({"ours": "mpi4py", "with_horovod": "horovod.torch", "ddp": "torch"}[script])
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    path = os.pathsep.join([str(ROOT), str(FOLDER)])
    done = mpirun(1, str(FOLDER / f"{script}.py"), str(tmp_path / "run"), PYTHONPATH=path, **alone)
    assert done.returncode == 0, done.stderr + done.stdout
    (accuracy,) = re.findall(r"accuracy[ =]([\d.]+)", done.stdout + done.stderr)[-1:]
    assert float(accuracy) > 0.9
