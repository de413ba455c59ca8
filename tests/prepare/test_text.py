"""Tokens stand for their text, parts are split by the rule that is told, and what is missing is said."""

import gzip
import subprocess
import sys

import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.prepare import is_prepared, prepare
from hpcopt.prepare.__main__ import main
from hpcopt.prepare.text import documents
from hpcopt.prepare.text.levels import END, UNKNOWN, vocabulary
from hpcopt.prepare.text.make import Tokens, make
from hpcopt.store.shards import shard_path
from hpcopt.store.text import StoredText
from tests.text_data import documents as lines
from tests.text_data import write_text

ENTRIES = """
00-database-info
   The original is elsewhere \\ of a server

Feel \\Feel\\ (f[=e]l), v. t.
   1. To touch.
      [1913 Webster]

            Feel my pulse.                        --Shak.
      [1913 Webster +PJC]

feel \\Feel\\, n.
   Feeling; perception. [R.]

Feeler \\Feel"er\\, n.
   One who feels.
      [1913 Webster]
"""


def test_words_are_numbered_by_how_often_they_come():
    known = vocabulary("word", ["b a b. A c", "a! b'c"], None, least=2)
    assert known.texts == [UNKNOWN, END, b"a", b"b"]
    assert known.encode("A b, b'c").tolist() == [2, 3, 0, 0] and not known.lossless
    assert vocabulary("word", ["b a b. A c", "a"], 1, least=1).texts == [UNKNOWN, END, b"a"]


@pytest.mark.parametrize("level", ["byte", "subword"])
def test_what_loses_nothing_gives_the_text_back(level):
    if level == "subword":
        pytest.importorskip("tokenizers")
    known = vocabulary(level, lines(), 300, least=1)
    for text in (*lines(3, seed=5), "Ünïcode \x00\t\n  ☃", ""):
        assert b"".join(known.texts[n] for n in known.encode(text)) == text.encode()
    assert known.texts[known.end] == END and known.lossless
    assert len(set(known.texts)) == len(known.texts) == (300 if level == "subword" else 257) + (level == "subword")


def test_pieces_are_the_same_in_every_process():
    pytest.importorskip("tokenizers")
    program = (
        "from hpcopt.prepare.text.levels import vocabulary; from tests.text_data import documents; import hashlib; "
        "print(hashlib.sha256(repr(vocabulary('subword', documents(), 400, 1).texts).encode()).hexdigest())"
    )
    said = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(said) == 1 and len(said.pop()) > 60


def test_of_every_twenty_documents_one_is_to_validate_and_one_to_test():
    data = make([f"w{n}" for n in range(45)], Tokens("word", least=1), title="numbers")
    texts = [bytes(row[:n]) for row, n in zip(*(data.arrays["vocabulary"][k] for k in ("text", "length")), strict=True)]
    train = [texts[n] for n in data.arrays["train"]["token"]]
    assert train[::2] == [f"w{n}".encode() for n in range(45) if n not in (9, 19, 29, 39)] and set(train[1::2]) == {END}
    for split in ("validation", "test"):  # whose words are none of the vocabulary's
        assert data.arrays[split]["token"].tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="has 19 documents"):
        make(map(str, range(19)), Tokens())


def test_the_vocabulary_knows_counts_and_bytes(tmp_path):
    text = StoredText(write_text(tmp_path / "bytes", "byte"))
    tokens = np.concatenate([shards.rows(np.arange(len(shards)))["token"] for shards in text.splits.values()])
    assert text.nbytes[tokens].sum() == sum(len(line) for line in lines()) and text.level == "byte"
    counts = text._vocabulary.rows(np.arange(text.words))["count"]
    train = text.splits["train"].rows(np.arange(len(text.splits["train"])))["token"]
    assert (counts == np.bincount(train, minlength=257)).all() and counts[256] == 54
    assert not StoredText(write_text(tmp_path / "words")).nbytes.any(), "words lose some of the text"


