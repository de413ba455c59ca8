"""Joules are counted once a node, over a counter's end, and are not known where one machine does not say."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.phases import PhaseClock
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.shapes.stats import StepStats
from hpcopt.store.metrics import MetricsFile
from hpcopt.trainer.energy import Energy, counters_of
from hpcopt.trainer.recorder import Recorder

CPU = torch.device("cpu")
ZONES = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
RANGE_UJ = 10_000_000


def machine(folder: Path, zones: dict[str, str] = ZONES) -> Path:
    """A tree like powercap's, each counter at 1 J."""
    for number, name in zones.items():
        (zone := folder / f"intel-rapl:{number}").mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (zone / "energy_uj").write_text("1000000\n")
    return folder


def now(folder: Path, **joules: float) -> None:
    """Let counters stand at so many joules."""
    for name, value in joules.items():
        (folder / f"intel-rapl:{name[1:].replace('_', ':')}" / "energy_uj").write_text(f"{round(value * 1e6)}\n")


def test_packages_and_memory_are_counted_and_nothing_twice(tmp_path):
    energy = Energy.counted(alone(), CPU, machine(tmp_path))
    assert energy.of == "packages and memory"
    now(tmp_path, z0=3, z0_0=7, z0_1=1.5, z1=2, z2=9)
    assert energy.lap() == pytest.approx(2 + 0.5 + 1)
    assert energy.lap() == 0


def test_a_counter_that_begins_again_is_counted_over_its_end(tmp_path):
    energy = Energy.counted(alone(), CPU, machine(tmp_path, {"0": "package-0"}))
    now(tmp_path, z0=9)
    assert energy.lap() == pytest.approx(8)
    now(tmp_path, z0=2)
    assert energy.lap() == pytest.approx(1 + 2)


def test_without_counters_or_leave_to_read_them_nothing_is_known(tmp_path, monkeypatch):
    assert Energy.counted(alone(), CPU, tmp_path / "none").lap() is None
    folder, read = machine(tmp_path), Path.read_text

    def refused(self, *arguments, **settings):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *arguments, **settings)

    energy = Energy.counted(alone(), CPU, folder)
    monkeypatch.setattr(Path, "read_text", refused)
    assert energy.lap() == float("inf")  # it was known before
    energy = Energy.counted(alone(), CPU, folder)
    assert (energy.of, energy.lap()) == ("", None)


def test_gpus_are_asked_for_on_gpus_and_a_driver_that_does_not_tell_is_no_error(monkeypatch, tmp_path):
    assert counters_of(tmp_path, gpus=True) == [] or torch.cuda.is_available()
    taken = [5000, 7000]

    def energy_of(device, pointer) -> int:
        pointer._obj.value = taken[device.value - 1]
        return 0

    def handle(index, pointer) -> int:
        pointer._obj.value = index.value + 1
        return 0

    def count(pointer) -> int:
        pointer._obj.value = 2
        return 0

    driver = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetCount_v2=count,
        nvmlDeviceGetHandleByIndex_v2=handle,
        nvmlDeviceGetTotalEnergyConsumption=energy_of,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    energy = Energy.counted(alone(), torch.device("cuda"), tmp_path)
    taken[:] = 6500, 7250
    assert (energy.of, energy.lap()) == ("GPUs", 1.75)
    driver.nvmlDeviceGetTotalEnergyConsumption = lambda *_: 3
    assert counters_of(tmp_path, gpus=True) == []


def recorded(folder: Path, nodes: list[Path]) -> float:
    """What a report says of a run of two ranks on each of these nodes, each node taking 2 J a step, written every two
    steps.
    """
    file = MetricsFile(folder / "metrics.h5")
    clock = PhaseClock()

    def program(transport):
        world = World(transport)
        world.local_rank, node = world.rank % 2, nodes[world.rank // 2]
        energy = Energy.counted(world, CPU, node)
        if world.rank == 0:
            file.create(world.size, clock.phases, {"title": "t", "hostnames": ["a"] * world.size})
        world.barrier()
        recorder = Recorder(world, file, PhaseClock(), 0.0, energy)
        for step in range(1, 5):
            if world.local_rank == 0 and node.exists():
                now(node, z0=1 + 2 * step)
            recorder.step(step, step / 10, None, StepStats(1.0))
            if step % 2 == 0:
                recorder.flush()
        recorder.finish("all steps done", 0)

    run_ranks(2 * len(nodes), program)
    return summarise(read_run(folder)).energy_j


def test_each_node_is_counted_once_and_stands_at_the_rows_that_were_written(tmp_path):
    nodes = [machine(tmp_path / name, {"0": "package-0"}) for name in ("a", "b")]
    assert recorded(tmp_path, nodes) == pytest.approx(2 * 4 * 2)
    np.testing.assert_allclose(read_run(tmp_path).columns["energy_j"], [np.nan, 8, np.nan, 8])


def test_a_node_that_does_not_say_leaves_the_sum_unknown(tmp_path):
    assert np.isnan(recorded(tmp_path, [machine(tmp_path / "a", {"0": "package-0"}), tmp_path / "none"]))
    assert "energy_j" not in read_run(tmp_path).columns
