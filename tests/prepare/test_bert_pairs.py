"""Text becomes pairs by the paper's rules, with the same bytes at any number of ranks; bad text is named."""

import argparse
import filecmp
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcopt.comm.world import alone
from hpcopt.prepare.__main__ import main
from hpcopt.prepare.bert import words
from hpcopt.prepare.bert.make import Recipe, make
from hpcopt.prepare.bert.pairs import pairs
from hpcopt.prepare.bert.text import _docstrings, _prose, documents, python_english, split_sentences
from hpcopt.store.sentence_pairs import SentencePairs

pytest.importorskip("tokenizers")


@pytest.fixture
def text(tmp_path) -> Path:
    """60 documents of some made-up sentences."""
    draw = np.random.default_rng(0)
    vocabulary = [
        a + b + c for a in ("mo", "ta", "ri") for b in ("ne", "lu", "sa", "ko") for c in ("n", "s", "th", "r")
    ]
    lines = []
    for _ in range(60):
        sentences = [draw.choice(vocabulary, int(draw.integers(3, 20))) for _ in range(int(draw.integers(3, 12)))]
        lines += [*(" ".join(sentence).capitalize() + "." for sentence in sentences), ""]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    return path


def small(text, **changes) -> Recipe:
    return Recipe(**{"text": [text], "words": 120, "sequences": (32, 64), "shards": 3, "test_share": 0.2, **changes})


def test_sentences():
    found = split_sentences('It is.  Is it?\n"Yes!" He said 3.5 times, e.g. twice. (End.) New')
    assert found == ["It is.", "Is it?", '"Yes!"', "He said 3.5 times, e.g. twice.", "(End.)", "New"]


