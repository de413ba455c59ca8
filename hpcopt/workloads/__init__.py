"""What is trained: a model, its data, its loss and its score."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.workloads.bert_pretraining import BertPretrainingConfig
    from hpcopt.workloads.image_classification import ImageClassificationConfig
    from hpcopt.workloads.order import TrainOrder, share
    from hpcopt.workloads.own.workload import TorchConfig
    from hpcopt.workloads.segmentation import SegmentationConfig

__all__ = [
    "BertPretrainingConfig",
    "ImageClassificationConfig",
    "SegmentationConfig",
    "TorchConfig",
    "TrainOrder",
    "share",
]

__getattr__ = lazily(
    __name__,
    {
        "BertPretrainingConfig": "bert_pretraining",
        "ImageClassificationConfig": "image_classification",
        "SegmentationConfig": "segmentation",
        "TorchConfig": "own.workload",
        "TrainOrder": "order",
        "share": "order",
    },
)
