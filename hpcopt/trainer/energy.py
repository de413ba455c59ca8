"""Joules that a node takes, where its machine says: RAPL's counters of processor packages and memory (Linux' powercap,
/sys/class/powercap), NVML's of GPUs.

They count the whole node, whoever runs there. Most sites let only root read RAPL's: then nothing is known, and nothing
is said to be zero.
"""

import ctypes
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from hpcopt.comm.world import World

POWERCAP = Path("/sys/class/powercap")
PACKAGES, MEMORY, GPUS = "packages", "memory", "GPUs"


@dataclass
class Counter:
    """A number that rises with the energy taken.

    Attributes:
        what: it counts.
        read: gives it; raises OSError where that cannot be told.
        unit_j: joules of one.
        range: after which it begins at 0 again, between two looks at most once; None: never.
        last: its value at the last look.
    """

    what: str
    read: Callable[[], int]
    unit_j: float
    range: int | None
    last: int

    def lap(self) -> float:
        """Joules since the last look."""
        before, self.last = self.last, self.read()
        risen = self.last - before
        if risen < 0 and self.range is not None:
            risen += self.range
        return max(0, risen) * self.unit_j


class Energy:
    """What this rank counts for all ranks: one rank a node counts its node.

    Attributes:
        of: what is counted, for people; empty: nothing, since not every node tells the same.
    """

    def __init__(self, counters: Sequence[Counter], of: str) -> None:
        self._counters, self.of = counters if of else (), of

    @classmethod
    def counted(cls, world: World, device: torch.device, powercap: Path = POWERCAP) -> Self:
        """Find what all nodes can count. Collective."""
        first = world.local_rank == 0
        counters = counters_of(powercap, gpus=device.type == "cuda") if first else []
        mine = " and ".join(dict.fromkeys(counter.what for counter in counters)) if first else "-"
        told = {text for text in world.gather_text(mine) if text != "-"}
        return cls(counters, told.pop() if len(told) == 1 else "")

    def lap(self) -> float | None:
        """Joules since the last call, or since ``counted``; None where another rank counts, or nobody. Infinity: it can
        no longer be told, and no sum that has it can.
        """
        if not self._counters:
            return None
        try:
            return sum([counter.lap() for counter in self._counters])
        except OSError:
            return float("inf")


def counters_of(powercap: Path, *, gpus: bool) -> list[Counter]:
    """A node's counters; those of one kind all or not at all."""
    found = []
    for kind in [lambda: rapl(powercap), *[nvml] * gpus]:
        with suppress(OSError, ValueError):
            found += kind()
    return found


def rapl(powercap: Path) -> list[Counter]:
    """Those of packages, and of memory beside them. A package's cores are part of it; `psys` has the packages in it.

    Raises:
        OSError: one cannot be read.
    """
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = (zone / "name").read_text(encoding="ascii").strip()
        inner = re.fullmatch(r"intel-rapl:\d+(:\d+)?", zone.name)
        if inner is None or not (name.startswith("package") or name == "dram"):
            continue
        energy = zone / "energy_uj"
        most = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        what = MEMORY if name == "dram" else PACKAGES
        found.append(counter(what, lambda energy=energy: int(energy.read_text(encoding="ascii")), 1e-6, most))  # type: ignore[misc]
    return sorted(found, key=lambda one: one.what, reverse=True)


def nvml() -> list[Counter]:
    """Those of the GPUs that the driver shows.

    Raises:
        OSError: there is no driver, or it does not tell.
    """
    library = ctypes.CDLL("libnvidia-ml.so.1")
    count = ctypes.c_uint()
    _must(library.nvmlInit_v2())
    _must(library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    found = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        _must(library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)))
        found.append(counter(GPUS, lambda device=device: _millijoules(library, device), 1e-3, None))  # type: ignore[misc]
    return found


def counter(what: str, read: Callable[[], int], unit_j: float, most: int | None) -> Counter:
    """One that counts from now on."""
    return Counter(what, read, unit_j, most, read())


def _millijoules(library: ctypes.CDLL, device: ctypes.c_void_p) -> int:
    taken = ctypes.c_ulonglong()
    _must(library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(taken)))
    return taken.value


def _must(code: int) -> None:
    if code != 0:
        raise OSError(f"NVML: error {code}")
