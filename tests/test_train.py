"""The front door, end to end: one process here, several under mpirun; what goes wrong is said, and nothing is lost."""

import gc
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcopt.checkpoint import leaves
from hpcopt.prepare import prepare
from hpcopt.report.read import read_run
from hpcopt.report.summary import summarise
from hpcopt.store.checkpoint import Checkpoints
from hpcopt.train import main
from tests.launching import mpirun, started
from tests.serial import serial_losses

JOB = """
[run]
name = "t"
steps = 12
evaluate_every = 6
checkpoint_every = 3
debug = true
[workload]
data = "DATA/digits"
batch = 64
[workload.model]
name = "mlp"
hidden = [32]
[solver.optimizer]
name = "sgd"
lr = 0.1
"""


@pytest.fixture(scope="session")
def data(digits) -> Path:
    return digits


@pytest.fixture
def job(data, tmp_path) -> str:
    path = tmp_path / "job.toml"
    path.write_text(JOB.replace("DATA", str(data)))
    return str(path)


def losses(run: Path) -> np.ndarray:
    with h5py.File(run / "metrics.h5") as file:
        np.testing.assert_array_equal(file["steps/step"][:], np.arange(1, len(file["steps/step"]) + 1))
        return file["steps/loss"][:]


def parameters(run: Path) -> torch.Tensor:
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    model = checkpoints.read_part(checkpoints.steps()[0], "shared")["solver"]["model"]
    return torch.cat([p.reshape(-1) for p in model.values()])


def test_a_run_leaves_its_files_and_says_its_figures(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hpcopt.training.gc", gc)
    run = tmp_path / "run"
    assert main([job, "--run-dir", str(run)]) == 0
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "job.toml", "lock", "log.txt", "metrics.h5"]
    assert len(losses(run)) == 12
    assert (gc.get_freeze_count(), gc.isenabled()) == (0, True)  # frozen objects make triton report leaks at the end
    out = capsys.readouterr().out
    assert re.search(r"FOM test_accuracy 0\.\d+ 1\n", out)
    assert re.search(r"FOM step_time_median \S+ s\n", out)
    if not torch.cuda.device_count():
        assert ", cpu, 1 threads a rank" in out
        with h5py.File(run / "metrics.h5") as file:
            assert [name.decode() for name in file.attrs["devices"]] == ["cpu"]
    assert main([str(run / "job.toml"), "--run-dir", str(run)]) == 0  # the resolved job is a job; nothing is left to do
    assert "resumed at step 12" in capsys.readouterr().out
    assert len(losses(run)) == 12


