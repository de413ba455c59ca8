"""A run on disk as an object, for whoever analyses it: ``open_run("runs/quickstart").model``.

What is heavy is opened when it is first asked for, so a run can be looked at without its data. A run that goes on may
be opened too; each look at its metrics is of one moment.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor, nn

from hpcopt.errors import CheckpointError, JobError
from hpcopt.job import Job, read_job
from hpcopt.job_text import read_toml
from hpcopt.shapes.context import Context
from hpcopt.shapes.workload import Workload
from hpcopt.store import hdf5, metrics
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.store.weights import newest_weights
from hpcopt.trainer.run import RunDirectory
from hpcopt.workloads.on_device import on_device


class Run:
    """One run directory.

    Attributes:
        directory: paths of its files.
        described: job.toml as plain data. A run of a script, by a ``Session``, has ``settings`` there and no job.
        checkpoints: steps, parts and their trees.
    """

    def __init__(self, path: Path) -> None:
        """Read job.toml.

        Raises:
            JobError: it is missing, or no job of this version.
        """
        self.directory = RunDirectory(Path(path))
        if not self.directory.job.exists():
            raise JobError(f"{path} is not a run directory: it has no {self.directory.job.name}")
        self.described: dict[str, Any] = read_toml(self.directory.job)
        self.checkpoints = Checkpoints(self.directory.checkpoints, keep=1)
        if "session" not in self.described:
            _ = self.job

    @cached_property
    def job(self) -> Job:
        """As it was resolved at the newest start.

        Raises:
            JobError: a script made this run, or it is no job of this version.
        """
        if "session" in self.described:
            raise JobError(
                f"{self.directory.path} is a run of a script, not of a job: make its network yourself, and "
                "load_state_dict(open_run(...).weights())"
            )
        return read_job(self.directory.job)

    def weights(self, name: str = "model") -> dict[str, Tensor]:
        """The ``state_dict`` of the newest checkpoint that is whole, on the CPU; ``name`` is the one that a script kept
        the network under.

        Raises:
            CheckpointError: there is none.
        """
        return newest_weights(self.directory.path, name).state_dict

    @cached_property
    def workload(self) -> Workload:
        """Data, loss and scores, on one rank and the CPU; the model in it is as it was before the first step.

        Raises:
            DataError: the data are not there, or damaged.
        """
        return self._build_workload()

    @cached_property
    def model(self) -> nn.Module:
        """The network with the weights of the newest checkpoint that is whole, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: there is none, or it is of another network.
        """
        weights = newest_weights(self.directory.path)
        model = self._build_workload().model
        try:
            model.load_state_dict(weights.state_dict)
        except RuntimeError as cause:
            raise CheckpointError(
                f"{self.checkpoints.path(weights.step)} holds another network than {self.directory.job} ({cause})"
            ) from cause
        return model.eval()

    def metrics(self, table: str = "steps") -> dict[str, np.ndarray]:
        """Columns of a table of metrics.h5 by name, a row a step; docs/reference/format.md says what they are.

        Args:
            table: "steps", "evaluations", "starts" or "choices".

        Raises:
            MetricsError: the file is missing or damaged.
        """

        def columns(file: h5py.File) -> dict[str, np.ndarray]:
            return {name: hdf5.whole(column) for name, column in file[table].items()} if table in file else {}

        return metrics.read(self.directory.metrics, columns)

    def _build_workload(self) -> Workload:
        config = self.job.workload
        context = Context(run_seed=self.job.run.seed)
        return on_device(config.made(context), context.device, config.precision)


def open_run(path: Path | str) -> Run:
    """Open a run directory.

    Raises:
        JobError: it is none.
    """
    return Run(Path(path))
