"""What a run has around its loop, whoever wrote it: its directory, device, threads, stall watch, log and metrics."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any, Self

import torch
from mpi4py import MPI

import hpcopt
from hpcopt.comm.device import device_name, use_device
from hpcopt.comm.launch import leave_exit_code, machine, usable_threads
from hpcopt.comm.stall import StallWatch
from hpcopt.comm.world import World
from hpcopt.elastic.copies import Copies
from hpcopt.elastic.membership import PRESENT
from hpcopt.errors import EXIT_PEER, JobError
from hpcopt.phases import PhaseClock
from hpcopt.plugins import provenance
from hpcopt.randomness import set_all_random_states
from hpcopt.shapes.solver import Checkpointed, Tree
from hpcopt.shapes.workload import Workload, WorkloadConfig
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.hung import FileWatch
from hpcopt.store.metrics import MetricsFile, software
from hpcopt.store.patient_metrics import PatientMetrics
from hpcopt.trainer.energy import Energy
from hpcopt.trainer.progress import Progress
from hpcopt.trainer.recorder import Recorder
from hpcopt.trainer.resume import Position, restore
from hpcopt.trainer.run import RunConfig, RunDirectory

TELL_S = 2.0  # for a message, whose file may hang too


class Services:
    """Of one start of a run, while it is entered.

    Attributes:
        run: its settings.
        world, device: of this rank.
        directory: that the run has to itself.
        checkpoints: in it.
        progress: speaks to people.
    """

    def __init__(self, run: RunConfig, world: World, directory: RunDirectory, name: str) -> None:
        """Take threads and a device, and begin the log. Collective.

        Args:
            run: its settings.
            world: the ranks.
            directory: from ``open_directory``.
            name: of the run, for people.
        """
        self.run, self.world, self.directory, self._name = run, world, directory, name
        alike = run.reproducible is not None  # sums inside products depend on the number of threads
        torch.set_num_threads(run.threads or (1 if alike else usable_threads(world.local_size)))
        self.device = use_device(world, "cpu" if alike else run.device, run.gpu_aware_mpi)
        self._devices = world.gather_text(device_name(self.device))
        self.checkpoints = Checkpoints(directory.checkpoints, run.keep_checkpoints, directory.require_ours)
        self.progress = Progress(directory.log, speaks=world.rank == 0, every_s=run.log_every_s)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        world, directory = self.world, self.directory
        self._open.enter_context(directory)
        self._open.enter_context(FileWatch(self.run.stall_s, self.run.storage_wait_s, self._warn, self._give_up))
        self._open.callback(setattr, world, "watch", world.watch)
        world.watch = StallWatch(directory.path / "stalls", world.rank, world.hosts, self.run.stall_s)
        self._open.enter_context(world.watch)
        self._open.enter_context(self.progress)
        transport = "tcp" if self.run.elastic else self.run.backend
        self.progress.say(
            f"hpcopt {hpcopt.__version__}: {self._name}, {world.size} ranks on {world.nodes} hosts, {transport}, "
            f"{' and '.join(dict.fromkeys(self._devices))}, {torch.get_num_threads()} threads a rank, "
            f"into {directory.path}"
        )
        self.progress.say(world.gpu_path)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def resume(
        self,
        state: Checkpointed,
        job: Mapping[str, Any],
        *,
        required: bool,
        workload: tuple[Workload, WorkloadConfig] | None = None,
        go_on: Callable[[Tree], None] = set_all_random_states,
        copies: Copies | None = None,
    ) -> Position:
        """Restore a state from the newest whole checkpoint; give where the run stands. Collective.

        Args:
            state, workload, go_on: see ``restore``.
            job: as plain data.
            required: whether there must be a checkpoint.
            copies: in memory, the same step on all ranks; if there are any, no checkpoint is read.

        Raises:
            JobError: it is ``required``, but there is no checkpoint.
        """
        source: Copies | Checkpoints = copies if copies is not None and copies.steps() else self.checkpoints
        if source is self.checkpoints and required and not self.world.broadcast_integers(self.checkpoints.steps()):
            raise JobError(f"--resume, but {self.checkpoints.folder} has no checkpoint").everywhere()
        say = self.progress.say
        say("" if copies is None else copies.news)
        position = restore(self.world, source, state, job, say, workload, go_on) or Position()
        say("\n".join(position.changed_plugins(provenance())))
        position.job, position.ranks, position.plugins = dict(job), self.world.size, provenance()
        return position

    def record(
        self,
        position: Position,
        clock: PhaseClock,
        job: Mapping[str, Any],
        text: str,
        reason: str = "resumed",
        present: Sequence[int] | None = None,
    ) -> Recorder:
        """Write job.toml, and create metrics.h5 or mark a restart in it; one that was lost goes on where the checkpoint
        is. Collective.

        Args:
            position: where the run stands.
            clock: whose phases are recorded.
            job: as plain data.
            text: it, for job.toml.
            reason: for a restart.
            present: ranks before it whose own state was kept; None: of all.
        """
        world, path, require_ours = self.world, self.directory.metrics, self.directory.require_ours
        patient = self.run.storage_failure == "go_on"
        file = PatientMetrics(path, require_ours, self.progress.say) if patient else MetricsFile(path, require_ours)
        threads_per_core = world.threads_per_core(torch.get_num_threads(), machine())
        energy = Energy.counted(world, self.device)
        with world.together():
            if world.rank == 0:
                self.directory.write_job(text)
                attributes = {**self._attributes(job, threads_per_core), "energy_of": energy.of}
                if os.path.lexists(file.path):
                    of_start = {} if present is None else {PRESENT: list(present)}
                    file.restart(position.step, world.size, attributes, reason, phases=clock.phases, of_start=of_start)
                else:
                    file.create(world.size, clock.phases, attributes, step=position.step, time_s=position.elapsed_s)
        return Recorder(world, file, clock, position.elapsed_s, energy, self.device)

    def _warn(self, message: str) -> None:
        """Say what this rank alone sees; standard error may be a file of the same file system: nobody waits for it."""
        text = f"hpcopt: rank {self.world.rank} on {self.world.hosts[self.world.rank]}: {message}"
        told = Thread(target=print, args=(text,), kwargs={"file": sys.stderr, "flush": True}, daemon=True)
        told.start()
        told.join(TELL_S)

    def _give_up(self, message: str) -> None:
        """End all ranks, since this one cannot go on."""
        self._warn(f"{message}. The job ends; the last checkpoint stays: start the same command again")
        told = Thread(target=leave_exit_code, args=(EXIT_PEER,), daemon=True)
        told.start()
        told.join(TELL_S)
        try:
            self.world.transport.abort(EXIT_PEER)
        finally:
            os._exit(EXIT_PEER)  # a transport may end its ranks by an exception, which the one that waits does not get

    def _attributes(self, job: Mapping[str, Any], threads_per_core: float) -> dict[str, Any]:
        """What a run's records say of it: the job, the machine, the software and what was plugged in."""
        return {
            **software(),
            "title": self._name,
            "config": json.dumps(job),
            "plugins": json.dumps(provenance()),
            "hostnames": self.world.hosts,
            "mpi_library": MPI.Get_library_version().splitlines()[0].split(",")[0],
            "torch_version": torch.__version__,
            "threads": torch.get_num_threads(),
            "seed": self.run.seed,
            "threads_per_core": threads_per_core,
            "oversubscribed": threads_per_core > 1,
            "devices": self._devices,
        }


def open_directory(path: Path, world: World, *, fresh: bool, again: bool = False) -> RunDirectory:
    """Make the run directory, or find it again; it must be one that all ranks see. Collective."""
    directory = RunDirectory(path)
    with world.together():
        if world.rank == 0:
            directory.take(fresh=fresh, again=again)
    with world.together():
        if not directory.log.exists():
            raise JobError(
                f"the run directory {path} is not visible here: it must be on a file system that all hosts share"
            )
        if not os.access(path, os.W_OK):
            raise JobError(f"cannot write to the run directory {path}: Permission denied")
    return directory
