"""A job file becomes objects, or says which key is wrong and what would be right."""

import json
import tomllib

import pytest

from hpcopt.errors import JobError
from hpcopt.job import Job, read_job, schema

JOB = """
[run]
steps = 10
[workload]
data = "data/digits"
[workload.model]
name = "resnet"
[solver.optimizer]
name = "adamw"
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    return file


def test_defaults_are_filled_in(path):
    job = read_job(path)
    assert job.solver.optimizer.lr == 1e-3
    assert job.workload.model.blocks == 1
    assert job.exchange.name == "ring"


def test_horovod_gets_its_own_exchange(path):
    assert read_job(path, ["run.backend=horovod"]).exchange.name == "native"


def test_horovod_as_an_exchange_is_its_backend_too(path):
    job = read_job(path, ["exchange.name=horovod", "exchange.bucket_mb=1"])
    assert (job.exchange.name, job.exchange.bucket_mb, job.run.backend) == ("native", 1, "horovod")
    with pytest.raises(JobError, match=r'name = "horovod" needs \[run\] backend = "horovod"'):
        read_job(path, ["exchange.name=horovod", "run.backend=mpi"])


def test_settings_override_the_file(path):
    job = read_job(path, ["run.steps=3", "solver.optimizer.lr=0.5", "run.name=other", "workload.model.blocks = 2"])
    assert (job.run.steps, job.solver.optimizer.lr, job.run.name, job.workload.model.blocks) == (3, 0.5, "other", 2)


def test_the_resolved_job_is_a_job_again(path):
    job = read_job(path, ["run.time_budget=1h30m", "run.stop_at={metric='test_accuracy', value=0.9}"])
    assert job.run.time_budget == 5400
    assert Job.model_validate(tomllib.loads(job.as_toml())) == job


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("solver.optimiser.lr=1", '--set: unknown key "solver.optimiser"; did you mean "optimizer"?'),
        ("solver.optimizer.learning_rat=1", 'unknown key "solver.optimizer.learning_rat"'),
        ("solver.optimizer.beta=1", 'did you mean "betas"?'),
        ("workload.model.width=10", "--set: workload.model.width: Input should be a multiple of 4"),
        ("workload.btach=64", '--set: unknown key "workload.btach"; did you mean "batch"?'),
        ("run.steps=ten", "--set: run.steps: Input should be a valid integer"),
        ("run.step=10", 'did you mean "steps"?'),
        ("run.name=..", "run.name: String should match pattern"),
        ("run.epochs=0", "run.epochs: Input should be greater than 0"),
        (
            "solver.optimizer.name=adam",
            '--set: solver.optimizer.name: there is no optimizer "adam"; did you mean "adamw"?',
        ),
        ("run.time_budget=soon", "not a duration"),
        ("slover.name=x", 'did you mean "solver"?'),
        ("run=5", "run: Input should be"),
        ("run", "write --set section.key=value"),
        ("run.steps.more=5", "steps is a value, not a section"),
        ("run.name=2024", "stands in quotes: --set 'run.name=\"2024\"'"),
        ("run.name=nan", "stands in quotes: --set 'run.name=\"nan\"'"),
        ("workload.data=true", "stands in quotes: --set 'workload.data=\"true\"'"),
        ("solver.optimizer.lr=nan", "solver.optimizer.lr: Input should be a finite number"),
        ("solver.optimizer.lr=inf", "finite number"),
        (
            "solver.clip_norm=none",
            'solver.clip_norm: Input should be a valid number, unable to parse string as a number; or "off"',
        ),
        ("solver.optimizer.lr=off", "valid number"),
        ("solver.optimizer.betas=[0.9, ", "the value is not TOML"),
        ("run.steps=" + "9" * 5000, "run.steps"),
        ("run.time_budget=[1, 2]", "not a duration: [1, 2]"),
        ("run.time_budget=-" + "9" * 400, "greater than 0"),
        ("solver.optimizer.name=\udce4", "not text in UTF-8"),  # as Python gives bytes of another encoding
        ("solver.optimizer.betas=" + "[" * 5000, "the value is not TOML"),
    ],
)
def test_bad_settings_are_named(path, setting, complaint):
    with pytest.raises(JobError) as error:
        read_job(path, [setting])
    assert complaint in str(error.value)


def test_a_wrong_section_in_the_file_names_the_file_though_a_setting_goes_into_it(path):
    path.write_text(JOB.replace("solver.optimizer", "solver.optimiser"))
    with pytest.raises(JobError, match=f'{path}: unknown key "solver.optimiser"'):
        read_job(path, ["solver.optimiser.lr=1"])


def test_a_wrong_key_in_the_file_names_the_file(path):
    path.write_text(JOB + "\nweigth_decay = 0.1")
    with pytest.raises(
        JobError, match=f'{path}: unknown key "solver.optimizer.weigth_decay"; did you mean "weight_decay"'
    ):
        read_job(path)


def test_a_missing_section(path):
    path.write_text("[run]\nsteps = 1")
    with pytest.raises(JobError, match='"workload" is missing'):
        read_job(path)


@pytest.mark.parametrize("text", [None, "[run\nsteps = 1"])
def test_an_unreadable_file(tmp_path, text):
    file = tmp_path / "job.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(JobError, match=str(file)):
        read_job(file)


def test_a_ring_over_horovod_is_refused(path):
    for exchange in (["ring"], ["vote"], ["auto"], ["two_phase", "exchange.by_nodes=true"]):
        with pytest.raises(JobError, match=rf"\"{exchange[0]}\" .*which Horovod lacks"):
            read_job(path, ["run.backend=horovod", "exchange.name=" + exchange[0], *exchange[1:]])


def test_compressed_sums_go_over_horovod(path):
    job = read_job(path, ["run.backend=horovod", "exchange.name=two_phase", "exchange.codec.name=sign"])
    assert (job.exchange.name, job.exchange.codec.name) == ("two_phase", "sign")


def test_every_setting_is_described():
    def undescribed(node, name):
        if isinstance(node, dict):
            for key, value in node.get("properties", {}).items():
                if key != "name" and "description" not in value:
                    yield f"{name}.{key}"

    definitions = json.loads(schema())
    assert [u for name, d in definitions["$defs"].items() for u in undescribed(d, name)] == []


def test_an_exchange_without_a_name_is_the_backends_own(path):
    assert read_job(path, ["exchange.bucket_mb=1"]).exchange.name == "ring"
    assert read_job(path, ["run.backend=horovod", "exchange.overlap=false"]).exchange.name == "native"


def test_a_key_is_switched_off_in_a_setting_in_a_file_and_in_the_resolved_job(path):
    """None is what TOML cannot say; kl_clip's default is another."""
    path.write_text(JOB + "weight_decay = 0.1\n[solver]\nname = 'kaisa'\n")
    job = read_job(path, ["solver.kl_clip=off", "run.epochs=3", "run.steps=off"])
    assert (job.solver.kl_clip, job.run.steps) == (None, None)
    assert "epochs" in job.as_toml() and "steps" not in job.as_dict()["run"]
    path.write_text(job.as_toml())
    assert read_job(path) == job


