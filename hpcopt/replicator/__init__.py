"""One step function of one replica, run on one rank or many."""

from hpcopt.replicator.collectives import Collectives
from hpcopt.replicator.devices import LogicalDevice
from hpcopt.replicator.replicator import Replicator

__all__ = ["Collectives", "LogicalDevice", "Replicator"]
