"""A batch's visit of a block, and the visits whose gradients from above are still to come."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hpcopt.shapes.solver import Tree


@dataclass
class Visit:
    """A micro-batch at a block.

    Attributes:
        inputs: a leaf.
        outputs: with the graph from the inputs, as long as it is needed.
        slopes: gradients in the inputs: of the block's own loss, of the next one's above it, and so on.
    """

    inputs: Tensor
    outputs: Tensor | None
    slopes: list[Tensor] = field(default_factory=list)


class Late:
    """The last batches' inputs of a block, each with the gradients in its outputs once they have come."""

    def __init__(self, batches: int) -> None:
        """Gradients come ``batches`` steps after the inputs."""
        self._batches = batches
        self._held: deque[tuple[list[Tensor], list[Tensor] | None]] = deque()

    @property
    def due(self) -> int:
        """Micro-batches whose gradients the next step needs."""
        return len(self._held[0][0]) if len(self._held) == self._batches else 0

    def swap(self, inputs: list[Tensor], slopes: list[Tensor] | None) -> tuple[list[Tensor], list[Tensor] | None]:
        """Keep a batch's micro-batches, with what is already known of their gradients, for those that are due now."""
        self._held.append((inputs, slopes))
        return self._held.popleft() if len(self._held) > self._batches else ([], [])

    def awaited(self) -> Sequence[list[Tensor]]:
        """The inputs of the batches whose gradients have not come, the oldest first."""
        return [inputs for inputs, slopes in self._held if slopes is None]

    def fill(self, slopes: Sequence[list[Tensor]]) -> None:
        """Take the gradients of the batches that are ``awaited``."""
        coming = iter(slopes)
        self._held = deque((inputs, next(coming) if known is None else known) for inputs, known in self._held)

    def state_dict(self) -> Tree:
        """All of it, when nothing is awaited."""
        return [{"inputs": inputs, "slopes": slopes} for inputs, slopes in self._held]

    def load_state_dict(self, state: Tree, like: Tensor) -> None:
        """Go on from a state, on the device of a tensor."""
        self._held = deque(
            ([x.to(like.device) for x in batch["inputs"]], [x.to(like.device) for x in batch["slopes"]])
            for batch in state
        )
