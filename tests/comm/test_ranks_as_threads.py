"""Ranks that are threads end together."""

import threading

import pytest

from hpcopt.comm.loopback import run_ranks


def test_ranks_that_cannot_all_be_started_end(monkeypatch):
    start, started = threading.Thread.start, []

    def start_two(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="new thread"):
        run_ranks(3, lambda transport: transport.barrier())
    assert not any(thread.is_alive() for thread in started)
