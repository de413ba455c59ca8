"""An optimizer step of a training job needs no compiler, and the compiler is there for whoever asks."""

import subprocess
import sys

LEAN = "import sys, torch\nfrom hpcopt.lean_torch import keep_dynamo_out\nkeep_dynamo_out()\n"


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_a_training_step_imports_no_compiler():
    out = run(
        LEAN + "from hpcopt.optim import SgdConfig, AdamWConfig\n"
        "model = torch.nn.Linear(2, 2)\n"
        "for config in (SgdConfig(), AdamWConfig()):\n"
        "    optimizer = config.build(model.parameters())\n"
        "    model(torch.ones(1, 2)).sum().backward(); optimizer.step(); optimizer.zero_grad()\n"
        "    optimizer.load_state_dict(optimizer.state_dict())\n"
        "print(sorted(m for m in sys.modules if m.startswith(('sympy', 'torch._dynamo.', 'torch._inductor'))))"
    )
    assert out.strip() == "[]"


def test_compile_and_activation_checkpointing_get_the_real_one():
    out = run(
        LEAN + "from torch.utils.checkpoint import checkpoint\n"
        "w = torch.ones(3, requires_grad=True)\n"
        "checkpoint(lambda x: (x * x).sum(), w, use_reentrant=False).backward()\n"
        "print(w.grad.tolist(), torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())\n"
        "import torch._dynamo.config\n"
        "print(torch._dynamo.__file__ is not None)"
    )
    assert out.splitlines() == ["[2.0, 2.0, 2.0] 2.0", "True"]


def test_whoever_imports_our_rooms_keeps_their_own_torch():
    """The stand-in is the training command's: in somebody else's process torch stays what it is."""
    out = run(
        "import sys, torch, hpcopt.optim, hpcopt.solvers.data_parallel, hpcopt.job, hpcopt.train\n"
        "assert set(hpcopt.optim.__all__) <= set(dir(hpcopt.optim))\n"
        "print(sorted(m for m in sys.modules if m.startswith('torch._dynamo')))\n"
        "torch.optim.SGD([torch.ones(1, requires_grad=True)])\n"
        "print(torch._dynamo.__file__ is not None)"
    )
    assert out.splitlines() == ["[]", "True"]
