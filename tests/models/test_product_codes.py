"""Product quantization learnt with a network: it begins as that of the table, and the table's gradient goes on."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.models.code_table import CodeTable
from hpcopt.models.compact import compact, compact_state
from hpcopt.models.product_codes import ProductCodes, ProductCodesConfig, centroids, nearest
from hpcopt.optim import AdamWConfig
from hpcopt.solvers.data_parallel import DataParallelConfig
from hpcopt.testing.problem import Problem
from hpcopt.testing.solver import Trial, check_equal_on_all_ranks, check_resume, check_same_curve
from tests.models.signs import rewritten

CONFIG = ProductCodesConfig(ways=5, digits=3)


def product(words: int = 40, width: int = 6, **settings: object) -> ProductCodes:
    torch.manual_seed(3)
    return ProductCodes(nn.Embedding(words, width), CONFIG.model_copy(update=settings))


def test_a_code_is_the_nearest_of_all_vectors():
    own, tables = torch.randn(50, 6), torch.randn(3, 5, 2)
    by_hand = (own.view(50, 3, 1, 2) - tables).square().sum(3).argmin(2)
    assert torch.equal(nearest(own, tables), by_hand)


def test_centroids_are_those_of_a_public_library():
    """As good, that is, from other starts."""
    nanopq = pytest.importorskip("nanopq")
    torch.manual_seed(1)
    points = torch.randn(400, 4) @ torch.randn(4, 4)
    theirs = nanopq.PQ(M=1, Ks=16, verbose=False).fit(points.numpy(), iter=10, seed=1)
    error = np.square(theirs.decode(theirs.encode(points.numpy())) - points.numpy()).sum()
    found = centroids(points, torch.ones(400), 16)
    ours = float((found[nearest(points, found[None])[:, 0]] - points).square().sum())
    assert 0.85 < ours / error < 1.15


def test_centroids_are_weighted_means():
    points, counts = torch.randn(30, 2), torch.rand(30) + 0.1
    found = centroids(points, counts, 3)
    owner = (points[:, None] - found).square().sum(2).argmin(1)
    for way in range(3):
        mine = owner == way
        torch.testing.assert_close(found[way], (counts[mine] @ points[mine]) / counts[mine].sum())


def test_frequent_words_count_for_more():
    table = nn.Embedding(400, 6)

    def error(ordered: bool) -> Tensor:
        layer = ProductCodes(table, CONFIG.model_copy(update={"ways": 16, "ordered": ordered})).eval()
        return (layer.weight - table.weight).detach().square().sum(1)

    equal, ordered = error(False), error(True)
    assert ordered[:10].mean() < 0.5 * equal[:10].mean() and ordered[100:].mean() > equal[100:].mean()


def test_as_many_vectors_as_words_are_the_table():
    table = nn.Embedding(7, 6)
    layer = ProductCodes(table, CONFIG.model_copy(update={"ways": 7})).eval()
    torch.testing.assert_close(layer.weight, table.weight)
    assert torch.isfinite(ProductCodes(nn.Embedding(1, 3), CONFIG).weight).all()


def test_the_gradient_goes_to_vectors_of_digits_and_as_it_is_to_words():
    layer, tokens = product(pull=2.0), torch.tensor([[1, 2], [2, 7]])
    found = layer(tokens)
    expected = layer.composer(layer.codes()[tokens.flatten()]).view(2, 2, 6)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(2, 2, 6)
    (found * upstream).sum().backward(retain_graph=True)
    of_words, of_tables = torch.zeros(40, 6), torch.zeros(3, 5, 2)
    for word, value in zip(tokens.flatten(), upstream.view(-1, 6), strict=True):
        of_words[word] += value
        for digit, code in enumerate(layer.codes()[word]):
            of_tables[digit, code] += value[2 * digit : 2 * digit + 2]
    torch.testing.assert_close(layer.own.grad, of_words)
    torch.testing.assert_close(layer.composer.tables.grad, of_tables)
    apart = (layer.own[tokens] - expected).detach()
    torch.testing.assert_close(layer.penalty, 2.0 * apart.square().sum(2).mean())
    layer.own.grad = layer.composer.tables.grad = None
    layer.penalty.backward()
    torch.testing.assert_close(layer.own.grad[7], apart[1, 1])
    assert layer.composer.tables.grad is None, "digits' vectors follow the loss alone"


def test_first_words_keep_vectors_of_their_own_and_others_have_codes():
    table = nn.Embedding(40, 6)
    layer = ProductCodes(table, CONFIG.model_copy(update={"exact": 4, "ordered": True, "ways": 36}))
    torch.testing.assert_close(layer.weight, table.weight)
    layer = ProductCodes(table, CONFIG.model_copy(update={"exact": 4, "pull": 2.0}))
    found = layer(tokens := torch.tensor([3, 4, 3]))
    expected = torch.stack([table.weight[3], layer.composer(layer.codes()[:1])[0], table.weight[3]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer.penalty, 2.0 * (table.weight[tokens] - expected).square().sum(1).mean())
    upstream = torch.randn(3, 6)
    (found * upstream).sum().backward()
    of_words, of_tables = torch.zeros(40, 6), torch.zeros(3, 5, 2)
    of_words[3], of_words[4] = upstream[0] + upstream[2], upstream[1]
    of_tables[torch.arange(3), layer.codes()[0]] = upstream[1].view(3, 2)
    torch.testing.assert_close(layer.own.grad, of_words)
    torch.testing.assert_close(layer.composer.tables.grad, of_tables)
    with pytest.raises(ValueError, match="exact = 40 of 40 words leave none to have a code"):
        product(exact=40)


@pytest.mark.parametrize("exact", [0, 7])
@torch.no_grad()
def test_nothing_but_codes_and_tables_is_needed_after_training(exact):
    layer, config = product(exact=exact).eval(), CONFIG.model_copy(update={"exact": exact})
    state = compact_state({f"word.{key}": tensor for key, tensor in layer.state_dict().items()})
    assert set(state) == {"word.packed", "word.size", "word.composer.tables"} | ({"word.first"} if exact else set())
    tokens = torch.randint(40, (2, 4, 3))
    small = CodeTable.of_state(state, "word")
    assert torch.equal(small(tokens), layer(tokens)) and torch.equal(small.weight, layer.weight)
    assert small(tokens[:0]).shape == layer(tokens[:0]).shape == (0, 4, 3, 6)
    assert small.packed.numel() == -(-(40 - exact) * 3 * 3 // 8)
    net = config.apply(LstmConfig(width=6, units=6, head="tied").build(40, 9)).eval()
    before = net(torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1)))
    small = compact(net)
    assert isinstance(small.word, CodeTable)
    assert torch.equal(small(torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))), before)


def test_digits_that_do_not_divide_are_said():
    with pytest.raises(ValueError, match="digits = 4 do not divide 6, the width of an embedding"):
        CONFIG.model_copy(update={"digits": 4}).apply(nn.ModuleDict({"word": nn.Embedding(4, 6)}))


def test_the_curve_is_that_of_one_rank_and_goes_on():
    problem = Problem(model=partial(rewritten, CONFIG.model_copy(update={"exact": 2})))
    trial = Trial(DataParallelConfig(optimizer=AdamWConfig(lr=0.01)), problem)
    check_same_curve(trial, (1, 2, 3))
    check_equal_on_all_ranks(trial, 3)
    check_resume(trial, 3)
