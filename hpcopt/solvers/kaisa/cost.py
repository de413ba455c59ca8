"""What KAISA takes of a step, predicted from sizes: for the placement of layers, and for ``--dry-run``.

Arithmetic is counted in floating-point operations at one rate, traffic in bytes at another. A method's own count
(``Method.refresh_flops``) is that of matrix products which would take as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpcopt.solvers.kaisa.layers.layer import Layer
from hpcopt.solvers.kaisa.memory import Widths, predict
from hpcopt.solvers.kaisa.method import Method
from hpcopt.solvers.kaisa.placement import Cost, Grid, place
from hpcopt.solvers.kaisa.plan import Message, Plan, Sizes
from hpcopt.solvers.kaisa.settings import DTYPES, KaisaSettings


def layer_cost(layer: Layer, method: Method, widths: Widths, settings: KaisaSettings) -> Cost:
    """Of a layer, spread over the steps between two refreshes."""
    refresh_s = method.refresh_flops(layer) / settings.flops
    factors_s = layer.factor_flops / settings.flops
    send_s = method.numel(layer) * widths.inverse / settings.bandwidth
    return Cost(
        refresh_s / settings.inverse_every + factors_s / settings.factor_every,
        method.step_flops(layer) / settings.flops,
        send_s / settings.inverse_every,
    )


@dataclass(frozen=True)
class Forecast:
    """What a fraction costs, each on the rank where it is most.

    Attributes:
        fraction: of the ranks that keep each layer's inverses.
        held_bytes: factors, inverses and moments, kept from step to step.
        sent_bytes: in an average step, for factors, inverses and preconditioned gradients.
        compute_s: preconditioning and inverting in an average step; statistics, which each rank takes of its own
            samples whatever the fraction, are left out.
        wire_s: of an average step, sending or receiving, whichever is more.
    """

    fraction: float
    held_bytes: int
    sent_bytes: float
    compute_s: float
    wire_s: float


def forecast(
    grid: Grid, costs: Sequence[Cost], sizes: Sequence[Sizes], widths: Widths, settings: KaisaSettings
) -> Forecast:
    """Place the layers on a grid and add up what each rank has to do."""
    placement = place(costs, grid)
    plans = [Plan(placement, sizes, rank) for rank in range(grid.size)]
    wire = widths.sums if settings.wire_dtype == "float32" else DTYPES[settings.wire_dtype].itemsize
    factors = wire / settings.factor_every
    inverses = widths.inverse / settings.inverse_every

    def traffic(plan: Plan) -> tuple[float, float]:
        own = plan.sums.lengths[plan.rank]
        sent = (plan.sums.numel - own) * factors
        received = (grid.size - 1) * own * factors
        sent += _values(plan.inverses_out) * inverses + _values(plan.gradients_out) * widths.gradient
        received += _values(plan.inverses_in) * inverses + _values(plan.gradients_in) * widths.gradient
        return sent, received

    bytes_ = [traffic(plan) for plan in plans]
    return Forecast(
        fraction=grid.fraction,
        held_bytes=max(predict(plan, widths).held_bytes for plan in plans),
        sent_bytes=max(sent for sent, _ in bytes_),
        compute_s=max(
            sum(costs[i].precondition_s for i in plan.worked) + sum(costs[i].invert_s for i in plan.owned)
            for plan in plans
        ),
        wire_s=max(max(pair) for pair in bytes_) / settings.bandwidth,
    )


def table(forecasts: Sequence[Forecast], other_s: float) -> str:
    """For a person; ``other_s`` is the rest of a step: the model's own passes and the exchange of gradients."""
    rows = ["fraction   kept on the fullest rank   sent a step   KAISA, compute + wire   whole step"]
    rows += [
        f"{f.fraction:<8.3g} {f.held_bytes / 1e6:20,.1f} MB {f.sent_bytes / 1e6:10,.1f} MB "
        f"{f.compute_s:11.3g} + {f.wire_s:.3g} s {f.compute_s + f.wire_s + other_s:10.3g} s"
        for f in forecasts
    ]
    return "\n".join(rows)


def _values(messages: Sequence[Message]) -> int:
    return sum(m.stop - m.start for m in messages)
