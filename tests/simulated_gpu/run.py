"""Train cases on the simulated device and on the CPU, and print what came out, a JSON object a case:

    python -m tests.simulated_gpu.run [WORD]
    python -m tests.simulated_gpu.run --lines [WORD]
    python -m tests.simulated_gpu.run --budget [WORD]
    python -m tests.simulated_gpu.run --asked

Words choose the cases whose names have them.
"""

import argparse
import contextlib
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsFloat
from unittest import mock

import torch
from torch import Tensor

from hpcopt import pinned
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.staged import StagedTransport
from hpcopt.comm.transport import Transport
from hpcopt.comm.world import World
from hpcopt.kernels.cuda import bits, levels, powers, sums
from hpcopt.lowbit import quantizers
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Task
from hpcopt.solvers.block_admm import deepfacto
from hpcopt.testing.problem import flat
from hpcopt.trainer.loop import evaluate
from hpcopt.workloads import handover
from hpcopt.workloads.on_device import on_device
from tests.simulated_gpu import streams
from tests.simulated_gpu.cases import CASES, Case
from tests.simulated_gpu.device import LEDGER, SIM, SimulatedTensor
from tests.simulated_gpu.ledger import KINDS

STEPS = 3
BUDGET = Path(__file__).parent / "budget.json"
CPU = torch.device("cpu")


def train(case: Case, device: torch.device) -> tuple[list[float], dict[str, int]]:
    """The losses of its steps, summed over the ranks, its scores, and the sum and the norm of what it ends with; and
    what the last step asked of the device.
    """
    workloads = [on_device(case.workload(), device, case.precision) for _ in range(case.ranks)]

    def program(transport: Transport) -> tuple[list[float | None], list[float], Tensor, dict[str, int]]:
        world = World(transport if device.type == "cpu" else StagedTransport(transport))
        context = Context(world=world, exchange=case.exchange, steps=STEPS, device=device)
        workload = workloads[world.rank]
        solver = case.solver.build(
            Task(workload.model, workload.loss, workload.by_index(), workload.simulation()), context
        )
        batches = workload.train_batches(solver.data_rank, solver.data_size, 0)
        if solver.draws:
            batches = itertools.repeat(None)
        told = [solver.step(next(batches)).loss for _ in range(STEPS - 1)]
        losses = [number(loss) for loss in told[:-1]]
        world.barrier()  # no rank is still in the step before, none is in the next one yet
        LEDGER.clear()
        world.barrier()
        told.append(solver.step(next(batches)).loss)
        losses.append(number(told[-2]))  # as the trainer does it: a step late
        world.barrier()
        asked = LEDGER.totals()
        world.barrier()
        losses.append(number(told[-1]))
        solver.gather()
        solver.state_dict()
        solver.rank_state_dict()
        assert {p.device for p in solver.model.parameters()} == {device}
        scores = evaluate(world, workload, solver.model) if workload.scores else {}
        return losses, [*scores.values()], flat(solver.model).cpu().double(), asked

    ranks = run_ranks(case.ranks, program)
    known = [each for each in zip(*(losses for losses, *_ in ranks), strict=True) if None not in each]
    _, scores, end, asked = ranks[0]
    return [*map(sum, known), *scores, float(end.sum()), float(end.norm())], asked


def number(loss: SupportsFloat | None) -> float | None:
    """A loss, once it is known."""
    return None if loss is None else float(loss)


@contextlib.contextmanager
def interpreted_kernels() -> Iterator[None]:
    """Triton's kernels, by its interpreter, which bears one thread, on the values."""
    turn = threading.Lock()

    def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
        if programs:
            LEDGER.note("launches", kernel.fn.__name__)
            constants.pop("num_warps", None)
            with turn:
                on_device = [x.values for x in args if isinstance(x, SimulatedTensor)]
                streams.use([], on_device, kernel.fn.__name__)
                kernel[(programs,)](*(x.values if isinstance(x, SimulatedTensor) else x for x in args), **constants)

    with contextlib.ExitStack() as patches:
        for module in (bits, levels, powers, sums):
            patches.enter_context(mock.patch.object(module, "launch", launch))
        patches.enter_context(mock.patch.object(pinned, "page_locked", streams.pinned))
        patches.enter_context(mock.patch.object(handover, "ahead", iter))  # a batch a step: counts are steady
        patches.enter_context(mock.patch.object(quantizers, "by_codec", lambda g, bits: False))  # as on a device
        patches.enter_context(mock.patch.object(deepfacto, "HEAD_STEPS", 2))  # all alike
        yield


def outcome(case: Case) -> dict[str, Any]:
    """What a case gives on both devices."""
    LEDGER.refused.clear()
    LEDGER.clear()
    expected, _ = train(case, CPU)
    found, asked = train(case, SIM)
    return {"expected": expected, "found": found, "refused": dict(LEDGER.refused), "asked": asked}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--lines", action="store_true", help="also what the last step asked of the device, by line")
    parser.add_argument("--budget", action="store_true", help="write what every case asks for to budget.json")
    parser.add_argument("--asked", action="store_true", help="the cases that standard input names, a line each")
    options = parser.parse_args()
    names = map(str.strip, sys.stdin) if options.asked else (name for name in CASES if options.word in name)
    budget = {}
    with interpreted_kernels():
        for name in names:
            found = outcome(CASES[name])
            print(json.dumps({"case": name, **found}), flush=True)
            if options.lines:
                print_lines()
            if CASES[name].steady:
                budget[name] = found["asked"]
    if options.budget:
        before = json.loads(BUDGET.read_text())
        known = before | budget  # a case that is neither measured nor known stays out, and its test says so
        budget = {name: known[name] for name, case in CASES.items() if case.steady and name in known}
        BUDGET.write_text(json.dumps(budget, indent=1) + "\n")


def print_lines() -> None:
    """What the last step asked of the device, the most frequent first."""
    for kind in KINDS:
        for what, count in getattr(LEDGER, kind).most_common(20):
            print(f"  {kind}: {count} {what}")


if __name__ == "__main__":
    main()
