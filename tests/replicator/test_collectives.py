"""Every collective against numpy on nested trees, and by gradcheck."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hpcopt import Replicator
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import HpcoptError, JobError, UnsupportedError
from hpcopt.replicator.tree import leaves, like

Pair = namedtuple("Pair", "left right")


def nest(rank: int):
    """A tree of unlike forms and dtypes; keys come in another order on every second rank."""
    draw = np.random.default_rng(rank)
    items = {
        "b": [draw.normal(size=(2, 3)), draw.integers(9, size=4)],
        "a": (draw.normal(size=()).astype(np.float32), {"deep": draw.normal(size=(0, 2))}, None),
        "pair": Pair(draw.normal(size=5).astype(np.float32), [draw.integers(9, size=()).astype(np.int32)]),
    }
    return dict(reversed(items.items())) if rank % 2 else items


def tensors(tree):
    if isinstance(tree, dict):
        return {key: tensors(child) for key, child in tree.items()}
    if isinstance(tree, Pair):
        return Pair(*map(tensors, tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map(tensors, tree))
    return None if tree is None else torch.as_tensor(tree)


NUMPY = {
    "all_sum": lambda xs, _: xs.sum(0),
    "all_mean": lambda xs, _: xs.mean(0),
    "all_min": lambda xs, _: xs.min(0),
    "all_max": lambda xs, _: xs.max(0),
    "all_gather": lambda xs, _: xs,
    "broadcast": lambda xs, _: xs[-1],
    "reduce": lambda xs, rank: xs.sum(0) * (rank == len(xs) - 1),
}


def call(replicator, name: str, tree):
    last = {"broadcast": [replicator.num_replicas_in_sync - 1], "reduce": [replicator.num_replicas_in_sync - 1]}
    return getattr(replicator, name)(tree, *last.get(name, []))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("name", NUMPY)
def test_against_numpy(name, size):
    found = run_ranks(size, lambda t: call(Replicator(World(t)), name, tensors(nest(t.rank))))
    parts = [[x.numpy() for x in leaves(tensors(nest(rank)))] for rank in range(size)]
    for rank, tree in enumerate(found):
        assert list(tree) == list(nest(rank)) and isinstance(tree["pair"], Pair) and tree["a"][2] is None
        for got, *xs in zip(leaves(tree), *parts, strict=True):
            np.testing.assert_allclose(got, NUMPY[name](np.stack(xs), rank), rtol=1e-6, err_msg=name)
            assert name == "all_mean" or got.numpy().dtype == xs[0].dtype


def test_numbers_booleans_and_nan():
    def program(t):
        replicator = Replicator(World(t))
        assert replicator.all_sum([t.rank, 0.5])[0] == 3 and replicator.all_mean(t.rank) == 1
        assert replicator.all_max(torch.tensor([t.rank == 1, False])).tolist() == [True, False]
        x = torch.tensor([float("nan") if t.rank == 1 else 1.0, float(t.rank)])
        assert replicator.all_max(x)[0].isnan() and replicator.all_max(x)[1] == 2 and replicator.all_sum(x)[0].isnan()
        with pytest.raises(UnsupportedError, match="booleans have no sum"):
            replicator.all_sum(torch.ones(2, dtype=torch.bool))
        with pytest.raises(UnsupportedError, match="a str cannot go"):
            replicator.all_gather({"a": "word"})
        with pytest.raises(JobError, match="no replica 3: they are 0 to 2"):
            replicator.broadcast(x, 3)

    run_ranks(3, program)


LINEAR = ("all_sum", "all_mean", "all_gather", "broadcast", "reduce")


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", NUMPY)
def test_gradients(name, size):
    """All ranks hold all ranks' x; each brings its own row, and what comes out everywhere is a function of x alone."""

    def program(t):
        replicator = Replicator(World(t))
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(size, 3, generator=generator, dtype=torch.float64, requires_grad=True)

        def function(x):
            mine = replicator.all_mean(x)[t.rank]  # its transpose adds up what every rank finds for its row
            tree = call(replicator, name, {"a": [mine[:1] ** 2], "b": (mine[1:2].view(1, 1), mine[2])})
            return tuple(replicator.all_gather(leaves(tree)))

        return gradcheck(function, x) and (name not in LINEAR or gradgradcheck(function, x))

    assert all(run_ranks(size, program))


def test_the_gradient_is_that_of_the_sum_of_losses():
    def program(t):
        replicator = Replicator(World(t))
        x = torch.tensor([2.0], requires_grad=True)
        (10**t.rank * replicator.all_sum(x)).backward()
        total = float(x.grad)
        x.grad = None
        replicator.all_max([x]).pop().backward()  # a tie of three
        return total, float(x.grad)

    assert run_ranks(3, program) == [(111.0, 1.0)] * 3


ITEMS = [5, 1, 4, 0, 2, 3, 6]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_map_gather_of_items_that_do_not_divide(size, count):
    """Results of unlike forms, each computed once."""
    computed = []

    def result(n: int):
        computed.append(n)
        return {"range": torch.arange(n), "half": [n / 2] * (n % 3)}

    for results in run_ranks(size, lambda t: Replicator(World(t)).map_gather(ITEMS[:count], result)):
        assert [len(tree["range"]) for tree in results] == ITEMS[:count]
        assert [[float(x) for x in tree["half"]] for tree in results] == [[n / 2] * (n % 3) for n in ITEMS[:count]]
    assert sorted(computed) == sorted(ITEMS[:count])


@pytest.mark.parametrize("op", ["sum", "mean", "min", "max"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_map_reduce(count, op):
    def fn(n):
        return {"x": torch.tensor([n, -n], dtype=torch.float64), "n": n}

    xs = np.array(ITEMS[:count], float)
    for tree in run_ranks(3, lambda t: Replicator(World(t)).map_reduce(fn, ITEMS[:count], op)):
        reduce = getattr(np, op)
        assert tree["x"].tolist() == [reduce(xs), reduce(-xs)] and float(tree["n"]) == reduce(xs)
    with pytest.raises(JobError, match="no items"):
        Replicator(alone()).map_reduce(fn, [], op)


def test_gradients_of_maps():
    """Reach the parameters where an item was computed; their sum over ranks is the whole."""

    def program(t):
        replicator = Replicator(World(t))
        w = torch.tensor(3.0, requires_grad=True)
        mapped = replicator.map_gather([1.0, 2.0], lambda n: w * n)
        reduced = replicator.map_reduce(lambda n: w * w * n, [1.0, 2.0])
        (mapped[0] + 10 * mapped[1] + reduced).backward()
        return 0 if w.grad is None else float(w.grad)

    assert run_ranks(3, program) == [3 * (1 + 6), 3 * (20 + 12), 0]
    assert run_ranks(1, program) == [21 + 18]


def test_named_tuples_of_a_map_are_refused():
    with pytest.raises(HpcoptError, match="named tuple Pair: give a dict"):
        Replicator(alone()).map_gather([1], lambda n: Pair(torch.ones(n), 1))


def test_trees_keep_their_form():
    tree = {"b": [1, 2.0], "a": Pair(torch.ones(2), ())}
    assert like(tree, leaves(tree))["a"].right == () and list(like(tree, leaves(tree))) == ["b", "a"]
