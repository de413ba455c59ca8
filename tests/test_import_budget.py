"""What every rank imports to train: 128 of them share a machine's memory, so nothing heavy comes in unnoticed."""

import json
import subprocess
import sys

HEAVY = (
    "numba",
    "gymnasium",
    "mujoco",
    "pygame",
    "llvmlite",
    "rich",
    "scipy",
    "sklearn",
    "sympy",
    "plotly",
    "pandas",
    "matplotlib",
    "transformers",
    "triton",
)


def imported(program: str) -> set[str]:
    """Top-level packages that a program has imported at its end."""
    report = "\nimport sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program + report], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_rank_of_the_quickstart_imports_nothing_heavy(digits, tmp_path):
    program = (
        "from hpcopt.train import main\n"
        f"assert main(['--run-dir', {str(tmp_path / 'run')!r}, '--set', 'run.epochs=1', "
        f"'--set', 'workload.data={digits}/digits', '--set', 'run.device=cpu']) == 0\n"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    assert not imported(program) & set(HEAVY)


def test_doors_that_only_read_or_submit_need_no_mpi():
    assert "mpi4py" not in imported("import hpcopt.report, hpcopt.submit, hpcopt.checkpoint")


def test_reports_need_no_torch():
    assert "torch" not in imported("import hpcopt.report, hpcopt.report.__main__, hpcopt.study.report")


def test_the_package_itself_is_light():
    """Some standard modules and nothing else: milliseconds."""
    heavy = {"torch", "mpi4py", "h5py", "numpy", "pydantic", "importlib.metadata", "inspect", "asyncio"}
    assert not imported("import hpcopt") & heavy
    program = "import sys; before = len(sys.modules); import hpcopt; assert len(sys.modules) - before < 40"
    subprocess.run([sys.executable, "-c", program], check=True)
