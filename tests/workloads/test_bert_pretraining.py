"""The loss of a batch does not depend on who computes which part of it; scores are means over tokens."""

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hpcopt.errors import DataError, JobError
from hpcopt.models.bert import BertConfig, export_weights
from hpcopt.shapes.context import Context
from hpcopt.store.checkpoint import SHARED, Checkpoints
from hpcopt.store.sentence_pairs import write_pairs
from hpcopt.train import main
from hpcopt.workloads.bert_pretraining import BertPretrainingConfig
from hpcopt.workloads.masking import mask_tokens
from hpcopt.workloads.on_device import on_device

WORDS = 60


def write_split(folder, rows, seed, masked):
    draw = np.random.default_rng(seed)
    last = draw.integers(8, 32, rows)
    special = np.stack([0 * last, last // 2, last], 1)
    ids = draw.integers(5, WORDS, (rows, 32)).astype(np.int32)
    ids[np.arange(32) > last[:, None]] = 0
    np.put_along_axis(ids, special, np.array([2, 3, 3], np.int32), 1)
    arrays = {
        "input_ids": ids,
        "special_token_positions": special,
        "next_sentence_labels": draw.integers(0, 2, rows),
    }
    if masked:
        hidden = mask_tokens(ids, special, np.arange(rows), seed=seed, epoch=0, words=WORDS, mask_id=4)
        arrays = {
            "input_ids": hidden.input_ids,
            "input_mask": ids != 0,
            "segment_ids": (np.arange(32) > special[:, 1:2]) & (ids != 0),
            "masked_lm_positions": hidden.positions,
            "masked_lm_ids": hidden.ids,
            "next_sentence_labels": arrays["next_sentence_labels"],
        }
    folder.mkdir(parents=True)
    write_pairs(folder / "0.hdf5", arrays, {})


@pytest.fixture(params=[True, False], ids=["masked", "unmasked"])
def data(request, tmp_path):
    write_split(tmp_path / "32" / "train", 300, 1, request.param)
    write_split(tmp_path / "32" / "test", 77, 2, request.param)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(WORDS - 5))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return tmp_path / "32"


def workload(data, **settings):
    model = BertConfig(size="tiny", dropout=0)
    return BertPretrainingConfig(**{"data": data, "batch": 12, "model": model, **settings}).build(Context(run_seed=5))


def first_batch(w, rank=0, size=1, start=0):
    batches = w.train_batches(rank, size, start)
    batch = next(batches)
    batches.close()
    return batch


@pytest.mark.parametrize("size", [2, 5])
def test_the_loss_is_the_sum_over_ranks_and_micro_batches(data, size):
    w = workload(data)
    whole = w.loss(w.model, first_batch(w))
    shares = [first_batch(w, rank, size) for rank in range(size)]
    parts = [micro for share in shares for micro in share.split(2)]
    assert sum(map(len, parts)) == 12
    torch.testing.assert_close(sum(w.loss(w.model, part) * part.weight for part in parts), whole)


def test_the_loss_is_that_of_the_paper(data):
    """Mean over masked tokens plus mean over pairs, but for the constant that stands for the number of tokens."""
    w = workload(data, batch=300)  # the mean over all of the data is what the constant is taken from
    batch = first_batch(w)
    t = batch.tensors
    rows, columns = (t["masked_ids"] >= 0).nonzero(as_tuple=True)
    places = t["masked_positions"][rows, columns]
    hidden = w.model.transform_norm(
        F.gelu(w.model.transform(w.model.encode(t["input_ids"], t["segment_ids"], t["input_mask"])[rows, places]))
    )
    masked = F.cross_entropy(hidden @ w.model.word.weight.T + w.model.bias, t["masked_ids"][rows, columns])
    _, follows = w.model(t["input_ids"], t["segment_ids"], t["input_mask"], torch.zeros(1, dtype=torch.int64))
    expected = masked + F.cross_entropy(follows, t["next_sentence"])
    torch.testing.assert_close(w.loss(w.model, batch), expected)


@torch.no_grad()
def test_scores_are_means_over_tokens(data):
    w = workload(data)
    together = dict.fromkeys(w.scores, 0.0)
    for rank in range(3):
        for batch in w.test_batches(rank, 3):
            for name, value in w.score(w.model, batch).items():
                together[name] += float(value) / w.test_samples
    losses, right, tokens = 0.0, 0, 0
    for batch in w.test_batches(0, 1):
        words, labels, _ = w._predict(w.model, batch)
        losses += float(F.cross_entropy(words, labels, reduction="sum"))
        right, tokens = right + int((words.argmax(1) == labels).sum()), tokens + len(labels)
    assert w.test_samples == 77
    assert together["test_masked_loss"] == pytest.approx(losses / tokens, rel=1e-5)
    assert together["test_masked_accuracy"] == pytest.approx(right / tokens, rel=1e-5)


def test_masks_at_run_time_change_with_the_epoch(data):
    w = workload(data)
    batches = w.train_batches(0, 1, 0)
    seen = {}
    for step in range(2 * w.steps_per_epoch):
        batch = next(batches)
        for row, ids in zip(batch.indices.tolist(), batch.tensors["input_ids"], strict=True):
            seen.setdefault(row, []).append(ids)
        if step % w.steps_per_epoch == 0:
            torch.testing.assert_close(first_batch(w, start=step).tensors, batch.tensors)
    batches.close()
    same = np.mean([torch.equal(*pair) for pair in seen.values() if len(pair) == 2])
    assert same == 1 if w._train.masked else same < 0.1


def test_bfloat16_is_near(data):
    wide, narrow = workload(data), on_device(workload(data), torch.device("cpu"), "bfloat16")
    batch = first_batch(wide)
    exact, rounded = wide.loss(wide.model, batch).detach(), narrow.loss(narrow.model, batch)
    assert rounded.dtype == torch.float32
    assert 0 < abs(float(exact - rounded.detach())) < 0.02
    rounded.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in narrow.model.parameters())


