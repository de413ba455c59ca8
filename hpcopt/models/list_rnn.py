"""A recurrent network over a list of any length, in plain Python: its loop is the instance's own."""

from torch import Tensor, nn

from hpcopt.models.gated_unit import GatedUnit


class ListRnn(nn.Module):
    """A gated recurrent unit over tokens; its last state decides the class."""

    def __init__(self, words: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed = nn.Embedding(words, hidden)
        self.cell = GatedUnit(hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """From tokens, (n,), int64, to logits, (1, classes)."""
        rows = self.embed(tokens)
        h = rows.new_zeros(self.hidden)
        for row in rows:
            h = self.cell(row, h)
        logits: Tensor = self.head(h[None])
        return logits
