"""A job names classes of anybody's, by where Python finds them, with every check that builtins have."""

import json
import sys
from typing import Annotated

import h5py
import pytest
from pydantic import TypeAdapter

from hpcopt import families, plugins
from hpcopt.compress import Codec, Dense, Half, Sign
from hpcopt.config import Choice
from hpcopt.errors import JobError
from hpcopt.exchange import ExchangeConfig, RingConfig, TwoPhaseConfig
from hpcopt.family import Family
from hpcopt.job import Job, read_job, schema
from hpcopt.models.causal.config import CausalModelConfig
from hpcopt.models.config import (
    FrameModelConfig,
    GraphModelConfig,
    ImageModelConfig,
    PictureModelConfig,
    TokenModelConfig,
    VectorModelConfig,
)
from hpcopt.models.control.body import BodyConfig
from hpcopt.models.control.features import FeatureConfig
from hpcopt.models.heads import HeadConfig
from hpcopt.models.rewrite import Rewrite
from hpcopt.optim import AdamWConfig, OptimizerConfig, ScheduleConfig, SgdConfig
from hpcopt.prepare import prepare
from hpcopt.shapes import SolverConfig, WorkloadConfig
from hpcopt.solvers.actor_critic.method import MethodConfig
from hpcopt.solvers.actor_critic.replay import ReplayConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.kaisa.solver import KaisaConfig
from hpcopt.train import main
from hpcopt.trainer.resume import Position

FAMILIES = {
    "WORKLOADS": WorkloadConfig,
    "IMAGE_MODELS": ImageModelConfig,
    "MASK_MODELS": ImageModelConfig,
    "GRAPH_MODELS": GraphModelConfig,
    "VECTOR_MODELS": VectorModelConfig,
    "PICTURE_MODELS": PictureModelConfig,
    "FRAME_MODELS": FrameModelConfig,
    "TOKEN_MODELS": TokenModelConfig,
    "CAUSAL_MODELS": CausalModelConfig,
    "BODIES": BodyConfig,
    "FEATURES": FeatureConfig,
    "SOLVERS": SolverConfig,
    "METHODS": MethodConfig,
    "REPLAYS": ReplayConfig,
    "REWRITES": Rewrite,
    "HEADS": HeadConfig,
    "OPTIMIZERS": OptimizerConfig,
    "SCHEDULES": ScheduleConfig,
    "EXCHANGES": ExchangeConfig,
    "CODECS": Choice,
}

JOB = """
[run]
steps = 10
[workload]
data = "data/digits"
[solver]
name = "mine.solver:MySolver"
strength = 3
"""

