"""A tree comes back exactly as it was written, or not at all."""

import math
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.errors import CheckpointError
from hpcopt.store.tree import STORED_AS, read_tree, verify_tree, write_tree


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and every bit."""
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        if (b.dtype, b.shape) != (a.dtype, a.shape):
            return False
        return not a.numel() or torch.equal(*(x.detach().reshape(-1).view(torch.uint8) for x in (a, b)))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return type(b) is float and (a.hex() == b.hex())
    return type(a) is type(b) and a == b


def random_tree(rng: random.Random, depth: int) -> Any:
    kinds = ["tensor", "array", "int", "float", "str", "bool", "none"] + ["list", "tuple", "dict"] * (depth > 0)
    match rng.choice(kinds):
        case "tensor":
            return random_array(rng, [d for d in STORED_AS if not d.startswith("uint") or d == "uint8"], torch.tensor)
        case "array":
            return random_array(rng, [d for d in STORED_AS if "float8" not in d and d != "bfloat16"], np.array)
        case "int":
            return rng.choice([0, -1, 2**63, -(2**128), rng.getrandbits(128)])
        case "float":
            extremes = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, 0.1]
            return rng.choice([*extremes, rng.gauss(0, 1e-30)])
        case "str":
            return rng.choice(["", "weight", "Gewicht \N{GREEK SMALL LETTER LAMDA}", '"\\\n', "\x00"])
        case "bool":
            return rng.choice([True, False])
        case "none":
            return None
        case "list":
            return [random_tree(rng, depth - 1) for _ in range(rng.randrange(4))]
        case "tuple":
            return tuple(random_tree(rng, depth - 1) for _ in range(rng.randrange(4)))
        case "dict":
            keys = rng.sample([0, 1, -7, "0", "1", "", "a.weight", 2**40], rng.randrange(5))
            return {key: random_tree(rng, depth - 1) for key in keys}


def random_array(rng: random.Random, dtypes: list[str], make: Any) -> Any:
    shape = rng.choice([(), (0,), (1,), (3, 0, 2), (5,), (2, 3, 4), (1000,)])
    values = np.array(np.random.default_rng(rng.randrange(2**32)).normal(size=shape) * 50)
    if make is np.array:
        return values.astype(rng.choice(dtypes))
    return torch.tensor(values).to(getattr(torch, rng.choice(dtypes)))


@pytest.mark.parametrize("seed", range(60))
def test_random_trees_round_trip(tmp_path, seed):
    tree = random_tree(random.Random(seed), 5)
    checksum = write_tree(tmp_path / "t.h5", tree)
    assert same(tree, read_tree(tmp_path / "t.h5"))
    assert verify_tree(tmp_path / "t.h5") == checksum


@pytest.mark.parametrize("dtype", sorted(STORED_AS))
def test_every_tensor_dtype_keeps_its_bits(tmp_path, dtype):
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (4, 16), dtype=torch.uint8)
    tree = {"x": raw.view(getattr(torch, dtype)), "scalar": raw.view(getattr(torch, dtype))[0, 0]}
    write_tree(tmp_path / "t.h5", tree)
    assert same(tree, read_tree(tmp_path / "t.h5"))


def test_views_and_parameters_are_stored_as_plain_tensors(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    turned = torch.complex(base, -base).conj().t()
    write_tree(tmp_path / "t.h5", [base.t(), base[::2, 1:3], torch.nn.Parameter(base), turned, np.arange(9)[::-2]])
    transposed, part, parameter, conjugated, backwards = read_tree(tmp_path / "t.h5")
    assert torch.equal(transposed, base.t())
    assert torch.equal(part, base[::2, 1:3])
    assert type(parameter) is torch.Tensor
    assert not parameter.requires_grad
    assert torch.equal(conjugated, turned)
    assert backwards.tolist() == [8, 6, 4, 2, 0]


def test_foreign_byte_order_keeps_the_values(tmp_path):
    write_tree(tmp_path / "t.h5", np.array([1.5, -2.0], ">f4"))
    np.testing.assert_array_equal(read_tree(tmp_path / "t.h5"), np.array([1.5, -2.0], "f4"))


def test_what_comes_back_is_private_and_writable(tmp_path):
    write_tree(tmp_path / "t.h5", {"a": torch.zeros(3), "b": torch.zeros(3)})
    tree = read_tree(tmp_path / "t.h5")
    tree["a"] += 1
    assert not tree["b"].any()
    assert tree["a"].untyped_storage().nbytes() == 12


def test_an_optimizer_goes_on_bit_for_bit(tmp_path):
    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        torch.manual_seed(3)
        model(torch.randn(8, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = torch.nn.Linear(5, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    write_tree(tmp_path / "t.h5", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other = torch.nn.Linear(5, 2)
    resumed = torch.optim.AdamW(other.parameters(), lr=0.7)
    tree = read_tree(tmp_path / "t.h5")
    other.load_state_dict(tree["model"])
    resumed.load_state_dict(tree["optimizer"])
    step(model, optimizer)
    step(other, resumed)
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_random_generators_go_on(tmp_path):
    rng = np.random.default_rng(5)
    rng.random(3)
    state = torch.get_rng_state()
    write_tree(tmp_path / "t.h5", OrderedDict(numpy=rng.bit_generator.state, torch=state, python=random.getstate()))
    tree = read_tree(tmp_path / "t.h5")
    expected, torch_expected, python_expected = rng.random(4), torch.rand(4), random.random()
    rng.bit_generator.state = tree["numpy"]
    torch.set_rng_state(tree["torch"])
    random.setstate(tree["python"])
    np.testing.assert_array_equal(rng.random(4), expected)
    assert torch.equal(torch.rand(4), torch_expected)
    assert random.random() == python_expected


@pytest.mark.parametrize(
    "wrong",
    [object(), {1.5: 2}, {True: 1}, np.array(["a"]), np.float32(1), torch.eye(2).to_sparse(), {"f": print}, b"raw"],
)
def test_what_is_not_data_is_refused_where_it_stands(tmp_path, wrong):
    with pytest.raises(CheckpointError, match=r"tree\['solver'\]\[1\]"):
        write_tree(tmp_path / "t.h5", {"solver": [0, wrong]})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def written(tmp_path):
    rng = random.Random(8)
    tree = {"w": torch.randn(300), "b": torch.randn(7).bfloat16(), "n": np.arange(50), "extra": random_tree(rng, 4)}
    write_tree(tmp_path / "t.h5", tree, {"step": 7})
    return tmp_path / "t.h5", tree


def test_truncation_anywhere_is_an_error(written):
    path, _ = written
    whole = path.read_bytes()
    for size in [0, len(whole) - 1, *random.Random(1).sample(range(len(whole)), 100)]:
        path.write_bytes(whole[:size])
        for read in (read_tree, verify_tree):
            with pytest.raises(CheckpointError, match=path.name):
                read(path)


def test_a_flipped_bit_is_an_error_or_changes_nothing(written):
    path, tree = written
    whole = path.read_bytes()
    rng, errors = random.Random(2), 0
    for position in [*range(0, len(whole), max(1, len(whole) // 400)), *range(64)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_tree(path)
        except CheckpointError:
            errors += 1
        else:
            assert same(tree, found)
    assert errors > 100


def test_swapped_values_are_an_error(written):
    path, _ = written
    whole = bytearray(path.read_bytes())
    zeroed = whole.find(np.arange(50).tobytes())
    assert zeroed > 0
    whole[zeroed : zeroed + 8], whole[zeroed + 8 : zeroed + 16] = (
        whole[zeroed + 8 : zeroed + 16],
        whole[zeroed : zeroed + 8],
    )
    path.write_bytes(whole)
    for read in (read_tree, verify_tree):
        with pytest.raises(CheckpointError, match="checksum"):
            read(path)