def test_a_section_of_another_class_leaves_out_what_that_does_not_know(path, capsys):
    path.write_text(JOB.replace('"adamw"', '"sgd"') + "momentum = 0.8\nnesterov = true\nweight_decay = 0.1\n")
    optimizer = read_job(path, ["solver.optimizer.name=adamw", "solver.optimizer.betas=[0.8, 0.9]"]).solver.optimizer
    assert (optimizer.name, optimizer.weight_decay, optimizer.betas) == ("adamw", 0.1, (0.8, 0.9))
    assert capsys.readouterr().err == (
        f"hpcopt: --set solver.optimizer.name=adamw leaves out momentum, nesterov of {path}, which it does not know\n"
    )
    read_job(path, ["solver.optimizer.name=sgd"])
    assert capsys.readouterr().err == ""
    with pytest.raises(JobError, match=r"--set: unknown key .solver\.optimizer\.momentum"):
        read_job(path, ["solver.optimizer.name=adamw", "solver.optimizer.momentum=0.5"])


def test_a_misspelt_key_stays_an_error_where_the_name_stays(path):
    path.write_text(JOB + "weigth_decay = 0.1")
    with pytest.raises(JobError, match="weigth_decay"):
        read_job(path, ["solver.optimizer.name=adamw"])


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8-sig", None),
        ("latin-1", r"not text in UTF-8 \(byte 0xf6 in line 10\); if it is in LATIN1: iconv -f LATIN1"),
        ("utf-16", "not text in UTF-8; if it is in UTF-16: iconv -f UTF-16"),
        ("utf-16-le", "if it is in UTF-16"),
    ],
)
def test_other_encodings_are_named(path, encoding, said):
    path.write_text(JOB + "# Größe: keine", encoding=encoding)
    if said is None:
        assert read_job(path).run.steps == 10
    else:
        with pytest.raises(JobError, match=said):
            read_job(path)


def test_lines_of_windows_are_lines(path):
    path.write_bytes(JOB.replace("\n", "\r\n").encode())
    assert read_job(path).run.steps == 10


def test_an_exchange_meets_what_the_solver_needs(path):
    with pytest.raises(JobError, match=r'"kaisa" as it is here steps by sums of gradients, .* "vote" gives signs'):
        read_job(path, ["solver.name=kaisa", "exchange.name=vote"])
    with pytest.raises(JobError, match='"signum" and without clip_norm'):
        read_job(path, ["exchange.name=vote"])
    signum = ["solver.optimizer.name=signum", "exchange.name=vote"]
    with pytest.raises(JobError, match='"signum" and without clip_norm'):
        read_job(path, [*signum, "solver.clip_norm=1.0"])
    assert read_job(path, signum).exchange.name == "vote"
    either = ["exchange.name=auto", "exchange.signs=true"]
    with pytest.raises(JobError, match='"auto" gives signs'):
        read_job(path, either)
    assert read_job(path, ["solver.optimizer.name=signum", *either]).exchange.signs


@pytest.mark.parametrize("solver", ["gossip", "altmin", "bcd", "dladmm", "annealing"])
def test_a_solver_without_exchange_takes_none(tmp_path, solver):
    path = tmp_path / "job.toml"
    path.write_text(f'[run]\nsteps = 1\n[workload]\ndata = "d"\nbatch = 4\n[solver]\nname = "{solver}"\n')
    job = read_job(path)
    assert job.exchange is None
    path.write_text(job.as_toml())
    assert read_job(path) == job
    with pytest.raises(JobError, match=f'"{solver}" exchanges no gradients'):
        read_job(path, ["exchange.name=ring"])
    with pytest.raises(JobError, match="which Horovod lacks"):
        read_job(path, ["run.backend=horovod"])


def test_a_job_of_before_is_told_where_gossip_and_seeds_went(path):
    with pytest.raises(JobError, match="is a solver now: write"):
        read_job(path, ["exchange.name=gossip", "exchange.tau=1"])
    with pytest.raises(JobError, match=r'unknown key "exchange.seed"; .*seed decides all'):
        read_job(path, ["exchange.name=two_phase", "exchange.seed=3"])


def test_a_wrong_solver_is_one_message(path):
    with pytest.raises(JobError) as error:
        read_job(path, ["solver.name=kasia"])
    assert len(str(error.value).splitlines()) == 1
