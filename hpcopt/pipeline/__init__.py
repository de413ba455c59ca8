"""A network over ranks: where it is cut, which rank holds which part, and the messages between neighbours."""

from hpcopt.pipeline.cut import Balance, cut, is_proximal, output_shapes
from hpcopt.pipeline.link import DOWN, UP, Link
from hpcopt.pipeline.mesh import Mesh

__all__ = ["Balance", "DOWN", "Link", "Mesh", "UP", "cut", "is_proximal", "output_shapes"]