def test_the_log_and_the_report_tell_the_same_figures(job, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([job, "--run-dir", str(run), "--set", "run.steps=30", "--set", "run.evaluate_every=4"]) == 0
    told = dict(re.findall(r"FOM (\S+) (\S+)", capsys.readouterr().out))
    summary = summarise(read_run(run))
    expected = {"step_time_median": summary.step_s, "samples_per_second": summary.samples_per_s}
    expected |= {"elapsed": summary.elapsed_s, "sent_bytes_per_step": summary.sent_bytes}
    assert {name: float(told[name]) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_what_auto_chose_is_in_the_metrics_and_outlives_a_restart(job, tmp_path, capsys):
    run = tmp_path / "run"
    auto = [job, "--run-dir", str(run), "--set", "exchange.name=auto", "--set", "exchange.bucket_mb=0.001"]
    assert main([*auto, "--set", "run.steps=6"]) == 0
    assert "exchange: buckets" in capsys.readouterr().out
    assert main(auto) == 0
    assert "as in the checkpoint" in capsys.readouterr().out
    with h5py.File(run / "metrics.h5") as file:
        choices = {name: column[:] for name, column in file["choices"].items()}
        assert json.loads(file["choices"].attrs["calibration"])["nodes"] == [0]
    buckets = len(choices["step"]) // 2
    assert buckets > 1
    np.testing.assert_array_equal(choices["step"], [0] * buckets + [6] * buckets)
    np.testing.assert_array_equal(choices["bucket"], [*range(buckets)] * 2)
    np.testing.assert_array_equal(choices["steps"], np.full(2 * buckets, 6))
    assert choices["bytes"][:buckets].sum() == 4 * parameters(run).numel()
    assert (choices["measured_s"] > 0).all() and np.isfinite(choices["predicted_s"]).all()


def test_stopping_and_resuming_changes_no_bit(job, tmp_path):
    assert main([job, "--run-dir", str(tmp_path / "straight")]) == 0
    for steps in (4, 5, 12):
        assert main([job, "--run-dir", str(tmp_path / "parts"), "--set", f"run.steps={steps}"]) == 0
    np.testing.assert_array_equal(losses(tmp_path / "parts"), losses(tmp_path / "straight"))
    assert torch.equal(parameters(tmp_path / "parts"), parameters(tmp_path / "straight"))


def test_checkpoints_in_the_background_are_the_same(job, tmp_path):
    for name in ("true", "false"):
        arguments = ["--set", f"run.checkpoint_in_background={name}", "--set", "run.keep_checkpoints=9"]
        assert main([job, "--run-dir", str(tmp_path / name), *arguments]) == 0
    beside, meanwhile = (Checkpoints(tmp_path / name / "checkpoints", keep=9) for name in ("true", "false"))
    assert beside.steps() == meanwhile.steps() == [12, 9, 6, 3]
    for step in beside.steps():
        for name in beside.parts(step):
            one, other = (dict(leaves(c.read_part(step, name)["solver"])) for c in (beside, meanwhile))
            assert one.keys() == other.keys()
            for key, value in one.items():
                assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


def test_a_signal_checkpoints_and_asks_for_a_requeue(job, tmp_path, monkeypatch, capsys):
    from hpcopt.trainer.housekeeping import Housekeeping

    record = Housekeeping._record

    def record_then_signal(self, *arguments):
        record(self, *arguments)
        if self._position.step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Housekeeping, "_record", record_then_signal)
    run = tmp_path / "run"
    assert main([job, "--run-dir", str(run)]) == 85
    assert "told to stop by a signal after step 6 of 12" in capsys.readouterr().out
    assert Checkpoints(run / "checkpoints", keep=2).steps()[0] == 6
    monkeypatch.undo()
    assert main([job, "--run-dir", str(run)]) == 0
    assert main([job, "--run-dir", str(tmp_path / "straight")]) == 0
    assert torch.equal(parameters(run), parameters(tmp_path / "straight"))


def test_a_used_up_time_budget_asks_for_a_requeue(job, tmp_path):
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "run.time_budget=1e-3"]) == 85
    assert Checkpoints(tmp_path / "run" / "checkpoints", keep=2).steps() == [1]


