"""What all tests share: parts that may be missing here, MPI runs that end when one rank fails, a folder common to all
ranks.

A test marked ``parallel([2, 3, 4])`` runs under ``mpirun -n N python -m pytest -m "parallel[N]"``, all of one N in one
go; ``make test`` does this for every N. Under a plain pytest each starts an mpirun of its own.
"""

import gc
import importlib.util
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpcopt.lean_torch import keep_dynamo_out

torch.set_num_threads(1)  # ranks and tests share few cores
keep_dynamo_out()  # as the training command does: two seconds of every process
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is defined, by whichever test comes first

# What takes longest goes first, or in the end one worker has nothing to do. The first file compiles, one by one, the
# loops that others then find compiled; the next do without, and the cases of the simulated device need most of them.
LONGEST = (
    *("compress/test_properties.py", "test_interruptions.py", "trainer/test_killed.py", "test_session_processes.py"),
    *(
        "test_installed.py",
        "kernels/cuda/test_compiled.py",
        "simulated_gpu/test_cases.py",
        "exchange/test_not_finite.py",
    ),
    *("test_train.py", "comm/test_departure.py", "fuzz/test_run_directories.py", "simulated_gpu/test_gpu_aware.py"),
)

# A training goes through all objects once, to put them out of the collector's way. In this process, with all that tests
# import, that would be half of its time.
NO_SWEEP = SimpleNamespace(collect=lambda: 0, freeze=lambda: None, unfreeze=lambda: None, enable=gc.enable)

REQUIRED = set(filter(None, os.environ.get("HPCOPT_REQUIRE", "").split(",")))


def require(part: str, available: bool, reason: str) -> None:
    """Skip the test if a part is not available here; where HPCOPT_REQUIRE names the part, fail."""
    if available:
        return
    message = f"{part.upper()} IS NOT TESTED HERE: {reason}"
    if part in REQUIRED:
        pytest.fail(message + f" (HPCOPT_REQUIRE={os.environ['HPCOPT_REQUIRE']})")
    pytest.skip(message)


@pytest.fixture
def horovod() -> None:
    """Needs Horovod, built for torch and MPI."""
    require(
        "horovod", importlib.util.find_spec("horovod") is not None, "horovod is not installed: `make test` builds it"
    )


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder of data sets in which the handwritten digits are."""
    from hpcopt.prepare import prepare

    folder = tmp_path_factory.mktemp("data")
    prepare("digits", folder)
    return folder


@pytest.fixture
def shared_tmp_path():
    """A new empty folder, the same on every rank (pytest's own tmp_path differs between ranks)."""
    from mpi4py import MPI

    with tempfile.TemporaryDirectory() if MPI.COMM_WORLD.rank == 0 else nullcontext() as folder:
        yield Path(MPI.COMM_WORLD.bcast(folder))
        MPI.COMM_WORLD.barrier()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turns = {Path(__file__).parent / name: turn for turn, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if training := sys.modules.get("hpcopt.training"):
        training.gc = NO_SWEEP  # type: ignore[attr-defined]
    if item.get_closest_marker("gpu"):
        require("gpu", torch.cuda.is_available(), "no CUDA device is visible")


def pytest_runtest_teardown() -> None:
    """What one test plugs in, another does not find."""
    for family in vars(sys.modules.get("hpcopt.families", object)).values():
        if hasattr(family, "_plugged_in"):
            family._plugged_in.clear()


def pytest_configure(config: pytest.Config) -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank > 0:
        config.option.verbose = -2  # rank 0 speaks
        config.option.reportchars = ""
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str) -> None:
    """A worker's process is gone: its other tests would be left out, or waited for without an end."""
    pytest.exit(f"{crashitem} ended its process", returncode=3)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """A rank that fails alone would leave the others in a collective for ever: end them all, having said why."""
    from mpi4py import MPI

    report = yield
    if report.failed and MPI.COMM_WORLD.size > 1:
        print(
            f"\nrank {MPI.COMM_WORLD.rank}: {report.nodeid} failed\n{report.longreprtext}",
            file=sys.__stderr__,
            flush=True,
        )
        MPI.COMM_WORLD.Abort(1)
    return report
