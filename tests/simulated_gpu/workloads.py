"""The workloads that cases train: those of the house, on data sets of a few samples, and one made of a problem."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from hpcopt.lowbit import QuantizedConfig
from hpcopt.models.bert import BertConfig
from hpcopt.models.causal.config import CausalModelConfig
from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.models.causal.transformer import TransformerConfig
from hpcopt.models.coded_embedding import CodedEmbeddingConfig
from hpcopt.models.config import FrameModelConfig, GraphModelConfig, ImageModelConfig
from hpcopt.models.control.ofenet import OfeNetConfig
from hpcopt.models.control.perceptrons import DenseMlpBodyConfig
from hpcopt.models.control.simba import SimbaBodyConfig
from hpcopt.models.deductron import DeductronConfig
from hpcopt.models.deep_resnet import DeepResNetConfig
from hpcopt.models.frames import FrameMlpConfig, TanhRnnConfig
from hpcopt.models.graph.networks import GatConfig, GcnConfig, GraphSageConfig, NodeMlpConfig
from hpcopt.models.mlp import MlpConfig
from hpcopt.models.nmf import FactorMlpConfig
from hpcopt.models.padded_mlp import PaddedMlpConfig
from hpcopt.models.product_codes import ProductCodesConfig
from hpcopt.models.relu_student import ReluStudentConfig
from hpcopt.models.resnet import ResNetConfig
from hpcopt.models.unet import UNetConfig
from hpcopt.models.vit import VitConfig
from hpcopt.shapes.batch import TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig
from hpcopt.store.sentence_pairs import write_pairs
from hpcopt.store.shards import write_shards
from hpcopt.testing.problem import Problem
from hpcopt.workloads.arithmetic_trees import ArithmeticTreesConfig
from hpcopt.workloads.bert_pretraining import BertPretrainingConfig
from hpcopt.workloads.control.workload import ControlConfig
from hpcopt.workloads.graph_distance import GraphDistanceConfig
from hpcopt.workloads.image_classification import ImageClassificationConfig
from hpcopt.workloads.instances import InstanceConfig
from hpcopt.workloads.language_model import LanguageModelConfig
from hpcopt.workloads.list_reduction import ListReductionConfig
from hpcopt.workloads.node_classification import NodeClassificationConfig
from hpcopt.workloads.own.workload import TorchConfig
from hpcopt.workloads.pictures.workload import PicturesConfig
from hpcopt.workloads.segmentation import SegmentationConfig
from hpcopt.workloads.teacher import TeacherConfig
from hpcopt.workloads.w_language import WLanguageConfig
from tests.graph_data import write_graph
from tests.text_data import write_text

SIDE, CLASSES, WORDS, TOKENS = 8, 12, 30, 32  # so many classes that there is a top-5 score
BATCH = 6
MINE = "tests.workloads.own.mine"


class OfProblem(Workload):
    """A problem as a workload; nothing is scored."""

    test_samples = 0
    scores: Mapping[str, Better] = {}

    def __init__(self, problem: Problem) -> None:
        task = problem.task()
        self.model, self.loss, self._samples, self._problem = task.model, task.loss, task.samples, problem
        self.batch, self.train_samples = problem.batch, problem.samples

    def train_batches(self, rank: int, size: int, start: int) -> Iterator[TensorBatch]:
        while True:
            yield from self._problem.batches(rank, size, 1, start)
            start += 1

    def by_index(self) -> Samples | None:
        return self._samples

    def test_batches(self, rank: int, size: int) -> Iterator[Any]:
        return iter(())

    def score(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class OfHouse:
    """A workload of the house, once a rank.

    Attributes:
        config: from a folder with the data sets of below.
    """

    config: Callable[[Path], WorkloadConfig]

    def __call__(self) -> Workload:
        return self.config(data()).made(Context(run_seed=1))


@cache
def data() -> Path:
    """A folder of data sets, for as long as the process lives."""
    holder = tempfile.TemporaryDirectory()
    HELD.append(holder)
    folder, draw = Path(holder.name), np.random.default_rng(0)
    images = {"scale": 1 / 255, "mean": np.array([0.5]), "std": np.array([0.3]), "classes": list(map(str, range(12)))}
    for split, rows in (("train", 4 * BATCH), ("test", BATCH)):
        arrays = {
            "images": draw.integers(0, 256, (rows, 1, SIDE, SIDE)).astype(np.uint8),
            "labels": draw.integers(0, CLASSES, rows),
            "masks": draw.integers(0, 2, (rows, SIDE, SIDE)),
        }
        write_shards(folder, split, arrays, rows_per_shard=10, attributes=images)
        last = draw.integers(8, TOKENS, rows)
        pairs = {
            "input_ids": draw.integers(5, WORDS, (rows, TOKENS)).astype(np.int32),
            "special_token_positions": np.stack([0 * last, last // 2, last], 1),
            "next_sentence_labels": draw.integers(0, 2, rows),
        }
        (folder / "pairs" / split).mkdir(parents=True)
        write_pairs(folder / "pairs" / split / "0.hdf5", pairs, {})
    write_graph(folder / "graph", nodes=60)
    write_text(folder / "text")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(WORDS - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


HELD: list[tempfile.TemporaryDirectory[str]] = []


def images(model: ImageModelConfig, **settings: Any) -> OfHouse:
    """Of one network."""
    return OfHouse(lambda folder: ImageClassificationConfig(data=folder, batch=BATCH, model=model, **settings))


def instances(config: type[InstanceConfig]) -> OfHouse:
    """Of one kind."""
    return OfHouse(lambda folder: config(batch=3, train=12, test=3, hidden=4))


def text(model: CausalModelConfig, **settings: Any) -> OfHouse:
    """Of words, by one network."""
    return OfHouse(
        lambda folder: LanguageModelConfig(data=folder / "text", batch=BATCH, length=8, model=model, **settings)
    )


def strings(model: FrameModelConfig) -> OfHouse:
    """Of drawings, by one network."""
    return OfHouse(lambda folder: WLanguageConfig(batch=BATCH, train=2 * BATCH, test=BATCH, model=model))


def nodes(model: GraphModelConfig, **settings: Any) -> OfHouse:
    """Of a graph, by one network."""
    return OfHouse(lambda folder: NodeClassificationConfig(data=folder / "graph", model=model, **settings))


def pictures(**settings: Any) -> OfHouse:
    """Of few and small sizes."""
    sizes = {"sizes": ((2, 2), (2, 3)), "validation_sizes": (), "test_sizes": ((3, 3),)}
    return OfHouse(lambda folder: PicturesConfig(batch=BATCH, train=4 * BATCH, test=BATCH, **sizes, **settings))


ACTING = OfHouse(
    lambda folder: ControlConfig(
        environment="tests.solvers.actor_critic.worlds:Track",
        environments=2,
        batch=4,
        test=2,
        actor=SimbaBodyConfig(width=8),
        critic=DenseMlpBodyConfig(width=8),
        features=OfeNetConfig(layers=1, growth=4, normalise=True),
    )
)

GRAPH_NETWORKS = (GraphSageConfig(hidden=(8,)), GatConfig(hidden=(8,), heads=2), NodeMlpConfig(hidden=(8,)))
GRAPHS = {network.name: nodes(network) for network in GRAPH_NETWORKS}
NETWORKS = (
    ResNetConfig(blocks=1, width=4),
    DeepResNetConfig(depth=18),
    FactorMlpConfig(hidden=(8,), factors=4),
    VitConfig(patch=4, layers=1, width=8, heads=2),
)
OF_FRAMES = (DeductronConfig(gates="hard"), TanhRnnConfig(), FrameMlpConfig())
MODELS = {
    **{network.name: images(network) for network in NETWORKS},
    **{network.name: strings(network) for network in OF_FRAMES},
    "transformer": text(TransformerConfig(width=8, layers=1, heads=2, head="tied")),
    "padded_mlp": pictures(model=PaddedMlpConfig(hidden=(4,))),
    "of few bits": images(ResNetConfig(blocks=1, width=4), rewrites=(QuantizedConfig(),)),
    "of codes": text(LstmConfig(width=8, units=8), rewrites=(CodedEmbeddingConfig(ways=4, digits=3, guide="table"),)),
    "of learnt products": text(LstmConfig(width=8, units=8), rewrites=(ProductCodesConfig(ways=4, digits=2),)),
}
WORKLOADS: dict[str, OfHouse] = {
    "image_classification": images(MlpConfig(hidden=(8,)), labelled=0.5),
    "segmentation": OfHouse(
        lambda folder: SegmentationConfig(data=folder, batch=BATCH, model=UNetConfig(depth=1, width=4))
    ),
    "bert_pretraining": OfHouse(
        lambda folder: BertPretrainingConfig(
            data=folder / "pairs", batch=BATCH, model=BertConfig(size="tiny", dropout=0)
        )
    ),
    "language_model": text(LstmConfig(width=8, units=8)),
    "list_reduction": instances(ListReductionConfig),
    "arithmetic_trees": instances(ArithmeticTreesConfig),
    "graph_distance": instances(GraphDistanceConfig),
    "w_language": strings(DeductronConfig()),
    "node_classification": nodes(GcnConfig(hidden=(8,)), clusters=4, batch=4),
    "teacher": OfHouse(
        lambda folder: TeacherConfig(
            inputs=6, hidden=(3,), train=60, batch=60, test=BATCH, noise=0.1, model=ReluStudentConfig(hidden=(3,))
        )
    ),
    "pictures": pictures(),
    "torch": OfHouse(
        lambda folder: TorchConfig(
            network=f"{MINE}:Net", train=f"{MINE}:Table", test=f"{MINE}:Table", batch=BATCH, scores=("accuracy",)
        )
    ),
    "torch, a stream of dictionaries": OfHouse(
        lambda folder: TorchConfig(
            network=f"{MINE}:TwoInputs",
            train=f"{MINE}:Table",
            train_arguments={"kind": "two inputs"},
            test=f"{MINE}:Table",
            test_arguments={"kind": "two inputs"},
            batch=BATCH,
            workers=1,
            workers_by="thread",
        )
    ),
}
