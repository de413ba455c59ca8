"""A graph weighted model's values are the contraction that its paper defines, at every size, and the exact models know
their languages.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcopt.models.exact_pictures import bars, bars_and_stripes, shifting_bits, stripes
from hpcopt.models.graph_weighted import GraphWeighted, GraphWeightedConfig, direct_sum, drawn, tensor_product
from hpcopt.models.padded_mlp import PaddedMlpConfig

SIZES = [(1, 1), (1, 4), (4, 1), (2, 3), (3, 2), (3, 3)]


def model(dimension: int = 2, seed: int = 0, symbols: int = 3) -> GraphWeighted:
    return drawn(symbols, dimension, torch.Generator().manual_seed(seed)).double()


def pictures(rows: int, columns: int, symbols: int = 3, n: int = 5) -> Tensor:
    return torch.randint(symbols, (n, rows, columns), generator=torch.Generator().manual_seed(1)).byte()


def everything(rows: int, columns: int) -> Tensor:
    """All pictures of zeros and ones."""
    numbers = torch.arange(2 ** (rows * columns))
    return (numbers[:, None] >> torch.arange(rows * columns)).remainder(2).view(-1, rows, columns)


def contracted(made: GraphWeighted, picture: Tensor) -> float:
    """The definition: one letter a leg, all tensors in one einsum."""
    cells, (north, east, south, west) = made.cells.detach().numpy(), (b.detach().numpy() for b in made.borders)
    rows, columns = picture.shape
    down = {place: k for k, place in enumerate(itertools.product(range(rows + 1), range(columns)))}
    across = {place: len(down) + k for k, place in enumerate(itertools.product(range(rows), range(columns + 1)))}
    operands: list[object] = []
    for i, j in itertools.product(range(rows), range(columns)):
        operands += [cells[int(picture[i, j])], [down[i, j], across[i, j + 1], down[i + 1, j], across[i, j]]]
    for j in range(columns):
        operands += [north, [down[0, j]], south, [down[rows, j]]]
    for i in range(rows):
        operands += [west, [across[i, 0]], east, [across[i, columns]]]
    return float(np.einsum(*operands, [], optimize="greedy"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_values_are_the_whole_contraction(size, dimension):
    made, some = model(dimension), pictures(*size)
    expected = [contracted(made, picture) for picture in some]
    np.testing.assert_allclose(made(some).detach(), expected, rtol=1e-10)


def test_a_row_is_a_weighted_automaton():
    """Its matrices are the tensors with their northern and southern legs closed; one pixel is a word of one letter."""
    made = model(3)
    north, east, south, west = made.borders
    letters = torch.einsum("xnesw,n,s->xwe", made.cells, north, south)
    for length in (1, 2, 6):
        for picture in pictures(1, length):
            state = west
            for symbol in picture[0]:
                state = state @ letters[int(symbol)]
            torch.testing.assert_close(made(picture[None])[0], state @ east)


@pytest.mark.parametrize("wires", ["across", "down"])
def test_values_do_not_depend_on_the_gauge(wires):
    """G on one side of every wire of a direction, and its inverse on the other."""
    made, d = model(3), 3
    g = torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, dtype=torch.float64)
    inverse = torch.linalg.inv(g)
    cells, (north, east, south, west) = made.cells, made.borders
    if wires == "across":
        cells = torch.einsum("xnesw,ea,bw->xnasb", cells, g, inverse)
        east, west = inverse @ east, west @ g
    else:
        cells = torch.einsum("xnesw,sa,bn->xbeaw", cells, g, inverse)
        north, south = north @ g, inverse @ south
    turned = GraphWeighted(*(x.detach() for x in (cells, north, east, south, west)))
    for size in SIZES:
        torch.testing.assert_close(turned(pictures(*size)), made(pictures(*size)))


def test_direct_sums_add_and_tensor_products_multiply():
    one, other = model(2, 0), model(3, 1)
    for size in SIZES:
        some = pictures(*size)
        torch.testing.assert_close(direct_sum(one, other)(some), one(some) + other(some))
        torch.testing.assert_close(tensor_product(one, other)(some), one(some) * other(some))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2)])
def test_gradients(size):
    made, some = model(2), pictures(*size, n=3)

    def values(*parameters: Tensor) -> Tensor:
        named = dict(zip(dict(made.named_parameters()), parameters, strict=True))
        given: Tensor = torch.func.functional_call(made, named, (some,))
        return given

    assert torch.autograd.gradcheck(values, tuple(p.detach().requires_grad_() for p in made.parameters()))


def constant_lines(some: Tensor) -> tuple[Tensor, Tensor]:
    columns = (some == some[:, :1]).flatten(1).all(1)
    rows = (some == some[:, :, :1]).flatten(1).all(1)
    return columns, rows


def moved(some: Tensor, entering: str) -> Tensor:
    """Whether each row is the one above, a pixel to the right, by a loop over pixels."""
    n, rows, columns = some.shape
    right = torch.ones(n, dtype=torch.bool)
    for i, j in itertools.product(range(1, rows), range(columns)):
        if j or entering == "cyclic":
            right &= some[:, i, j] == some[:, i - 1, j - 1]
        elif entering == "zero":
            right &= some[:, i, 0] == 0
    return right


def some_of_4x4() -> Tensor:
    """Members of all kinds among them."""
    some = pictures(4, 4, symbols=2, n=400)
    some[:50] = some[:50, :1]
    some[50:100] = some[50:100, :, :1]
    for row in range(1, 4):
        some[100:250, row] = some[100:250, row - 1].roll(1, 1)
    some[150:200, 1:, 0] = 0
    some[200:250, 1:, 0] = some[200:250, :3, 0]
    return some


@pytest.mark.parametrize("size", list(itertools.product(range(1, 5), repeat=2)))
def test_exact_models_know_every_picture(size):
    some = some_of_4x4() if size == (4, 4) else everything(*size)
    columns, rows = constant_lines(some)
    with torch.no_grad():
        assert torch.equal(bars()(some), columns.float())
        assert torch.equal(stripes()(some), rows.float())
        assert torch.equal(bars_and_stripes()(some), columns.float() + rows.float())
        for entering in ("any", "zero", "cyclic"):
            assert torch.equal(shifting_bits(entering)(some), moved(some, entering).float()), entering


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a state of 1073741824 values with dimension = 8"):
        GraphWeightedConfig(dimension=8).build((9, 12), 2)
    network = PaddedMlpConfig(hidden=()).build((3, 2), 2)
    with pytest.raises(ValueError, match="a picture of 2 by 3 is larger than 3 by 2"):
        network(pictures(2, 3, symbols=2))
    with pytest.raises(ValueError, match="greater than 0"):
        PaddedMlpConfig(hidden=(8, -1))


def test_a_padded_perceptron_sees_pixels_where_they_are():
    """With weights of one pixel alone, its value is that pixel's; without one, the bias."""
    network = PaddedMlpConfig(hidden=()).build((3, 3), 2)
    layer = network.layers[-1]
    with torch.no_grad():
        layer.weight.zero_().view(3, 3, 2)[2, 1] = torch.tensor([5.0, 7.0])
        layer.bias.fill_(1)
    some = pictures(3, 2, symbols=2)
    assert torch.equal(network(some), 6 + 2 * some[:, 2, 1].float())
    assert torch.equal(network(some[:, :2]), torch.ones(5))
