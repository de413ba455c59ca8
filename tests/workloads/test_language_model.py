"""A language model keeps the promises; its perplexity is a sum made by hand."""

import math

import numpy as np
import pytest
import torch

from hpcopt.checkpoint import main as checkpoint
from hpcopt.errors import DataError, JobError
from hpcopt.models.causal.lstm import LstmConfig
from hpcopt.models.causal.transformer import TransformerConfig
from hpcopt.shapes.context import Context
from hpcopt.store.shards import write_shards
from hpcopt.store.text import StoredText
from hpcopt.store.weights import newest_weights
from hpcopt.testing.workload import check_workload
from hpcopt.train import main
from hpcopt.workloads.language_model import LanguageModelConfig
from tests.text_data import write_text

LSTM = LstmConfig(width=6, units=6, head="tied")
TRANSFORMER = TransformerConfig(width=16, layers=1, heads=2, head="adaptive", cutoffs=(4, 9))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words")


@pytest.mark.parametrize("model", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_it_keeps_the_promises(data, model):
    check_workload(LanguageModelConfig(data=data, batch=11, length=7, model=model), steps=9)


@torch.no_grad()
@pytest.mark.parametrize("level", ["word", "byte"])
def test_perplexity_is_a_sum_made_by_hand(tmp_path, level):
    """Windows of 7 tokens, of which the last is cut short: each token but the first counts once, whoever counts it."""
    text = StoredText(write_text(tmp_path / level, level))
    w = LanguageModelConfig(data=tmp_path / level, batch=4, length=7, model=TRANSFORMER).build(Context(run_seed=1))
    w.model.eval()
    tokens = torch.from_numpy(text.windows("test", np.array([0]), len(text.splits["test"]) - 1))[0]
    assert (len(tokens) - 1) % 7, "the last window is cut short"
    total, nbytes = 0.0, 0
    for start in range(0, len(tokens) - 1, 7):
        window = tokens[start : start + 8]
        logarithms = w.model(window[None, :-1])[0]
        total -= float(sum(logarithms[place, token] for place, token in enumerate(window[1:])))
        nbytes += sum(len(text.texts[n]) for n in window[1:] if text.texts[n] != b"<eos>")
    sums = {}
    for rank in range(3):
        for batch in w.test_batches(rank, 3):
            for name, value in w.score(w.model, batch).items():
                sums[name] = sums.get(name, 0) + value.double()
    found = w.finish(sums)
    assert found["test_perplexity"] == pytest.approx(math.exp(total / (len(tokens) - 1)), rel=1e-5)
    assert found.get("test_bits_per_byte") == (
        pytest.approx(total / math.log(2) / nbytes, rel=1e-5) if level == "byte" else None
    )


def test_an_epoch_goes_through_all_windows_once(data):
    w = LanguageModelConfig(data=data, batch=5, length=4, model=LSTM).build(Context())
    batches = w.train_batches(0, 1, 0)
    seen = torch.cat([next(batches).indices for _ in range(w.steps_per_epoch)])
    assert len(set(seen.tolist())) == len(seen) == w.train_samples // 5 * 5
    assert w.train_samples == (len(StoredText(data).splits["train"]) - 1) // 4


@pytest.mark.parametrize(
    ("settings", "error", "complaint"),
    [
        ({"batch": 10_000}, JobError, "has 1[0-9]+ of them to train on"),
        ({"data": "/nowhere"}, DataError, "hpcopt prepare text"),
        ({"model": LstmConfig(width=5, units=6, head="tied")}, JobError, "tied head needs units = width"),
        ({"model": LstmConfig(head="adaptive", cutoffs=(9, 4))}, JobError, "cutoffs .* should ascend"),
        ({"model": TransformerConfig(width=9)}, JobError, "do not divide width"),
    ],
)
def test_what_does_not_suit_is_one_message(data, settings, error, complaint):
    with pytest.raises(error, match=complaint):
        LanguageModelConfig(**{"data": data, "batch": 4, "length": 4, **settings}).build(Context())


def test_a_text_of_one_token_is_refused(tmp_path):
    write_text(tmp_path / "short", count=20)
    path = tmp_path / "short"
    for file in path.glob("test-*"):
        file.unlink()
    write_shards(path, "test", {"token": np.zeros(1, np.uint16)}, rows_per_shard=9, attributes={})
    with pytest.raises(DataError, match="has 1 tokens in test"):
        LanguageModelConfig(data=path, batch=2, length=4).build(Context())


def test_tokens_that_the_vocabulary_lacks_are_found(tmp_path):
    path = write_text(tmp_path / "damaged")
    for file in path.glob("train-*"):
        file.unlink()
    write_shards(path, "train", {"token": np.full(500, 99, np.uint16)}, rows_per_shard=999, attributes={})
    with pytest.raises(DataError, match="`token` has 99 to 99, not 0 to"):
        LanguageModelConfig(data=path, batch=2, length=4).build(Context()).verify(0, 1)


JOB = """
[run]
name = "words"
steps = 6
checkpoint_every = 3
[workload]
name = "language_model"
data = "{data}"
batch = 5
length = 6
[workload.model]
name = "lstm"
width = 6
units = 16
layers = 2
dropout = 0.2
head = "adaptive"
cutoffs = [4, 9]
[solver]
name = "data_parallel"
[solver.optimizer]
name = "adamw"
"""


def test_a_job_goes_on_bit_for_bit(data, tmp_path, capsys):
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(data=data))
    assert main([str(job), "--run-dir", str(tmp_path / "straight")]) == 0
    for steps in (3, 6):
        assert main([str(job), "--run-dir", str(tmp_path / "stopped"), "--set", f"run.steps={steps}"]) == 0
    ends = [tmp_path / name / "checkpoints" / "step_00000006" for name in ("straight", "stopped")]
    assert checkpoint(["diff", *map(str, ends)]) == 0
    assert "FOM test_perplexity" in capsys.readouterr().out
    begun = LanguageModelConfig(
        data=data,
        batch=5,
        length=6,
        start_from=tmp_path / "straight",
        model=LstmConfig(width=6, units=16, layers=2, head="adaptive", cutoffs=(4, 9)),
    )
    weights = newest_weights(tmp_path / "straight").state_dict
    assert torch.equal(begun.build(Context()).model.word.weight, weights["word.weight"])
    with pytest.raises(DataError, match="holds another network"):
        begun.model_copy(update={"model": LSTM}).build(Context())
