"""What a trainer drives where its solver does not matter."""

from torch import nn

from hpcopt.shapes import Solver


class Idle(Solver):
    """Has one small model and no state; a subclass says what its steps tell."""

    def __init__(self, rank: int, size: int) -> None:
        self.model = nn.Linear(1, 1)
        self.data_rank, self.data_size = rank, size

    def gather(self):
        pass

    def plan(self, flops):
        return {}

    def state_dict(self):
        return {}

    def rank_state_dict(self):
        return {}

    def load_state_dict(self, shared, parts):
        pass