def test_a_target_ends_the_run(job, tmp_path, capsys):
    target = "run.stop_at={metric = 'test_accuracy', value = 0.2}"
    arguments = [job, "--run-dir", str(tmp_path / "run"), "--set", target, "--set", "run.evaluate_every=2"]
    assert main(arguments) == 0
    assert "target reached after step" in capsys.readouterr().out
    assert main(arguments) == 0
    assert len(losses(tmp_path / "run")) < 12


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(job, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([job, "--run-dir", str(run), "--set", "run.steps=9"]) == 0
    newest, before = Checkpoints(run / "checkpoints", keep=2).steps()
    part = next((run / "checkpoints").glob(f"*{newest}/shared*"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(content)
    assert main([job, "--run-dir", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"checkpoint of step {newest} cannot be used" in out
    assert f"resumed at step {before}" in out
    assert main([job, "--run-dir", str(tmp_path / "straight")]) == 0
    np.testing.assert_array_equal(losses(run), losses(tmp_path / "straight"))


def test_fresh_moves_the_old_run_aside(job, tmp_path):
    run = tmp_path / "run"
    assert main([job, "--run-dir", str(run), "--set", "run.steps=2"]) == 0
    assert main([job, "--run-dir", str(run), "--set", "run.steps=3", "--fresh"]) == 0
    assert len(losses(run)) == 3
    assert len(losses(next(tmp_path.glob("run.before-*")))) == 2


def test_a_diverged_run_says_so(job, tmp_path, capsys):
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "solver.optimizer.lr=1e30"]) == 3
    assert "clip_norm" in capsys.readouterr().err


@pytest.mark.parametrize("background", ["true", "false"])
@pytest.mark.parametrize("lr", ["1e30", "3e38"])
def test_a_diverged_run_keeps_the_good_checkpoint(job, tmp_path, capsys, lr, background):
    """It was pruned for one of NaN, or of 1e37, from which no rate leads on."""
    run, one = tmp_path / "run", ["--set", "run.checkpoint_every=1", "--set", "run.keep_checkpoints=1"]
    one += ["--set", f"run.checkpoint_in_background={background}"]
    assert main([job, "--run-dir", str(run), *one, "--set", "run.steps=2"]) == 0
    assert main([job, "--run-dir", str(run), *one, "--set", f"solver.optimizer.lr={lr}"]) == 3
    error = capsys.readouterr().err
    (step,) = Checkpoints(run / "checkpoints", keep=1).steps()
    assert step == 2
    assert "the checkpoints of step 2 are kept" in error
    assert main([job, "--run-dir", str(run), *one]) == 0


def test_by_default_the_first_checkpoint_is_early_and_the_rest_keep_to_their_share(job, tmp_path, monkeypatch, capsys):
    from hpcopt.trainer import pace

    monkeypatch.setattr(pace, "LEAST_S", 0.0)
    path = Path(job)
    path.write_text(path.read_text().replace("checkpoint_every = 3", "checkpoint_share = 1e-6"))
    monkeypatch.setattr(Checkpoints, "_prune", lambda self: None)
    assert main([job, "--run-dir", str(tmp_path / "run")]) == 0
    assert "no checkpoint in" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "run" / "checkpoints", keep=2).steps() == [12, 1]


def test_dry_run_plans_for_ranks_that_are_not_there(job, capsys):
    assert main([job, "--dry-run", "--ranks", "48"]) == 0
    out = capsys.readouterr().out
    parameters = 64 * 32 + 32 + 32 * 10 + 10
    assert "ranks          48" in out
    assert "device         c" in out
    assert "64 samples, 1 or 2 a rank" in out
    doubling = 5 + 1  # swaps among 32 ranks, and the result for the guest among the 16 others
    assert f"{doubling * 4 * parameters:,} sent by each rank" in out
    assert 'name = "data_parallel"' in out


@pytest.mark.parametrize(
    ("settings", "ballot_bytes"),
    [
        (["exchange={name='vote'}", "solver.optimizer={name='signum', lr=0.1}"], 8 * (32 + 1 + 5 + 1)),
        (["solver={name='local'}"], 4 * (65 * 32 + 33 * 10) + 8 * 3),
    ],
)
def test_dry_run_counts_what_is_sent_in_rounds_that_go_on_without_the_absent(job, capsys, settings, ballot_bytes):
    """By the rank that counts the ballots."""
    options = [option for setting in ["run.elastic=true", *settings] for option in ("--set", setting)]
    assert main([job, "--dry-run", "--ranks", "3", *options]) == 0
    assert f"{2 * ballot_bytes:,} sent by each rank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "run.stepps=3"], 'did you mean "steps"?'),
        (["--set", "run.steps=many"], "valid integer"),
        (["--set", "workload.data=/nowhere/else"], "/nowhere/else"),
        (["--set", "workload.batch=1000000"], "training samples"),
        (["--set", "run.stop_at={metric='speed', value=1}"], "test_accuracy"),
        (["--resume"], "has no checkpoint"),
        (["--run-dir", "/proc/nowhere"], "cannot write to the run directory"),
        (["--dry-run", "--ranks", "65"], "cannot be shared by 65 ranks"),
        (["--dry-run", "--ranks", "0"], "at least one rank"),
        (["--ranks", "4"], "mpirun -n 4 hpcopt train"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(job, tmp_path, capsys, arguments, complaint):
    assert main([job, "--run-dir", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error
    assert len(error.splitlines()) < 10


def test_a_device_that_is_not_there(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "run.device=cuda"]) == 2
    assert 'use device = "auto" or "cpu"' in capsys.readouterr().err


def test_a_truncated_shard(job, data, tmp_path, capsys):
    copy = tmp_path / "digits"
    shutil.copytree(data / "digits", copy)
    shard = next(copy.glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", f"workload.data={copy}"]) == 2
    assert shard.name in capsys.readouterr().err


def test_a_checkpoint_of_another_model(job, tmp_path, capsys):
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "run.steps=3"]) == 0
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "workload.model.hidden=[33]"]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_another_optimizer_is_refused_by_name(job, tmp_path, capsys):
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "run.steps=3"]) == 0
    path = Path(job)
    path.write_text(path.read_text().replace('name = "sgd"', 'name = "adamw"'))
    assert main([job, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "SGD" in error and "AdamW" in error and "solver.optimizer.name = 'adamw', was 'sgd'" in error
    assert "Traceback" not in error


def test_changed_settings_of_the_optimizer_take_effect(job, tmp_path, capsys):
    """They were kept as they had been, while job.toml said otherwise."""
    run, plain = tmp_path / "run", tmp_path / "plain"
    for path in (run, plain):
        assert main([job, "--run-dir", str(path), "--set", "run.steps=3"]) == 0
    assert main([job, "--run-dir", str(run), "--set", "solver.optimizer.nesterov=true"]) == 0
    assert "from here on solver.optimizer.nesterov = True, was False" in capsys.readouterr().out
    assert main([job, "--run-dir", str(plain)]) == 0
    np.testing.assert_array_equal(losses(run)[:4], losses(plain)[:4])
    assert losses(run)[4] != losses(plain)[4]


def test_a_checkpoint_of_other_samples(job, tmp_path, capsys):
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "run.steps=3"]) == 0
    for change, was in (("workload.batch=32", "batch = 64"), ("run.seed=5", "seed = 0")):
        assert main([job, "--run-dir", str(tmp_path / "run"), "--set", change]) == 2
        assert was in capsys.readouterr().err


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("backend", ["mpi", "mpi auto", "horovod"])
def test_any_number_of_ranks_draws_the_same_curve(backend, request, shared_tmp_path):
    if backend == "horovod":
        request.getfixturevalue("horovod")
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        prepare("digits", shared_tmp_path)
        (shared_tmp_path / "job.toml").write_text(JOB.replace("DATA", str(shared_tmp_path)))
    MPI.COMM_WORLD.barrier()
    run = shared_tmp_path / "run"
    settings = ["--set", f"run.backend={backend.split()[0]}", "--set", "run.steps=50"]
    settings += ["--set", "exchange.name=auto", "--set", "exchange.bucket_mb=0.001"] if "auto" in backend else []
    assert main([str(shared_tmp_path / "job.toml"), "--run-dir", str(run), *settings]) == 0
    if MPI.COMM_WORLD.rank == 0:
        np.testing.assert_allclose(losses(run), serial_losses(shared_tmp_path / "job.toml", 50), rtol=1e-4)


