"""The simulated device notices what it is there for. In a process of its own, as the cases."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import PATIENCE_S

ROOT = Path(__file__).parents[2]
REFUSED = {
    "a tensor in main memory": "torch.zeros(2, device=SIM) + torch.zeros(2)",
    "a generator of the CPU's": "torch.randn(2, device=SIM, generator=torch.Generator())",
    "numpy": "torch.zeros(2, device=SIM).numpy()",
    "a gather from main memory": "torch.zeros(3)[torch.zeros(2, dtype=torch.int64, device=SIM)]",
}
ORDER = {
    "a read before its event": "with at(lane): x + 1",
    "a write before its event": "with at(lane): x.zero_()",
    "a write beside a read": "lane.wait_stream(streams.DEFAULT)\nwith at(lane): x + 1\nx.zero_()",
    "memory freed beside its use": (
        "y = torch.ones(9, device=SIM)\nlane.wait_stream(streams.DEFAULT)\nwith at(lane): y + 1\ndel y"
    ),
    "page-locked memory read too early": (
        "host = streams.pinned(24).view(torch.float32)\nhost.copy_(x, non_blocking=True)\n"
        "if host.tolist() != [0, 1, 2, 3, 4, 5]: LEDGER.note('refused', 'rubbish')"
    ),
    "page-locked memory written too early": (
        "host = streams.pinned(24).view(torch.float32)\nx.copy_(host, non_blocking=True)\nhost.fill_(9)\nx.sum().item()"
    ),
}
IN_ORDER = {
    "a read after its event": "lane.wait_event(streams.DEFAULT.record_event())\nwith at(lane): x + 1",
    "a read after the host has waited": "x.sum().item()\nwith at(lane): x + 1",
    "a write after a read": (
        "lane.wait_stream(streams.DEFAULT)\nwith at(lane): x + 1\nstreams.DEFAULT.wait_stream(lane)\nx.zero_()"
    ),
    "page-locked memory": (
        "host = streams.pinned(24).view(torch.float32)\nhost.copy_(x, non_blocking=True)\npassed(SIM).synchronize()\n"
        "if host.tolist() != [0, 1, 2, 3, 4, 5]: LEDGER.note('refused', 'rubbish')\n"
        "x.copy_(host, non_blocking=True)\npassed(SIM).synchronize()\nhost.fill_(9)"
    ),
}
ASKED = {
    "x + x": (1, 0, 0, 0),
    "x.view(2, 3).t()": (0, 0, 0, 0),
    "x + 1": (1, 0, 0, 0),
    "x.add_(x)": (1, 0, 0, 0),
    "x.sum().item()": (1, 1, 0, 0),
    "float(x[0])": (0, 1, 0, 0),
    "x[x > 0]": (1, 1, 0, 0),
    "x[torch.tensor([1, 0])]": (1, 0, 1, 1),
    "x[[1, 0]]": (1, 0, 1, 1),
    "x.cpu()": (0, 1, 1, 1),
    "x.copy_(torch.zeros(6))": (0, 0, 1, 1),
    "x.clone()": (1, 0, 0, 0),
    "x.double()": (1, 0, 0, 0),
    "torch.empty_like(x)": (0, 0, 0, 0),
    "torch.linalg.eigh(x.view(2, 3) @ x.view(3, 2))": (1, 1, 0, 0),
    "torch.linalg.cholesky_ex(torch.eye(2, device=SIM))": (2, 0, 0, 0),
}
BEGIN = """
import torch
from hpcopt.pinned import passed
from tests.simulated_gpu import streams
from tests.simulated_gpu.device import LEDGER, SIM
from tests.simulated_gpu.streams import stream as at
x = torch.arange(6.0).to(SIM)
LEDGER.clear()
"""


@pytest.fixture(scope="module")
def answers() -> list[str]:
    """What the ledger says of each expression above."""
    lines = [BEGIN, "w = torch.nn.Linear(6, 1).to(SIM)", "w(x).backward()", "print(w.weight.grad.tolist())"]
    for expression in REFUSED.values():
        lines += [expression, "print(LEDGER.refused.total())", "LEDGER.refused.clear()"]
    for program in (*ORDER.values(), *IN_ORDER.values()):
        lines += ["lane, x = streams.Stream(), torch.arange(6.0).to(SIM)", "LEDGER.refused.clear()"]
        lines += [program, "print(LEDGER.refused.total())"]
    for expression in ASKED:
        lines += ["LEDGER.clear()", expression, "print(tuple(LEDGER.totals().values()))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_cuda_refuses_is_refused(answers):
    assert dict(zip(REFUSED, answers[1:], strict=False)) == dict.fromkeys(REFUSED, "1")


def test_what_no_event_orders_is_refused(answers):
    found = dict(zip((*ORDER, *IN_ORDER), answers[1 + len(REFUSED) :], strict=False))
    assert found == dict.fromkeys(ORDER, "1") | dict.fromkeys(IN_ORDER, "0")


def test_launches_waits_and_copies_are_counted(answers):
    found = dict(zip(ASKED, answers[-len(ASKED) :], strict=True))
    assert found == {key: str(value) for key, value in ASKED.items()}


def test_gradients_have_the_cpus_values(answers):
    assert answers[0] == "[[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]"
