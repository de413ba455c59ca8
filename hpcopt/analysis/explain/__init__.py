"""What a network looks at: explanations of single inputs, pictures of what its layers answer to, and their scores."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.analysis.explain.methods import METHODS, explain
    from hpcopt.analysis.explain.question import Settings
    from hpcopt.analysis.explain.results import Explanations, read_explanations

__all__ = ["METHODS", "Explanations", "Settings", "explain", "read_explanations"]

__getattr__ = lazily(
    __name__,
    {
        "METHODS": "methods",
        "explain": "methods",
        "Settings": "question",
        "Explanations": "results",
        "read_explanations": "results",
    },
)
