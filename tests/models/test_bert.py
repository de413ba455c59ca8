"""BERT is the published network: the same weights give the same logits as the transformers library's."""

import subprocess
import sys

import pytest
import torch

from hpcopt.errors import DataError
from hpcopt.models.bert import BertConfig, export_weights, import_weights

# In a process of its own: importing the oracle takes seconds and would stay in memory for the rest of the tests.
ORACLE = """
import sys, torch
from transformers import BertConfig, BertForPreTraining
inputs = torch.load(sys.argv[1])
torch.manual_seed(1)
model = BertForPreTraining(BertConfig(
    vocab_size=99, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)).eval()
for p in model.parameters():  # published initial values are too tame: biases of zero, norms of one
    torch.nn.init.normal_(p, std=0.3)
model.save_pretrained(sys.argv[2])
with torch.no_grad():
    out = model(inputs["ids"], inputs["mask"].long(), inputs["segments"])
torch.save([out.prediction_logits, out.seq_relationship_logits], sys.argv[3])
"""


def pair_of_sequences() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 99, (3, 20))
    segments = (torch.arange(20) > 11).long().expand(3, 20)
    mask = torch.arange(20) < torch.tensor([20, 13, 5])[:, None]
    return ids, segments, mask


def test_logits_equal_those_of_the_published_network(tmp_path):
    pytest.importorskip("safetensors")
    ids, segments, mask = pair_of_sequences()
    torch.save({"ids": ids, "segments": segments, "mask": mask}, tmp_path / "in.pt")
    command = [sys.executable, "-c", ORACLE, tmp_path / "in.pt", tmp_path / "weights", tmp_path / "out.pt"]
    oracle = subprocess.run(command, capture_output=True, text=True)
    if "No module named 'transformers'" in oracle.stderr:
        pytest.skip("needs transformers")
    assert oracle.returncode == 0, oracle.stderr
    model = BertConfig(size="tiny").build(99).eval()
    import_weights(model, tmp_path / "weights" / "model.safetensors")
    with torch.no_grad():
        words, follows = model(ids, segments, mask, torch.arange(60))
    expected_words, expected_follows = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(words.view(3, 20, 99)[mask], expected_words[mask], rtol=1e-5, atol=1e-4)
    relative = (words.view(3, 20, 99)[mask] - expected_words[mask]).norm() / expected_words[mask].norm()
    assert relative < 1e-5
    torch.testing.assert_close(follows, expected_follows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("size", "published"), [("base", 110_106_428), ("large", 336_226_108)])
def test_sizes_are_the_published_ones(size, published):
    with torch.device("meta"):
        model = BertConfig(size=size).build(30522)
    assert sum(p.numel() for p in model.parameters()) == published


def test_only_masked_places_are_predicted():
    ids, segments, mask = pair_of_sequences()
    model = BertConfig(size="tiny").build(99).eval()
    everywhere, _ = model(ids, segments, mask, torch.arange(60))
    some, _ = model(ids, segments, mask, torch.tensor([3, 41]))
    torch.testing.assert_close(some, everywhere[[3, 41]])


def test_padding_is_not_looked_at():
    ids, segments, mask = pair_of_sequences()
    model = BertConfig(size="tiny").build(99).eval()
    before = model.encode(ids, segments, mask)[mask]
    torch.testing.assert_close(model.encode(torch.where(mask, ids, 7), segments, mask)[mask], before)


def test_the_decoder_is_tied_to_the_embedding():
    model = BertConfig(size="tiny").build(99).eval()
    ids, segments, mask = pair_of_sequences()
    words, _ = model(ids, segments, mask, torch.tensor([4]))
    absent = next(word for word in range(99) if word not in ids)
    words[0, absent].backward()
    assert model.word.weight.grad[absent].norm() > 0


def test_weights_come_back_as_they_went(tmp_path):
    pytest.importorskip("safetensors")
    one, other = (BertConfig(size="tiny").build(99) for _ in range(2))
    export_weights(one, tmp_path / "w.safetensors")
    import_weights(other, tmp_path / "w.safetensors")
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(DataError, match="is \\(99,\\), the model's \\(100,\\)"):
        import_weights(BertConfig(size="tiny").build(100), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot read"):
        import_weights(other, tmp_path / "w.safetensors")
