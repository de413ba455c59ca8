"""HDF5 on disk: training data as shards, checkpoints without pickle, and the metrics of a run. Documented in
docs/reference/format.md.
"""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.store.checkpoint import Checkpoints
    from hpcopt.store.metrics import MetricsFile
    from hpcopt.store.saved_parts import SavedParts
    from hpcopt.store.shards import Shards
    from hpcopt.store.weights import newest_weights

__all__ = ["Checkpoints", "MetricsFile", "SavedParts", "Shards", "newest_weights"]

__getattr__ = lazily(
    __name__,
    {
        "Checkpoints": "checkpoint",
        "MetricsFile": "metrics",
        "SavedParts": "saved_parts",
        "Shards": "shards",
        "newest_weights": "weights",
    },
)
