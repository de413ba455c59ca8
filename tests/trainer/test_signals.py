"""Signals are noted, not obeyed at once, and only while somebody looks."""

import os
import signal

from hpcopt.trainer.signals import StopSignals


def test_the_first_signal_is_noted_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGCONT)
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_requeue_signal_can_be_another():
    with StopSignals() as signals:
        signals.listen_for("USR2")
        os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.received == "SIGUSR2"
