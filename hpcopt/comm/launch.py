"""What the launcher says of this process before MPI starts, and whether the job that came up is the one that was asked
for.

A wrong ``srun --mpi`` kind, or the ``mpirun`` of another MPI, gives N jobs of one rank each without a word. Each would
train alone and overwrite the others' files, so the number of ranks that MPI reports is held against the launcher's own
claim.
"""

import array
import fcntl
import os
import socket
import stat
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcopt.errors import LaunchError

# (launcher, its word for the number of ranks, its word for this rank), most specific first: under an mpirun inside a
# SLURM allocation the ranks may inherit the step variables of the daemon that started them.
_CLAIMS = (
    ("openmpi", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpich", "PMI_SIZE", "PMI_RANK"),
    ("slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Launch:
    """The launcher's claim: which launcher, how many ranks, and which of them this process is."""

    launcher: str = "none"
    size: int = 1
    rank: int = 0


def launch_from(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the claim from the environment; a process that nobody launched is the one rank of a job of one."""
    for launcher, size, rank in _CLAIMS:
        if environment.get(size, "").isdigit():
            return Launch(launcher, int(environment[size]), int(environment.get(rank, "0")))
    return Launch()


def check_launch(launch: Launch, size: int, library: str, environment: Mapping[str, str] = os.environ) -> None:
    """Hold MPI's number of ranks against the launcher's.

    Args:
        launch: the launcher's claim.
        size: the number of ranks that MPI reports.
        library: MPI's name for itself, for the message.

    Raises:
        LaunchError: they differ; the message has the command that would have worked.
    """
    if "SLURM_HET_SIZE" in environment:
        raise LaunchError(
            "heterogeneous SLURM jobs are not supported: submit one component, with one kind of node"
        ).everywhere()
    if launch.size == size:
        return
    openmpi = "open mpi" in library.lower()
    command = f"mpirun -n {launch.size} python -m hpcopt.train ..."
    if launch.launcher == "slurm":
        kind = "pmix" if openmpi else "pmi2"
        command = f"srun --mpi={kind} python -m hpcopt.train ...\n  or, inside the allocation:  {command}"
    raise LaunchError(
        f"the launcher ({launch.launcher}) started {launch.size} ranks, but MPI sees {size} in this one: "
        "each would train alone.\n"
        f"  MPI here: {library.splitlines()[0] if library else 'unknown'}\n"
        f"  try:  {command}\n"
        f"  with the mpirun that belongs to this MPI ({'Open MPI' if openmpi else 'MPICH'}); "
        "`srun --mpi=list` shows SLURM's kinds"
    ).everywhere()


def without_mpi() -> None:
    """MPI may be asked for its name, but is not started: a rank that it knew could not be lost without the others."""
    import mpi4py

    mpi4py.rc.initialize = False


def leave_exit_code(exit_code: int, environment: Mapping[str, str] = os.environ) -> None:
    """Write the job's exit code into the file that its batch script named in HPCOPT_EXIT_FILE; the first rank
    to come is believed.

    Launchers do not pass it on faithfully: srun counts the ranks that it killed for another's failure, and Open MPI's
    mpirun has been seen to say 0 when it lost a host.
    """
    if path := environment.get("HPCOPT_EXIT_FILE"):
        with suppress(OSError), Path(path).open("x", encoding="utf-8") as file:
            file.write(f"{exit_code}\n")


def hand_over_output(patience_s: float = 1.0) -> None:
    """Flush standard output and error, and wait until the launcher has read them: when a rank aborts, MPICH's drops
    what is still in its pipes, a traceback for instance.
    """
    unread = array.array("i", [0])
    end_s = time.monotonic() + patience_s
    for file in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or no file at all
            file.flush()
            while stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) and time.monotonic() < end_s:
                fcntl.ioctl(file.fileno(), termios.FIONREAD, unread)
                if not unread[0]:
                    break
                time.sleep(0.001)


def usable_threads(local_size: int, environment: Mapping[str, str] = os.environ) -> int:
    """Threads that one rank may use: what the launcher gave it, else an equal share of the cores it may run on, at
    least one.
    """
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        if environment.get(name, "").isdigit():
            return max(1, int(environment[name]))
    mine, installed = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return mine if mine < installed else max(1, mine // local_size)


def machine(boot_id: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """A name for the machine under this host. Hosts that are containers or network namespaces of one machine run on one
    kernel, so they give the same name.
    """
    try:
        return boot_id.read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()


def gpu_of(local_rank: int, visible: int) -> int | None:
    """Which of the GPUs that it sees a rank takes, or None where it sees none.

    SLURM may show a rank its own GPU alone, which then is number 0 whatever the local rank, or all of the host's.

    Raises:
        LaunchError: the host has more ranks than GPUs.
    """
    if visible <= 1:
        return 0 if visible else None
    if local_rank >= visible:
        raise LaunchError(
            f"local rank {local_rank} finds {visible} GPUs on its host: start at most as many ranks as GPUs, "
            f"--ntasks-per-node={visible}"
        )
    return local_rank