SOLVER = """
from pydantic import Field
from hpcopt.shapes import SolverConfig
from hpcopt.solvers.data_parallel import DataParallelConfig

class MySolver(DataParallelConfig):
    '''Mine.'''
    strength: int = Field(1, ge=1, le=5, description="how strong")

class Unfinished(DataParallelConfig):
    odd: "Nowhere"

class Abstract(SolverConfig):
    pass

class Returning(DataParallelConfig):
    def __init__(self, **settings):
        return 3

class Unwritten(DataParallelConfig):
    def model_dump(self, **settings):
        return 3

class Other:
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of somebody's, importable while the test runs."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "solver.py").write_text(SOLVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "LOADED", {})
    yield folder
    for name in FAMILIES:
        getattr(families, name)._plugged_in.clear()
    for name in [n for n in sys.modules if n == "mine" or n.startswith("mine.")]:
        del sys.modules[name]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    return file


def test_a_module_that_puts_something_else_in_its_place_is_a_sentence(package):
    (package / "gone.py").write_text("import sys\nsys.modules[__name__] = None\n")
    with pytest.raises(ValueError, match=r'"mine.gone:Mine": importing mine.gone gave NoneType, not a module'):
        plugins.import_object("mine.gone:Mine")


def test_a_section_that_gives_no_data_is_a_sentence(package, path):
    job = read_job(path, ["solver.name=mine.solver:Unwritten"])
    with pytest.raises(JobError, match=r"cannot be written: Unwritten\.model_dump\(\) gave int, not a dictionary$"):
        job.as_dict()


def test_every_family_is_listed_here():
    assert {name for name, value in vars(families).items() if isinstance(value, Family)} == set(FAMILIES)


@pytest.mark.parametrize(("name", "kind"), FAMILIES.items())
def test_a_builtin_is_called_what_its_list_says(name, kind):
    choices = getattr(families, name).choices(kind)
    assert choices
    assert [found.model_fields["name"].default for found in choices.values()] == list(choices)


def test_a_class_of_ones_own_is_a_section(package, path):
    job = read_job(path)
    assert (type(job.solver).__name__, job.solver.strength) == ("MySolver", 3)
    assert job.solver.optimizer == SgdConfig()
    assert job.as_dict()["solver"]["name"] == "mine.solver:MySolver"


def test_the_resolved_job_names_it_and_is_a_job_again(package, path, tmp_path):
    job = read_job(path)
    (tmp_path / "again.toml").write_text(job.as_toml())
    assert read_job(tmp_path / "again.toml") == job


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("solver.strenght=1", '--set: unknown key "solver.strenght"; did you mean "strength"?'),
        ("solver.strength=9", "--set: solver.strength: Input should be less than or equal to 5"),
        ("solver.strength=much", "--set: solver.strength: Input should be a valid integer"),
        ("solver.name=mine.solver:Unfinished", "`Unfinished` is not fully defined; you should define `Nowhere`"),
        ("solver.name=mine.solver:Abstract", "Abstract cannot be made: Can't instantiate abstract class Abstract"),
        ("solver.name=mine.solver:Returning", "Returning cannot be made: __init__() should return None"),
        ("solver.optimizer.beta=1", 'unknown key "solver.optimizer.beta"'),
        ("solver.name=mine.solver:MySolvr", '--set: solver.name: "mine.solver:MySolvr": mine.solver has no MySolvr'),
        ("solver.name=mine.solver:Other", "not a subclass of hpcopt.config:Choice"),
        ("solver.name=mine.sovler:MySolver", "there is no module mine.sovler; is its folder the current one"),
        ("solver.name=hpcopt.optim:SgdConfig", "does not fit here, where a SolverConfig is asked for"),
        ("solver.name=kasia", 'there is no solver "kasia"; did you mean "kaisa"?'),
        ("solver.name=5", "solver.name: 5 is no text"),
        ("exchange.name=two_phase", None),
        ("exchange.codec.name=topk", 'payloads of codec "topk" cannot be summed on the way round a ring'),
    ],
)
def test_every_check_survives(package, path, setting, complaint):
    if complaint is None:
        read_job(path, [setting])
        return
    with pytest.raises(JobError) as error:
        read_job(path, [setting])
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import no_such_thing", "importing mine.solver failed: No module named 'no_such_thing'"),
        ("1 / 0", "importing mine.solver failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "importing mine.solver failed: SystemExit: 3"),
        ("def f(:", "importing mine.solver failed: SyntaxError"),
    ],
)
def test_a_module_that_fails_is_one_message(package, path, text, complaint):
    (package / "solver.py").write_text(text)
    with pytest.raises(JobError) as error:
        read_job(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_what_a_module_prints_is_kept_for_the_log(package, path, capsys):
    (package / "solver.py").write_text(SOLVER + "\nprint('hello')\n")
    read_job(path)
    assert capsys.readouterr().out == ""
    assert plugins.LOADED["mine.solver:MySolver"].printed == "hello\n"


def test_the_records_tell_one_file_from_another(package, path):
    read_job(path)
    first = plugins.provenance()["mine.solver:MySolver"]
    assert first["file"] == str(package / "solver.py")
    assert len(first["digest"]) == 32
    installed = plugins.import_object("numpy:ndarray")
    assert installed.__name__ == "ndarray"
    assert plugins.LOADED.pop("numpy:ndarray").distribution == "numpy"


def test_the_schema_knows_what_the_job_plugs_in(package, path):
    read_job(path)
    assert json.loads(schema())["$defs"]["MySolver"]["properties"]["strength"]["maximum"] == 5


def test_instances_pass_in_python():
    class Loud(Codec):
        def max_bytes(self, n):
            return 4 * n

        def _encode(self, x, seed, first, payload):
            raise NotImplementedError

        def _decode(self, payload, out, weight, add):
            raise NotImplementedError

    class MyOptimizer(SgdConfig):
        extra: int = 1

    exchange = TwoPhaseConfig(codec=Loud())
    assert exchange.codec.name.endswith(":test_instances_pass_in_python.<locals>.Loud")
    solver = DataParallelConfig(optimizer=MyOptimizer(lr=0.5, extra=2))
    job = Job(run={"steps": 1}, workload={}, solver=solver, exchange=exchange)
    assert job.solver.optimizer.extra == 2
    assert job.as_dict()["solver"]["optimizer"]["extra"] == 2


def test_a_name_is_asked_for_where_there_is_no_default():
    with pytest.raises(ValueError, match="which codec"):
        TypeAdapter(Annotated[Codec, families.CODECS]).validate_python({"bits": 4})
    assert TypeAdapter(Annotated[OptimizerConfig, families.OPTIMIZERS]).validate_python({"lr": 0.2}) == SgdConfig(
        lr=0.2
    )


def test_what_sums_on_the_way_may_ride_the_ring():
    assert [RingConfig(codec=codec).codec for codec in (Dense(), Half())] == [Dense(), Half()]
    with pytest.raises(ValueError, match="two_phase"):
        RingConfig(codec=Sign())


def test_a_subclass_of_a_builtin_is_not_called_like_it():
    class Mine(KaisaConfig):
        """Mine."""

    assert Mine().name.endswith("<locals>.Mine")
    assert KaisaConfig().name == "kaisa"


PARTS = """
import torch
from hpcopt.compress import Codec
from hpcopt.compress.qsgd import QSGD
from hpcopt.exchange import TwoPhaseConfig
from hpcopt.models.rewrite import Rewrite
from hpcopt.optim import AdamWConfig, OptimizerConfig, ScheduleConfig
from hpcopt.models.mlp import MlpConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.workloads.image_classification import ImageClassificationConfig

