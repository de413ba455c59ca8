"""One start of a script's run: its ranks find each other, its directory and where it stands, and leave together."""

import atexit
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from hpcopt.comm.device import clock_of
from hpcopt.comm.world import World, connect
from hpcopt.errors import EXIT_DONE
from hpcopt.randomness import seed_all, set_all_random_states
from hpcopt.shapes.context import Context
from hpcopt.shapes.solver import Tree
from hpcopt.trainer.ending import Ending
from hpcopt.trainer.housekeeping import Outcome
from hpcopt.trainer.kept import Kept
from hpcopt.trainer.resume import Position
from hpcopt.trainer.run import RunConfig
from hpcopt.trainer.script import in_a_script, job_of, run_config, told_by_batch_script
from hpcopt.trainer.services import Services, open_directory
from hpcopt.trainer.signals import StopSignals

BODY = "body"  # phase: what the loop's body does that is no other phase


class Requeue(SystemExit):
    """Ends a program whose run is checkpointed before its end: start the same command again."""


class Start:
    """What a run has around its loop, from ``enter`` to ``leave``.

    Attributes:
        run: settings.
        world, device: of this rank.
        context: for what is built; its clock counts phases.
        services: directory, checkpoints, metrics, log.
        kept: what checkpoints hold.
        position: where the run stands.
        signals: that may stop it.
        job: what stands for one in its records.
        outcome: why it ended.
    """

    run: RunConfig
    world: World
    device: torch.device
    context: Context
    services: Services
    kept: Kept
    position: Position
    job: dict[str, Any]

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        fresh: bool,
        resume: bool,
        world: World | None,
    ) -> None:
        """Note what ``Session`` was told; nothing happens yet."""
        self._path, self._told, self._settings = path, run, settings
        self._fresh, self._required, self._given_world = fresh, resume, world
        self._ending, self._random = Ending(wording=in_a_script), None
        self.open, self.signals, self.outcome = ExitStack(), StopSignals(), Outcome.LEFT

    def enter(self) -> None:
        """Find the ranks and the directory, and where the run stands. Collective."""
        self.run = run_config(self._told, self._path)
        if threading.current_thread() is threading.main_thread():
            self.open.enter_context(self.signals)
            self.signals.listen_for(self.run.requeue_signal)
        world = self._given_world or connect(self.run.backend, self.run.debug)
        self.world, self._ending.world = world, world if self._given_world is None else None
        path, self.run = told_by_batch_script(self._path, self.run, world)
        directory = open_directory(path, world, fresh=self._fresh)
        self.services = Services(self.run, world, directory, path.name)
        self.open.enter_context(self.services)
        self.device, self.job = self.services.device, job_of(self.run, self._settings)
        self.context = Context(
            world=world,
            device=self.device,
            clock=clock_of(self.device, (BODY,)),
            run_seed=self.run.seed,
            virtual=self.run.virtual(world),
        )
        seed_all(self.run.seed)  # models that ranks make alike begin alike
        self.kept = Kept(world, self.services.progress.say)
        self.position = self.services.resume(self.kept, self.job, required=self._required, go_on=self._note_random)

    def _note_random(self, states: Tree) -> None:
        """Not at once: until the loop begins, things are made anew, with random numbers."""
        self._random = states

    def draw_on(self) -> None:
        """Go on with the random numbers of the checkpoint; without one, what a rank draws from here on is its own."""
        if self._random is not None:
            set_all_random_states(self._random)
        else:
            seed_all(self.run.seed * 1_000_003 + self.world.rank)

    def leave(self, error: BaseException | None) -> None:
        """Let go of everything; if the ranks are ours, the program ends here where it does not go on."""
        self.open.__exit__(None if error is None else type(error), error, None)
        if self._given_world is not None:
            return
        ending, requeue = self._ending, isinstance(error, Requeue)
        told = None if requeue else error
        ending.__exit__(None if told is None else type(told), told, None)
        ending.exit_code = self.outcome.exit_code if requeue else ending.exit_code
        if ending.exit_code != EXIT_DONE:
            ending.leave_exit_code()
            raise SystemExit(ending.exit_code) from None
        atexit.register(ending.leave_exit_code)  # not now: what follows in the program may fail, or be another Session
