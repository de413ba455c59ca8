"""BERT with its two pretraining heads (Devlin et al. 2018, arXiv:1810.04805), numerically the published network.

Each block is post-norm: ``h = norm(x + attention(x))``, then ``norm(h + down(gelu(up(h))))``. The masked-token decoder
is tied to the word embedding and runs on the masked places only, some 15 % of all. Dense layers are plain nn.Linear,
each called once in a forward pass.

Tensor sizes: n sequences, s tokens each, k masked tokens over all of them, h hidden units, v words.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hpcopt.errors import DataError
from hpcopt.models.attention import DotProductAttention
from hpcopt.models.config import TokenModelConfig


class _Size(NamedTuple):
    layers: int
    hidden: int
    heads: int


_SIZES = {
    "tiny": _Size(2, 128, 2),
    "mini": _Size(4, 256, 4),
    "base": _Size(12, 768, 12),
    "large": _Size(24, 1024, 16),
}
POSITIONS = 512  # the longest sequence


class BertConfig(TokenModelConfig):
    """BERT of one of the published sizes."""

    name: Literal["bert"] = "bert"
    size: Literal["tiny", "mini", "base", "large"] = Field(
        "mini", description="layers x hidden units: 2 x 128, 4 x 256, 12 x 768, 24 x 1024"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="after embeddings and sublayers, and on attention weights")

    def build(self, words: int) -> "Bert":
        """Make the network for a vocabulary of so many words."""
        return Bert(*_SIZES[self.size], words, self.dropout)


class Bert(nn.Module):
    """The encoder, the masked-token head and the next-sentence head."""

    def __init__(self, layers: int, hidden: int, heads: int, words: int, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(words, hidden)
        self.position = nn.Embedding(POSITIONS, hidden)
        self.segment = nn.Embedding(2, hidden)
        self.norm = _norm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(BertLayer(hidden, heads, dropout) for _ in range(layers))
        self.pooler = nn.Linear(hidden, hidden)
        self.transform = nn.Linear(hidden, hidden)
        self.transform_norm = _norm(hidden)
        self.bias = nn.Parameter(torch.zeros(words))
        self.next_sentence = nn.Linear(hidden, 2)
        self.apply(_initialise)

    def forward(
        self, input_ids: Tensor, segment_ids: Tensor, input_mask: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict the masked tokens, and whether the second sentence follows the first.

        Args:
            input_ids: words, (n, s), int32 or int64; s <= 512.
            segment_ids: 0 in the first sentence, 1 in the second, likewise.
            input_mask: true where there is a token and no padding, (n, s), bool.
            masked: which of the n * s places to predict, (k,), int64.

        Returns:
            Logits of the words, (k, v), and of "follows" and "is random", (n, 2).
        """
        x = self.encode(input_ids, segment_ids, input_mask)
        next_sentence: Tensor = self.next_sentence(self.dropout(torch.tanh(self.pooler(x[:, 0]))))
        found = self.transform_norm(F.gelu(self.transform(x.flatten(0, 1)[masked])))
        return F.linear(found, self.word.weight, self.bias), next_sentence

    def encode(self, input_ids: Tensor, segment_ids: Tensor, input_mask: Tensor) -> Tensor:
        """The last layer's output, (n, s, h); arguments as of forward."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x: Tensor = self.dropout(self.norm(self.word(input_ids) + self.position(places) + self.segment(segment_ids)))
        for layer in self.layers:
            x = layer(x, input_mask[:, None, None])
        return x


class BertLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual and a norm after it."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention = heads, DotProductAttention(dropout)
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.out, self.attention_norm = nn.Linear(hidden, hidden), _norm(hidden)
        self.up, self.down, self.output_norm = (
            nn.Linear(hidden, 4 * hidden),
            nn.Linear(4 * hidden, hidden),
            _norm(hidden),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """Map (n, s, h) to (n, s, h); attended, (n, 1, 1, s), bool, is true for the tokens that may be looked at."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        context = self.attention(q, k, v, attended).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.dropout(self.out(context)))
        y: Tensor = self.output_norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
        return y


def _norm(hidden: int) -> nn.LayerNorm:
    return nn.LayerNorm(hidden, eps=1e-12)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


_PUBLISHED = {
    "word": "bert.embeddings.word_embeddings",
    "position": "bert.embeddings.position_embeddings",
    "segment": "bert.embeddings.token_type_embeddings",
    "norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "": "cls.predictions",
    "next_sentence": "cls.seq_relationship",
}
_PUBLISHED_IN_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}


def published_name(name: str) -> str:
    """A parameter's name in the weight files that are in circulation."""
    module, _, kind = name.rpartition(".")
    if inside := re.fullmatch(r"layers\.(\d+)\.(\w+)", module):
        return f"bert.encoder.layer.{inside[1]}.{_PUBLISHED_IN_LAYER[inside[2]]}.{kind}"
    return f"{_PUBLISHED[module]}.{kind}"


def export_weights(model: Bert, path: Path) -> None:
    """Write the weights under their published names, as a safetensors file."""
    from safetensors.torch import save_file

    save_file({published_name(name): p.detach().contiguous() for name, p in model.named_parameters()}, path)


def import_weights(model: Bert, path: Path) -> None:
    """Read weights with published names from a safetensors file; what else is in the file does not matter.

    Raises:
        DataError: no such file, or a weight is missing or has another shape than the model's.
    """
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except Exception as cause:  # the library has an error class of its own for each kind of damage
        raise DataError(f"cannot read weights from {path} ({cause})") from cause
    found = {re.sub("gamma$", "weight", re.sub("beta$", "bias", name)): tensor for name, tensor in found.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wanted = published_name(name)
            if wanted not in found or found[wanted].shape != parameter.shape:
                has = tuple(found[wanted].shape) if wanted in found else "missing"
                raise DataError(
                    f"{path} does not fit [workload] model: {wanted} is {has}, the model's {tuple(parameter.shape)}"
                )
            parameter.copy_(found[wanted])
