"""Networks as plain torch modules."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.models.bert import BertConfig
    from hpcopt.models.causal.config import CausalModelConfig
    from hpcopt.models.causal.lstm import LstmConfig
    from hpcopt.models.causal.transformer import TransformerConfig
    from hpcopt.models.coded_embedding import CodedEmbeddingConfig
    from hpcopt.models.config import (
        GraphModelConfig,
        ImageModelConfig,
        PictureModelConfig,
        TokenModelConfig,
        VectorModelConfig,
    )
    from hpcopt.models.deep_resnet import DeepResNetConfig
    from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig, NodeMlpConfig
    from hpcopt.models.graph_weighted import GraphWeightedConfig
    from hpcopt.models.heads import HeadConfig
    from hpcopt.models.mlp import MlpConfig
    from hpcopt.models.nmf import FactorMlpConfig
    from hpcopt.models.padded_mlp import PaddedMlpConfig
    from hpcopt.models.relu_student import ReluStudentConfig
    from hpcopt.models.resnet import ResNetConfig
    from hpcopt.models.rewrite import Rewrite
    from hpcopt.models.unet import UNetConfig
    from hpcopt.models.vit import VitConfig

__all__ = [
    "BertConfig",
    "CausalModelConfig",
    "CodedEmbeddingConfig",
    "DeepResNetConfig",
    "FactorMlpConfig",
    "GatConfig",
    "GcnConfig",
    "GraphModelConfig",
    "GraphSageConfig",
    "GraphWeightedConfig",
    "HeadConfig",
    "ImageModelConfig",
    "LstmConfig",
    "MlpConfig",
    "NodeMlpConfig",
    "ReluStudentConfig",
    "PaddedMlpConfig",
    "PictureModelConfig",
    "ResNetConfig",
    "Rewrite",
    "TokenModelConfig",
    "TransformerConfig",
    "UNetConfig",
    "VectorModelConfig",
    "VitConfig",
]

__getattr__ = lazily(
    __name__,
    {
        "BertConfig": "bert",
        "CausalModelConfig": "causal.config",
        "CodedEmbeddingConfig": "coded_embedding",
        "DeepResNetConfig": "deep_resnet",
        "FactorMlpConfig": "nmf",
        "GatConfig": "graph.networks",
        "GcnConfig": "graph.networks",
        "GraphModelConfig": "config",
        "GraphSageConfig": "graph.networks",
        "HeadConfig": "heads",
        "GraphWeightedConfig": "graph_weighted",
        "ImageModelConfig": "config",
        "LstmConfig": "causal.lstm",
        "MlpConfig": "mlp",
        "NodeMlpConfig": "graph.networks",
        "ReluStudentConfig": "relu_student",
        "PaddedMlpConfig": "padded_mlp",
        "PictureModelConfig": "config",
        "ResNetConfig": "resnet",
        "Rewrite": "rewrite",
        "TokenModelConfig": "config",
        "TransformerConfig": "causal.transformer",
        "UNetConfig": "unet",
        "VectorModelConfig": "config",
        "VitConfig": "vit",
    },
)
