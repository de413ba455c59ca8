"""Inputs of a run's test split, of BERT, and of files: the right rows, in the form that the network takes."""

import numpy as np
import pytest
import torch

from hpcopt.analysis.explain import explain as explain_one
from hpcopt.analysis.explain import read_explanations
from hpcopt.analysis.explain.command import explain
from hpcopt.analysis.explain.forms import HiddenWord
from hpcopt.analysis.explain.sources import TestSplit, chosen_rows, files_for_run
from hpcopt.comm.world import alone
from hpcopt.errors import DataError, JobError
from hpcopt.explain import parser
from hpcopt.models.bert import Bert
from hpcopt.runs import open_run
from hpcopt.shapes.batch import TensorBatch
from hpcopt.store import Shards
from hpcopt.train import main as train
from tests.workloads.test_bert_pretraining import WORDS, write_split

TestSplit.__test__ = False


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    settings = ["run.epochs=1", f"workload.data={digits}/digits", "run.device=cpu", "workload.model.hidden=[8]"]
    assert train(["--run-dir", str(folder), *(word for setting in settings for word in ("--set", setting))]) == 0
    return open_run(folder)


def test_rows_of_the_test_split_are_those_rows(run, digits):
    source = TestSplit(run)
    rows = chosen_rows("350:,3,7,5", source.samples)
    blocks = source.blocks(rows)
    assert np.concatenate(blocks).tolist() == rows.tolist()
    assert len(blocks) > 2
    stored = Shards(digits / "digits", "test").rows(rows)
    inputs = [source.read(block) for block in blocks]
    assert torch.cat([each.labels for each in inputs]).tolist() == stored["labels"].tolist()
    pictures = source.workload.pictures(TensorBatch({"images": torch.from_numpy(stored["images"])}, torch.arange(1), 1))
    assert torch.equal(torch.cat([each.x for each in inputs]), pictures)
    assert source.subject.classes == [str(number) for number in range(10)]


def test_files_of_stored_images_are_scaled_as_the_runs_own(run, digits, tmp_path):
    stored = Shards(digits / "digits", "test").rows(np.array([4, 9]))["images"]
    np.save(tmp_path / "stored.npy", stored)
    files = files_for_run(run, [tmp_path / "stored.npy", tmp_path / "stored.npy"])
    assert files.samples == 4
    split = TestSplit(run)
    wanted = torch.cat([split.read(block).x for block in split.blocks(np.array([4, 9]))])
    assert torch.equal(files.read(np.array([0, 1])).x, wanted)
    np.save(tmp_path / "given.npy", wanted.numpy())
    assert torch.equal(files_for_run(run, [tmp_path / "given.npy"]).read(np.array([0, 1])).x, wanted)


def test_pictures_are_read(run, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image.fromarray(pixels).save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", pixels[None, None])
    one, other = (files_for_run(run, [tmp_path / f"one.{kind}"]).read(np.array([0])).x for kind in ("png", "npy"))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros((2, 1, 8, 9), np.float32), r"shape \(1, 8, 9\), and the run's network takes \(1, 8, 8\)"),
        (np.full((2, 1, 8, 8), np.nan), "not finite"),
        (np.zeros(3), "no numbers of shape"),
        (np.array(["a", "b"]), "no numbers of shape"),
    ],
)
def test_files_that_do_not_fit_are_refused(run, values, says, tmp_path):
    np.save(tmp_path / "bad.npy", values)
    with pytest.raises(DataError, match=says):
        files_for_run(run, [tmp_path / "bad.npy"])


def test_files_that_are_not_alike_are_refused(run, tmp_path):
    for name, dtype in (("a", np.uint8), ("b", np.float32)):
        np.save(tmp_path / f"{name}.npy", np.zeros((1, 1, 8, 8), dtype))
    with pytest.raises(DataError, match="explain them apart"):
        files_for_run(run, [tmp_path / "a.npy", tmp_path / "b.npy"])
    (tmp_path / "c.png").write_bytes(b"none")
    with pytest.raises(DataError, match="cannot read the picture"):
        files_for_run(run, [tmp_path / "c.png"])


