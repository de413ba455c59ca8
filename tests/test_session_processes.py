"""Scripts with a Session as processes: kills, exit codes, messages."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from hpcopt.checkpoint import main as checkpoint_command
from hpcopt.report.read import read_run
from tests.launching import ROOT, mpirun, started

KILLS = int(os.environ.get("HPCOPT_KILLS", "1"))
CALLS = 20_000  # of Python's and C's functions: fewer than a rank makes in its last steps

SCRIPT = """
import itertools, os, random, signal, sys
import torch, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
import hpcopt
from hpcopt.compress import QSGD
from hpcopt.exchange import TwoPhaseConfig


def die_after(calls):  # of any functions: this process is killed in the midst of whatever it does then
    left = itertools.count(calls, -1)
    sys.setprofile(lambda *_: next(left) or os.kill(os.getpid(), signal.SIGKILL))


x = torch.randn(120, 8, generator=torch.Generator().manual_seed(1))
data = TensorDataset(x, (x.sum(1) > 0).long())
with hpcopt.Session(sys.argv[1], steps=24, name="it", checkpoint_every=4, device="cpu") as session:
    model = torch.nn.Sequential(torch.nn.Linear(8, 30), torch.nn.Dropout(0.2), torch.nn.Linear(30, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    session.keep(model=model, optimizer=optimizer)
    exchange = session.exchange(model, TwoPhaseConfig(codec=QSGD(bits=4)))
    batches = DataLoader(data, batch_sampler=session.sampler(data, batch=24))
    for count, (x, y) in enumerate(session.steps(batches)):
        if count == 8 and sys.argv[2:3] == ["die"] and session.world.rank == int(sys.argv[3]):
            die_after(int(sys.argv[4]))  # the first checkpoint has been written by now
        exchange.zero()
        loss = F.cross_entropy(model(x + 0.1 * random.random()), y)
        loss.backward()
        exchange.finish()
        optimizer.step()
        session.log(loss=loss)
        if session.world.rank == 0:
            print("did", session.step, flush=True)
        if sys.argv[2:] == ["fail"] and session.world.rank == 1 and session.step == 5:
            raise ArithmeticError("a fault of the script's")
"""


@pytest.fixture
def script(tmp_path) -> str:
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


def test_a_script_that_is_killed_again_and_again_ends_with_the_bits_of_one_that_is_not(script, tmp_path):
    moments = random.Random(KILLS)
    codes = []
    for _ in range(KILLS):  # one rank dies anywhere, and MPI ends the other
        die = ["die", str(moments.randrange(2)), str(moments.randrange(CALLS))]
        codes.append(mpirun(2, script, str(tmp_path / "killed"), *die, PYTHONPATH=str(ROOT)).returncode)
    assert codes[0] != 0  # a later start may have come to its end before its moment
    done = mpirun(2, script, str(tmp_path / "killed"), PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "resumed at step" in done.stdout, done.stderr
    assert mpirun(2, script, str(tmp_path / "straight"), PYTHONPATH=str(ROOT)).returncode == 0
    assert checkpoint_command(["diff", str(tmp_path / "killed"), str(tmp_path / "straight")]) == 0
    killed, straight = (read_run(tmp_path / name).columns["loss"] for name in ("killed", "straight"))
    np.testing.assert_array_equal(killed, straight)


def test_a_fault_on_one_rank_ends_all_and_a_signal_asks_for_a_requeue(script, tmp_path):
    run, code = str(tmp_path / "run"), tmp_path / "exit"
    done = mpirun(2, script, run, "fail", PYTHONPATH=str(ROOT), HPCOPT_EXIT_FILE=str(code))
    assert done.returncode != 0 and code.read_text() == "1\n"
    assert "rank 1 on" in done.stderr and "ArithmeticError: a fault of the script's" in done.stderr
    code.unlink()
    with started(2, script, run, PYTHONPATH=str(ROOT), HPCOPT_EXIT_FILE=str(code)) as job:
        job.wait_for(lambda: job.out.count("did") >= 2)
        os.kill(job.rank_pids()[1], signal.SIGUSR1)
        _, error = job.communicate()
        assert "told to stop by a signal" in job.out, error
        assert "Traceback" not in error
    assert code.read_text() == "85\n"
    code.unlink()
    assert mpirun(2, script, run, PYTHONPATH=str(ROOT), HPCOPT_EXIT_FILE=str(code)).returncode == 0
    assert code.read_text() == "0\n"


def test_bad_input_is_a_message_in_the_words_of_a_script_and_exit_code_2(script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.h5").symlink_to("elsewhere")
    done = mpirun(1, script, str(tmp_path / "run"), PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert "hpcopt: error: the run directory" in done.stderr and "Session(..., fresh=True)" in done.stderr
    assert "Traceback" not in done.stderr and Path(tmp_path / "run/metrics.h5").is_symlink()
