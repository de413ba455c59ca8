"""An exchange on a device asks for as much on many ranks as on few, copies by way of page-locked memory that it has,
and keeps its order with events alone. On the simulated device, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launching import PATIENCE_S

ROOT = Path(__file__).parents[2]
CASES = ("ring", "qsgd", "topk", "adacomp", "vote")


@pytest.fixture(scope="module")
def asked() -> dict[str, dict[str, Any]]:
    """Of a step of each exchange, by the number of ranks."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.simulated_gpu.lane"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return {found.pop("case"): found for found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_a_bucket_takes_as_many_launches_waits_and_copies_on_any_number_of_ranks(case, asked):
    for kind in ("launches", "waits", "copies"):
        per_rank = {size: found[kind] / int(size) for size, found in asked[case].items()}
        assert len(set(per_rank.values())) == 1, (kind, per_rank)


@pytest.mark.parametrize("case", CASES)
def test_a_steady_step_copies_by_way_of_page_locked_memory_that_is_there(case, asked):
    for found in asked[case].values():
        assert found["copies"] > 0
        assert (found["pageable"], found["made"], found["refused"]) == (0, 0, {})


def test_computing_on_another_stream_is_waited_for(asked):
    assert asked["aside"]["2"]["refused"] == {}


@pytest.mark.parametrize("name", ["qsgd", "adacomp"])
def test_the_hook_of_ddp_goes_the_same_way(name, asked):
    """Computing on another stream, too."""
    by_exchange, by_hook = asked[name]["2"], asked[f"DDP, {name}"]["2"]
    assert by_hook["sum"] == by_exchange["sum"] != 0
    assert (by_hook["pageable"], by_hook["refused"]) == (0, {})
    assert by_hook["waits"] == by_exchange["waits"]


def test_background_inverses_have_a_stream_of_their_own(asked):
    """But for the first, which are waited for."""
    assert asked["inverses"]["training stream"][:2] == [True, False]
    assert asked["inverses"]["refused"] == {}


@pytest.mark.parametrize(("method", "what"), [("note", "reads what another"), ("join", "what another stream")])
def test_without_its_events_the_order_is_open(method, what, asked):
    assert any(what in refused for refused in asked[f"without {method}"]["2"]["refused"])
