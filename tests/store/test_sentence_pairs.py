"""Shards of both layouts, from any tool, are read as they are; what is damaged or does not fit is named."""

import h5py
import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.store.sentence_pairs import MASKED, UNMASKED, SentencePairs, read_vocabulary, write_pairs


def arrays(layout, n, s=32, seed=0, words=100):
    draw = np.random.default_rng(seed)
    sizes = {"s": (s,), "p": (s * 5 // 32,), "3": (3,), "": ()}
    most = {"masked_lm_positions": s, "input_ids": words, "masked_lm_ids": words}
    made = {
        name: draw.integers(0, most.get(name, 2), (n, *sizes[dims])).astype(dtype)
        for name, (dtype, dims) in layout.items()
    }
    if layout is UNMASKED:
        made["special_token_positions"] = np.sort(
            draw.permuted(np.tile(np.arange(s, dtype="i4"), (n, 1)), axis=1)[:, :3]
        )
    return made


def fill(folder, layout, lengths, **kinds):
    parts = [arrays(layout, n, seed=seed, **kinds) for seed, n in enumerate(lengths)]
    for number, part in enumerate(parts):
        write_pairs(folder / f"{number:05d}.hdf5", part, {})
    return {name: np.concatenate([part[name] for part in parts]) for name in layout}


@pytest.mark.parametrize("layout", [MASKED, UNMASKED])
def test_rows_come_back_by_blocks(tmp_path, layout):
    expected = fill(tmp_path, layout, [300, 1, 700])
    pairs = SentencePairs(tmp_path)
    assert (len(pairs), pairs.masked, pairs.sequence) == (1001, layout is MASKED, 32)
    for first, stop in [(0, 1001), (250, 302), (300, 301), (555, 990), (7, 7)]:
        blocks = pairs.blocks(first, stop)
        assert [row for b in blocks for row in range(b.first, b.first + b.rows)] == list(range(first, stop))
        for block in blocks:
            for name, values in pairs.read(block).items():
                np.testing.assert_array_equal(values, expected[name][block.first : block.first + block.rows])


def test_shards_as_other_tools_write_them(tmp_path):
    expected = arrays(MASKED, 500)
    (tmp_path / "some" / "where").mkdir(parents=True)
    with h5py.File(tmp_path / "some" / "where" / "wiki_0.hdf5", "w") as file:
        for name, (dtype, _) in MASKED.items():
            file.create_dataset(name, data=expected[name], dtype=dtype, compression="gzip")
    pairs = SentencePairs(tmp_path)
    pairs.verify(words=100)
    (values,) = [pairs.read(block) for block in pairs.blocks(0, 100)]
    np.testing.assert_array_equal(values["masked_lm_ids"], expected["masked_lm_ids"][:100])


def test_the_same_content_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_pairs(tmp_path / name, arrays(MASKED, 300), {"title": "t"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_truncated_shard(tmp_path):
    fill(tmp_path, MASKED, [400, 400])
    path = tmp_path / "00001.hdf5"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"00001\.hdf5 is damaged"):
        SentencePairs(tmp_path)


def test_damaged_values(tmp_path):
    fill(tmp_path, UNMASKED, [400])
    path = tmp_path / "00000.hdf5"
    with h5py.File(path) as file:
        where = file["input_ids"].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[where.byte_offset + where.size // 2] ^= 16
    path.write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        SentencePairs(tmp_path).verify(words=100)


def test_a_missing_array(tmp_path):
    fill(tmp_path, MASKED, [10])
    with h5py.File(tmp_path / "00000.hdf5", "a") as file:
        del file["segment_ids"]
    with pytest.raises(DataError, match="lacks segment_ids"):
        SentencePairs(tmp_path)


def test_a_wrong_vocabulary(tmp_path):
    fill(tmp_path, MASKED, [600])
    SentencePairs(tmp_path).verify(words=100)
    with pytest.raises(DataError, match="has word 99 in input_ids, but the vocabulary has 90 words"):
        SentencePairs(tmp_path).verify(words=90)


def test_a_vocabulary_of_more_words_than_the_data_was_made_with(tmp_path):
    write_pairs(tmp_path / "0.hdf5", arrays(UNMASKED, 10), {"words": 100})
    SentencePairs(tmp_path).verify(words=100)
    with pytest.raises(DataError, match="made with 100 words, but the vocabulary has 120"):
        SentencePairs(tmp_path).verify(words=120)


def test_mixed_lengths(tmp_path):
    fill(tmp_path, MASKED, [10])
    write_pairs(tmp_path / "1.hdf5", arrays(MASKED, 10, s=64), {})
    with pytest.raises(DataError, match="64 tokens"):
        SentencePairs(tmp_path)


def test_no_shards(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.hdf5"):
        SentencePairs(tmp_path)


def foreign(folder, layout, name, change):
    """A shard of another tool, one array of which is changed."""
    values = arrays(layout, 20)
    values[name] = change(values[name])
    with h5py.File(folder / "0.hdf5", "w") as file:
        for key, array in values.items():
            file[key] = array
    return folder


def put(value):
    def change(array):
        array = array.astype(np.int64)
        array[3] = value
        return array

    return change


@pytest.mark.parametrize(
    ("layout", "name", "change", "message"),
    [
        (MASKED, "masked_lm_positions", put(32), "has place 32 in masked_lm_positions, in sequences of 32 tokens"),
        (MASKED, "masked_lm_positions", put(-1), "has place -1 in masked_lm_positions"),
        (MASKED, "next_sentence_labels", put(2), "next_sentence_labels of 0 to 2, not 0 and 1"),
        (MASKED, "next_sentence_labels", put(-1), "next_sentence_labels of -1 to 1, not 0 and 1"),
        (MASKED, "segment_ids", put(2), "segment_ids of 0 to 2, not 0 and 1"),
        (MASKED, "input_mask", put(7), "input_mask of 0 to 7, not 0 and 1"),
        (MASKED, "masked_lm_ids", put(2**32 + 1), "has word 4294967297 in masked_lm_ids"),
        (UNMASKED, "special_token_positions", put(32), "has place 32 in special_token_positions"),
        (UNMASKED, "special_token_positions", put([0, 9, 9]), "special_token_positions that do not ascend"),
        (UNMASKED, "next_sentence_labels", put(-2), "next_sentence_labels of -2 to 1, not 0 and 1"),
    ],
)
def test_values_that_no_such_array_has(tmp_path, layout, name, change, message):
    pairs = SentencePairs(foreign(tmp_path, layout, name, change))
    with pytest.raises(DataError, match=message):
        pairs.verify(words=100)


@pytest.mark.parametrize(
    ("layout", "name", "change", "message"),
    [
        (MASKED, "next_sentence_labels", lambda a: a[:, None], r"next_sentence_labels is int8 of shape \(20, 1\)"),
        (MASKED, "input_ids", lambda a: a.astype("f4"), r"input_ids is float32 .* not integers of shape \(n, s\)"),
        (MASKED, "input_ids", lambda a: a[:, 0], r"input_ids is int32 of shape \(20,\)"),
        (MASKED, "segment_ids", lambda a: a[:, :9], "segment_ids has 9 entries a row, not 32"),
        (MASKED, "masked_lm_ids", lambda a: a[:, :2], "masked_lm_ids has 2 entries a row, not 5"),
        (UNMASKED, "special_token_positions", lambda a: a[:, :2], "special_token_positions has 2 entries a row, not 3"),
        (UNMASKED, "special_token_positions", lambda a: a.astype("f8"), "special_token_positions is float64"),
        (UNMASKED, "input_ids", lambda a: np.int32(3), r"input_ids is int32 of shape \(\)"),
    ],
)
def test_arrays_of_another_type_or_shape(tmp_path, layout, name, change, message):
    with pytest.raises(DataError, match=message):
        SentencePairs(foreign(tmp_path, layout, name, change))


def test_integers_of_any_width_are_read_as_the_layout_says(tmp_path):
    pairs = SentencePairs(foreign(tmp_path, MASKED, "input_ids", lambda a: a.astype("u2")))
    pairs.verify(words=100)
    (block,) = pairs.blocks(0, 20)
    values = pairs.read(block)
    assert values["input_ids"].dtype == np.int32
    np.testing.assert_array_equal(values["input_ids"], arrays(MASKED, 20)["input_ids"])


def test_a_vocabulary_is_a_word_a_line_feed(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\na\u2028b\nc\x85\x0bd\r\n[MASK]\n".encode())
    assert read_vocabulary(path) == ["[PAD]", "a\u2028b", "c\x85\x0bd", "[MASK]"]
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot read the vocabulary"):
        read_vocabulary(path)
