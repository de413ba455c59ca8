"""The trainer on the simulated device: batches are read ahead by a thread, losses a step late; rows and parameters are
the CPU's. In a process of its own, as the cases.
"""

import subprocess
import sys
from pathlib import Path

from tests.launching import PATIENCE_S

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from unittest import mock
import h5py, torch
from hpcopt import pinned
from hpcopt.comm.staged import StagedTransport
from hpcopt.store.weights import newest_weights
from hpcopt.train import main
from hpcopt.workloads import handover
from tests.simulated_gpu import streams
from tests.simulated_gpu.device import LEDGER, SIM
from tests.simulated_gpu.workloads import data

def train(name, *settings):
    words = ["workload.model.name=mlp", "workload.batch=6", "run.steps=7", "run.evaluate_every=3", *settings]
    words = [word for setting in [f"workload.data={data()}", *words] for word in ("--set", setting)]
    assert main(["jobs/quickstart.toml", "--run-dir", str(Path(sys.argv[1]) / name), *words]) == 0
    with h5py.File(Path(sys.argv[1]) / name / "metrics.h5") as file:
        return file["steps/loss"][:].tolist(), newest_weights(Path(sys.argv[1]) / name).state_dict

def taken(world, *_):
    world.transport = StagedTransport(world.transport)
    return SIM

expected, ends = train("cpu", "run.device=cpu")
made = []
read_ahead = handover.ahead
with (
    mock.patch.object(pinned, "page_locked", streams.pinned),
    mock.patch.object(handover, "ahead", lambda items: made.append(1) or read_ahead(items)),
    mock.patch("hpcopt.trainer.services.use_device", taken),
):
    found, states = train("sim")
assert found == expected, (found, expected)
assert all(torch.equal(states[name], end) for name, end in ends.items())
assert made == [1]
assert not LEDGER.refused, LEDGER.refused
"""


def test_a_run_has_the_rows_and_the_end_of_one_on_the_cpu(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
