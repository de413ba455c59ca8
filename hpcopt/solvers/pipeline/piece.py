"""One block's parameters in training: its exchange with its peers, and its optimizer.

Every block has its own, so that a checkpoint fits whatever run of blocks a rank holds.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.optim import Optimizer

from hpcopt.comm.world import World
from hpcopt.exchange import Exchange
from hpcopt.optim.by_pattern import GroupConfig, build_by_pattern
from hpcopt.optim.groups import set_learning_rate
from hpcopt.optim.state import optimizer_state, restore_optimizer
from hpcopt.randomness import drawn_by
from hpcopt.seeds import EVERY_RANK, derive
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Tree, optimizer_tensors
from hpcopt.solvers.first_order import FirstOrder

Named = Sequence[tuple[str, nn.Parameter]]


class Piece:
    """Block t of T, on one rank or on the ranks of ``peers``, which see other samples and hold the same parameters."""

    def __init__(self, number: int, named: Named, config: FirstOrder, peers: World, context: Context) -> None:
        """``number`` is t. Collective over the peers.

        Args:
            number: of the block.
            named: its parameters that are trained, by their names in the whole network.
            config: says the optimizer, and the groups that have others.
            peers: who holds the same.
            context: of the solver.
        """
        self.number, self._named, self._config = number, named, config
        seed, self._draws = context.seed(f"exchange of block {number}"), context.seed(f"draws of block {number}")
        self.exchange = Exchange(peers, named, context.required_exchange, seed=seed, clock=context.clock)
        self.optimizer: Optimizer | None = None
        if named:
            self.optimizer = build_by_pattern(config.optimizer, _groups_of(config, named), named)

    def begin(self, backwards: int) -> None:
        """Make the gradients zero, before so many backward passes that add up."""
        self.exchange.zero(backwards=backwards)

    def update(self, rate: float, step: int) -> None:
        """Step by the gradients that were exchanged."""
        if self.optimizer is None:
            return
        set_learning_rate(self.optimizer, rate)
        with self._drawn_alike(step):
            self.optimizer.step()

    def _drawn_alike(self, step: int) -> AbstractContextManager[None]:
        """Within it, all peers draw the same, whatever they have drawn before."""
        return drawn_by(derive(self._draws, step, EVERY_RANK, "optimizer")) if self._config.draws else nullcontext()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters, and what the optimizer keeps of them, with names for messages."""
        yield from self._named
        if self.optimizer is not None:
            yield from optimizer_tensors(self.optimizer)

    def state_dict(self) -> Tree:
        """What a rank of this block keeps; the parameters belong to the model's state."""
        own = None if self.optimizer is None else optimizer_state(self.optimizer)
        return {"optimizer": own, "exchange": self.exchange.rank_state_dict()}

    def load_state_dict(self, saved: Sequence[Tree]) -> None:
        """Take over what all ranks that held this block kept."""
        self.exchange.load_state_dict([state["exchange"] for state in saved])
        if self.optimizer is not None:
            restore_optimizer(self.optimizer, saved[0]["optimizer"])


def _groups_of(config: FirstOrder, named: Named) -> list[GroupConfig]:
    """The job's groups that have parameters among these."""
    first = {next((i for i, g in enumerate(config.groups) if fnmatchcase(name, g.pattern)), None) for name, _ in named}
    return [group for index, group in enumerate(config.groups) if index in first]