def test_a_phase_begins_where_another_ended(data, tmp_path):
    before = workload(data)
    with torch.no_grad():
        before.model.bias.normal_()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.begin(7)
    checkpoints.write_part(7, SHARED, {"solver": {"model": before.model.state_dict()}})
    checkpoints.commit(7, [SHARED])
    pytest.importorskip("safetensors")
    export_weights(before.model, tmp_path / "weights.safetensors")
    for source in (tmp_path / "run", tmp_path / "weights.safetensors"):
        after = workload(data, start_from=source)
        assert all(torch.equal(p, q) for p, q in zip(before.model.parameters(), after.model.parameters(), strict=True))
    with pytest.raises(DataError, match="no checkpoint"):
        workload(data, start_from=tmp_path)
    with pytest.raises(DataError, match="another network"):
        workload(data, start_from=tmp_path / "run", model=BertConfig(size="mini"))


def test_what_does_not_fit_is_named_before_training(data):
    with pytest.raises(JobError, match="batch = 301"):
        workload(data, batch=301)
    with pytest.raises(DataError, match="no folder train"):
        workload(data.parent)
    vocabulary = data.parent / "vocab.txt"
    vocabulary.write_text("\n".join(vocabulary.read_text().split()[:40]))
    with pytest.raises(DataError, match="the vocabulary has 40 words"):
        workload(data).verify(0, 1)
    vocabulary.unlink()
    with pytest.raises(DataError, match="no vocabulary at"):
        workload(data)


def truncate(data):
    shard = data / "train" / "0.hdf5"
    shard.write_bytes(shard.read_bytes()[:-1000])
    return "0.hdf5 is damaged"


def drop_an_array(data):
    with h5py.File(data / "test" / "0.hdf5", "a") as shard:
        del shard["next_sentence_labels"]
    return "0.hdf5 lacks next_sentence_labels"


def shorten_the_vocabulary(data):
    vocabulary = data.parent / "vocab.txt"
    vocabulary.write_text("\n".join(vocabulary.read_text().split()[:40]))
    return "the vocabulary has 40 words"


def use_another_vocabulary(data):
    (data.parent / "vocab.txt").write_text("\n".join(f"w{n}" for n in range(WORDS)))
    return "lacks [MASK]"


@pytest.mark.parametrize("spoil", [truncate, drop_an_array, shorten_the_vocabulary, use_another_vocabulary])
def test_spoilt_data_ends_the_job_before_training(data, tmp_path, capsys, spoil):
    complaint = spoil(data)
    job = tmp_path / "job.toml"
    job.write_text(
        f"[run]\nsteps = 2\n[workload]\nname = 'bert_pretraining'\ndata = '{data}'\nbatch = 12\n"
        "[workload.model]\nname = 'bert'\nsize = 'tiny'\n[solver]\nname = 'data_parallel'\n"
    )
    assert main([str(job), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.h5").exists()
