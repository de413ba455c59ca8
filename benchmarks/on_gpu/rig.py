"""What a part is given, and the rows in which it tells what it found."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch

Size = TypeVar("Size")


@dataclass(frozen=True)
class Row:
    """One thing that was found.

    Attributes:
        what: for a person.
        found: a number, or words.
        unit: of the number.
        goal: what it should be; empty, if nobody said.
        held: whether it is; None without a goal.
    """

    what: str
    found: float | str
    unit: str = ""
    goal: str = ""
    held: bool | None = None


def at_least(what: str, found: float, goal: float, unit: str = "") -> Row:
    """A number that should not be lower."""
    return Row(what, found, unit, f"at least {goal:g}", found >= goal)


def at_most(what: str, found: float, goal: float, unit: str = "") -> Row:
    """A number that should not be higher."""
    return Row(what, found, unit, f"at most {goal:g}", found <= goal)


def alike(what: str, same: bool, found: str = "") -> Row:
    """Whether two things that should be the same are."""
    return Row(what, found or ("the same" if same else "another"), goal="the same", held=same)


@dataclass(frozen=True)
class Rig:
    """Where a part runs.

    Attributes:
        device: that is looked at.
        rehearsed: sizes are small, to see that the part runs; figures then mean nothing.
    """

    device: torch.device
    rehearsed: bool

    def size(self, whole: Size, small: Size) -> Size:
        """One of two, the second in a rehearsal."""
        return small if self.rehearsed else whole

    def finish(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """What a run takes, to its end on the device."""
        self.finish()
        start_s = time.perf_counter()
        run()
        self.finish()
        return time.perf_counter() - start_s

    def device_seconds(self, run: Callable[[], object]) -> float:
        """What a run takes by the device's own clock, from the first kernel's start to the last one's end."""
        if self.device.type != "cuda":
            return self.seconds(run)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))

    def beside(self, run: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
        """Median seconds of two things that take turns."""
        run(), other()
        turns = [(self.device_seconds(run), self.device_seconds(other)) for _ in range(self.size(21, 1))]
        return median(t for t, _ in turns), median(t for _, t in turns)

    def draw(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Gaussian values, float32, the same on any device."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)


@contextmanager
def rig_of(name: str, *, rehearsed: bool) -> Iterator[Rig]:
    """The device of a name: "cuda", "cpu", or "sim", which is the simulated one of the tests."""
    with ExitStack() as patches:
        device = _simulated(patches) if name == "sim" else torch.device(name)
        if name == "cuda":
            device = torch.device(name, 0)
            torch.cuda.set_device(device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield Rig(device, rehearsed)


def _simulated(patches: ExitStack) -> torch.device:
    """It has Triton's kernels by their interpreter, and is what the training command takes for a rank's device."""
    from unittest import mock

    from tests.simulated_gpu.device import LEDGER, SIM
    from tests.simulated_gpu.run import interpreted_kernels

    def taken(world: Any, *_: object) -> torch.device:
        from hpcopt.comm.staged import StagedTransport

        world.transport = StagedTransport(world.transport)
        return SIM

    def refuse_nothing() -> None:
        assert not LEDGER.refused, dict(LEDGER.refused)

    patches.callback(refuse_nothing)
    patches.enter_context(interpreted_kernels())
    patches.enter_context(mock.patch("hpcopt.trainer.services.use_device", taken))
    return SIM
