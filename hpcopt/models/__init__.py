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
    from hpcopt.models.control.body import Body, BodyConfig
    from hpcopt.models.control.features import FeatureConfig, Features, NoFeaturesConfig
    from hpcopt.models.control.ofenet import OfeNetConfig
    from hpcopt.models.control.perceptrons import DenseMlpBodyConfig, MlpBodyConfig
    from hpcopt.models.control.running_norm import RunningNorm
    from hpcopt.models.control.simba import SimbaBodyConfig
    from hpcopt.models.control.unit_statistics import UnitStatistics, dormant_share, effective_rank, unit_statistics
    from hpcopt.models.deductron import DeductronConfig
    from hpcopt.models.deep_resnet import DeepResNetConfig
    from hpcopt.models.frames import FrameMlpConfig, TanhRnnConfig
    from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig, NodeMlpConfig
    from hpcopt.models.graph_weighted import GraphWeightedConfig
    from hpcopt.models.heads import HeadConfig
    from hpcopt.models.mlp import MlpConfig
    from hpcopt.models.nmf import FactorMlpConfig
    from hpcopt.models.padded_mlp import PaddedMlpConfig
    from hpcopt.models.product_codes import ProductCodesConfig
    from hpcopt.models.relu_student import ReluStudentConfig
    from hpcopt.models.resnet import ResNetConfig
    from hpcopt.models.rewrite import Rewrite
    from hpcopt.models.unet import UNetConfig
    from hpcopt.models.vit import VitConfig

__all__ = [
    "BertConfig",
    "Body",
    "BodyConfig",
    "CausalModelConfig",
    "CodedEmbeddingConfig",
    "DeductronConfig",
    "DeepResNetConfig",
    "DenseMlpBodyConfig",
    "FactorMlpConfig",
    "FeatureConfig",
    "Features",
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
    "MlpBodyConfig",
    "MlpConfig",
    "NoFeaturesConfig",
    "NodeMlpConfig",
    "OfeNetConfig",
    "PaddedMlpConfig",
    "PictureModelConfig",
    "ProductCodesConfig",
    "ReluStudentConfig",
    "ResNetConfig",
    "Rewrite",
    "RunningNorm",
    "SimbaBodyConfig",
    "TanhRnnConfig",
    "TokenModelConfig",
    "TransformerConfig",
    "UNetConfig",
    "UnitStatistics",
    "VectorModelConfig",
    "VitConfig",
    "dormant_share",
    "effective_rank",
    "unit_statistics",
]

__getattr__ = lazily(
    __name__,
    {
        "BertConfig": "bert",
        "Body": "control.body",
        "BodyConfig": "control.body",
        "CausalModelConfig": "causal.config",
        "CodedEmbeddingConfig": "coded_embedding",
        "DeductronConfig": "deductron",
        "DeepResNetConfig": "deep_resnet",
        "DenseMlpBodyConfig": "control.perceptrons",
        "FactorMlpConfig": "nmf",
        "FeatureConfig": "control.features",
        "Features": "control.features",
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
        "MlpBodyConfig": "control.perceptrons",
        "MlpConfig": "mlp",
        "NoFeaturesConfig": "control.features",
        "NodeMlpConfig": "graph.networks",
        "OfeNetConfig": "control.ofenet",
        "PaddedMlpConfig": "padded_mlp",
        "PictureModelConfig": "config",
        "ProductCodesConfig": "product_codes",
        "ReluStudentConfig": "relu_student",
        "ResNetConfig": "resnet",
        "Rewrite": "rewrite",
        "RunningNorm": "control.running_norm",
        "SimbaBodyConfig": "control.simba",
        "TanhRnnConfig": "frames",
        "TokenModelConfig": "config",
        "TransformerConfig": "causal.transformer",
        "UNetConfig": "unet",
        "UnitStatistics": "control.unit_statistics",
        "VectorModelConfig": "config",
        "VitConfig": "vit",
        "dormant_share": "control.unit_statistics",
        "effective_rank": "control.unit_statistics",
        "unit_statistics": "control.unit_statistics",
    },
)