def test_windows_overlap_by_one_token_and_end_with_none(tmp_path):
    text = StoredText(write_text(tmp_path / "text"))
    tokens = text.splits["test"].rows(np.arange(len(text.splits["test"])))["token"].astype(int)
    found = text.windows("test", np.arange(-(-(len(tokens) - 1) // 5)), 5)
    assert found[:, 1:][found[:, 1:] >= 0].tolist() == tokens[1:].tolist()
    assert (found[1:, 0] == found[:-1, -1]).all() and (found[:-1] >= 0).all()


def test_a_dictionary_gives_a_document_a_headword(tmp_path):
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress(ENTRIES.encode()))
    feel, feeler = documents.gcide(tmp_path / "gcide.dict.dz")
    assert feel.splitlines() == [
        "Feel \\Feel\\ (f[=e]l), v. t.",
        "   1. To touch.",
        "            Feel my pulse.                        --Shak.",
        "feel \\Feel\\, n.",
        "   Feeling; perception. [R.]",
    ]
    assert feeler.endswith("One who feels.")
    with pytest.raises(DataError, match="apt-get install dict-gcide"):
        list(documents.gcide(tmp_path / "none"))
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"something else"))
    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:12] + bytes(9) + b[21:]):
        (tmp_path / "damaged.gz").write_bytes(damage(gzip.compress(ENTRIES.encode())))
        with pytest.raises(DataError, match=r"no dictionary in .*damaged\.gz"):
            list(documents.gcide(tmp_path / "damaged.gz"))
    with pytest.raises(DataError, match="has no entry"):
        list(documents.gcide(tmp_path / "other.gz"))


def test_definitions_are_a_document_each_and_say_what_to_install(tmp_path):
    with pytest.raises(DataError, match="apt-get install wordnet-base"):
        list(documents.glosses(tmp_path))
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_text(f'  1 a licence\n00001740 03 n 01 thing 0 000 | a {name}; "it | is"  \n')
    assert list(documents.glosses(tmp_path)) == [f'a {name}; "it | is"' for name in ("noun", "verb", "adj", "adv")]
    (tmp_path / "data.adv").write_text("something else")
    with pytest.raises(DataError, match=r"data\.adv has no definitions"):
        list(documents.glosses(tmp_path))


def test_pythons_documentation_says_what_to_install(tmp_path):
    with pytest.raises(DataError, match=r"apt-get install python3\.\d+-doc"):
        list(documents.python_sources(tmp_path))
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "os.rst.txt").write_text("A module.\n\nAnd more.\n")
    assert list(documents.python_sources(tmp_path)) == ["A module.\n\nAnd more."]


def test_files_are_cut_as_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PASSAGE", 8)
    (tmp_path / "b.txt").write_text("one\ntwo\n\nthree\n  \nfour\n")
    (tmp_path / "a.txt").write_text("zero")
    assert list(documents.from_files([tmp_path], "passage")) == ["zero", "one\ntwo\n\nthree", "four"]
    assert list(documents.from_files([tmp_path / "b.txt"], "line")) == ["one", "two", "three", "four"]
    assert list(documents.from_files([tmp_path / "a.txt"], "file")) == ["zero"]
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8 text"):
        list(documents.from_files([tmp_path], "file"))
    with pytest.raises(DataError, match="name UTF-8 text files"):
        list(documents.from_files([tmp_path / "none"], "file"))


def test_the_command_makes_a_text_once(tmp_path, capsys):
    (tmp_path / "my.txt").write_text("\n".join(lines()))
    command = ["text", str(tmp_path / "my.txt"), "--document", "line", "--least", "1", "--name", "mine"]
    assert main([*command, "--data-dir", str(tmp_path)]) == 0
    assert main([*command, "--data-dir", str(tmp_path), "--level", "byte"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "mine: prepared" in first and "already there" in second and "level word, vocabulary of 19" in second
    assert main([*command[:-1], "half", "--every", "2", "--level", "byte", "--data-dir", str(tmp_path)]) == 0
    half = StoredText(tmp_path / "half").splits
    assert len(half["test"]) == len(lines()[38]) + 1, "the twentieth of the lines 0, 2, 4, ..."
    for wrong, complaint in (
        (["text", str(tmp_path / "none")], "cannot read"),
        ([*command, "--every", "0"], "from 1 on"),
    ):
        assert main([*wrong, "--data-dir", str(tmp_path), "--name", "other"]) == 2
        assert complaint in capsys.readouterr().err


def test_pythons_manual_is_there_for_a_bare_job(tmp_path):
    folder = prepare("manual", tmp_path)
    assert is_prepared("manual", tmp_path)
    path = shard_path(folder, "vocabulary", 0)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert not is_prepared("manual", tmp_path)