TRAIN = ("-m", "hpcopt.train")


def test_a_killed_rank_ends_the_job_and_the_next_start_loses_no_bit(job, tmp_path):
    long = [*TRAIN, job, "--set", "run.steps=60", "--set", "run.checkpoint_every=5", "--set", "run.debug=false"]
    with started(2, *long, "--run-dir", str(tmp_path / "run")) as killed:
        killed.wait_for((tmp_path / "run" / "checkpoints" / "latest").exists)
        os.kill(killed.rank_pids()[1], signal.SIGKILL)
        assert killed.wait() != 0
    assert mpirun(2, *long, "--run-dir", str(tmp_path / "run"), "--resume").returncode == 0
    assert mpirun(2, *long, "--run-dir", str(tmp_path / "straight")).returncode == 0
    np.testing.assert_array_equal(losses(tmp_path / "run"), losses(tmp_path / "straight"))
    assert torch.equal(parameters(tmp_path / "run"), parameters(tmp_path / "straight"))


def test_an_interrupted_rank_ends_the_job(job, tmp_path):
    """Ctrl-C may reach one rank alone: the others would wait for it."""
    run = tmp_path / "run"
    with started(2, *TRAIN, job, "--run-dir", str(run), "--set", "run.steps=100000") as interrupted:
        interrupted.wait_for((run / "checkpoints" / "latest").exists)
        os.kill(interrupted.rank_pids()[1], signal.SIGINT)
        error = interrupted.communicate()[1]
    assert interrupted.returncode == 130
    assert "rank 1 on" in error and "was interrupted" in error
    assert "Traceback" not in error and "stall" not in error


