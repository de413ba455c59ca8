"""Networks as plain torch modules."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.models.bert import BertConfig
    from hpcopt.models.config import GraphModelConfig, ImageModelConfig, TokenModelConfig
    from hpcopt.models.deep_resnet import DeepResNetConfig
    from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig, NodeMlpConfig
    from hpcopt.models.heads import HeadConfig
    from hpcopt.models.mlp import MlpConfig
    from hpcopt.models.nmf import FactorMlpConfig
    from hpcopt.models.resnet import ResNetConfig
    from hpcopt.models.unet import UNetConfig
    from hpcopt.models.vit import VitConfig

__all__ = [
    "BertConfig",
    "DeepResNetConfig",
    "FactorMlpConfig",
    "GatConfig",
    "GcnConfig",
    "GraphModelConfig",
    "GraphSageConfig",
    "HeadConfig",
    "ImageModelConfig",
    "MlpConfig",
    "NodeMlpConfig",
    "ResNetConfig",
    "TokenModelConfig",
    "UNetConfig",
    "VitConfig",
]

__getattr__ = lazily(
    __name__,
    {
        "BertConfig": "bert",
        "DeepResNetConfig": "deep_resnet",
        "FactorMlpConfig": "nmf",
        "HeadConfig": "heads",
        "GatConfig": "graph.networks",
        "GcnConfig": "graph.networks",
        "GraphModelConfig": "config",
        "GraphSageConfig": "graph.networks",
        "ImageModelConfig": "config",
        "MlpConfig": "mlp",
        "NodeMlpConfig": "graph.networks",
        "ResNetConfig": "resnet",
        "TokenModelConfig": "config",
        "UNetConfig": "unet",
        "VitConfig": "vit",
    },
)
