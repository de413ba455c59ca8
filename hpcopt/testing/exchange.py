"""What every exchange promises, as functions that raise AssertionError; ``check_exchange`` runs them all, on ranks that
are threads of this process.

    from hpcopt.testing.exchange import check_exchange

    def test_mine():
        check_exchange(MineConfig())

An exchange that gives signs is not asked for sums, nor for NaN where a minority sends them.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.errors import HpcoptError, NonFiniteError
from hpcopt.exchange import Exchange, ExchangeConfig

Shapes = Sequence[tuple[int, ...]]

RAGGED: Shapes = ((50, 30), (), (7,), (0,), (129, 3))  # what an exchange is tried on: matrices, a number, nothing
SIZES = (1, 2, 3)
BUCKET_MB = 0.004  # so that there are several buckets
SLACK_BYTES = 8  # for each bucket, of a plan: where ranks do not divide its values


def check_exchange(config: ExchangeConfig) -> None:
    """Run every check below.

    Raises:
        AssertionError: naming the exchange, the promise and the number of ranks.
    """
    config = config.model_copy(update={"bucket_mb": BUCKET_MB})
    for size in SIZES:
        check_equal(config, size)
        check_bytes(config, size)
        check_resume(config, size)
    for shapes in ((), ((0,),), ((1,),), ((),)):
        check_equal(config, 3, shapes)
    check_seed(config)
    for before, now in ((3, 2), (2, 3), (1, 3), (3, 1)):
        check_resharding(config, before, now)
    for size in (2, 3):
        check_not_finite(config, size)
    check_damage(config)


class Learner:
    """Parameters on one rank, with an exchange; each rank has gradients of its own."""

    def __init__(self, transport: Transport, config: ExchangeConfig, shapes: Shapes = RAGGED, seed: int = 0) -> None:
        self.world = World(transport)
        self.parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        named = [(f"p{index}", p) for index, p in enumerate(self.parameters)]
        self.exchange = Exchange(self.world, named, config, seed=seed)
        self.world.traffic.lap()

    def gradients(self, step: int) -> list[Tensor]:
        """This rank's, of a step: Gaussian values."""
        generator = torch.Generator().manual_seed(1000 * step + self.world.rank)
        return [torch.randn(p.shape, generator=generator) for p in self.parameters]

    def step(self, step: int, spoil: float | None = None, *, idle: bool = False) -> list[Tensor]:
        """What the gradients of a step become; ``spoil`` stands at one place of them, and ``idle`` ranks have none."""
        self.exchange.zero()
        gradients = self.gradients(step)
        if spoil is not None:
            gradients[0].view(-1)[-1] = spoil
        with suppress(NonFiniteError):  # the gradients are NaN then
            self._exchange_gradients([] if idle else gradients)
        return [p.grad.clone() for p in self.parameters if p.grad is not None]

    def _exchange_gradients(self, gradients: list[Tensor]) -> None:
        if gradients:
            torch.stack([(p * g).sum() for p, g in zip(self.parameters, gradients, strict=True)]).sum().backward()  # type: ignore[no-untyped-call]
        self.exchange.finish()

    def state(self) -> Any:
        """A copy of the exchange's state on this rank."""
        return copy.deepcopy(self.exchange.rank_state_dict())


def check_equal(config: ExchangeConfig, size: int, shapes: Shapes = RAGGED) -> None:
    """All ranks have the same bits after each step, and of the shapes that went in, whatever these are; without a codec
    sums are the sums.
    """
    who = f"{label(config)} on {size} ranks with parameters {tuple(shapes)}"

    def program(transport: Transport) -> list[list[Tensor]]:
        learner = Learner(transport, config, shapes)
        return [learner.step(step) for step in range(3)]

    ranks = run_ranks(size, program)
    for outcome in ranks:
        assert _same(outcome, ranks[0]), f"{who}: ranks differ after a step"
        assert all([tuple(g.shape) for g in step] == list(shapes) for step in outcome), f"{who}: other shapes come out"
        assert all(g.isfinite().all() for step in outcome for g in step), f"{who}: finite values became Inf or NaN"
    if size == 1 and config.gives == "sums":
        given = run_ranks(1, lambda t: [Learner(t, config, shapes).gradients(step) for step in range(3)])[0]
        assert _same(ranks[0], given), f"{who}: one rank's sum is not its own gradient"


def check_bytes(config: ExchangeConfig, size: int) -> None:
    """No rank sends more than was planned, and one rank alone sends nothing."""

    def program(transport: Transport) -> tuple[list[int], int, int]:
        learner = Learner(transport, config)
        planned = learner.exchange.planned_bytes()
        learner.world.traffic.lap()  # of getting ready
        sent = []
        for step in range(8):
            learner.step(step)
            sent.append(learner.world.traffic.lap().sent_bytes)
        return sent, planned, len(learner.exchange.buckets)

    for sent, planned, buckets in run_ranks(size, program):
        who = f"{label(config)} on {size} ranks"
        assert max(sent) <= planned + SLACK_BYTES * buckets, f"{who}: {max(sent)} bytes sent, {planned} planned"
        assert size > 1 or not planned, f"{who}: one rank has nobody to send {planned} bytes to"


