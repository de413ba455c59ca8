"""The same interruptions of what others use: Lightning's requeue under SLURM, and submitit's.

    pip install lightning submitit
    python -m benchmarks.interruptions.peers --cases 8

One process trains a perceptron on the digits for 60 steps, as each one's documentation has it: with Lightning a
`ModelCheckpoint` every 3 steps and `ckpt_path="last"`, with submitit an object whose `checkpoint` gives itself back.
USR1 (USR2 for submitit, its default) or KILL comes at a random moment of the first start; then the same is started
again until it is done. SLURM's scontrol is a stand-in. Starts are forked from a process that has imported everything.
"""

import argparse
import csv
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

STEPS, BATCH, EVERY = 60, 64, 3
MOST_STARTS = 6
SCONTROL = "#!/bin/bash\n[[ $1 == requeue ]] && : > requeued\nexit 0\n"
JOB = {"SLURM_JOB_ID": "27", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
JOB |= {
    "SLURM_NODEID": "0",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_NODELIST": "localhost",
}


def digits() -> TensorDataset:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def with_lightning() -> None:
    """Train in the current folder, or go on."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    class Digits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss, on_step=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    pl.seed_everything(0, verbose=False)
    model = Digits()
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=1,
        plugins=[SLURMEnvironment(auto_requeue=True)],
        callbacks=[ModelCheckpoint("checkpoints", every_n_train_steps=EVERY, save_last=True, save_top_k=1)],
        logger=CSVLogger(".", name="log", flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=".",
    )
    data = DataLoader(digits(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    last = Path("checkpoints/last.ckpt").exists() and not any(Path().glob("hpc_ckpt_*.ckpt"))  # which comes first
    trainer.fit(model, data, ckpt_path="last" if last else None)
    torch.save(model.network.state_dict(), "end.pt")


class Loop:
    """What submitit's manual calls a checkpointable: its state is what it holds."""

    def __init__(self) -> None:
        self.network = network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        self.step = 0

    def __call__(self) -> None:
        data = digits()
        while self.step < STEPS:
            x, y = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(self.step))[:BATCH]]
            loss = nn.functional.cross_entropy(self.network(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            with Path("metrics.csv").open("a", encoding="utf-8") as file:
                file.write(("" if file.tell() else "step,loss\n") + f"{self.step - 1},{float(loss)!r}\n")
        torch.save(self.network.state_dict(), "end.pt")

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(folder: Path) -> None:
    """Leave what submitit leaves where a job is submitted."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    (folder / "jobs").mkdir()
    delayed = DelayedSubmission(Loop())
    delayed.set_timeout(60, 99)
    delayed.dump(JobPaths(folder / "jobs", "27").submitted_pickle)


def with_submitit() -> None:
    """Train in the current folder, or go on."""
    from submitit.core.submission import process_job

    os.environ["SUBMITIT_EXECUTOR"] = "slurm"
    process_job("jobs")


PEERS: dict[str, tuple[Callable[[], None], str]] = {
    "Lightning": (with_lightning, "USR1"),
    "submitit": (with_submitit, "USR2"),
}


def start(train: Callable[[], None], folder: Path, stop: str = "", after_s: float = 0.0) -> tuple[bool, float]:
    """One start of a job, interrupted or not; whether it came to its end, and the seconds that it took."""
    (folder / "requeued").unlink(missing_ok=True)
    begin_s = time.monotonic()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.chdir(folder)
            os.environ |= JOB | {"PATH": f"{folder}:{os.environ['PATH']}"}
            with Path("said").open("a", encoding="utf-8") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            train()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    told_s = None
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
        now_s = time.monotonic()
        if stop and now_s - begin_s > after_s:
            os.kill(pid, getattr(signal, f"SIG{stop}"))
            stop = ""
        if told_s is None and (folder / "requeued").exists():
            told_s = now_s
            os.kill(pid, signal.SIGTERM)  # as SLURM does
        if (told_s and now_s - told_s > 2) or now_s - begin_s > 120:
            os.kill(pid, signal.SIGKILL)
    return (folder / "end.pt").exists() and told_s is None, time.monotonic() - begin_s


def rows(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each row of a run's metrics, of all its starts."""
    found = []
    for file in sorted([*folder.glob("log/version_*/metrics.csv"), *folder.glob("metrics.csv")]):
        with file.open(encoding="utf-8") as text:
            found += [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(text) if row["loss"]]
    return sorted(found)


def play(name: str, cases: int, rng: random.Random, folder: Path) -> None:
    """Interrupt one of them, and print what held."""
    train, told = PEERS[name]

    def place(number: str) -> Path:
        (made := folder / f"{name}-{number}").mkdir()
        (made / "scontrol").write_text(SCONTROL, encoding="utf-8")
        (made / "scontrol").chmod(0o755)
        if train is with_submitit:
            submit(made)
        return made

    undisturbed = place("undisturbed")
    whole, lasts_s = start(train, undisturbed)
    assert whole, (undisturbed / "said").read_text(encoding="utf-8")
    end, table = torch.load(undisturbed / "end.pt"), rows(undisturbed)
    assert [step for step, _ in table] == [*range(STEPS)]
    for stop in (told, "KILL"):
        ended = same = once = 0
        for number in range(cases):
            run = place(f"{stop}{number}")
            done, _ = start(train, run, stop, rng.uniform(0, lasts_s))
            for _ in range(MOST_STARTS):
                done = done or start(train, run)[0]
            ended += done
            mine = torch.load(run / "end.pt") if done else {}
            same += done and all(torch.equal(mine[key], end[key]) for key in end)
            once += [step for step, _ in rows(run)] == [*range(STEPS)]
        print(f"| {name} | {stop} | {ended} of {cases} | {same} of {cases} | {once} of {cases} |", flush=True)


def main() -> None:
    """Play them all."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", type=int, default=8, help="of each signal")
    p.add_argument("--seed", type=int, default=27)
    p.add_argument("--only", choices=list(PEERS))
    p.add_argument("--keep", type=Path, help="a new folder for what runs leave; otherwise it goes")
    options = p.parse_args()
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "submitit", "sklearn.datasets"):
        try:
            __import__(name)
        except ImportError:
            raise SystemExit(f"{name.split('.')[0]} is not installed: pip install lightning submitit") from None
    print(
        "| | signal | came to the end | the undisturbed parameters | each row once |\n|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        for name in [options.only] if options.only else PEERS:
            play(name, options.cases, random.Random(options.seed), folder.absolute())


if __name__ == "__main__":
    main()
