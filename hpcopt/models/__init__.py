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
        FrameModelConfig,
        GraphModelConfig,
        ImageModelConfig,
        PictureModelConfig,
        TokenModelConfig,
        VectorModelConfig,
    )
    from hpcopt.models.deductron import DeductronConfig
    from hpcopt.models.deep_resnet import DeepResNetConfig
    from hpcopt.models.frames import FrameMlpConfig, TanhRnnConfig
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
    "DeductronConfig",
    "DeepResNetConfig",
    "FactorMlpConfig",
    "FrameMlpConfig",
    "FrameModelConfig",
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
    "TanhRnnConfig",
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
        "DeductronConfig": "deductron",
        "DeepResNetConfig": "deep_resnet",
        "FactorMlpConfig": "nmf",
        "FrameMlpConfig": "frames",
        "FrameModelConfig": "config",
        "GatConfig": "graph.networks",
        "GcnConfig": "graph.networks",
        "GraphModelConfig": "config",
        "GraphSageConfig": "graph.networks",
        "GraphWeightedConfig": "graph_weighted",
        "HeadConfig": "heads",
        "ImageModelConfig": "config",
        "LstmConfig": "causal.lstm",
        "MlpConfig": "mlp",
        "NodeMlpConfig": "graph.networks",
        "PaddedMlpConfig": "padded_mlp",
        "PictureModelConfig": "config",
        "ReluStudentConfig": "relu_student",
        "ResNetConfig": "resnet",
        "Rewrite": "rewrite",
        "TanhRnnConfig": "frames",
        "TokenModelConfig": "config",
        "TransformerConfig": "causal.transformer",
        "UNetConfig": "unet",
        "VectorModelConfig": "config",
        "VitConfig": "vit",
    },
)
