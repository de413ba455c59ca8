"""Jobs on W-strings: annealing goes on from a cut, and Adam lowers the loss of the same network with soft gates."""

from itertools import product

import h5py
import numpy as np
import torch

from hpcopt.exchange import RingConfig
from hpcopt.models import DeductronConfig
from hpcopt.optim import AdamWConfig
from hpcopt.shapes import Context, Task
from hpcopt.solvers.annealing.solver import AnnealingConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.train import main
from hpcopt.workloads import WLanguageConfig
from hpcopt.workloads.w_language import batch_of, wrong
from hpcopt.workloads.w_strings import draw_string, stretched

JOB = """
run = {name = "t", device = "cpu", steps = 6, evaluate_every = 3}
workload = {name = "w_language", train = 8, batch = 8, test = 6, model = {name = "deductron", gates = "hard"}}
solver = {name = "annealing", chains = 2, moves = 4}
"""


def test_a_job_that_anneals_goes_on_from_a_cut(tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(JOB, encoding="utf-8")

    def run(name, *words):
        assert main([str(job), "--run-dir", str(tmp_path / name), *words]) == 0
        with h5py.File(tmp_path / name / "metrics.h5") as file:
            told = [file[f"steps/{key}"][:].tolist() for key in ("loss", "best", "moves", "accepted")]
            return told, file["ladder/temperature"][-2:].tolist(), file["evaluations/test_wrong"][:].tolist()

    whole = run("whole")
    run("cut", "--set", "run.steps=3")
    assert run("cut", "--resume") == whole
    assert whole[0][2] == [8.0 * step for step in range(1, 7)]


def test_adam_lowers_the_loss_of_soft_gates():
    context = Context(exchange=RingConfig(), steps=60)
    workload = WLanguageConfig(train=8, batch=8, lengths=(1, 2), stretch=1).build(context)
    solver = DataParallelConfig(optimizer=AdamWConfig(lr=0.05, weight_decay=0.0)).build(
        Task(workload.model, workload.loss, workload.by_index()), context
    )
    batches = workload.train_batches(0, 1, 0)
    losses = [float(solver.step(next(batches)).loss) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_parallel_tempering_finds_gates_that_read_every_string():
    """It trains on 32 strings up to 3 letters, and reads all 510 up to 8, plain and stretched, without an error."""
    config = WLanguageConfig(train=32, batch=32, lengths=(1, 3), model=DeductronConfig(gates="hard"))
    context = Context(run_seed=1, steps=500)
    workload = config.build(context)
    annealing = AnnealingConfig(chains=4, moves=25, coldest=0.02, hottest=0.1)
    solver = annealing.build(Task(workload.model, workload.loss, workload.by_index()), context)
    while solver.step(None).scalars["best"] > 0:
        assert solver.state_dict()["step"] < 500
    solver.gather()
    draw = np.random.default_rng(0)
    for most in (1, 5):
        drawn = [draw_string("".join(text)) for n in range(1, 9) for text in product("XO", repeat=n)]
        wide = [stretched(*one, draw.integers(1, most + 1, len(one[0]))) for one in drawn]
        batch = batch_of(wide, torch.arange(510), 510)
        with torch.no_grad():
            assert not wrong(solver.model(batch.tensors["frames"]), batch).any()
