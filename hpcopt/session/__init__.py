"""A loop of one's own, with all that a job has around its loop."""

from hpcopt.session.session import Session
from hpcopt.session.start import Requeue

__all__ = ["Requeue", "Session"]
