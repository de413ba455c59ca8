"""Codes take the bits that the formula says, and give the embeddings back bit for bit."""

import numpy as np
import pytest
import torch
from torch import nn

from hpcopt.errors import CheckpointError
from hpcopt.models.code_table import CodeTable, Composer, bits_of, pack, storage_bits, unpack
from hpcopt.models.coded_embedding import CodedEmbedding, CodedEmbeddingConfig
from hpcopt.models.compact import compact, compact_state
from hpcopt.store.tree import read_tree, write_tree

COMPOSITIONS = ("mean", "concat", "mlp", "cnn", "lstm")


def coded(words=23, width=6, **settings) -> CodedEmbedding:
    torch.manual_seed(3)
    return CodedEmbedding(nn.Embedding(words, width), CodedEmbeddingConfig(**{"ways": 5, "digits": 3, **settings}))


@pytest.mark.parametrize("ways", [2, 3, 5, 7, 31, 32, 33, 255, 257, 70_000])
def test_codes_are_packed_one_after_another(ways):
    draw = np.random.default_rng(ways)
    codes = torch.from_numpy(draw.integers(0, ways, (13, 3)))
    codes[0] = ways - 1
    packed = pack(codes, ways)
    width = bits_of(ways)
    assert 2 ** (width - 1) < ways <= 2**width
    as_one_number = sum(int(code) << (width * place) for place, code in enumerate(codes.flatten()))
    assert packed.numpy().tobytes() == as_one_number.to_bytes(-(-39 * width // 8), "little")
    assert torch.equal(unpack(packed, 13, 3, ways).long(), codes)


@torch.no_grad()
@pytest.mark.parametrize("inner", [None, 4])
@pytest.mark.parametrize("compose", COMPOSITIONS)
def test_nothing_but_codes_and_tables_is_needed_after_training(compose, inner):
    layer = coded(compose=compose, inner=inner).eval()
    state = {f"net.word.{key}": tensor for key, tensor in layer.state_dict().items()} | {"net.bias": torch.ones(2)}
    table = CodeTable.of_state(compact_state(state), "net.word")
    tokens = torch.randint(23, (2, 4, 3))
    assert torch.equal(table(tokens), layer(tokens)) and table(tokens).shape == (2, 4, 3, 6)
    assert torch.equal(table.weight, layer.weight) and torch.equal(table.codes.long(), layer.codes())
    assert not any(p.requires_grad for p in table.parameters())


@torch.no_grad()
def test_vectors_one_behind_the_other_are_the_embedding():
    layer = coded(compose="concat")
    vectors = [table[codes] for table, codes in zip(layer.composer.tables, layer.codes().T, strict=True)]
    assert torch.equal(layer.eval().weight, torch.cat(vectors, 1))
    with pytest.raises(ValueError, match="digits = 4 do not divide 6, the width of an embedding: give inner"):
        coded(compose="concat", digits=4)


@torch.no_grad()
@pytest.mark.parametrize("compose", COMPOSITIONS)
def test_ones_at_the_codes_are_the_codes(compose):
    """Forward in training, by products with ones, and after it, by lookups."""
    layer = coded(compose=compose)
    ones = nn.functional.one_hot(layer.codes(), 5).float()
    torch.testing.assert_close(layer.composer.of_choices(ones), layer.composer(layer.codes()))


@pytest.mark.parametrize("suffix", ["h5", "safetensors"])
@pytest.mark.parametrize(("ways", "digits", "inner"), [(5, 3, None), (32, 8, 4)])
def test_bytes_in_a_file_are_those_of_the_formula(tmp_path, ways, digits, inner, suffix):
    layer = coded(words=1001, ways=ways, digits=digits, inner=inner)
    values = digits * ways * (inner or 6) + (inner * 6 if inner else 0)
    codes = -(-1001 * digits * {5: 3, 32: 5}[ways] // 8)
    assert storage_bits(1001, digits, ways, layer.composer) == 8 * codes + 32 * values
    state, path = compact_state(layer.state_dict()), tmp_path / f"codes.{suffix}"
    if suffix == "h5":
        write_tree(path, state)
        found, overhead = read_tree(path), 24_000  # headers, and arrays on pages of their own
    else:
        library = pytest.importorskip("safetensors.torch")
        library.save_file(state, path)
        found, overhead = library.load_file(path), 600
    assert sum(t.numel() * t.element_size() for t in found.values()) == codes + 4 * values + 4 * 8
    assert codes + 4 * values <= path.stat().st_size <= codes + 4 * values + overhead
    assert torch.equal(CodeTable.of_state(found).weight, layer.eval().weight)


@torch.no_grad()
def test_a_network_becomes_small_and_loads_its_export():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.ModuleList([coded()])
            self.head = nn.Linear(6, 2)

        def forward(self, tokens):
            return self.head(self.words[0](tokens))

    net = Net().eval()
    tokens, state = torch.randint(23, (9,)), net.state_dict()
    before = net(tokens)
    fresh = compact(Net().eval())
    fresh.load_state_dict(compact_state(state))
    assert torch.equal(fresh(tokens), before) and torch.equal(compact(net)(tokens), before)
    assert {type(layer) for layer in (fresh.words[0], net.words[0], compact(coded()))} == {CodeTable}


def test_what_has_no_codes_is_said():
    with pytest.raises(ValueError, match="no embedding of the network has codes"):
        compact_state(nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match="no embedding of the network has codes"):
        compact_state(compact(coded()).state_dict()), "it has been done before"
    with pytest.raises(KeyError, match="no embedding word of codes, only none"):
        CodeTable.of_state({"word.weight": torch.ones(2)}, "word")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda state: state.pop("size"), "it lacks 'size'"),
        (lambda state: state.pop("composer.tables"), "it lacks 'composer.tables'"),
        (lambda state: state.update(packed=state["packed"][:-1]), "size mismatch for packed"),
        (lambda state: state["packed"].fill_(255), "a code is 7, and there are 5 ways"),
        (lambda state: state["size"].neg_(), "negative dimension"),
    ],
)
def test_a_damaged_export_is_one_message(damage, complaint):
    state = compact_state(coded().state_dict())
    damage(state)
    with pytest.raises(CheckpointError, match=complaint):
        CodeTable.of_state(state)


def test_one_word_of_one_value_has_an_embedding():
    assert torch.isfinite(coded(words=1, width=1).weight).all()


def test_a_composer_begins_with_the_deviation_asked_for():
    for compose in COMPOSITIONS:
        composer = Composer(8, 4, 16, 32, compose)
        composer.scale_to(0.02)
        std = float(composer(torch.randint(4, (500, 8))).detach().std())
        assert std == pytest.approx(0.02, rel=0.2)
