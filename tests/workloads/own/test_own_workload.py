"""A network and data with no class of hpcopt's are read the same in all ways; what is wrong is one sentence."""

import itertools
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from hpcopt.build import build
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import EXIT_BAD_INPUT, DataError, HpcoptError, JobError
from hpcopt.job import Job
from hpcopt.optim import AdaHessianConfig, ArsgConfig
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import OutputLoss
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.solvers.snvrg import SnvrgConfig
from hpcopt.trainer.loop import evaluate
from hpcopt.trainer.run import RunConfig
from hpcopt.workloads.own.workload import TorchConfig

BATCH = 8


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield
    sys.modules.pop("mine", None)


def config(**keys):
    keys = {"network": "mine:Net", "train": "mine:Table", "test": "mine:Table", "batch": BATCH, **keys}
    return TorchConfig(**keys)


def built(seed: int = 3, **keys):
    return config(**keys).build(Context(run_seed=seed))


def batches(workload, steps: int, *, size: int = 1, start: int = 0) -> list[dict[str, torch.Tensor]]:
    """The global batches of some steps, put together from the ranks' parts."""
    parts = [itertools.islice(workload.train_batches(rank, size, start), steps) for rank in range(size)]
    together = []
    for ranks in zip(*parts, strict=True):
        assert sum(batch.weight for batch in ranks) == pytest.approx(1)
        together.append({name: torch.cat([b.tensors[name] for b in ranks]) for name in ranks[0].tensors})
        together[-1]["indices"] = torch.cat([b.indices for b in ranks])
    return together


