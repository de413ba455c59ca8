"""What ranks write together into one file is what they would have written into files of their own.

The file is written by Debian's Python, as its h5py is built with MPI; it takes torch from the environment of the tests.
"""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from hpcopt.checkpoint import main
from hpcopt.errors import CheckpointError, UnsupportedError
from hpcopt.phases import PhaseClock
from hpcopt.store import parallel
from hpcopt.store.checkpoint import SHARED, TOGETHER, Checkpoints, rank_part
from tests.conftest import require
from tests.launching import PATIENCE_S
from tests.store.test_tree import random_tree, same

REPOSITORY = Path(__file__).parents[2]
DEBIAN = Path("/usr/bin/python3")
RANKS = 3
PARTS = [SHARED, *map(rank_part, range(RANKS))]
PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1]]
sys.path.append(sys.argv[2])  # last: numpy, h5py and mpi4py are Debian's
from mpi4py import MPI
MPI.buffer = MPI.memory  # its name before 4.0, which Debian's is
from types import SimpleNamespace
from tests.simulated_gpu.device import SIM
from tests.store.test_parallel import PARTS, parts_of, state_of
from hpcopt.comm.mpi import MpiTransport
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.world import World
from hpcopt.phases import PhaseClock
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.parallel import require_mpi
from hpcopt.trainer.resume import Position
from hpcopt.trainer.saver import Saver
comm = MPI.COMM_WORLD
require_mpi()
checkpoints = Checkpoints(sys.argv[3], keep=2)
for step in (1, 2):
    if comm.rank == 0:
        checkpoints.begin(step)
    comm.barrier()
    checkpoints.write_together(step, comm, parts_of(comm.rank, step))
    comm.barrier()
    if comm.rank == 0:
        checkpoints.commit(step, PARTS)

