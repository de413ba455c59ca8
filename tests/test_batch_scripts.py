"""The batch scripts ask for the ranks that SLURM gave, however it says so. SLURM's commands are stand-ins here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A launcher writes down its arguments, and its ranks leave exit code 0.
LAUNCHER = """#!/bin/bash
[[ $1 == --version ]] && { echo "$FLAVOUR"; exit; }
printf '%s\\n' "$@" > "$(basename "$0").asked"
echo 0 > "$HPCOPT_EXIT_FILE"
"""
STAND_INS = {"srun": LAUNCHER, "mpirun": LAUNCHER, "sbatch": LAUNCHER.replace("echo 0", "# echo 0")} | dict.fromkeys(
    ("sacct", "python"), "#!/bin/bash\n"
)


@pytest.fixture
def allocation(tmp_path, monkeypatch):
    """A folder to submit from, with the scripts and the jobs, in a batch job of four nodes."""
    for name in ("slurm", "jobs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in [name for name in os.environ if name.startswith(("SLURM", "HPCOPT", "OMP", "PHASE"))]:
        monkeypatch.delenv(name)
    for name in ("SITE", "LAUNCHER", "MPI_KIND", "RUN_DIR", "CONTAINER", "IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"}


def run(script: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code of a batch script in this environment, and what it printed."""
    done = subprocess.run(
        ["bash", script, *arguments], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def asked(launcher: str) -> list[str]:
    return Path(f"{launcher}.asked").read_text().splitlines()


# What SLURM may set, and what is asked of srun, of MPICH's mpirun and of Open MPI's.
LAYOUTS = [
    (
        {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "2(x4)"},
        ["--ntasks=8", "--nodes=4", "--ntasks-per-node=2"],
        ["-n", "8", "-ppn", "2"],
        ["-n", "8", "--map-by", "ppr:2:node:PE=1"],
    ),
    (
        {"SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "32(x4)"},  # a number for each node alone
        ["--ntasks=8", "--nodes=4", "--ntasks-per-node=2"],
        ["-n", "8", "-ppn", "2"],
        ["-n", "8", "--map-by", "ppr:2:node:PE=1"],
    ),
    (
        {"SLURM_TASKS_PER_NODE": "1(x4)"},  # nodes alone
        ["--ntasks=4", "--nodes=4", "--ntasks-per-node=1"],
        ["-n", "4", "-ppn", "1"],
        ["-n", "4", "--map-by", "ppr:1:node:PE=1"],
    ),
    (
        {"SLURM_NTASKS": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_TASKS_PER_NODE": "1,3(x2)"},
        ["--ntasks=7", "--nodes=3", "--cpus-per-task=1"],
        ["-n", "7", "python"],
        ["-n", "7", "--map-by", "slot:PE=1"],
    ),
    (
        {"SLURM_TASKS_PER_NODE": "2,1(x2),4"},
        ["--ntasks=8", "--nodes=4", "--cpus-per-task=1"],
        ["-n", "8", "python"],
        ["-n", "8", "--map-by", "slot:PE=1"],
    ),
]


@pytest.mark.parametrize(("slurm", "srun", "mpich", "openmpi"), LAYOUTS)
def test_all_ranks_are_started_on_all_nodes(allocation, slurm, srun, mpich, openmpi):
    def start(**environment: str) -> None:
        code, said = run("slurm/train.sh", "jobs/quickstart.toml", **allocation, **environment)
        assert code == 0, said

    allocation |= slurm
    start()
    assert asked("srun")[: len(srun)] == srun
    start(LAUNCHER="mpirun", FLAVOUR="HYDRA build details")
    assert asked("mpirun")[: len(mpich)] == mpich
    start(LAUNCHER="mpirun", FLAVOUR="mpirun (Open MPI) 5.0.11")
    assert asked("mpirun")[: len(openmpi)] == openmpi


@pytest.mark.parametrize(
    ("arguments", "patience_s"),
    [
        (["jobs/quickstart.toml"], 60),
        (["jobs/quickstart.toml", "--set", "run.elastic=true"], 0),
        (["jobs/digits_elastic.toml"], 0),
        (["one_line.toml"], 0),
        (["no_longer.toml"], 60),
    ],
)
def test_ranks_that_go_on_without_others_have_all_the_time(allocation, arguments, patience_s):
    Path("one_line.toml").write_text('run = {name = "t", elastic=true}\n')
    Path("no_longer.toml").write_text("[run]\n# elastic = true\n")
    code, said = run("slurm/train.sh", *arguments, **allocation)
    assert code == 0, said
    assert f"--wait={patience_s}" in asked("srun")


SCRIPTS = [path for folder in ("slurm", "benchmarks") for path in (ROOT / folder).rglob("*.sh")]
WHOLE = [
    str(path.relative_to(ROOT))
    for path in SCRIPTS
    if "#SBATCH --nodes" in (text := path.read_text()) and "--array" not in text
]


@pytest.mark.parametrize("script", WHOLE)
def test_no_script_needs_a_number_of_tasks(allocation, script):
    code, said = run(script, "jobs/quickstart.toml", **allocation, SLURM_TASKS_PER_NODE="1,3(x3)")
    assert code == 0, said
    assert asked("srun")[:2] == ["--ntasks=10", "--nodes=4"]
    if script == "slurm/kaisa_bert.sh":  # phase 2 is given as many
        assert {"--nodes=4", "--ntasks=10"} <= set(asked("sbatch"))


def test_a_sweeps_points_are_started_on_nodes_of_their_own(allocation):
    allocation |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "9"}
    code, said = run("slurm/scaling_sweep.sh", "jobs/quickstart.toml", **allocation, SLURM_TASKS_PER_NODE="2(x4)")
    assert code == 0, said
    assert asked("srun")[:3] == ["--ntasks=4", "--nodes=2", "--ntasks-per-node=2"]
    code, said = run("slurm/scaling_sweep.sh", "jobs/quickstart.toml", **allocation, SLURM_TASKS_PER_NODE="1,3(x3)")
    assert (code, "different numbers of ranks, 1,3(x3)" in said) == (2, True)


def test_a_task_of_a_studys_array_starts_all_its_ranks(allocation):
    allocation |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "9"}
    code, said = run("slurm/study.sh", "jobs/study_rates.toml", **allocation, SLURM_TASKS_PER_NODE="2(x4)")
    assert code == 0, said
    words = asked("srun")
    assert words[:3] == ["--ntasks=8", "--nodes=4", "--ntasks-per-node=2"]
    assert words[-4:] == ["python", "-m", "hpcopt.study", "jobs/study_rates.toml"]


def test_a_task_of_an_array_trains_an_agent_by_its_own_seed(allocation):
    allocation |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4"}
    code, said = run("slurm/reinforcement.sh", "jobs/pendulum.toml", **allocation, SLURM_TASKS_PER_NODE="2(x4)")
    assert code == 0, said
    words = asked("srun")
    assert words[:2] == ["--ntasks=8", "--nodes=4"]
    assert words[words.index("--run-dir") + 1] == "runs/pendulum-seed4"
    assert {"run.seed=4", "workload.environments=7"} <= set(words)


def test_a_site_file_stands_here_or_beside_the_launch_script(allocation, tmp_path):
    """An installed package has the scripts elsewhere than the folder that is submitted from."""
    (tmp_path / "slurm").unlink()
    home = tmp_path / "installed"
    (home / "site").mkdir(parents=True)
    (home / "launch.sh").write_bytes((ROOT / "slurm/launch.sh").read_bytes())
    (home / "site/here.sh").write_text("echo THE PACKAGE\n")
    script = f'set -euo pipefail\nsource "{home}/launch.sh"\nrun_ranks "$RANKS" python ranks.py\nfinish\n'

    def said() -> str:
        environment = {**os.environ, **allocation, "SITE": "here"}
        command = ["bash", "-c", script]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert "THE PACKAGE" in said()
    (tmp_path / "slurm/site").mkdir(parents=True)
    (tmp_path / "slurm/site/here.sh").write_text("echo THE FOLDER\n")
    assert "THE FOLDER" in said()
    assert "THE PACKAGE" not in said()


@pytest.mark.parametrize(
    ("container", "image", "before", "wrapped"),
    [
        ("apptainer", "hpcopt.sif", [], ["apptainer", "exec", "--bind", "{here}", "--pwd", "{here}", "hpcopt.sif"]),
        ("pyxis", "site.org#hpcopt", ["--container-image=site.org#hpcopt", "--container-mounts={here}:{here}"], []),
        ("bubblewrap", "/images/hpcopt", [], ["--ro-bind", "/images/hpcopt", "/"]),
    ],
)
def test_ranks_run_in_a_container(allocation, tmp_path, container, image, before, wrapped):
    """What goes before python, and what srun itself is asked for; the script's own programs stay outside."""
    code, said = run("slurm/train.sh", "jobs/quickstart.toml", **allocation, CONTAINER=container, IMAGE=image)
    assert code == 0, said
    asked_for = asked("srun")
    python = asked_for.index("python")
    assert asked_for[python : python + 4] == ["python", "-m", "hpcopt.train", "jobs/quickstart.toml"]
    for words in (before, wrapped):
        words = [word.format(here=tmp_path) for word in words]
        first = asked_for.index(words[0]) if words else 0
        assert asked_for[first : first + len(words)] == words and first < python


def test_a_site_file_may_read_variables_that_are_not_set(allocation, tmp_path):
    """As those of modules and conda do."""
    (tmp_path / "slurm").unlink()
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm/site/here.sh").write_text('echo "conda: $PS1_THAT_IS_NOT_SET"\n')
    code, said = run("slurm/train.sh", "jobs/quickstart.toml", **allocation, SITE="here")
    assert (code, "conda: \n" in said) == (0, True), said


@pytest.mark.parametrize(("launched", "told"), [(9, 70), (11, 70), (137, 70), (143, 70), (1, 1), (2, 2), (127, 127)])
def test_a_rank_that_the_system_killed_is_a_lost_one(allocation, tmp_path, launched, told):
    """No rank could leave its exit code: MPICH's mpirun gives the signal, srun and Open MPI's 128 more."""
    (tmp_path / "bin" / "srun").write_text(f"#!/bin/bash\nexit {launched}\n")
    code, said = run("slurm/train.sh", "jobs/quickstart.toml", **allocation)
    assert (code, "lost a rank to a signal" in said) == (told, told == 70), said


@pytest.mark.parametrize(
    ("script", "environment", "message"),
    [
        ("train.sh", {"SLURM_JOB_ID": ""}, "this is a batch script: submit it with sbatch"),
        ("train.sh", {"SLURM_HET_SIZE": "2"}, "heterogeneous jobs are not supported"),
        ("train.sh", {"LAUNCHER": "orterun"}, "write srun or mpirun"),
        ("train.sh", {"MAX_RESTARTS": "many"}, 'MAX_RESTARTS: "many" is no whole number'),
        ("train.sh", {"CONTAINER": "podman"}, "there is no slurm/containers/podman.sh"),
        ("train.sh", {"CONTAINER": "pyxis"}, "give an IMAGE"),
        ("train.sh", {"CONTAINER": "pyxis", "IMAGE": "a", "LAUNCHER": "mpirun"}, "so LAUNCHER=srun"),
        ("train.sh", {}, "usage: sbatch slurm/train.sh JOB.toml"),
        ("scaling_sweep.sh", {}, "usage: sbatch slurm/scaling_sweep.sh JOB.toml"),
        ("study.sh", {}, "usage: sbatch slurm/study.sh FILE.toml"),
        ("kaisa_bert.sh jobs/none.toml", {}, "there is no jobs/none.toml"),
        ("kaisa_bert.sh", {"PHASE": "two"}, "PHASE=two: write 1 or 2"),
        ("kaisa_bert.sh", {"PHASE": "2"}, "PHASE1_DIR: give the run directory"),
        ("scaling_sweep.sh job.toml", {}, "3 sizes and 3 seeds: --array=0-8"),
        ("scaling_sweep.sh job.toml", {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "9"}, "--array=0-8"),
        ("scaling_sweep.sh job.toml", {"NODES": "1 2x"}, 'NODES: "2x" is no whole number'),
        ("scaling_sweep.sh job.toml", {"SEEDS": "1,2"}, 'SEEDS: "1,2" is no whole number'),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence(allocation, script, environment, message):
    name, *arguments = script.split()
    code, said = run(f"slurm/{name}", *arguments, **{**allocation, **environment})
    assert (code, message in said) == (2, True), said
    assert "unbound variable" not in said
    assert not Path("srun.asked").exists()
