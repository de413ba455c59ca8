"""What steps tell of themselves arrives in the file: at the steps that told it, put together over the ranks."""

import math

import h5py
import numpy as np
import pytest

from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import MetricsError
from hpcopt.phases import PhaseClock, Timeline
from hpcopt.shapes.stats import Rows, Scalar, StepStats
from hpcopt.store.metrics import MetricsFile, read
from hpcopt.trainer.recorder import Recorder, joined
from tests.test_phases import Queue

MORE = ("rollout",)


def created(path, ranks: int) -> MetricsFile:
    file = MetricsFile(path)
    file.create(ranks, PhaseClock(MORE).phases, {"title": "test"})
    return file


def recorded(world: World, file: MetricsFile, steps: list[StepStats], flush_after: tuple[int, ...] = ()) -> None:
    """Record steps 1, 2, ... on a rank, and write them."""
    clock = PhaseClock(MORE)
    recorder = Recorder(world, file, clock, 0.0)
    for number, stats in enumerate(steps, 1):
        clock.add("rollout", number)
        recorder.step(number, number / 10, 32 * number, stats)
        if number in flush_after:
            recorder.flush()
    recorder.finish("all steps done", 0)


def columns(path, group: str = "steps") -> dict[str, np.ndarray]:
    def extract(file: h5py.File) -> dict[str, np.ndarray]:
        return {name: d.asstr()[:] if h5py.check_string_dtype(d.dtype) else d[:] for name, d in file[group].items()}

    return read(path, extract)


@pytest.mark.parametrize("flush_after", [(), (1,), (3, 4)])
def test_a_scalar_that_does_not_come_at_every_step_stands_at_the_steps_that_gave_it(tmp_path, flush_after):
    file = created(tmp_path / "metrics.h5", 1)
    given = [{}, {"residual": 4.0}, {}, {"late": 1.0}, {"residual": 8.0}, {}]
    recorded(alone(), file, [StepStats(1.0, 0.1, scalars) for scalars in given], flush_after)
    found = columns(file.path)
    np.testing.assert_array_equal(found["residual"], [np.nan, 4, np.nan, np.nan, 8, np.nan])
    np.testing.assert_array_equal(found["late"], [np.nan, np.nan, np.nan, 1, np.nan, np.nan])


def test_what_metrics_send_is_little(tmp_path):
    """Rank 0 gets the others' rows, with seconds as the file has them; nobody else gets any. It was .4 KB a step on
    four ranks, more than local steps may send themselves.
    """
    file, steps = created(tmp_path / "metrics.h5", 4), 200

    def program(transport):
        world, clock = World(transport), PhaseClock(MORE)
        recorder = Recorder(world, file, clock, 0.0)
        world.traffic.lap()
        for number in range(1, steps + 1):
            for index, phase in enumerate(("forward", "backward", "update", "rollout")):
                clock.add(phase, (number * (index + 2) + transport.rank) / 7919)
            recorder.step(number, 0.0, 32, StepStats(1.0, 0.1))
        sent_bytes = world.traffic.sent_bytes
        recorder.flush()
        recorder.finish("all steps done", 0)
        return (world.traffic.sent_bytes - sent_bytes) / steps

    assert max(run_ranks(4, program)) < 70
    found = read(file.path, lambda file: (file["steps/phase_s"][:], file["steps/phase"].asstr()[:]))
    place = list(found[1]).index("backward")
    expected = [[(number * 3 + rank) / 7919 for rank in range(4)] for number in range(1, steps + 1)]
    np.testing.assert_array_equal(found[0][:, :, place], np.array(expected, np.float32))


def test_scalars_of_several_ranks_are_put_together_as_each_says(tmp_path):
    file = created(tmp_path / "metrics.h5", 3)

    def program(transport):
        rank = transport.rank
        every = {f"all.{over}": Scalar(2.0**rank, over) for over in ("sum", "mean", "max", "rank")}
        some = {name.replace("all", "some"): scalar for name, scalar in every.items()} if rank else {}
        same = {"plain": 0.1, "nowhere": math.nan} | ({"only": Scalar(-7.0, "max")} if rank == 2 else {})
        recorded(World(transport), file, [StepStats(1.0, 0.1, every | some), StepStats(1.0, 0.1, same)], (1,))

    run_ranks(3, program)
    found = columns(file.path)
    expected = {"all.sum": 7, "all.mean": 7 / 3, "all.max": 4, "all.rank": 1}
    expected |= {"some.sum": 6, "some.mean": 3, "some.max": 4, "some.rank": 2}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], [value, np.nan], err_msg=name)
    np.testing.assert_array_equal(found["plain"], [np.nan, 0.1])  # equal numbers have exactly themselves as mean
    np.testing.assert_array_equal(found["only"], [np.nan, -7])
    assert np.isnan(found["nowhere"]).all()


