"""The wires: a bridge, and for every host a network namespace whose ``e0`` is a veth pair with a set rate.

Everything made here is named ``hpcopt-`` and the host, so that it can be found again whatever happened between:
namespace ``hpcopt-n1`` holds ``e0``; its other end, ``hpcopt-n1`` on the machine, is a port of the bridge ``hpcopt0``.
"""

import math
import re
import subprocess
from pathlib import Path

BRIDGE = "hpcopt0"
CONTROLLER = "n0"
CONTROLLER_ADDRESS = "10.77.0.254"
PREFIX = "hpcopt-"
HOSTS_FILE = Path("/etc/hosts")
HOSTS_BEGIN, HOSTS_END = "# >>> hpcopt development cluster", "# <<< hpcopt development cluster"


def run(*command: str) -> str:
    """Run a command that must succeed and return what it wrote; CalledProcessError carries what it complained of."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def succeeds(*command: str) -> bool:
    """Run a command whose failure is an answer."""
    return subprocess.run(command, capture_output=True).returncode == 0


def names(count: int) -> list[str]:
    """Names of the hosts: n1, n2, ..."""
    return [f"n{i}" for i in range(1, count + 1)]


def address(host: str) -> str:
    """Address of host ``n<i>`` on the cluster's own subnet, 10.77.0.0/24."""
    return f"10.77.0.{int(host[1:])}"


def possible() -> bool:
    """Whether this kernel lets us make namespaces, bridges, veth pairs and rate limits; tried in a throwaway one."""
    attempt = (
        "ip link add bridge0 type bridge && ip link add veth0 type veth peer name veth1 && "
        "tc qdisc add dev veth0 root tbf rate 1gbit burst 256kb latency 50ms"
    )
    return succeeds("unshare", "--net", "--uts", "sh", "-c", attempt)


def subnet_taken_by() -> str | None:
    """Name of a foreign interface that already routes into the subnet, if there is one."""
    for route in run("ip", "-4", "route", "show", "root", "10.77.0.0/24").splitlines():
        found = re.search(r"\bdev (\S+)", route)
        if found and found[1] != BRIDGE:
            return found[1]
    return None


def up(hosts: list[str], rate: str) -> None:
    """Make what is missing of bridge, namespaces, links and lines in /etc/hosts, and set every link's rate."""
    if not succeeds("ip", "link", "show", BRIDGE):
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "replace", f"{CONTROLLER_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for host in hosts:
        _connect(host)
        set_rate(host, rate)
    _write_hosts_file([f"{CONTROLLER_ADDRESS} {CONTROLLER}", *(f"{address(host)} {host}" for host in hosts)])


def _connect(host: str) -> None:
    namespace = link = PREFIX + host
    if namespace not in namespaces():
        run("ip", "netns", "add", namespace)
    if not succeeds("ip", "-n", namespace, "link", "show", "e0"):
        if link in links():  # its namespace went away and came back without it
            run("ip", "link", "delete", link)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "e0", "netns", namespace)
    run("ip", "link", "set", link, "master", BRIDGE, "up")
    # A link made anew keeps its hardware address, so that nobody's ARP cache misleads.
    run("ip", "-n", namespace, "link", "set", "e0", "address", f"02:00:0a:4d:00:{int(host[1:]):02x}")
    run("ip", "-n", namespace, "address", "replace", f"{address(host)}/24", "dev", "e0")
    run("ip", "-n", namespace, "link", "set", "lo", "up")
    run("ip", "-n", namespace, "link", "set", "e0", "up")


def set_rate(host: str, rate: str) -> None:
    """Limit a host's link to rate (tc's spelling, as ``1gbit``) in each direction, or lift the limit with ``none``."""
    bucket = ("burst", _burst(rate), "latency", "50ms" if _mbit(rate) > 10 else "400ms")
    sending = ("tc", "-n", PREFIX + host, "qdisc"), "e0"
    receiving = ("tc", "qdisc"), PREFIX + host
    for qdisc, device in (sending, receiving):
        if rate != "none":
            run(*qdisc, "replace", "dev", device, "root", "tbf", "rate", rate, *bucket)
        elif "tbf" in run(*qdisc, "show", "dev", device):
            run(*qdisc, "delete", "dev", device, "root")


def _burst(rate: str) -> str:
    """What a link that has rested may send at once: 2 or 3 ms of its rate, but a whole packet where links are slow."""
    mbit = _mbit(rate)
    return "2kb" if mbit < 10 else "4kb" if mbit < 100 else "32kb" if mbit < 1000 else "256kb" if mbit < 3000 else "1mb"


def _mbit(rate: str) -> float:
    """Of a rate as tc spells it; ``none`` is without limit."""
    found = re.fullmatch(r"(\d+)([kmg])bit", rate)
    return int(found[1]) * {"k": 1e-3, "m": 1.0, "g": 1e3}[found[2]] if found else math.inf


def rate(host: str) -> str:
    """The rate a host's link is limited to, as tc writes it, or ``none``."""
    if PREFIX + host not in namespaces():
        return "no link"
    found = re.search(r"\brate (\S+)", run("tc", "-n", PREFIX + host, "qdisc", "show", "dev", "e0"))
    return found[1] if found else "none"


def namespaces() -> list[str]:
    """The cluster's namespaces that exist now."""
    return [word[0] for line in run("ip", "netns", "list").splitlines() if (word := line.split())[0].startswith(PREFIX)]


def links() -> list[str]:
    """The machine's ends of the cluster's links that exist now."""
    return [p.name for p in Path("/sys/class/net").iterdir() if p.name.startswith(PREFIX)]


def processes(namespace: str) -> list[int]:
    """Process ids inside a namespace: the host's slurmd, its steps and every rank they started."""
    return [int(pid) for pid in run("ip", "netns", "pids", namespace).split()] if namespace in namespaces() else []


def down() -> None:
    """Remove namespaces, links, bridge and the lines in /etc/hosts, as far as they exist."""
    for namespace in namespaces():
        run("ip", "netns", "delete", namespace)
    for link in [*links(), BRIDGE]:
        succeeds("ip", "link", "delete", link)  # a namespace takes its link along, sooner or later
    _write_hosts_file([])


def _write_hosts_file(lines: list[str]) -> None:
    old = HOSTS_FILE.read_text()
    new = re.sub(f"^{HOSTS_BEGIN}\n.*?^{HOSTS_END}\n", "", old, flags=re.MULTILINE | re.DOTALL)
    if lines:
        new += "".join(f"{line}\n" for line in [HOSTS_BEGIN, *lines, HOSTS_END])
    if new != old:
        HOSTS_FILE.write_text(new)  # in place: a container's /etc/hosts is a mount and cannot be renamed over