def check_seed(config: ExchangeConfig) -> None:
    """The same seed gives the same bits, whatever else is drawn."""

    def values(elsewhere: int) -> list[list[Tensor]]:
        torch.manual_seed(elsewhere)
        return run_ranks(2, lambda transport: Learner(transport, config, seed=2**40 + 3).step(0))

    assert _same(values(0), values(1)), f"{label(config)}: other values at the same seed"


def check_resume(config: ExchangeConfig, size: int) -> None:
    """A run that goes on from its ranks' states has the bits of one that never stopped; and so it has where ranks are
    asked for their states without being stopped.
    """

    def straight(transport: Transport) -> tuple[list[list[Tensor]], Any]:
        learner = Learner(transport, config)
        for step in range(3):
            learner.step(step)
        state = learner.state()
        return [learner.step(step) for step in range(3, 6)], state

    ranks = run_ranks(size, straight)
    states = [state for _, state in ranks]

    def resumed(transport: Transport) -> list[list[Tensor]]:
        learner = Learner(transport, config)
        learner.exchange.load_state_dict(copy.deepcopy(states))
        return [learner.step(step) for step in range(3, 6)]

    for outcome, (expected, _) in zip(run_ranks(size, resumed), ranks, strict=True):
        assert _same(outcome, expected), f"{label(config)} on {size} ranks: a resume goes on with other bits"


def check_resharding(config: ExchangeConfig, before: int, now: int, steps: int = 20) -> None:
    """On another number of ranks a run goes on from the same step, and nothing that is owed is lost: in steps without
    gradients as much of it comes out as on the ranks that owe it.

    Args:
        steps: without gradients.
    """

    def earlier(transport: Transport) -> tuple[Tensor, Tensor, Any]:
        learner = Learner(transport, config)
        given = sum((_flat(learner.gradients(step)) for step in range(4)), torch.zeros(()))
        return given, sum((_flat(learner.step(step)) for step in range(4)), torch.zeros(())), learner.state()

    def later(transport: Transport, states: Sequence[Any]) -> Tensor:
        learner = Learner(transport, config)
        learner.exchange.load_state_dict(copy.deepcopy(states))
        assert learner.state()["step"] == 4, f"{label(config)} from {before} to {now} ranks: goes on from another step"
        return sum((_flat(learner.step(step, idle=True)) for step in range(4, 4 + steps)), torch.zeros(()))

    ranks = run_ranks(before, earlier)
    given = sum((own for own, _, _ in ranks), torch.zeros(()))
    states = [state for _, _, state in ranks]
    missed = {
        size: float((ranks[0][1] + run_ranks(size, lambda t: later(t, states))[0] - given).norm() / given.norm())
        for size in (before, now)
    }
    if config.gives == "sums":
        assert missed[now] <= 1.1 * missed[before] + 0.05, (
            f"{label(config)}: on {now} ranks {missed[now]:.0%} of the gradients never came out, "
            f"on {before} {missed[before]:.0%}"
        )


def check_not_finite(config: ExchangeConfig, size: int) -> None:
    """Inf or NaN of one rank is seen by all in that step and by none in the next, and no state keeps it."""
    for bad in (math.nan, math.inf, -math.inf):

        def program(transport: Transport, bad: float = bad) -> list[tuple[bool, bool]]:
            learner, seen = Learner(transport, config), []
            for step in range(4):
                outcome = learner.step(step, bad if step == 1 and transport.rank == size - 1 else None)
                kept = all(t.isfinite().all() for t in _tensors(learner.state()))
                seen.append((all(bool(g.isfinite().all()) for g in outcome), kept))
            return seen

        for seen in run_ranks(size, program):
            who = f"{label(config)} on {size} ranks, {bad} on one"
            assert all(kept for _, kept in seen), f"{who}: a state keeps it"
            wanted = [config.gives != "sums" or step != 1 for step in range(4)]
            assert [finite for finite, _ in seen] == wanted, f"{who}: finite gradients in steps {seen}, not {wanted}"


def check_damage(config: ExchangeConfig) -> None:
    """A state whose tensors have other shapes is refused with an error that explains itself."""

    def program(transport: Transport) -> None:
        learner, other = Learner(transport, config), Learner(transport, config)
        learner.step(0)
        state = learner.state()
        if not _tensors(state):
            return
        try:
            other.exchange.load_state_dict([_misshapen(state)] * transport.size)
            other.step(1)
        except HpcoptError:
            return
        raise AssertionError(f"{label(config)}: takes a state of other shapes without a word")

    run_ranks(2, program)


def label(config: ExchangeConfig) -> str:
    """The exchange and those of its settings that are not the defaults."""
    settings = config.model_dump(exclude_defaults=True, exclude={"name", "bucket_mb"})
    return "-".join([config.name, *(f"{key}={value}" for key, value in settings.items())])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors]).double()


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        return [tensor for part in state.values() for tensor in _tensors(part)]
    return [state] if isinstance(state, Tensor) else []


def _misshapen(state: Any) -> Any:
    """A state whose tensors have one value more than they should."""
    if isinstance(state, dict):
        return {key: _misshapen(part) for key, part in state.items()}
    return torch.cat([state.reshape(-1), state.new_zeros(1)]) if isinstance(state, Tensor) else state