@pytest.mark.parametrize("text", ["", ":", "5:5", "9", "-1", "1;2"])
def test_rows_that_are_none_are_refused(text):
    if text == ":":
        assert chosen_rows(text, 9).tolist() == list(range(9))
        return
    with pytest.raises(JobError, match="rows"):
        chosen_rows(text, 9)


def test_bert_is_asked_about_its_first_hidden_word():
    """captum's integrated gradients of the embedding are the oracle; padding counts nothing."""
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(3)
    network = Bert(1, 8, 2, 12, 0.1).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.4)
    words = ["[PAD]", "[MASK]", *"abcdefghij"]
    tensors = {
        "input_ids": torch.tensor([[3, 1, 5, 1, 6, 0], [2, 4, 4, 1, 0, 0]], dtype=torch.int32),
        "segment_ids": torch.zeros(2, 6, dtype=torch.int32),
        "input_mask": torch.tensor([[True] * 5 + [False], [True] * 4 + [False] * 2]),
        "masked_positions": torch.tensor([[1, 3], [3, 0]]),
        "masked_ids": torch.tensor([[7, 8], [9, -1]]),
        "next_sentence": torch.zeros(2, dtype=torch.int64),
    }
    form = HiddenWord(network, words, "bert")
    inputs = form(TensorBatch(tensors, torch.arange(2), 2))
    assert inputs.labels.tolist() == [7, 9]
    base = form.subject.nothing(None, inputs.x)
    assert torch.equal(base[0, 3], network.word.weight[1])
    found = form.subject.told(
        explain_one("integrated", form.subject.model, inputs.x, inputs.labels, baseline=base, extra=inputs.extra)
    )
    ids, segments, there = (tensors[name] for name in ("input_ids", "segment_ids", "input_mask"))

    def number(tokens, segments, there, places):
        return network(tokens, segments, there, places + torch.arange(len(tokens)) * 6)[0]

    oracle = captum.LayerIntegratedGradients(number, network.word)
    wanted = oracle.attribute(
        ids, torch.ones_like(ids), inputs.labels, (segments, there, torch.tensor([1, 3])), n_steps=32
    )
    assert torch.allclose(found, wanted.sum(2).detach(), atol=1e-4)
    assert (found[~there] == 0).all() and (found[there] != 0).sum() >= 5


def test_a_run_of_bert_is_shown_in_words(tmp_path):
    write_split(tmp_path / "32" / "train", 40, 1, False)
    write_split(tmp_path / "32" / "test", 5, 2, False)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(WORDS - 5))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = [f"workload.data={tmp_path}/32", "workload.batch=8", "workload.model.size=tiny", "run.steps=1"]
    settings += ["run.device=cpu", "run.epochs=off"]
    told = ["jobs/bert_adamw.toml", "--run-dir", str(tmp_path / "run")]
    assert train([*told, *(word for setting in settings for word in ("--set", setting))]) == 0
    asked = [str(tmp_path / "run"), "--methods=integrated", "--rows=2:4", "--curves=2", "--scored=1", "--steps=4"]
    options = parser().parse_args([*asked, "--html", str(tmp_path / "page.html"), "--target=label"])
    assert explain(options, alone(), lambda: False) == 0
    found = read_explanations(tmp_path / "run" / "explanations.h5")
    assert found.methods["integrated"].attribution.shape == (2, 32)
    assert (found.methods["integrated"].attribution[found.inputs["shown"] == 0] == 0).all()
    assert [found.class_name(number) for number in found.inputs["target"]] == [words[n] for n in found.inputs["label"]]
    assert found.words.items() <= dict(enumerate(words)).items()
    page = (tmp_path / "page.html").read_text()
    assert "[MASK]" in page and "most for the class: " in page
