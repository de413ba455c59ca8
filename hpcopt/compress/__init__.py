"""Codecs: gradients into few bytes and back. docs/concepts/codecs.md says which one when.

- ``Codec``: the stateless codecs, tensor -> payload -> tensor; ``PerTensor`` chooses among them.
- ``Residuals``: what error feedback keeps, by parameter name; who sends owns them.
- ``Bounded``: integers on a grid that all ranks agree on.
- ``RoundsConfig``: compressors that work in rounds of plain reductions.
"""

from hpcopt.compress.adacomp import AdaComp
from hpcopt.compress.atomo import Atomo
from hpcopt.compress.bhq import BHQ
from hpcopt.compress.bounded import Bounded
from hpcopt.compress.chunked_topk import ChunkedTopK
from hpcopt.compress.codec import Bytes, Codec, CodecConfig, Floats, require_bytes
from hpcopt.compress.half import Half
from hpcopt.compress.identity import Dense
from hpcopt.compress.natural import BiasedRounding, ExponentialDithering, Natural
from hpcopt.compress.per_tensor import PerTensor, Rule
from hpcopt.compress.powersgd import PowerSGD
from hpcopt.compress.psq import PSQ
from hpcopt.compress.qsgd import QSGD
from hpcopt.compress.random_subset import AdaptiveRandom, RandomK
from hpcopt.compress.residuals import Layout, Residuals
from hpcopt.compress.rounds import LinearRounds, Reduction, RoundCompressor, RoundsConfig
from hpcopt.compress.sign import Sign, SignBits
from hpcopt.compress.terngrad import SharedTernGrad, TernGrad
from hpcopt.compress.topk import SharedTopK, TopK

__all__ = [
    "BHQ",
    "AdaComp",
    "AdaptiveRandom",
    "Atomo",
    "BiasedRounding",
    "Bounded",
    "Bytes",
    "ChunkedTopK",
    "Codec",
    "CodecConfig",
    "Dense",
    "ExponentialDithering",
    "Floats",
    "Half",
    "Layout",
    "LinearRounds",
    "Natural",
    "PerTensor",
    "PowerSGD",
    "PSQ",
    "QSGD",
    "RandomK",
    "Reduction",
    "Residuals",
    "RoundCompressor",
    "RoundsConfig",
    "Rule",
    "SharedTernGrad",
    "SharedTopK",
    "Sign",
    "SignBits",
    "TernGrad",
    "TopK",
    "require_bytes",
]
