"""WordNet and package lists as graphs, from files of a few lines with the same form."""

import gzip

import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.prepare import debian, wordnet
from hpcopt.prepare.graph import adjacency, split
from hpcopt.store.graph import PARTS

NOUN = "00001740 05 n 02 big_dog 0 dog 0 002 @ 00002000 n 0000 + 00000010 v 0101 | a large dog that barks; an animal"
VERB = "00000010 30 v 01 bark 0 001 + 00001740 n 0101 01 + 02 00 | make the sounds of animals"
PACKAGES = """\
Package: editor
Source: edit (1.2)
Section: contrib/editors
Depends: libc6 (>= 2.34), edit-data, gui:any | tui
Tag: role::program,
 use::editing
Description: graphical editor of texts

Package: edit-data
Source: edit
Section: editors
Description: texts for editor

Package: gui
Section: x11
Description: windows
"""


def test_a_synset_is_read_as_its_format_says():
    noun, verb = wordnet.synset(NOUN, "n"), wordnet.synset(VERB, "v")
    assert noun.key == ("n", "00001740") and wordnet.CLASSES[noun.label] == "noun.animal"
    assert noun.related == [("n", "00002000"), ("v", "00000010")]
    assert noun.words == ["large", "that", "barks", "animal"], "its own lemmas, big and dog, are left out"
    assert wordnet.CLASSES[verb.label] == "verb.change" and verb.related == [("n", "00001740")]
    assert len(wordnet.CLASSES) == 45


def test_wordnet_that_is_missing_or_something_else(tmp_path):
    with pytest.raises(DataError, match="apt-get install wordnet-base"):
        wordnet.read(tmp_path)
    (tmp_path / "data.noun").write_text("  1 license\n" + NOUN + "\nnothing of the kind\n")
    with pytest.raises(DataError, match=r"data.noun, line 3"):
        wordnet.read(tmp_path)


def test_a_package_says_nothing_of_its_own_name():
    editor, data, gui = debian.stanzas(PACKAGES)
    assert debian.source_of(editor) == debian.source_of(data) == "edit"
    assert debian.depends(editor) == ["libc6", "edit-data", "gui"]
    assert debian.words_of(editor) == ["graphical", "texts", "role::program", "use::editing"]
    assert debian.words_of(gui) == ["windows"]


def test_packages_as_a_graph(tmp_path):
    stanzas = [
        f"Package: p{n}\nSource: s{n // 2}\nSection: {'ab'[n % 2]}\nDepends: p{n ^ 1}, p{(n + 2) % 80}\n"
        for n in range(80)
    ]
    (tmp_path / "one_Packages").write_text("\n".join(stanzas[:60]))
    (tmp_path / "two_Packages").write_text("\n".join(stanzas[60:]))
    data = debian.read(tmp_path)
    nodes, edges = data.arrays["nodes"], data.arrays["edges"]
    assert sorted(data.attributes["classes"]) == ["a", "b"]
    assert len(edges["neighbour"]) == 2 * 80, "the edges inside a source are left out, the others are there twice"
    np.testing.assert_array_equal(nodes["part"][::2], nodes["part"][1::2])


def test_lists_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="apt-get update"):
        debian.read(tmp_path)
    (tmp_path / "one_Packages.lz4").write_bytes(gzip.compress(b"x")[:5])
    with pytest.raises(DataError, match="cannot be read"):
        debian.read(tmp_path)


def test_an_edge_stands_there_in_both_directions_once():
    first, neighbours = adjacency(4, np.array([[0, 2], [2, 0], [0, 1], [3, 3]]))
    np.testing.assert_array_equal(first, [0, 2, 3, 4])
    np.testing.assert_array_equal(neighbours, [1, 2, 0, 0])


def test_groups_stay_together_and_nodes_without_a_label_are_in_no_part():
    groups = np.arange(3000) // 3
    parts = split(groups, np.arange(3000) % 5 > 0)
    assert (parts[::5] == PARTS["none"]).all()
    for group in range(1000):
        assert len(set(parts[groups == group]) - {PARTS["none"]}) == 1
    assert (parts == PARTS["train"]).mean() == pytest.approx(0.08, abs=0.02)
