"""A network over ranks: where it is cut, which rank holds which part, and the messages between neighbours."""

from hpcopt.pipeline.cut import Balance, balanced, costs, cut, dealt, in_turn, is_proximal, output_shapes
from hpcopt.pipeline.link import DOWN, UP, Link
from hpcopt.pipeline.mesh import Mesh
from hpcopt.pipeline.schedule import Schedule, idle, order
from hpcopt.pipeline.spread import Spread, SpreadConfig

__all__ = [
    "Balance",
    "DOWN",
    "Link",
    "Mesh",
    "Schedule",
    "Spread",
    "SpreadConfig",
    "UP",
    "balanced",
    "costs",
    "cut",
    "dealt",
    "idle",
    "in_turn",
    "is_proximal",
    "order",
    "output_shapes",
]
