"""MPI gets tensors of a GPU only if a trial in another process, which may crash, has gone well on every host. The
trials here are decoys, and the real one with tensors in main memory.
"""

import sys
from types import SimpleNamespace

import pytest
import torch

from hpcopt.comm import gpu_aware, mpi_trial
from hpcopt.comm.gpu_aware import DIRECT, FIT, STAGED, judged, settle, tried
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.mpi_trial import says, verdict
from hpcopt.comm.world import World
from hpcopt.job import Job
from hpcopt.plan import _gpu_path

GPU = torch.device("cuda", 0)
ABLE, UNABLE = (SimpleNamespace(MPIX_Query_cuda_support=lambda able=able: able) for able in (1, 0))


def decoy(program: str, **how: object) -> str:
    return tried([sys.executable, "-c", program], **how)


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import os; os.abort()", "a trial of MPI ended with exit code -6"),
        ("import sys; sys.exit(3)", "a trial of MPI ended with exit code 3"),
        ("pass", "a trial of MPI said nothing"),
        ("print('a library greets'); print('yes')", FIT),
    ],
)
def test_whatever_becomes_of_a_trial_is_a_finding(program, found):
    assert decoy(program) == found


def test_a_trial_that_hangs_is_ended():
    assert decoy("import time; time.sleep(600)", patience_s=0.1) == "a trial of MPI did not come to its end"


def test_a_trial_that_cannot_start():
    assert tried(["/no/such/program"]) == "a trial of MPI could not be started: No such file or directory"


def test_a_trial_does_not_take_itself_for_a_rank():
    launched = {"PMI_RANK": "1", "SLURM_PROCID": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_MCA_ess_base_jobid": "1"}
    kept = {"OMPI_MCA_opal_cuda_support": "1", "MPICH_GPU_SUPPORT_ENABLED": "1"}
    program = "import os; print(sorted(n for n in os.environ if n.startswith(('PMI', 'SLURM', 'OMPI', 'MPICH'))))"
    assert decoy(program, environment=launched | kept) == str(sorted(kept))


def test_the_library_is_asked_in_its_own_words():
    def query(kind, answer):
        answer._obj.value = kind == mpi_trial.CUDA

    assert [says(library) for library in (ABLE, UNABLE, SimpleNamespace())] == [True, False, None]
    assert says(SimpleNamespace(MPIX_GPU_query_support=query))


def test_what_mpi_brings_is_looked_at(monkeypatch):
    assert verdict(ABLE, "cpu") == FIT
    assert verdict(UNABLE, "cpu") == "MPI says that it knows no GPUs"
    assert verdict(SimpleNamespace(), "cpu") == "MPI does not say whether it knows GPUs"
    for broken in ("Sendrecv", "Allreduce"):
        comm = SimpleNamespace(Sendrecv=mpi_trial.MPI.COMM_SELF.Sendrecv, Allreduce=mpi_trial.MPI.COMM_SELF.Allreduce)
        setattr(comm, broken, lambda *_, **__: None)
        with monkeypatch.context() as patch:
            patch.setattr(mpi_trial, "MPI", SimpleNamespace(**{**vars(mpi_trial.MPI), "COMM_SELF": comm}))
            assert verdict(ABLE, "cpu").endswith("was wrong")


def test_the_real_trial_comes_to_a_verdict():
    """With tensors in main memory, which any MPI carries that says it knows GPUs."""
    assert judged("auto", torch.device("cpu")) in {
        FIT,
        *(verdict(library, "cpu") for library in (UNABLE, SimpleNamespace())),
    }


def test_it_can_be_forced_and_forbidden(monkeypatch):
    monkeypatch.setattr(gpu_aware, "tried", lambda *_: pytest.fail("a trial"))
    assert judged("yes", GPU) == FIT
    assert judged("no", GPU) == 'gpu_aware_mpi = "no"'


@pytest.mark.parametrize(
    ("found", "devices", "path"),
    [
        ({"a": FIT, "b": FIT}, ["cuda"] * 4, DIRECT),
        ({"a": FIT, "b": "no"}, ["cuda"] * 4, f"{STAGED}: no, on b"),
        ({"a": FIT, "b": FIT}, ["cuda", "cuda", "cuda", "cpu"], f"{STAGED}: not all ranks have one"),
        ({}, ["cpu"] * 4, ""),
    ],
)
def test_all_ranks_go_one_way_by_a_trial_a_host(found, devices, path, monkeypatch):
    tries = []

    def program(transport):
        transport.name, transport.host_memory_only = "mpi", True
        world = World(transport)
        world.hosts = ["a", "a", "b", "b"]
        monkeypatch.setattr(gpu_aware, "judged", lambda _, device: tries.append(1) or found["ab"[device.index]])
        return settle(world, "auto", torch.device(devices[world.rank], world.rank // 2)), transport.host_memory_only

    assert run_ranks(4, program) == [(path, path != DIRECT)] * 4
    assert len(tries) == (2 if set(devices) == {"cuda"} else 0)


def test_the_plan_tells_where_there_is_a_gpu_to_try(monkeypatch):
    sections = {"run": {"steps": 1}, "workload": {"name": "image_classification", "data": "digits", "batch": 8}}
    job = Job.model_validate({**sections, "workload": {**sections["workload"], "model": {"name": "mlp"}}})
    monkeypatch.setattr(gpu_aware, "tried", lambda command: f"tried on {command[-1]}")
    for gpus, ranks, lines in ((0, 2, {}), (1, 1, {}), (1, 2, {"MPI": f"{STAGED}: tried on cuda:0"})):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert _gpu_path(job, ranks) == lines
