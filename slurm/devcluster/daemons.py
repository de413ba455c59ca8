"""The daemons: munged and slurmctld on the machine, a slurmd in the namespace of every host, all state in one folder.

A process is ours if it is one of these programs and its command line names the state directory, or if it lives in one
of the cluster's namespaces. So nothing depends on pid files, and a SLURM of the machine's own is never touched.
"""

import os
import shutil
import signal
import string
import subprocess
import time
from pathlib import Path

from slurm.devcluster import network

STATE = Path("/run/hpcopt-devcluster")
CONFIG = STATE / "slurm.conf"
MUNGE_SOCKET = STATE / "munge.socket"
SYSTEM_CONFIG = Path("/etc/slurm/slurm.conf")  # where Debian's SLURM commands look when SLURM_CONF is not set
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd")
JOB_IDS = 60_000_000  # SLURM's largest is 67,043,328 (MaxJobId)


class NotReadyError(Exception):
    """The daemons did not come up in time."""


def slurm(*command: str) -> str:
    """Run a SLURM client command against the development cluster and return what it wrote."""
    environment = {**os.environ, "SLURM_CONF": str(CONFIG)}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=60).stdout


def ours(program: str = "") -> list[tuple[int, list[str]]]:
    """Process id and command line of the cluster's own daemons, or of those that are the given program."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended while we looked
            continue
        name = Path(arguments[0]).name
        if name in PROGRAMS and program in ("", name) and any(str(STATE) in argument for argument in arguments[1:]):
            found.append((int(entry.name), arguments))
    return found


def slurmd_of(host: str) -> tuple[list[int], list[int]]:
    """Process ids of a host's slurmd: those in its namespace, and strays from an earlier namespace of that name."""
    pids = [pid for pid, arguments in ours("slurmd") if arguments[1:3] == ["-N", host]]
    inside = network.processes(network.PREFIX + host)
    return [pid for pid in pids if pid in inside], [pid for pid in pids if pid not in inside]


def up(hosts: list[str], cpus: int) -> None:
    """Start whichever daemons are not running and wait until every host is ready for jobs."""
    for folder in (STATE, STATE / "log", STATE / "slurmctld", STATE / "slurmd"):
        folder.mkdir(mode=0o755, exist_ok=True)
    _start_munged()
    if not ours("slurmctld"):
        _write_config(hosts, cpus)
        _start_named(network.CONTROLLER, f"slurmctld -f {CONFIG}")
    for host in hosts:
        running, strays = slurmd_of(host)
        _end(strays)
        if not running:
            # Not `ip netns exec`: it mounts /sys anew, and slurmd then finds no control groups and gives up.
            inside = ("nsenter", f"--net=/run/netns/{network.PREFIX}{host}")
            _start_named(host, f"slurmd -N {host} -f {CONFIG}", *inside)
    _wait_until_ready(hosts)
    if SYSTEM_CONFIG.parent.is_dir() and not os.path.lexists(SYSTEM_CONFIG):
        SYSTEM_CONFIG.symlink_to(CONFIG)


def _start_munged() -> None:
    if ours("munged"):
        return
    key, seed, pid, log = (STATE / f"munge.{kind}" for kind in ("key", "seed", "pid", "log"))
    if not key.exists():
        network.run("mungekey", "--create", f"--keyfile={key}")
    network.run(
        *("munged", "--force", f"--socket={MUNGE_SOCKET}", f"--key-file={key}", f"--seed-file={seed}"),
        *(f"--pid-file={pid}", f"--log-file={log}", "--num-threads=2", f"--origin={network.CONTROLLER_ADDRESS}"),
    )


def first_job_id(now_s: float) -> int:
    """Where a cluster that starts now counts from: beyond the jobs of one before it, if under ten a second."""
    return 1 + int(10 * now_s) % JOB_IDS


def _write_config(hosts: list[str], cpus: int) -> None:
    memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    nodes = [
        f"NodeName={host} NodeHostname={host} NodeAddr={network.address(host)} CPUs={cpus} RealMemory={memory_mib}"
        for host in hosts
    ]
    template = string.Template((Path(__file__).parent / "slurm.conf.in").read_text())
    text = template.substitute(
        controller=network.CONTROLLER,
        controller_address=network.CONTROLLER_ADDRESS,
        state=STATE,
        first_job_id=first_job_id(time.time()),
        nodes="\n".join(nodes),
    )
    CONFIG.write_text(text)


def _start_named(host: str, daemon: str, *inside: str) -> None:
    """Start a daemon that takes host for the name of its machine."""
    network.run(*inside, "unshare", "--uts", "sh", "-c", f"hostname {host} && exec {daemon}")


def states() -> dict[str, str]:
    """State of every host as slurmctld sees it: idle, mixed, allocated, down, ..."""
    lines = slurm("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def _wait_until_ready(hosts: list[str], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    seen: dict[str, str] | str = "nothing"
    while time.monotonic() < deadline:
        try:
            seen = states()
            waiting = [host for host in hosts if seen.get(host) not in ("idle", "mixed", "allocated", "completing")]
            if not waiting:
                return
            if any(seen.get(host, "").startswith(("down", "drain")) for host in waiting):
                slurm("scontrol", "update", f"NodeName={','.join(waiting)}", "State=RESUME")
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            seen = str(error.stderr or error)
        time.sleep(0.5)
    raise NotReadyError(f"hosts not ready within {timeout_s:.0f} s; slurmctld last said: {seen}; logs: {STATE}/log")


def down() -> None:
    """End the daemons and everything in the cluster's namespaces, and remove every file they had."""
    _end([pid for pid, _ in ours("slurmctld")])  # first, so that no job is put back into the queue
    _end([pid for name in network.namespaces() for pid in network.processes(name)])
    _end([pid for pid, _ in ours()])
    if SYSTEM_CONFIG.is_symlink() and SYSTEM_CONFIG.readlink() == CONFIG:
        SYSTEM_CONFIG.unlink()
    shutil.rmtree(STATE, ignore_errors=True)


def _end(pids: list[int], patience_s: float = 5) -> None:
    """Ask processes to end, insist after a while, and return when they are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