def assert_same(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_batches_are_the_same_at_any_number_of_ranks_and_from_any_step(noise):
    keys = {"train_arguments": {"noise": noise}}
    expected = batches(built(**keys), 12)
    for size in (2, 3):
        assert_same(batches(built(**keys), 12, size=size), expected)
    assert_same(batches(built(**keys), 5, size=3, start=7), expected[7:])
    if noise:
        assert not torch.equal(*(next(b["inputs"] for b in batches(built(s, **keys), 1)) for s in (3, 4)))


def test_the_samples_are_those_of_the_data_set():
    import mine

    table = mine.Table()
    for batch in batches(built(), 5, size=2):
        np.testing.assert_array_equal(batch["inputs"].numpy(), table.x[batch["indices"]])
        np.testing.assert_array_equal(batch["targets"].numpy(), table.y[batch["indices"]])
    assert sorted(torch.cat([b["indices"] for b in batches(built(), 5)]).tolist()) == list(range(40))


def test_reading_draws_nothing_from_the_trainings_generators():
    workload = built(train_arguments={"noise": 1.0})
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    next(workload.train_batches(0, 1, 0))
    assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all()


@pytest.mark.parametrize(("workers", "by", "noise"), [(3, "thread", 0.0), (2, "spawn", 0.5)])
def test_workers_read_the_same_batches(workers, by, noise):
    keys = {"train_arguments": {"noise": noise}, "test_arguments": {"samples": 700}}
    beside = built(**keys, workers=workers, workers_by=by)
    assert_same(batches(beside, 7, start=2), batches(built(**keys), 7, start=2))
    some, others = (list(w.test_batches(1, 2)) for w in (beside, built(**keys)))
    assert_same([b.tensors for b in some], [b.tensors for b in others])
    assert [b.indices.tolist() for b in some] == [b.indices.tolist() for b in others]


def test_threads_do_not_read_what_draws():
    with pytest.raises(JobError, match=r"mine:Table.* draws random numbers \(torch and numpy and random\).*spawn"):
        built(train_arguments={"noise": 0.5}, workers=2, workers_by="thread")


def test_a_fork_is_refused_with_the_reason():
    with pytest.raises(ValidationError, match="MPI has started"):
        config(workers=2, workers_by="fork")


@pytest.mark.parametrize("kind", ["two inputs", "dictionary"])
def test_networks_of_several_inputs(kind):
    arguments = {"kind": kind}
    workload = built(
        network="mine:TwoInputs",
        train_arguments=arguments,
        test_arguments=arguments,
        targets="label",
        scores=("accuracy",),
    )
    batch = next(workload.train_batches(0, 1, 0))
    names = ("inputs.x", "inputs.size") if kind == "dictionary" else ("inputs.0", "inputs.1")
    x, size = (batch.tensors[name] for name in names)
    assert torch.equal(size, batch.indices.float())
    expected = torch.nn.functional.cross_entropy(workload.model(x, size), batch.tensors["targets"])
    assert torch.equal(workload.loss(workload.model, batch), expected)
    assert set(evaluate(alone(), workload, workload.model)) == {"test_loss", "test_accuracy"}


def test_a_plain_network_can_be_taken_apart():
    assert isinstance(built().loss, OutputLoss)


def test_sequences_of_any_length_by_collate():
    keys = {"network": "mine:Summing", "train": "mine:Sequences", "test": "mine:Sequences"}
    workload = built(**keys, collate="mine:padded")
    assert next(workload.train_batches(0, 1, 0)).tensors["inputs"].shape == (BATCH, 4)
    with pytest.raises(
        DataError, match=r"sample \d+ has inputs of shape \(\d,\).*the first one of shape \(1,\).*collate"
    ):
        list(built(**keys).test_batches(0, 1))


def test_the_network_begins_the_same_for_one_seed():
    first, again, other = (torch.cat([p.reshape(-1) for p in built(seed).model.parameters()]) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_epoch_of_a_stream_is_not_known():
    workload = built(train="mine:Numbers")
    assert workload.steps_per_epoch is None and workload.train_samples is None


@pytest.mark.parametrize(
    ("train", "noise"), [("mine:Numbers", {}), ("mine:Numbers", {"noise": 0.5}), ("mine:Resumable", {})]
)
def test_streams_are_the_same_at_any_number_of_ranks_and_from_any_step(train, noise):
    keys = {"train": train, "train_arguments": noise}
    expected = batches(built(**keys), 14)  # Numbers ends twice
    assert_same(batches(built(**keys), 14, size=3), expected)
    assert_same(batches(built(**keys), 5, size=2, start=9), expected[9:])
    assert_same(batches(built(**keys, workers=1, workers_by="spawn"), 14), expected)
    if not noise:
        assert_same(batches(built(**keys, workers=1, workers_by="thread"), 14), expected)


def test_a_stream_with_a_state_goes_on_without_going_through_what_was():
    import mine

    straight = batches(built(train="mine:Resumable"), 12)
    for workers in (0, 1):
        first = built(train="mine:Resumable", workers=workers, workers_by="thread")
        stream = first.train_batches(0, 1, 0)
        for _ in range(7):
            next(stream)
        state = first.state_dict()
        stream.close()
        for thread in threading.enumerate():
            if thread.name == "prefetch":  # which may be making a sample still
                thread.join()
        second = built(train="mine:Resumable")
        second.load_state_dict([state])
        mine.Resumable.made = 0
        assert_same(batches(second, 5, start=7), straight[7:])
        assert mine.Resumable.made == 5 * BATCH


def test_a_stream_that_skips_makes_no_more_than_it_gives():
    import mine

    expected = batches(built(train="mine:Resumable"), 6)[4:]
    workload = built(train="mine:Skipping")
    mine.Resumable.made = mine.Skipping.skipped = 0
    part = next(workload.train_batches(1, 2, 4))
    assert (mine.Resumable.made, mine.Skipping.skipped) == (BATCH // 2, 4 * BATCH + BATCH // 2)
    assert torch.equal(part.tensors["inputs"], expected[0]["inputs"][BATCH // 2 :])


def test_test_streams_are_gone_through_once():
    for most in (None, 33):
        workload = built(test="mine:Numbers", test_arguments={"samples": 300}, test_samples=most)
        numbers = [n for rank in range(3) for b in workload.test_batches(rank, 3) for n in b.indices.tolist()]
        assert sorted(numbers) == list(range(most or 300))


def test_scores_need_not_be_means():
    workload = built(scores=("accuracy", "perplexity", "mine:squares", "mine:WorstSample"))
    better = {"test_loss": "lower", "test_accuracy": "higher", "test_perplexity": "lower"}
    assert workload.scores == {**better, "test_squares": "lower", "test_worst_class": "higher"}
    import mine

    table = mine.Table()
    with torch.no_grad():
        outputs, targets = workload.model(torch.from_numpy(table.x)), torch.from_numpy(table.y)
    loss = float(torch.nn.functional.cross_entropy(outputs, targets))
    hit = (outputs.argmax(1) == targets).numpy()
    scores = evaluate(alone(), workload, workload.model)
    assert scores == pytest.approx(
        {
            "test_loss": loss,
            "test_accuracy": hit.mean(),
            "test_perplexity": np.exp(loss),
            "test_squares": float(mine.squares(outputs, targets)),
            "test_worst_class": min(hit[table.y == c].mean() for c in range(3)),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"network": "mine:no_network"}, r'network = "mine:no_network" gave int, not a torch.nn.Module'),
        (
            {"network": "mine:Broken"},
            r"network.* raised ValueError: no way forward \(.*mine.py, line \d+, in forward\)",
        ),
        ({"network_arguments": {"hiden": 3}}, r"network.* raised TypeError: .*hiden"),
        ({"train_arguments": {"samples": 0}}, r'train = "mine:Table" has no samples'),
        ({"train_arguments": {"samples": 5}}, r"batch = 8, but train has 5 samples"),
        ({"train": "mine:exits"}, r'train = "mine:exits" raised SystemExit: 4 \(.*mine.py, line \d+, in exits\)'),
        ({"train": "mine:no_network"}, r'train = "mine:no_network" gave int, not a Dataset'),
        ({"train_arguments": {"kind": "raises", "bad": 0}}, r"sample 0 raised OSError: the disk .*mine.py, line \d+"),
        ({"train_arguments": {"kind": "text", "bad": 0}}, r"sample 0 has str as targets"),
        ({"train_arguments": {"kind": "dictionary"}}, r'has keys x, size, label, not "targets"'),
        ({"train": "mine:ONCE"}, r"can be gone through once only"),
        ({"train": "mine:Numbers", "workers": 2}, r"is a stream, which one worker reads"),
        ({"loss": "binary_cross_entropy_with_logits"}, r"loss = .* of the outputs .* raised ValueError"),
        ({"loss_arguments": {"reduction": "none"}, "batch": 1, "loss": "mine:Net"}, r"loss = \"mine:Net\" raised"),
        ({"loss": "mse_loss"}, r"loss = .* target size .* different to the input size"),
        ({f"{part}_arguments": {"kind": "doubles"} for part in ("train", "test")}, r"numpy makes float64.* dtype"),
        ({"loss": "mine:TABLE"}, r'loss = "mine:TABLE" is dict, not a function of'),
        ({"loss": "mine:TABLE", "loss_arguments": {"a": 1}}, r"TABLE\" is dict, not a function: it takes no arguments"),
        ({"scores": ("mine:silent",)}, r"does not say which way it improves"),
        ({"scores": ("mine:Untold",)}, r'scores: "mine:Untold" raised TypeError'),
        ({"scores": ("accuracy", "accuracy")}, r"two are called test_accuracy"),
    ],
)
def test_what_is_wrong_is_one_sentence(keys, message):
    with pytest.raises((DataError, JobError), match=message):
        built(**keys)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", r'train = "mine:Table": sample 13 raised OSError: the disk is on fire \(.*mine.py, line \d+'),
        ("exits", r'train = "mine:Table": sample 13 raised SystemExit: 3 \(.*mine.py, line \d+'),
        ("ragged", r'train = "mine:Table": sample 13 has inputs of shape \(5,\), torch.float32, the first one'),
        ("text", r'train = "mine:Table": sample 13 has str as targets'),
    ],
)
@pytest.mark.parametrize(("workers", "by"), [(0, "spawn"), (2, "thread"), (1, "spawn")])
def test_a_bad_sample_is_named(kind, message, workers, by):
    workload = built(train_arguments={"kind": kind, "bad": 13}, workers=workers, workers_by=by)
    with pytest.raises(DataError, match=message):
        batches(workload, 5)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (48, r"ranks \[0, 2\] '40 to train on, 40 to test on'; ranks \[1\] '48 to train on, 40 to test on'"),
        (0, r'train = "mine:uneven" has no samples'),
    ],
)
def test_ranks_with_data_of_other_sizes_end_together(odd, message):
    own = config(train="mine:uneven", train_arguments={"odd": odd})
    job = Job(run=RunConfig(name="own", steps=2), workload=own)
    ended = []

    def program(transport):
        with pytest.raises(HpcoptError) as error:
            build(job, World(transport))
        assert error.value.on_every_rank and error.value.exit_code == EXIT_BAD_INPUT
        ended.append(str(error.value))

    run_ranks(3, program)
    assert len(ended) == 3 and all(re.search(message, text) for text in ended)


