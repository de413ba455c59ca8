"""Embeddings from codes: a word is D digits of K values each, and each digit chooses a vector from a small table
(Chen, Min and Sun 2018, arXiv:1806.09464). This is what is left after training: integers and tables. The first words
may have vectors of their own.

Sizes: v words, D digits of K ways, n tokens, w the width of a table's vectors, d that of an embedding.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hpcopt.errors import fitting

Composition = Literal["mean", "concat", "mlp", "cnn", "lstm"]


class Composer(nn.Module):
    """The tables, and what makes an embedding of a word's D vectors: their mean, or one behind the other, then nothing
    or a linear map; their mean and a perceptron; or a convolution or an LSTM over the digits and its mean.
    """

    def __init__(self, digits: int, ways: int, inner: int, width: int, how: Composition) -> None:
        """Args:
        digits, ways: D and K.
        inner: width of a vector, w.
        width: of an embedding, d.
        how: to compose.
        """
        super().__init__()
        self.tables = nn.Parameter(torch.randn(digits, ways, inner))
        self.mlp = nn.Linear(inner, inner) if how == "mlp" else None
        self.cnn = nn.Conv1d(inner, inner, 3, padding=1) if how == "cnn" else None
        self.lstm = nn.LSTM(inner, inner, batch_first=True) if how == "lstm" else None
        self.concat = how == "concat"
        composed = digits * inner if self.concat else inner
        self.out = None if composed == width and how in ("mean", "concat") else nn.Linear(composed, width, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings, (n, d), of codes, (n, D), integers below K."""
        return self._composed(self.tables[torch.arange(codes.shape[1], device=codes.device), codes.long()])

    def of_choices(self, choices: Tensor) -> Tensor:
        """Embeddings, (n, d), of how much of each way a digit is, (n, D, K): a one where it is a code."""
        if self.cnn is None and self.lstm is None and not self.concat:  # the mean over digits is one product
            return self._finished(choices.flatten(1) @ self.tables.flatten(0, 1) / self.tables.shape[0])
        return self._composed(torch.einsum("ndk,dkw->ndw", choices, self.tables))

    def _composed(self, vectors: Tensor) -> Tensor:
        if self.cnn is not None:
            vectors = self.cnn(vectors.transpose(1, 2)).relu().transpose(1, 2)
        if self.lstm is not None:
            vectors = self.lstm(vectors)[0]
        return self._finished(vectors.flatten(1) if self.concat else vectors.mean(1))

    def _finished(self, composed: Tensor) -> Tensor:
        if self.mlp is not None:
            composed = self.mlp(composed).relu()
        found: Tensor = composed if self.out is None else self.out(composed)
        return found

    @torch.no_grad()
    def scale_to(self, std: float) -> None:
        """Make embeddings of random codes have this standard deviation."""
        digits, ways, _ = self.tables.shape
        now = float(self(torch.randint(ways, (256, digits))).std())
        (self.tables if self.out is None else self.out.weight).mul_(std / max(now, 1e-12))


