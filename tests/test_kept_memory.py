"""What a process gives back is there for its next step, if the training command has said so."""

import os
import subprocess
import sys

import pytest

STEPS = """
import resource
from hpcopt.kept_memory import keep_memory
{first}
for step in range(8):
    if step == 3:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (4 << 20) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def faults(first: str, **environment: str) -> int:
    """Page faults of five steps that take 16 MiB each, of 4,096 pages."""
    program = STEPS.format(first=first)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env={**own, **environment}
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_a_step_finds_the_memory_of_the_last_one():
    if faults("") < 5 * 2000:
        pytest.skip("this C library keeps memory anyway")
    assert faults("keep_memory()") < 500


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_somebodys_own_settings_stay():
    own = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # everything larger is given back at once
    if faults("", **own) < 5 * 2000:
        pytest.skip("this C library has no such settings")
    assert faults("keep_memory()", **own) >= 5 * 2000


@pytest.mark.parametrize("fault", [AttributeError, OSError, TypeError])
def test_under_another_c_library_nothing_happens(monkeypatch, fault):
    from hpcopt import kept_memory

    def missing(name):
        raise fault

    monkeypatch.setattr(kept_memory.ctypes, "CDLL", missing)
    kept_memory.keep_memory()
