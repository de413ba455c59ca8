"""How much memory a rank's part takes, before anything is made; and which fraction of the ranks fits a budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpcopt.errors import JobError
from hpcopt.solvers.kaisa.placement import Cost, Grid, Placement, place
from hpcopt.solvers.kaisa.plan import Plan, Sizes


@dataclass(frozen=True)
class Widths:
    """Bytes of a value, in each place."""

    sums: int
    factor: int
    inverse: int
    gradient: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        held_bytes: factors, inverses and moments, kept from step to step.
        passing_bytes: most that is needed beside them for a while: the sums of a factor step with what the other ranks
            send, the matrices at work while a factor is inverted, or a step's gradients.
    """

    held_bytes: int
    passing_bytes: int


def predict(plan: Plan, widths: Widths) -> Memory:
    """The memory of a rank's plan."""
    size = plan.placement.grid.size
    own = plan.sums.lengths[plan.rank]
    held = plan.factors * widths.factor + plan.inverses.numel * widths.inverse + plan.moments.numel * widths.gradient
    # at worst the others' segments as they are sent, and as many of the own as there are ranks
    travelling = size * own if size > 1 else 0
    sums = (plan.sums.numel + travelling) * widths.sums
    inverting = max((plan.inverting[i] for i in plan.owned), default=0) * widths.sums
    return Memory(held, max(sums, inverting, plan.gradients.numel * widths.gradient))


def choose(
    costs: Sequence[Cost], sizes: Sequence[Sizes], size: int, widths: Widths, budget_bytes: int
) -> tuple[Placement, Memory]:
    """The placement with the fewest columns, so the least communication, whose fullest rank holds no more than the
    budget.

    Raises:
        JobError: not even the memory-optimal placement fits.
    """
    worst: Callable[[Placement], Memory] = lambda placement: max(  # noqa: E731
        (predict(Plan(placement, sizes, rank), widths) for rank in range(size)), key=lambda m: m.held_bytes
    )
    for columns in range(1, size + 1):
        placement = place(costs, Grid(size, columns))
        memory = worst(placement)
        if memory.held_bytes <= budget_bytes:
            return placement, memory
    raise JobError(
        f"KAISA needs {memory.held_bytes:,} bytes on its fullest rank even with a fraction of 1/{size}, more than the "
        f'memory_budget of {budget_bytes:,}: raise it, use more ranks, factor_dtype and inverse_dtype = "bfloat16", or '
        "a smaller max_size"
    )