def test_ranks_that_put_a_scalar_together_differently_are_told_so_together(tmp_path):
    file = created(tmp_path / "metrics.h5", 2)

    def program(transport):
        with pytest.raises(MetricsError, match="'x' is given over 'max' and over 'sum'") as caught:
            recorded(World(transport), file, [StepStats(1.0, 0.1, {"x": Scalar(1, ("sum", "max")[transport.rank])})])
        return caught.value.on_every_rank

    assert run_ranks(2, program) == [True, True]


@pytest.mark.parametrize("name", ["loss", "step", "phase_s", "rank", "phase", "a/b", "", "."])
def test_a_scalar_cannot_take_the_name_of_something_else(tmp_path, name):
    file = created(tmp_path / "metrics.h5", 1)
    with pytest.raises(MetricsError, match="cannot be called"):
        recorded(alone(), file, [StepStats(1.0, 0.1, {name: 2.0})])


@pytest.mark.parametrize("name", ["steps", "starts", "a/b", ""])
def test_a_table_cannot_take_the_name_of_something_else(tmp_path, name):
    file = created(tmp_path / "metrics.h5", 1)
    with pytest.raises(MetricsError, match="cannot be called"):
        recorded(alone(), file, [StepStats(1.0, tables={name: Rows({"a": [1]})})])


def test_what_a_step_does_not_have_is_not_zero(tmp_path):
    file = created(tmp_path / "metrics.h5", 1)
    recorded(alone(), file, [StepStats(None), StepStats(2.0, 0.5)])
    found = columns(file.path)
    np.testing.assert_array_equal(found["loss"], [np.nan, 2])
    np.testing.assert_array_equal(found["learning_rate"], [np.nan, 0.5])


def test_a_solvers_own_phase_is_recorded(tmp_path):
    file = created(tmp_path / "metrics.h5", 1)
    recorded(alone(), file, [StepStats(1.0), StepStats(1.0)])
    found = columns(file.path)
    np.testing.assert_array_equal(found["phase_s"][:, 0, found["phase"].tolist().index("rollout")], [1, 2])


class Growing:
    """A lasting table of which all ranks together know more every time."""

    lasting = True
    asked = 0

    def columns(self, world):
        self.asked += 1
        return {"name": ["a", "b"], "ranks_asked": [float(world.size), float(self.asked)]}

    def attributes(self):
        return {"calibration": "{}"}

    def lines(self):
        return []


def test_tables_of_steps_add_up_and_lasting_ones_replace_what_they_said_before(tmp_path):
    file = created(tmp_path / "metrics.h5", 2)

    def program(transport):
        growing = Growing()
        tables = [{"layers": Rows({"layer": ["fc1", "fc2"], "norm": [1.0, 2.0]})}, {}]
        tables += [{"layers": Rows({"layer": ["fc1"], "extra": [3.0]})}, {"layers": Rows({})}]
        steps = [StepStats(1.0, tables={"growing": growing, **more}) for more in tables]
        recorded(World(transport), file, steps, (1, 3))

    run_ranks(2, program)
    layers = columns(file.path, "layers")
    assert layers["step"].tolist() == [1, 1, 3]
    assert layers["layer"].tolist() == ["fc1", "fc2", "fc1"]
    np.testing.assert_array_equal(layers["norm"], [1, 2, np.nan])
    np.testing.assert_array_equal(layers["extra"], [np.nan, np.nan, 3])
    growing = columns(file.path, "growing")
    assert growing["step"].tolist() == [0, 0]
    assert growing["name"].tolist() == ["a", "b"]
    assert growing["ranks_asked"].tolist() == [2, 3]  # asked at each of the three writes
    file.restart(1, 2, {})
    assert columns(file.path, "layers")["step"].tolist() == [1, 1]


def test_parts_of_a_table_are_joined():
    steps, every = joined([(4, {"a": [1.0], "t": ["x"]}), (6, {"a": [2.0, 3.0]})])
    assert steps.tolist() == [4, 6, 6]
    assert every["a"].tolist() == [1, 2, 3]
    assert every["t"].tolist() == ["x", "", ""]


def test_phases_of_a_device_are_read_a_step_late_and_stand_beside_their_own_step(tmp_path):
    queue, world = Queue(), alone()
    clock = PhaseClock(timeline=Timeline(queue.event, None), more=MORE)
    file = created(tmp_path / "metrics.h5", 1)
    recorder = Recorder(world, file, clock, 0.0)
    told = []
    for step in (1, 2, 3):
        queue.catch_up()  # the loss of the step before was read
        with clock("backward"):
            queue.work(1000 * step)
        told.append(recorder.step(step, 0.0, None, StepStats(0.0))["backward"])
    assert told == [0, 1, 2] and queue.waits == 0
    recorder.finish("done", 0)
    with h5py.File(file.path) as written:
        place = list(clock.phases).index("backward")
        assert written["steps/phase_s"][:, 0, place].tolist() == [1, 2, 3]
        assert "device_peak_memory_bytes" not in written.attrs
