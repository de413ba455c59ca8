"""A real SLURM cluster of several hosts on one machine: ``python3 -m slurm.devcluster up|down|status``.

Every host is a network namespace with its own slurmd and a link of a set rate, so that jobs are started, signalled,
requeued and slowed down as on a real cluster. Needs root and Debian's SLURM; uses the standard library only.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from slurm.devcluster import daemons, network

NEEDED = ("ip", "tc", "nsenter", "unshare", "munged", "mungekey", "slurmctld", "slurmd", "sbatch", "sinfo", "scontrol")
EXIT_DEGRADED = 1
EXIT_REFUSED = 2
EXIT_NOT_UP = 3


def refusal() -> str | None:
    """Why no cluster can stand here and what to do about it, or None if it can."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found: run `make cluster-packages`"
    if not network.possible():
        return "this machine does not let us make network namespaces, bridges, veth pairs or tbf queues (a container?)"
    if interface := network.subnet_taken_by():
        return f"10.77.0.0/24 already belongs to {interface}: the development cluster needs that subnet for itself"
    return None


def standing() -> list[tuple[str, str]] | None:
    """Hosts and CPUs of the cluster that runs now, or None: without its controller or its files a cluster is debris."""
    if not daemons.ours("slurmctld") or not daemons.CONFIG.exists():
        return None
    return re.findall(r"^NodeName=(\S+) .*CPUs=(\d+)", daemons.CONFIG.read_text(), re.MULTILINE)


def up(hosts: list[str], cpus: int, rate: str) -> int:
    """Bring up what is not up, and set the rate; return the exit code."""
    if reason := refusal():
        print(f"cluster-up: {reason}", file=sys.stderr)
        return EXIT_REFUSED
    nodes = standing()
    if nodes is None:
        remove()
    elif nodes != [(host, str(cpus)) for host in hosts]:
        size = f"{len(nodes)} hosts with {nodes[0][1]} CPUs each"
        print(f"cluster-up: a cluster of {size} is up already: run `make cluster-down` first", file=sys.stderr)
        return EXIT_REFUSED
    try:
        network.up(hosts, rate)
        daemons.up(hosts, cpus)
    except (subprocess.CalledProcessError, daemons.NotReadyError) as error:
        print(f"cluster-up: {error}\n{getattr(error, 'stderr', None) or ''}", file=sys.stderr)
        return EXIT_DEGRADED
    return status()


def remove() -> None:
    """Remove every trace of the cluster, whatever state it is in."""
    daemons.down()
    network.down()


def status() -> int:
    """Print hosts, rates and states; return 0 if all hosts are ready, 1 if some are not, 3 if there is no cluster."""
    nodes = standing()
    if nodes is None:
        debris = daemons.STATE.exists() or network.namespaces()
        print("cluster: not up" + ("; an earlier one left traces, `make cluster-down` removes them" if debris else ""))
        return EXIT_NOT_UP
    try:
        states = daemons.states()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"cluster: slurmctld does not answer: {error}; its log is in {daemons.STATE}/log")
        return EXIT_DEGRADED
    ready = True
    for host, _ in nodes:
        running, _ = daemons.slurmd_of(host)
        note = "" if running else "  no slurmd: `make cluster-up` starts it"
        print(f"{host}  {network.address(host):<11}  rate {network.rate(host):<8}  {states[host]}{note}")
        ready = ready and bool(running) and not states[host].startswith(("down", "drain"))
    if daemons.SYSTEM_CONFIG.is_symlink() and daemons.SYSTEM_CONFIG.readlink() == daemons.CONFIG:
        print("sbatch, squeue, scancel reach it as they are")
    else:
        print(f"this machine has a SLURM of its own; to reach this one: export SLURM_CONF={daemons.CONFIG}")
    return 0 if ready else EXIT_DEGRADED


@contextmanager
def alone() -> Iterator[None]:
    """Hold other calls off until this one is through; a lock on a directory, so that no lock file stays behind."""
    directory = os.open(daemons.STATE.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def main() -> int:
    """Parse the command line and act on it."""
    parser = argparse.ArgumentParser(prog="python3 -m slurm.devcluster", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--hosts", type=int, default=4, help="number of hosts, 1 to 64 (default 4)")
    parser.add_argument("--cpus", type=int, default=8, help="CPUs that SLURM sees on each (default 8)")
    parser.add_argument(
        "--rate", default="1gbit", help="speed of every link, as tc writes it (1gbit, 100mbit), or none"
    )
    options = parser.parse_args()
    if not 1 <= options.hosts <= 64:
        parser.error("--hosts: 1 to 64")
    if not re.fullmatch(r"none|[1-9]\d*(kbit|mbit|gbit)", options.rate):
        parser.error(f"--rate {options.rate}: write 100mbit, 1gbit, 10gbit or none")
    if os.geteuid() != 0:
        print(f"cluster-{options.action}: needs root, for network namespaces: run it through sudo", file=sys.stderr)
        return EXIT_REFUSED
    if options.action == "up":
        with alone():
            return up(network.names(options.hosts), options.cpus, options.rate)
    if shutil.which("ip") is None:
        print("cluster: not up, and cannot be: `make cluster-packages` installs what it needs")
        return 0 if options.action == "down" else EXIT_NOT_UP
    if options.action == "status":
        return status()
    with alone():
        remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