world = World(StagedTransport(MpiTransport()))
clock, checkpoints = PhaseClock(), Checkpoints(sys.argv[4], keep=1)
saver = Saver(world, checkpoints, background=True, saved_step=0, clock=clock, one_file=True)
shared, own = ({"w": x.to(SIM)} for x in (state_of(0), state_of(1 + comm.rank)))
solver = SimpleNamespace(gather=lambda: None, optimizers=[], must_be_finite=lambda: shared.items())
solver.state_dict, solver.rank_state_dict = (lambda: shared), (lambda: own)
saver.save(Position(step=3), solver)
saver.finish()
world.close()
"""


def state_of(number):
    """A tensor."""
    return torch.randn(1000 * (number + 1), generator=torch.Generator().manual_seed(number))


def parts_of(rank, step):
    """The parts that a rank writes: of other dtypes and shapes on every rank, on the last one of no tensor at all."""
    rng = random.Random(10 * step + rank)
    state = {"w": torch.tensor(np.random.default_rng(rank).normal(size=1000 * (rank + step))), "n": torch.arange(rank)}
    parts = {rank_part(rank): {"extra": random_tree(rng, 4), **(state if rank < RANKS - 1 else {})}}
    if rank == 0:
        model = {"weight": torch.ones(20, 30).bfloat16() * step, "empty": torch.zeros(0, 3)}
        parts[SHARED] = {"position": {"step": step}, "solver": {"model": model}}
    return parts


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of two steps, written together by three ranks, and one of ranks whose tensors are on a device, in
    the folder ``device`` beside them.
    """
    mpirun = shutil.which("mpirun.openmpi", path="/usr/bin")
    there = DEBIAN.exists() and mpirun and Path("/usr/lib/python3/dist-packages/h5py/_debian_h5py_mpi").exists()
    version = there and subprocess.run([DEBIAN, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    fits = bool(version) and version.rsplit(".", 1)[0] == ours
    require("mpio", fits, f"it takes Debian's python3-h5py-mpi, for Python {ours}: `make packages`")
    folder = tmp_path_factory.mktemp("together") / "checkpoints"
    site = Path(importlib.util.find_spec("torch").origin).parents[1]
    foreign = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "MPIR_", "HYDRA_", "OPAL_", "PYTHON", "LD_LIBRARY_PATH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_btl": "self,vader", "OMPI_MCA_pml": "ob1"}
    command = [mpirun, "-n", str(RANKS), DEBIAN, "-c", PROGRAM, REPOSITORY, site, folder, folder.with_name("device")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def checkpoints(written, tmp_path):
    shutil.copytree(written, tmp_path / "checkpoints")
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def separately(folder):
    """The same state in a file a rank."""
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.begin(step)
        for rank in range(RANKS):
            for name, tree in parts_of(rank, step).items():
                checkpoints.write_part(step, name, tree)
        checkpoints.commit(step, PARTS)
    return checkpoints


def test_parts_come_back(checkpoints):
    assert checkpoints.steps() == [2, 1]
    for step in (1, 2):
        assert sorted(path.name for path in checkpoints.path(step).iterdir()) == ["manifest.json", TOGETHER]
        assert checkpoints.parts(step) == PARTS
        checkpoints.verify(step)
        for rank in range(RANKS):
            for name, tree in parts_of(rank, step).items():
                assert same(tree, checkpoints.read_part(step, name))


def test_ranks_of_a_device_write_each_part_once_into_one_file(written):
    checkpoints = Checkpoints(written.with_name("device"), keep=1)
    assert sorted(path.name for path in checkpoints.path(3).iterdir()) == ["manifest.json", TOGETHER]
    assert checkpoints.parts(3) == PARTS
    checkpoints.verify(3)
    with h5py.File(checkpoints.path(3) / TOGETHER) as file:
        assert sorted(file) == sorted(PARTS)
        assert [file[part]["values/float32"].size for part in PARTS] == [1000 * (n + 1) for n in range(RANKS + 1)]
    for number, part in enumerate(PARTS):
        assert torch.equal(checkpoints.read_part(3, part)["solver"]["w"], state_of(number))


def test_the_command_takes_it_like_any_other(checkpoints, tmp_path, capsys):
    others = separately(tmp_path / "others")
    assert main(["diff", str(checkpoints.folder), str(others.folder)]) == 0
    assert main(["diff", str(checkpoints.path(1)), str(others.folder)]) == 1
    assert main(["verify", str(checkpoints.folder)]) == 0
    assert main(["export", str(checkpoints.folder), str(tmp_path / "model.pt")]) == 0
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert same(dict(exported), parts_of(0, 2)[SHARED]["solver"]["model"])
    assert main(["ls", str(checkpoints.path(2))]) == 0
    assert "solver.model.weight  bfloat16 (20, 30)" in capsys.readouterr().out
    assert main(["ls", str(checkpoints.path(2) / TOGETHER)]) == 2
    assert "name the folder" in capsys.readouterr().err


def test_damage_is_an_error_or_changes_nothing(checkpoints):
    path, rng, errors = checkpoints.path(2) / TOGETHER, random.Random(3), 0
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        first = rng.randrange(len(damaged))
        if rng.random() < 0.5:
            damaged[first] ^= 1 << rng.randrange(8)
        else:
            damaged = damaged[:first]
        path.write_bytes(damaged)
        for rank in range(RANKS):
            for name, tree in parts_of(rank, 2).items():
                try:
                    assert same(tree, checkpoints.read_part(2, name))
                except CheckpointError as error:
                    assert path.name in str(error)
                    errors += 1
    assert errors > 100
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{TOGETHER} is missing"):
        checkpoints.read_part(2, SHARED)


def test_without_mpi_it_is_refused(monkeypatch):
    monkeypatch.setattr(h5py, "get_config", lambda: SimpleNamespace(mpi=False))
    with pytest.raises(UnsupportedError, match=r"HDF5_MPI=ON .* leave \[run\] checkpoint_one_file out"):
        parallel.require_mpi()


def test_a_job_is_refused_before_it_trains(tmp_path):
    """On an h5py without MPI as on one with: threads that are ranks have no communicator."""
    from hpcopt.comm.world import alone
    from hpcopt.trainer.saver import Saver

    with pytest.raises(UnsupportedError):
        Saver(alone(), Checkpoints(tmp_path, 1), background=True, saved_step=0, clock=PhaseClock(), one_file=True)
