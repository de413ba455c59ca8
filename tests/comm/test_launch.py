"""A job that came up as singletons is found out, and told the command that works."""

import pytest

from hpcopt.comm.launch import Launch, check_launch, gpu_of, launch_from, leave_exit_code, machine, usable_threads
from hpcopt.errors import LaunchError

OPEN_MPI = "Open MPI v5.0.11, package: x"
MPICH = "MPICH Version:      5.0.2"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch("none", 1, 0)),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, Launch("openmpi", 4, 3)),
        ({"PMI_SIZE": "8", "PMI_RANK": "2"}, Launch("mpich", 8, 2)),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, Launch("slurm", 2, 1)),
        # the batch shell of a job is not a step: a single process there is no singleton of many
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, Launch("none", 1, 0)),
        # ranks of an mpirun across nodes inherit the step of its daemons
        ({"PMI_SIZE": "8", "PMI_RANK": "5", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, Launch("mpich", 8, 5)),
    ],
)
def test_claims(environment, expected):
    assert launch_from(environment) == expected


def test_agreement_passes():
    check_launch(Launch("mpich", 4, 1), 4, MPICH, {})


@pytest.mark.parametrize(
    ("launch", "library", "remedy"),
    [
        (Launch("slurm", 2, 0), MPICH, "srun --mpi=pmi2"),
        (Launch("slurm", 2, 0), OPEN_MPI, "srun --mpi=pmix"),
        (Launch("openmpi", 2, 0), MPICH, "belongs to this MPI (MPICH)"),
    ],
)
def test_singletons_are_told_what_to_type(launch, library, remedy):
    with pytest.raises(LaunchError) as error:
        check_launch(launch, 1, library, {})
    assert remedy in str(error.value)
    assert "mpirun -n 2" in str(error.value)


def test_heterogeneous_jobs_are_refused():
    with pytest.raises(LaunchError, match="heterogeneous"):
        check_launch(Launch(), 1, MPICH, {"SLURM_HET_SIZE": "2"})


def test_threads_follow_the_launcher():
    assert usable_threads(4, {"SLURM_CPUS_PER_TASK": "7"}) == 7
    assert usable_threads(4, {"OMP_NUM_THREADS": "3", "SLURM_CPUS_PER_TASK": "7"}) == 3
    assert usable_threads(10_000, {}) >= 1


def test_hosts_of_one_kernel_are_one_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "n1")
    here = machine()
    monkeypatch.setattr("socket.gethostname", lambda: "n2")
    assert machine() == here
    assert machine(tmp_path / "not Linux") == "n2"


def test_exit_code_is_left_for_the_batch_script_by_the_first_rank(tmp_path):
    environment = {"HPCOPT_EXIT_FILE": str(tmp_path / "exit")}
    leave_exit_code(1, environment)
    leave_exit_code(70, environment)
    assert (tmp_path / "exit").read_text() == "1\n"
    leave_exit_code(0, {})
    leave_exit_code(0, {"HPCOPT_EXIT_FILE": str(tmp_path / "no" / "folder")})


def test_a_rank_takes_the_gpu_it_was_given_or_that_of_its_local_rank():
    assert gpu_of(3, 0) is None
    assert [gpu_of(local_rank, 1) for local_rank in range(4)] == [0, 0, 0, 0]
    assert [gpu_of(local_rank, 4) for local_rank in range(4)] == [0, 1, 2, 3]
    with pytest.raises(LaunchError, match="--ntasks-per-node=2"):
        gpu_of(2, 2)
