"""Runs whose ranks die, in one folder; what they have recorded, and the same again from their membership."""

import json
from pathlib import Path

import h5py
import numpy as np
import torch

from hpcopt.elastic.membership import Membership
from hpcopt.errors import EXIT_DONE
from hpcopt.store.checkpoint import Checkpoints
from tests.elastic.dying import run

STEPS, EVERY = 40, 8
JOB = """
run = {{name = "t", steps = {steps}, elastic = true, copy_every = {every}, evaluate_every = 20, log_every_s = 0.1}}
workload = {{data = "{data}", batch = 60, model = {{name = "mlp", hidden = [32]}}}}
solver = {{name = "tests.elastic.dying:DyingConfig", deaths = "{deaths}", optimizer = {{name = "adamw", lr = 0.003}}}}
"""


class Runs:
    """In one folder."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.deaths = folder, folder / "deaths.json"
        (folder / "job.toml").write_text(JOB.format(steps=STEPS, every=EVERY, data=data, deaths=self.deaths))

    def start(
        self, name: str, slots: int, deaths: list[tuple[int, int | str, int | str]], *settings: str, fresh: bool = False
    ) -> list[int | None]:
        self.deaths.write_text(json.dumps(deaths))
        options = [option for setting in settings for option in ("--set", setting)] + ["--fresh"] * fresh
        return run(slots, str(self.folder / "job.toml"), "--run-dir", str(self.folder / name), *options)

    def replay(self, name: str, slots: int, *settings: str, rescaled: bool = False) -> None:
        """The membership of a run again, in which nobody dies; the bits must be the same, but for losses of which the
        dead had a part that was not written, where that is ``rescaled``.
        """
        again = f"{name}-again"
        assert self.start(again, slots, [], f"run.membership={self.folder / name}", *settings) == [EXIT_DONE] * slots
        assert self.membership(again).starts == self.membership(name).starts
        (before, parameters), (now, parameters_now) = self.end(name), self.end(again)
        np.testing.assert_array_equal(parameters, parameters_now)
        np.testing.assert_allclose(before, now, rtol=0.3 if rescaled else 0)

    def membership(self, name: str) -> Membership:
        return Membership.of(self.folder / name)

    def end(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Losses of all steps, and the parameters in the end."""
        with h5py.File(self.folder / name / "metrics.h5") as file:
            losses, (steps,) = file["steps/loss"][:], file["steps/step"].shape
            np.testing.assert_array_equal(file["steps/step"][:], np.arange(1, steps + 1))
            np.testing.assert_array_equal(file["evaluations/step"][:], np.arange(20, steps + 1, 20))
        model = Checkpoints(self.folder / name / "checkpoints", keep=2).read_part(steps, "shared")["solver"]["model"]
        return losses, torch.cat([p.reshape(-1) for p in model.values()]).numpy()

    def log(self, name: str) -> str:
        return (self.folder / name / "log.txt").read_text(encoding="utf-8")

    def dead(self) -> int:
        """Deaths that came about."""
        return len(list(self.folder.glob("dead-*")))

    def saved(self, name: str) -> list[int]:
        return Checkpoints(self.folder / name / "checkpoints", keep=2).steps()