class Rprop(OptimizerConfig):
    lr: float = 0.01

    def build(self, parameters):
        return torch.optim.Rprop(list(parameters), lr=self.lr)

class Halving(ScheduleConfig):
    def decayed(self, progress, rest):
        return 0.5 ** (4 * rest)

class Coarse(QSGD):
    pass

class Exchange(TwoPhaseConfig):
    pass

class Network(MlpConfig):
    pass

class Images(ImageClassificationConfig):
    pass

class Solver(DataParallelConfig):
    pass
"""


def test_one_new_file_is_a_part_of_every_family_with_no_line_in_ours(package, tmp_path, capsys):
    (package / "parts.py").write_text(PARTS)
    prepare("digits", tmp_path)
    job = tmp_path / "own.toml"
    job.write_text(
        f"""
[run]
name = "own"
steps = 4
[workload]
name = "mine.parts:Images"
data = "{tmp_path}/digits"
batch = 64
model = {{ name = "mine.parts:Network", hidden = [8] }}
[solver]
name = "mine.parts:Solver"
optimizer = {{ name = "mine.parts:Rprop", lr = 0.001 }}
schedule = {{ name = "mine.parts:Halving" }}
[exchange]
name = "mine.parts:Exchange"
codec = {{ name = "mine.parts:Coarse", bits = 2 }}
"""
    )
    assert main([str(job), "--run-dir", str(tmp_path / "run")]) == 0
    assert "all steps done after step 4" in capsys.readouterr().out
    assert sorted(plugins.provenance()) == [
        f"mine.parts:{name}"
        for name in sorted(("Coarse", "Exchange", "Halving", "Images", "Network", "Rprop", "Solver"))
    ]
    with h5py.File(tmp_path / "run/metrics.h5") as file:
        assert set(json.loads(file.attrs["plugins"])) == set(plugins.provenance())


def test_a_resume_under_another_file_warns(package, path, tmp_path):
    read_job(path)
    before = Position(plugins=plugins.provenance())
    assert before.changed_plugins(plugins.provenance()) == []
    (package / "solver.py").write_text(SOLVER + "\n# changed\n")
    plugins.LOADED.clear()
    read_job(path)
    (warning,) = before.changed_plugins(plugins.provenance())
    assert warning.startswith("warning: mine.solver:MySolver is another than the one that this run began with")


@pytest.mark.parametrize(
    ("solver", "key", "section", "made"),
    [
        ("actor_critic", "optimizer", {"lr": 0.1}, AdamWConfig(lr=0.1, weight_decay=0.0)),
        ("block_admm", "optimizer", {"lr": 0.1}, AdamWConfig(lr=0.1, weight_decay=0.0)),
        ("local", "outer", {"lr": 0.1}, SgdConfig(lr=0.1, momentum=0.9, nesterov=True)),
        ("local", "outer", {"name": "sgd", "lr": 0.1}, SgdConfig(lr=0.1)),
    ],
)
def test_a_section_without_a_name_changes_keys_of_the_default_that_stands_there(solver, key, section, made):
    assert getattr(families.SOLVERS.find(solver)(**{key: section}), key) == made
