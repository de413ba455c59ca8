"""A network whose graph depends on the instance, as nodes of one static graph and messages that carry their state.

The intermediate representation of AMPNet (Gaunt et al. 2017, arXiv:1705.09786). It knows nothing of ranks.
"""

from hpcopt.dataflow.control import Bcast, Concat, Cond, Drop, Isu, Phi, Split
from hpcopt.dataflow.graph import Graph, Wire, Wired
from hpcopt.dataflow.instance import Instance, InstanceBatch, InstanceLoss
from hpcopt.dataflow.many import Flatmap, Group, Ungroup
from hpcopt.dataflow.message import Message, State
from hpcopt.dataflow.node import Node
from hpcopt.dataflow.tracing import graph_of
from hpcopt.dataflow.transform import Loss, Transform

__all__ = [
    "Bcast",
    "Concat",
    "Cond",
    "Drop",
    "Flatmap",
    "Graph",
    "Group",
    "Instance",
    "InstanceBatch",
    "InstanceLoss",
    "Isu",
    "Loss",
    "Message",
    "Node",
    "Phi",
    "Split",
    "State",
    "Transform",
    "Ungroup",
    "Wire",
    "Wired",
    "graph_of",
]
