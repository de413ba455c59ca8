"""Traces have every second of metrics.h5, rank by rank, under Kineto's names."""

import gzip
import itertools
import json

import h5py
import numpy as np

from hpcopt.export.__main__ import main
from tests.export.conftest import files
from tests.report.conftest import PHASES


def test_a_trace_a_rank(run_dir):
    assert main([str(run_dir), "--to", "trace", "--last", "5"]) == 0
    with h5py.File(run_dir / "metrics.h5") as file:
        phase_s, step_s, time_s = (file["steps"][name][-5:] for name in ("phase_s", "step_s", "time_s"))
    traces = files(run_dir / "trace", "*.json.gz")
    assert len(traces) == 3
    for rank, path in enumerate(traces):
        trace = json.loads(gzip.decompress(path.read_bytes()))
        assert trace["distributedInfo"] == {"backend": "mpi", "rank": rank, "world_size": 3}
        events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        steps = [event for event in events if event["name"].startswith("ProfilerStep#")]
        assert [event["name"] for event in steps] == [f"ProfilerStep#{step}" for step in range(36, 41)]
        assert np.allclose([event["dur"] for event in steps], 1e6 * step_s)
        ends = np.array([event["ts"] + event["dur"] for event in steps])
        assert np.allclose(np.diff(ends), 1e6 * np.diff(time_s), atol=1)
        for index, phase in enumerate(PHASES):
            seconds = {event["args"]["step"]: event["dur"] for event in events if event["name"] == phase}
            mine = {step: 1e6 * s for step, s in zip(range(36, 41), phase_s[:, rank, index].tolist(), strict=True) if s}
            assert seconds.keys() == mine.keys()
            assert np.allclose(list(seconds.values()), list(mine.values()), rtol=1e-5)
        assert {event["cat"] for event in events} == {"user_annotation"}
        for step in steps:
            inside = [e for e in events if e["args"]["step"] == step["args"]["step"] and e is not step]
            assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for a, b in itertools.pairwise(inside))
