"""Networks as plain torch modules."""

from typing import TYPE_CHECKING

from hpcopt.lazily import lazily

if TYPE_CHECKING:
    from hpcopt.models.bert import BertConfig
    from hpcopt.models.config import ImageModelConfig, TokenModelConfig
    from hpcopt.models.deep_resnet import DeepResNetConfig
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
    "HeadConfig",
    "ImageModelConfig",
    "MlpConfig",
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
        "ImageModelConfig": "config",
        "MlpConfig": "mlp",
        "ResNetConfig": "resnet",
        "TokenModelConfig": "config",
        "UNetConfig": "unet",
        "VitConfig": "vit",
    },
)