class CodeTable(nn.Module):
    """An embedding of packed codes, to be used and not trained; in the place of a ``torch.nn.Embedding``.

    Attributes:
        packed: the codes, ``ceil(log2 K)`` bits each and lowest first, uint8; digits of one word follow each other.
        size: v, D, K and d, int64.
        first: vectors of the first words, (n, d), which have no code; there if there are any.
        composer: tables and what composes them.
    """

    packed: Tensor
    size: Tensor
    first: Tensor

    def __init__(self, words: int, digits: int, ways: int, width: int, composer: Composer, exact: int = 0) -> None:
        """Make room for codes, which ``load_state_dict`` brings, of all words but the first ``exact``."""
        super().__init__()
        coded = words - exact
        self.register_buffer("packed", torch.zeros(-(-coded * digits * bits_of(ways) // 8), dtype=torch.uint8))
        self.register_buffer("size", torch.tensor([words, digits, ways, width]))
        if exact:
            self.register_buffer("first", torch.zeros(exact, width))
        self._exact = exact
        self.composer = composer.requires_grad_(False)
        self._codes: Tensor | None = None

    @staticmethod
    def of_state(state: Mapping[str, Tensor], name: str = "") -> "CodeTable":
        """The table of an exported ``state_dict``, without the network that it belongs to.

        Args:
            state: tensors by name, as ``hpcopt checkpoint export RUN FILE --codes`` writes them.
            name: of the embedding in the network, such as "word"; none: the state is its own.

        Raises:
            KeyError: there is no such embedding of codes.
            CheckpointError: it is damaged.
        """
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if "packed" not in own:
            there = [key.removesuffix(".packed") for key in state if key.endswith(".packed")]
            raise KeyError(f"no embedding {name} of codes, only {', '.join(there) or 'none'}")
        kinds: tuple[Composition, ...] = ("mlp", "cnn", "lstm")
        how: Composition = "mean"
        for kind in kinds:
            if any(key.startswith(f"composer.{kind}.") for key in own):
                how = kind
        with fitting("an embedding of codes"):
            words, digits, ways, width = own["size"].tolist()
            inner = own["composer.tables"].shape[2]
            composed = own["composer.out.weight"].shape[1] if "composer.out.weight" in own else width
            how = "concat" if composed != inner else how
            exact = len(own["first"]) if "first" in own else 0
            table = CodeTable(words, digits, ways, width, Composer(digits, ways, inner, width, how), exact)
            table.load_state_dict(own)
            _ = table.codes
        return table.eval()

    @property
    def codes(self) -> Tensor:
        """Of each word that has one, (v - n, D), int16 or int32; unpacked when first asked for."""
        if self._codes is None or self._codes.device != self.packed.device:
            words, digits, ways = self.size[:3].tolist()
            self._codes = unpack(self.packed, words - self._exact, digits, ways)
        return self._codes

    @property
    def weight(self) -> Tensor:
        """All embeddings, (v, d), as a tied head asks for them."""
        found: Tensor = self.composer(self.codes)
        return torch.cat([self.first, found]) if self._exact else found

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens, of any shape, with d as the last dimension."""
        words = tokens.long().flatten()
        found: Tensor = self.composer(self.codes[(words - self._exact).clamp(min=0)])
        if self._exact:
            own = self.first[words.clamp(max=self._exact - 1)]
            found = torch.where((words < self._exact)[:, None], own, found)
        return found.view(*tokens.shape, found.shape[1])

    def _load_from_state_dict(self, *arguments: object) -> None:
        super()._load_from_state_dict(*arguments)
        self._codes = None


def bits_of(ways: int) -> int:
    """Bits of a code below ``ways``.

    >>> [bits_of(ways) for ways in (2, 3, 32, 33)]
    [1, 2, 5, 6]
    """
    return max(1, (ways - 1).bit_length())


def storage_bits(words: int, digits: int, ways: int, composer: Composer) -> int:
    """Bits of codes, in whole bytes, and of the composer's float32 values."""
    values = sum(p.numel() for p in composer.parameters())
    return 8 * -(-words * digits * bits_of(ways) // 8) + 32 * values


def pack(codes: Tensor, ways: int) -> Tensor:
    """Codes, (v, D), as bytes: ``ceil(log2 ways)`` bits each, lowest first, one after another."""
    values = codes.cpu().numpy().astype(np.int64).reshape(-1, 1)
    bits = (values >> np.arange(bits_of(ways))) & 1
    return torch.from_numpy(np.packbits(bits.astype(np.uint8).ravel(), bitorder="little"))


def unpack(packed: Tensor, words: int, digits: int, ways: int) -> Tensor:
    """The codes again, (v, D), int16; int32 if there are more ways than that holds.

    Raises:
        ValueError: one is none of the ways.
    """
    width = bits_of(ways)
    bits = np.unpackbits(packed.cpu().numpy(), count=words * digits * width, bitorder="little").reshape(-1, width)
    values = (bits.astype(np.int64) << np.arange(width)).sum(1).reshape(words, digits)
    if values.size and values.max() >= ways:
        raise ValueError(f"a code is {values.max()}, and there are {ways} ways")
    return torch.from_numpy(values.astype(np.int16 if width < 16 else np.int32)).to(packed.device)
