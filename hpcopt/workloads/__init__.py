"""What is trained: a model, its data, its loss and its score."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.workloads.arithmetic_trees import ArithmeticTreesConfig
    from hpcopt.workloads.bert_pretraining import BertPretrainingConfig
    from hpcopt.workloads.control.workload import ControlConfig
    from hpcopt.workloads.graph_distance import GraphDistanceConfig
    from hpcopt.workloads.image_classification import ImageClassificationConfig
    from hpcopt.workloads.language_model import LanguageModelConfig
    from hpcopt.workloads.list_reduction import ListReductionConfig
    from hpcopt.workloads.node_classification import NodeClassificationConfig
    from hpcopt.workloads.order import TrainOrder, share
    from hpcopt.workloads.own.workload import TorchConfig
    from hpcopt.workloads.pictures.workload import PicturesConfig
    from hpcopt.workloads.segmentation import SegmentationConfig
    from hpcopt.workloads.teacher import TeacherConfig
    from hpcopt.workloads.w_language import WLanguageConfig

__all__ = [
    "ArithmeticTreesConfig",
    "BertPretrainingConfig",
    "ControlConfig",
    "GraphDistanceConfig",
    "ImageClassificationConfig",
    "LanguageModelConfig",
    "ListReductionConfig",
    "NodeClassificationConfig",
    "PicturesConfig",
    "SegmentationConfig",
    "TeacherConfig",
    "TorchConfig",
    "TrainOrder",
    "WLanguageConfig",
    "share",
]

__getattr__ = lazily(
    __name__,
    {
        "WLanguageConfig": "w_language",
        "ArithmeticTreesConfig": "arithmetic_trees",
        "BertPretrainingConfig": "bert_pretraining",
        "ControlConfig": "control.workload",
        "GraphDistanceConfig": "graph_distance",
        "ImageClassificationConfig": "image_classification",
        "LanguageModelConfig": "language_model",
        "ListReductionConfig": "list_reduction",
        "NodeClassificationConfig": "node_classification",
        "PicturesConfig": "pictures.workload",
        "SegmentationConfig": "segmentation",
        "TeacherConfig": "teacher",
        "TorchConfig": "own.workload",
        "TrainOrder": "order",
        "share": "order",
    },
)
