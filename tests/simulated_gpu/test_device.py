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
ASKED = {
    "x + x": (1, 0, 0),
    "x.view(2, 3).t()": (0, 0, 0),
    "x + 1": (1, 0, 0),
    "x.add_(x)": (1, 0, 0),
    "x.sum().item()": (1, 1, 0),
    "float(x[0])": (0, 1, 0),
    "x[x > 0]": (1, 1, 0),
    "x[torch.tensor([1, 0])]": (1, 0, 1),
    "x[[1, 0]]": (1, 0, 1),
    "x.cpu()": (0, 1, 1),
    "x.copy_(torch.zeros(6))": (0, 0, 1),
    "x.clone()": (1, 0, 0),
    "x.double()": (1, 0, 0),
    "torch.empty_like(x)": (0, 0, 0),
    "torch.linalg.eigh(x.view(2, 3) @ x.view(3, 2))": (1, 1, 0),
    "torch.linalg.cholesky_ex(torch.eye(2, device=SIM))": (2, 0, 0),
}
BEGIN = (
    "import torch; from tests.simulated_gpu.device import LEDGER, SIM; x = torch.arange(6.0).to(SIM); LEDGER.clear()"
)


@pytest.fixture(scope="module")
def answers() -> list[str]:
    """What the ledger says of each expression above."""
    lines = [BEGIN, "w = torch.nn.Linear(6, 1).to(SIM)", "w(x).backward()", "print(w.weight.grad.tolist())"]
    for expression in REFUSED.values():
        lines += [expression, "print(LEDGER.refused.total())", "LEDGER.refused.clear()"]
    for expression in ASKED:
        lines += ["LEDGER.clear()", expression, "print(tuple(LEDGER.totals().values()))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_cuda_refuses_is_refused(answers):
    assert dict(zip(REFUSED, answers[1:], strict=False)) == dict.fromkeys(REFUSED, "1")


def test_launches_waits_and_copies_are_counted(answers):
    assert dict(zip(ASKED, answers[1 + len(REFUSED) :], strict=False)) == {
        key: str(value) for key, value in ASKED.items()
    }


def test_gradients_have_the_cpus_values(answers):
    assert answers[0] == "[[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]"