def test_documents_end_at_empty_lines(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.\nThree.\n\n\nFour.\n")
    (tmp_path / "b.txt").write_text("Five.")
    (tmp_path / "c.md").write_text("not text")
    assert list(documents([tmp_path])) == [["One.", "Two.", "Three."], ["Four."], ["Five."]]


def test_python_carries_english():
    topics = [sentence for document in itertools.islice(python_english(), 70) for sentence in document]
    start = "Assert statements are a convenient way to insert debugging assertions into a program:"
    assert any(sentence.startswith(start) for sentence in topics)
    (docstrings,) = _prose("\n\n".join(_docstrings(Path(argparse.__file__))))
    assert "Object for parsing command line strings into Python objects." in docstrings
    assert not any("prog, usage" in sentence for sentence in docstrings)


def test_pairs_follow_the_papers_rules():
    draw = np.random.default_rng(0)
    made_of = [
        [list(range(100 * d + 10 * s, 100 * d + 10 * s + int(draw.integers(1, 10)))) for s in range(9)]
        for d in range(50)
    ]
    made = [pair for _ in range(20) for pair in pairs(made_of, 32, draw)]
    assert max(len(p.first) + len(p.second) for p in made) == 29
    assert min(min(len(p.first), len(p.second)) for p in made) >= 1
    for pair in made:
        assert len({token // 100 for token in pair.first}) == 1
        assert (pair.first[0] // 100 != pair.second[0] // 100) == pair.is_random
        if not pair.is_random:
            assert pair.first[-1] < pair.second[0]
    many = [p for p in made if p.first[0] % 100 < 60]  # the last sentence of a document can only be paired at random
    assert np.mean([p.is_random for p in many]) == pytest.approx(0.5, abs=0.05)
    seen = {token for pair in made for token in pair.first + pair.second}
    assert seen == {token for document in made_of for sentence in document for token in sentence}


def test_a_vocabulary_is_the_same_in_every_process(text):
    program = (
        "import sys; from pathlib import Path; from hpcopt.prepare.bert import words, text;"
        "print(words.train((' '.join(d) for d in text.documents([Path(sys.argv[1])])), 120))"
    )
    hashes = [{**os.environ, "PYTHONHASHSEED": seed} for seed in "12"]
    made = {subprocess.check_output([sys.executable, "-c", program, str(text)], env=env) for env in hashes}
    assert len(made) == 1
    assert made.pop().decode().startswith("['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'")


def test_shards_hold_the_text(text, tmp_path):
    make(small(text, masked=False), tmp_path / "out", alone())
    pieces = words.read(tmp_path / "out" / "vocab.txt")
    written = " ".join(" ".join(document) for document in documents([text])).lower().replace(".", " .")
    shards = SentencePairs(tmp_path / "out" / "64" / "train")
    assert not shards.masked
    for block in shards.blocks(0, len(shards)):
        rows = shards.read(block)
        for ids, (first, middle, last) in zip(rows["input_ids"], rows["special_token_positions"], strict=True):
            tokens = [pieces[i] for i in ids]
            assert (tokens[first], tokens[middle], tokens[last]) == ("[CLS]", "[SEP]", "[SEP]")
            assert set(tokens[last + 1 :]) <= {"[PAD]"}
            assert "[UNK]" not in tokens
            assert " ".join(tokens[1:middle]).replace(" ##", "").removeprefix("##") in written


@pytest.mark.parametrize("masked", [True, False])
def test_layouts_differ_in_the_masks_only(text, tmp_path, masked):
    make(small(text, masked=masked), tmp_path / "out", alone())
    for sequence in (32, 64):
        shards = SentencePairs(tmp_path / "out" / str(sequence) / "train")
        assert (shards.masked, shards.sequence) == (masked, sequence)
        shards.verify(words=len(words.read(tmp_path / "out" / "vocab.txt")))
        assert len(list(tmp_path.glob("out/*/train/*.hdf5"))) == 6


def test_masked_shards_restore_to_the_unmasked(text, tmp_path):
    for name, masked in (("hidden", True), ("plain", False)):
        make(small(text, masked=masked), tmp_path / name, alone())
    hidden, plain = (SentencePairs(tmp_path / name / "32" / "train") for name in ("hidden", "plain"))
    for one, other in zip(hidden.blocks(0, len(hidden)), plain.blocks(0, len(plain)), strict=True):
        h, p = hidden.read(one), plain.read(other)
        for row in range(one.rows):
            there = h["masked_lm_positions"][row] > 0
            h["input_ids"][row, h["masked_lm_positions"][row, there]] = h["masked_lm_ids"][row, there]
        np.testing.assert_array_equal(h["input_ids"], p["input_ids"])
        np.testing.assert_array_equal(h["input_mask"], p["input_ids"] != 0)
        np.testing.assert_array_equal(h["next_sentence_labels"], p["next_sentence_labels"])
        middle, last = p["special_token_positions"][:, 1], p["special_token_positions"][:, 2]
        np.testing.assert_array_equal(h["segment_ids"].sum(1), last - middle)


@pytest.mark.parallel([3])
def test_the_same_bytes_at_any_number_of_ranks(shared_tmp_path):
    from hpcopt.comm.world import connect

    world = connect()
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(["one", "two", "three", "four"], 9)) + "." for _ in range(400)]
    text = shared_tmp_path / "text.txt"
    if world.rank == 0:
        text.write_text("\n\n".join("\n".join(lines[i : i + 8]) for i in range(0, 400, 8)))
    world.barrier()
    recipe = small(text, words=60, shards=5)
    make(recipe, shared_tmp_path / "together", world)
    if world.rank == 0:
        make(recipe, shared_tmp_path / "alone", alone())
        files = [
            p.relative_to(shared_tmp_path / "alone") for p in (shared_tmp_path / "alone").rglob("*.*") if p.is_file()
        ]
        assert len(files) == 1 + 2 * (5 + 1)
        _, different, missing = filecmp.cmpfiles(
            shared_tmp_path / "alone", shared_tmp_path / "together", files, shallow=False
        )
        assert (different, missing) == ([], [])


def test_bad_text_is_named(tmp_path, capsys):
    def complaint(*arguments):
        assert main(["bert", "--data-dir", str(tmp_path / "data"), *map(str, arguments)]) == 2
        assert not (tmp_path / "data" / "bert").exists()
        return capsys.readouterr().err

    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("Größe.".encode("latin-1"))
    (tmp_path / "short.txt").write_text("One short sentence. Another one.")
    (tmp_path / "no-vocab.txt").write_text("a\nb\n")
    assert "no sentence in" in complaint("--text", tmp_path / "empty.txt")
    assert "not UTF-8" in complaint("--text", tmp_path / "latin.txt")
    assert "does not exist" in complaint("--text", tmp_path / "missing.txt")
    assert "--words" in complaint("--text", tmp_path / "short.txt", "--words", 20)
    assert "too short" in complaint("--text", tmp_path / "short.txt")
    assert "not a vocabulary" in complaint("--text", tmp_path / "short.txt", "--vocabulary", tmp_path / "no-vocab.txt")


def test_the_second_time_does_nothing(text, tmp_path, capsys):
    arguments = [
        "bert",
        "--text",
        str(text),
        "--data-dir",
        str(tmp_path),
        "--words",
        "120",
        "--sequences",
        "32",
        "--shards",
        "2",
    ]
    assert main(arguments) == 0
    assert "prepared" in capsys.readouterr().out
    before = (tmp_path / "bert" / "vocab.txt").stat().st_mtime_ns
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / "bert" / "vocab.txt").stat().st_mtime_ns == before