def test_a_rank_that_fails_before_it_joins_the_others_ends_the_job(job, tmp_path):
    """It would leave them in the start of MPI. Here one host does not see the job file."""
    other = (
        "import os, sys, hpcopt.train as t\n"
        "job = sys.argv[1] if t.launch_from().rank == 0 else '/nowhere/job.toml'\n"
        "sys.exit(t.main([job, *sys.argv[2:]]))\n"
    )
    done = mpirun(2, "-c", other, job, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "error on rank 1" in done.stderr and "/nowhere/job.toml" in done.stderr


def test_a_stopped_rank_is_named_by_those_that_wait(job, tmp_path):
    """Not one thread of it runs: it is known by its silence. Woken up, it goes on as if nothing had been."""
    settings = ["--set", "run.stall_s=0.5", "--set", "run.steps=100000", "--set", "run.checkpoint_every=20"]
    with started(3, *TRAIN, job, "--run-dir", str(tmp_path / "run"), *settings, forked=False) as ranks:
        ranks.wait_for((tmp_path / "run" / "checkpoints" / "latest").exists)
        pids = ranks.rank_pids()
        os.kill(pids[1], signal.SIGSTOP)
        said = ""
        for line in ranks.stderr:
            said += line
            if "rank 1 on" in line and "no sign of life" in line:
                os.kill(pids[1], signal.SIGCONT)
            if "went on" in line:
                break
        for pid in pids.values():
            os.kill(pid, signal.SIGTERM)
        said += ranks.communicate()[1]
    report = r"stall: ranks .* have waited .*; missing: .*\n(  .*\n)*  rank 1 on \S+ gives no sign of life"
    assert re.search(report, said)
    assert re.search(r"went on: .*, after \d+\.\d s", said)
    assert ranks.returncode == 85


def said_by_all(capsys) -> str:
    """What these ranks wrote on standard error."""
    from mpi4py import MPI

    return "".join(MPI.COMM_WORLD.allgather(capsys.readouterr().err))


@pytest.mark.parallel(2)
def test_bad_input_is_said_once_and_ends_every_rank(job, tmp_path, capsys):
    assert main([job, "--run-dir", str(tmp_path / "run"), "--set", "workload.batch=1"]) == 2
    assert said_by_all(capsys).count("cannot be shared by 2 ranks") == 1


@pytest.mark.parametrize(
    ("bug", "said"), [("1 / 0", "ZeroDivisionError: division by zero"), ("sys.exit(0)", "SystemExit: 0")]
)
def test_a_bug_on_one_rank_shows_its_traceback_and_ends_all(job, tmp_path, bug, said):
    program = (
        "import sys, hpcopt.train as t, hpcopt.solvers.data_parallel as d\n"
        "step = d.DataParallel.step\n"
        "def broken(self, batch):\n"
        f"    if self._step == 3 and t.launch_from().rank == 1: {bug}\n"
        "    return step(self, batch)\n"
        "d.DataParallel.step = broken\n"
        "sys.exit(t.main(sys.argv[1:]))\n"
    )
    done = mpirun(2, "-c", program, job, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "rank 1 on" in done.stderr
    assert said in done.stderr


def test_a_gradient_that_is_not_finite_is_a_diverged_run_under_any_exchange(job, tmp_path, capsys):
    arguments = [job, "--run-dir", str(tmp_path / "run"), "--set", "solver.optimizer.lr=1e30"]
    assert main([*arguments, "--set", "exchange.name=two_phase"]) == 3
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parallel(2)
def test_without_horovod_one_message_says_what_to_install(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)  # as if there were none
    monkeypatch.delitem(sys.modules, "hpcopt.comm.horovod", raising=False)
    settings = ["--set", "run.backend=horovod", "--set", "exchange.name=native"]
    assert main([job, "--run-dir", str(tmp_path / "run"), *settings]) == 2
    said = said_by_all(capsys)
    assert said.count("pip install") == 1
    assert "Traceback" not in said


def test_a_finished_run_says_that_nothing_is_left_to_do(job, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main([job, "--run-dir", run, "--set", "run.steps=6"]) == 0
    capsys.readouterr()
    assert main([job, "--run-dir", run, "--set", "run.steps=4"]) == 0
    assert "nothing to do: the run is at step 6, and the job asks for 4" in capsys.readouterr().out
