"""Programs of a user's own whose ranks do not leave together: the job ends, and says why."""

import re

import pytest

from tests.launching import mpirun

LOOP = """
import os, signal, sys, tempfile, threading
tempfile.tempdir = os.environ.get('STALLS_IN')
import torch
from hpcopt.comm.world import connect
from hpcopt.exchange import Exchange, RingConfig
torch.manual_seed(0)
world = connect(stall_s=1, debug="debug" in sys.argv)
model = torch.nn.Linear(8, 8)
exchange = Exchange(world, model.named_parameters(), RingConfig())
def step():
    model.zero_grad()
    model(torch.ones(2, 8)).sum().backward()
    exchange.finish()
step()
"""


@pytest.mark.parametrize(
    ("failure", "exit_code", "said"),
    [
        ("raise TypeError('bad sample')", 1, "TypeError: bad sample"),
        (
            "from hpcopt.errors import NonFiniteError; raise NonFiniteError('a gradient')",
            3,
            "NonFiniteError: a gradient",
        ),
        ("sys.exit(7)", 7, "rank 1 on"),
        ("sys.exit('no such sample')", 1, "no such sample"),
        ("os.kill(os.getpid(), signal.SIGINT); threading.Event().wait()", 130, "KeyboardInterrupt"),
    ],
)
def test_a_failure_that_nobody_catches_ends_all_ranks(failure, exit_code, said):
    """Also where the failing rank has a thread that waits for the others."""
    backward = "model.zero_grad(); model(torch.ones(2, 8)).sum().backward()"
    job = mpirun(2, "-c", LOOP + f"if world.rank == 1:\n    {backward}\n    {failure}\nworld.barrier()")
    assert job.returncode == exit_code, job.stderr
    assert said in job.stderr
    assert f"ends the job, exit code {exit_code}" in job.stderr


@pytest.mark.parametrize("leave", ["raise SystemExit", "world.close()"])
def test_a_rank_that_leaves_early_is_named_by_those_that_wait(leave, tmp_path):
    job = mpirun(3, "-c", LOOP + f"if world.rank == 1:\n    {leave}\nelse:\n    step()", STALLS_IN=str(tmp_path))
    assert job.returncode == 70, job.stderr
    assert re.search(r"stall: ranks 0, 2 have waited .* in ring of bucket 0, step 1: .*; missing: 1\n", job.stderr)
    assert re.search(r"rank 1 on \S+ is in call \d+ of all ranks: close", job.stderr)
    assert re.search(r"stall: ranks 1 have waited .* close; missing: 0, 2\n", job.stderr)


def test_in_debug_mode_it_is_named_before_anybody_waits():
    job = mpirun(2, "-c", LOOP + "if world.rank == 1:\n    step()\nworld.close()", "debug")
    assert job.returncode == 70, job.stderr
    assert "about to run different collectives" in job.stderr
    assert "close" in job.stderr


def test_a_rank_that_comes_late_to_the_end_is_waited_for(tmp_path):
    """It is busy for longer than a collective may take, beside its exchange, which waits for nobody."""
    program = """
import time
from pathlib import Path
def told():
    return any("missing: 1" in report.read_text() for report in Path(os.environ["STALLS_IN"]).glob("*/report.txt"))
while world.rank == 1 and not told():
    time.sleep(0.01)
print('ends', world.rank)
"""
    job = mpirun(2, "-c", LOOP + program, STALLS_IN=str(tmp_path))
    assert job.returncode == 0, job.stderr
    assert sorted(job.stdout.split()) == ["0", "1", "ends", "ends"]
    assert re.search(r"stall: ranks 0 have waited .* close; missing: 1\n  rank 1 on \S+ is at\n", job.stderr)


def test_what_is_caught_or_comes_after_the_end_ends_nothing():
    program = """
try: sys.exit(3)
except SystemExit as leaving: assert leaving.code == 3
def alone():
    sys.exit(4)
thread = threading.Thread(target=alone)
thread.start()
thread.join()
if world.rank == 1 and os.fork() == 0:
    sys.excepthook(ValueError, ValueError("of a forked process"), None)
    os._exit(5)
step()
world.close()
if world.rank == 1: sys.exit(6)
"""
    job = mpirun(2, "-c", LOOP + program)
    assert job.returncode == 6, job.stderr
    assert job.stderr == "ValueError: of a forked process\n"


def test_without_threads_in_mpi_gradients_are_exchanged_by_the_main_one():
    program = "world.barrier()\nassert not any(t.name.startswith('exchange') for t in threading.enumerate())"
    job = mpirun(2, "-c", LOOP + program, MPI4PY_RC_THREAD_LEVEL="serialized")
    assert job.returncode == 0, job.stderr
    assert job.stderr.count("without MPI_THREAD_MULTIPLE") == 1


def test_ranks_that_end_later_than_the_first_are_let_end():
    """A launcher kills the others where one is gone that has not told of its end."""
    program = """
import os, time
from mpi4py import MPI
from hpcopt.train import leave
first = MPI.COMM_WORLD.bcast(os.getpid())
if MPI.COMM_WORLD.rank:
    MPI.Finalize()
    while os.path.exists(f"/proc/{first}"):
        time.sleep(0.01)
    time.sleep(0.3)  # in which it would kill
    print("ends")
leave(0)
"""
    job = mpirun(4, "-c", program)
    assert job.returncode == 0, job.stdout
    assert job.stdout.split() == ["ends"] * 3
