"""Shards of both layouts, from any tool, are read as they are; what is damaged or does not fit is named."""

import h5py
import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.store.sentence_pairs import MASKED, UNMASKED, SentencePairs, write_pairs


def arrays(layout, n, s=32, seed=0, words=100):
    draw = np.random.default_rng(seed)
    sizes = {"s": (s,), "p": (s * 5 // 32,), "3": (3,), "": ()}
    return {
        name: draw.integers(0, words if dtype == "i4" else 2, (n, *sizes[dims])).astype(dtype)
        for name, (dtype, dims) in layout.items()
    }


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
    with pytest.raises(DataError, match="has word 99, but the vocabulary has 90 words"):
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
