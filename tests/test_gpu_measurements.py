"""What measures on a GPU is rehearsed: its parts on the simulated device, what runs them on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from benchmarks import gpu
from benchmarks.gpu import LIMITS, TOTAL_S
from benchmarks.pack_for_gpu import name_of, unpack
from tests.launching import PATIENCE_S

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_part_runs_on_the_simulated_device():
    parts = [part for part in LIMITS if part != "four_ranks"]  # the code of two_ranks
    rows = [json.loads(line) for line in run("-m", "benchmarks.on_gpu", "--device", "sim", *parts).splitlines()]
    assert list(dict.fromkeys(row["part"] for row in rows)) == parts
    told = [row for row in rows if row["goal"] == "the same" or row["what"].startswith("losses")]
    assert len(told) > 15
    assert [row for row in told if not row["held"]] == []


def test_a_rehearsal_leaves_rows_and_a_table(tmp_path):
    said = run("benchmarks/gpu.py", "machine", "--device", "cpu", "--out", str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().split("\n") if line]
    assert rows[-1]["what"] == "ended" and rows[-1]["held"]
    assert (tmp_path / "gpu.md").read_text() in said
    assert "machine | device | cpu" in said


def test_a_part_past_its_limit_is_stopped_and_keeps_what_it_found(tmp_path):
    record = gpu.Record(tmp_path)
    found = json.dumps({"part": "p", "what": "w", "found": 1.0, "unit": "s", "goal": "at most 2", "held": True})
    ended = record.run("p", ["sh", "-c", f"echo '{found}'; echo '{{\"part\": \"cut'; sleep 600 & sleep 600"], 3)
    assert ended.startswith("stopped")
    assert [line.split(" | ") for line in record.table().splitlines()[2:]] == [
        ["p", "w", "1 s", "at most 2", "yes"],
        ["p", "ended", ended, "", "NO"],
    ]


def test_the_parts_fit_the_time():
    assert sum(limit.seconds for limit in LIMITS.values()) <= TOTAL_S <= 470


def test_what_a_wheel_holds_besides_packages_is_unpacked_too(tmp_path):
    wheel = tmp_path / "mpi-1-py3-none-any.whl"
    with ZipFile(wheel, "w") as files:
        for name in ("mpi/__init__.py", "mpi-1.data/data/lib/libmpi.so", "mpi-1.data/data/bin/mpiexec"):
            files.writestr(name, name)
        files.writestr("mpi-1.data/scripts/tool", "#!python")
    unpack(wheel, tmp_path / "pack")
    there = tmp_path / "pack" / "prefix"
    assert (tmp_path / "pack/site/mpi/__init__.py").exists() and (there / "lib/libmpi.so").exists()
    assert all(os.access(there / "bin" / name, os.X_OK) for name in ("mpiexec", "tool"))


@pytest.mark.parametrize("text", ["isal>=1.7", "isal", "Isal[extra]>1; python_version>'3'"])
def test_the_name_of_a_requirement(text):
    assert name_of(text) == "isal"