def test_names_that_python_does_not_find():
    for keys, message in [
        ({"network": "nowhere:Net"}, "there is no module nowhere"),
        ({"network": "mine:Nat"}, "mine has no Nat"),
        ({"network": "mine"}, "not of the form"),
        ({"loss": "mse"}, "torch.nn.functional has no mse"),
        ({"scores": ("acuracy",)}, 'no score "acuracy"; there are accuracy'),
    ]:
        with pytest.raises(ValidationError, match=message):
            config(**keys)


def test_a_network_that_cannot_be_hashed_is_a_sentence():
    with pytest.raises(JobError, match=r"unhashable type: 'Equal'; a module that is a dataclass needs"):
        built(network="mine:Equal")


def test_a_score_that_adds_up_no_tensors_is_a_sentence():
    with pytest.raises(JobError, match=r"scores: \S+rows: update\(\) gave int, not a tensor"):
        built(scores=["mine:Counted"])


@pytest.mark.parametrize(
    ("own", "solver", "said"),
    [
        (
            {"network": "mine:Blunt"},
            DataParallelConfig(optimizer=AdaHessianConfig()),
            "second derivative of the loss, which has none",
        ),
        ({"network": "mine:ComplexNet"}, DataParallelConfig(optimizer=ArsgConfig()), "does not move complex"),
        ({"train": "mine:Numbers"}, SnvrgConfig(), "finite sum of samples that can be read by index"),
        ({}, SnvrgConfig(lengths=(64,)), "takes 512 samples, and there are"),
    ],
    ids=["once differentiable", "complex", "stream", "too large"],
)
def test_what_a_method_cannot_work_with_is_one_message_before_training(own, solver, said):
    job = Job(run=RunConfig(name="own", steps=2), workload=config(**own), solver=solver)

    def program(transport):
        with pytest.raises(HpcoptError, match=said) as error:
            build(job, World(transport))
        return error.value.on_every_rank and error.value.exit_code == EXIT_BAD_INPUT

    assert run_ranks(2, program) == [True, True]


def test_samples_by_number_are_those_of_the_data_set():
    import mine

    part = built().by_index().at(np.array([5, 2]), 4)
    table = mine.Table()
    assert part.weight == 0.5 and part.indices.tolist() == [5, 2]
    assert torch.equal(part.tensors["inputs"], torch.from_numpy(table.x[[5, 2]]))
