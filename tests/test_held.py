"""Classes of anybody's are held to what the methods and attributes of their base promise."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpcopt.comm.shards import grain
from hpcopt.comm.world import alone
from hpcopt.compress import Codec, Half
from hpcopt.errors import DataError, JobError, UnsupportedError
from hpcopt.exchange import Exchange, ExchangeConfig, RingConfig
from hpcopt.held import fits, require_attributes, require_methods
from hpcopt.optim import OptimizerConfig, ScheduleConfig, SgdConfig
from hpcopt.shapes import Scalar, Solver, SolverConfig, StepStats, Workload, WorkloadConfig
from hpcopt.shapes.batch import require_batch
from hpcopt.shapes.stats import Rows
from hpcopt.workloads.own.user_code import require_network


def test_a_method_that_gives_something_else_is_one_message():
    class Mine(ExchangeConfig):
        def build(self, seed):
            return 3

    with pytest.raises(JobError, match=r"test_held:.*Mine\.build\(\) gave 3, not Reducer"):
        Mine().build(0)


def test_what_is_as_promised_passes_and_is_the_same_object():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    class Mine(OptimizerConfig):
        lr: float = 0.1

        def build(self, parameters):
            """Mine."""
            return optimizer

    assert Mine().build([]) is optimizer
    assert Mine.build.__doc__ == "Mine."
    assert "held" not in SgdConfig.build.__qualname__  # ours are left as they are


@pytest.mark.parametrize("value", [None, "half", [0.5], torch.ones(())])
def test_a_schedule_gives_numbers(value):
    class Mine(ScheduleConfig):
        def decayed(self, progress, rest):
            return value

    with pytest.raises(JobError, match=r"Mine\.decayed\(\) gave .*, not float"):
        Mine().factor(0, 1)


def test_the_promise_is_that_of_the_outermost_base():
    class Biased(Half):  # which is unbiased, and promises a number
        def variance(self, n):
            return None

    assert not Biased().unbiased


def test_something_in_place_of_a_method_fails_where_the_class_is_made():
    with pytest.raises(TypeError, match=r"Mine\.build is 3, not a method"):
        type("Mine", (SolverConfig,), {"build": 3, "__module__": "somebodys"})


@pytest.mark.parametrize("value", [0, -512, None, "64", 64.0])
def test_a_codecs_buckets_have_a_length(value):
    class Mine(Half):
        bucket: object = value

    with pytest.raises(UnsupportedError, match=r"Mine: a codec's field bucket is a number of values, at least 1, not"):
        grain(Mine())


@pytest.mark.parametrize("wrong", [None, lambda self: 3])
def test_attributes_can_be_asked_for(wrong):
    with pytest.raises(TypeError, match=r"Mine\.__getattr__(\(self\) cannot be called| is None, not a method)"):
        type("Mine", (Half,), {"__getattr__": wrong, "__module__": "somebodys"})


@pytest.mark.parametrize("method", ["__str__", "__eq__", "__setattr__"])
def test_nor_can_something_stand_where_python_calls(method):
    with pytest.raises(TypeError, match=rf"Mine\.{method} is 3, not a method"):
        type("Mine", (Half,), {method: 3, "__module__": "somebodys"})
    type("Mine", (Half,), {"__module__": "somebodys", "__slots__": (), "__doc__": "Mine."})


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [
        (OptimizerConfig, "takes", 5),
        (OptimizerConfig, "asks", None),
        (SolverConfig, "phases", 3),
        (SolverConfig, "phases", lambda self: ()),
        (WorkloadConfig, "may_change", ["data"]),
        (Half, "linear", "no"),
        (Half, "wire_version", 1.5),
    ],
)
def test_attributes_of_a_class_are_as_declared(base, name, value):
    with pytest.raises(TypeError, match=rf"Mine\.{name} is .*, not "):
        type("Mine", (base,), {name: value, "__module__": "somebodys"})
    type("Mine", (base,), {name: getattr(base, name), "__module__": "somebodys"})


def test_properties_are_held_too():
    class Mine(SolverConfig):
        @property
        def needs(self):
            return ["sums"]

        def build(self, task, context):
            return None

    with pytest.raises(JobError, match=r"Mine\.needs is \['sums'\], not frozenset\[str\]"):
        _ = Mine().needs


def test_attributes_are_there_and_of_their_kind():
    def made(**attributes):
        methods = dict.fromkeys(Solver.__abstractmethods__, lambda self, *given: None)
        return type("Mine", (Solver,), {**methods, "__module__": "somebodys", **attributes})()

    good = {"model": nn.Linear(1, 1), "data_rank": 0, "data_size": np.int64(1)}
    require_attributes(made(**good), Solver)
    with pytest.raises(JobError, match=r"somebodys:Mine\.model is missing: it is Module"):
        require_attributes(made(data_rank=0, data_size=1), Solver)
    changed = made(**good)
    changed.lockstep = "yes"
    with pytest.raises(JobError, match=r"Mine\.lockstep is 'yes', not bool"):
        require_attributes(changed, Solver)


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        (np.float32(1), float, True),
        (1, float, True),
        (1.0, int, False),
        (True, int, False),  # torch.empty takes none
        (None, float | None, True),
        ({"a": 1.0}, dict[str, float], True),
        ({"a": "b"}, dict[str, float], False),
        ({1: 1.0}, dict[str, float], False),
        ({"a": Scalar(1.0)}, dict[str, Scalar | float], True),
        (("a", "b"), tuple[str, ...], True),
        (len, Callable[[list], int], True),
        (3, Callable[[list], int], False),
        (None, Callable[..., int] | None, True),
    ],
)
def test_kinds(value, kind, right):
    assert fits(value, kind) is right


@pytest.mark.parametrize(("given", "complaint"), [(None, "gave nothing more"), ([1, 2], "gave a list, no Batch")])
def test_a_workload_gives_batches(given, complaint):
    with pytest.raises(DataError, match=complaint):
        require_batch(given, "train_batches")


def test_scores_say_which_way_they_improve():
    hints = Workload.__annotations__["scores"]
    assert fits({"loss": "lower"}, hints)
    assert not fits({"loss": "up"}, hints)


@pytest.mark.parametrize("fields", [{"loss": "x"}, {"loss": 1.0, "scalars": {"a": "b"}}, {"loss": 1.0, "tables": 3}])
def test_a_step_tells_numbers(fields):
    with pytest.raises(TypeError, match="StepStats"):
        StepStats(**fields)


@pytest.mark.parametrize(("most", "used"), [(-1, 0), (2**70, 0), (8, 9), (8, -1)])
def test_a_codec_stays_in_its_buffer(most, used):
    class Mine(Codec):
        def max_bytes(self, n):
            return most

        def _encode(self, x, seed, first, payload):
            return used

        def _decode(self, payload, out, weight, add):
            return None

    with pytest.raises(UnsupportedError, match=r"Mine.*(no size of a payload|_encode used)"):
        Mine().encode(torch.ones(2), seed=0)


def test_what_a_librarys_class_calls_stays_a_method():
    with pytest.raises(TypeError, match=r"Mine\.model_dump is .*property.*, not a method"):
        type("Mine", (SolverConfig,), {"model_dump": property(lambda self: {}), "__module__": "somebodys"})

    class Mine(nn.Module):
        named_parameters = None

    require_methods(nn.Linear(1, 1), nn.Module)
    with pytest.raises(JobError, match=r"Mine\.named_parameters is None, not a method"):
        require_methods(Mine(), nn.Module)


def test_what_is_built_has_the_methods_of_its_kind():
    class Theirs(torch.optim.SGD):
        load_state_dict = 3

    class Mine(OptimizerConfig):
        def build(self, parameters):
            return Theirs(parameters, lr=0.1)

    with pytest.raises(JobError, match=r"Theirs\.load_state_dict is 3, not a method"):
        Mine(lr=0.1).build([nn.Parameter(torch.ones(1))])
    del Theirs.load_state_dict
    for Theirs.__getattr__ in (None, lambda self: 3):
        with pytest.raises(JobError, match=r"Theirs\.__getattr__( is None, not a method|.* cannot be called with)"):
            Mine(lr=0.1).build([nn.Parameter(torch.ones(1))])


def test_a_method_takes_what_its_base_takes():
    class Mine(Half):
        def gain(self, *numbers):
            return 2.0

    assert Mine().gain(3) == 2
    with pytest.raises(TypeError, match=r"Other\.gain\(self\) cannot be called with \(self, n.*: too many positional"):

        class Other(Half):
            def gain(self):
                return 2.0


def test_a_codecs_settings_can_be_told_apart():
    class Mine(Half):
        levels: Sequence[int] = [1, 2]

    with pytest.raises(ValidationError, match="compared by their hash: unhashable type: 'list'; take a tuple"):
        Mine()
    Mine(levels=(1, 2))


def test_a_networks_parameters_are_asked_for_once():
    class Mine(nn.Module):
        def named_parameters(self):
            return []

    with pytest.raises(JobError, match=r"mine: its parameters and buffers raised TypeError: .* 'recurse'"):
        require_network(Mine(), "mine")


def test_a_network_can_be_put_into_its_modes():
    class Mine(nn.Module):
        def train(self):
            return self

    with pytest.raises(JobError, match=r"mine: eval\(\) and train\(\) raised TypeError"):
        require_network(Mine(), "mine")


def test_a_networks_state_is_tensors_by_name():
    class Mine(nn.Module):
        def state_dict(self, *place, **named):
            return None

    require_network(nn.Linear(1, 1), "mine")
    with pytest.raises(JobError, match=r"mine: state_dict\(\) gave NoneType, not tensors by name"):
        require_network(Mine(), "mine")


def test_a_steps_tables_are_tables():
    StepStats(0.1, tables={"t": Rows({"a": [1.0]})})
    with pytest.raises(TypeError, match=r"StepStats: tables is \{.t.: 1\}"):
        StepStats(0.1, tables={"t": 1})


def test_a_reducers_attributes_are_those_that_are_asked_for():
    class Mine(RingConfig):
        def build(self, seed):
            reducer = super().build(seed)
            theirs = type("Mine", (type(reducer),), {"choices": 3, "__module__": "somebodys"})
            reducer.__class__ = theirs
            return reducer

    with pytest.raises(JobError, match=r"somebodys:Mine\.choices is 3, not"):
        Exchange(alone(), nn.Linear(1, 1), Mine())
