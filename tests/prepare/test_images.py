"""Folders of photographs become labelled images; what cannot be read is named."""

import numpy as np
import pytest

from hpcopt.errors import DataError
from hpcopt.prepare import images, prepare
from hpcopt.store.shards import Shards

Image = pytest.importorskip("PIL.Image")


def photograph(path, colour, size=(300, 260)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_a_class(tmp_path):
    for number in range(10):
        photograph(tmp_path / "photos" / "red" / f"{number}.png", (255, 0, 0))
        photograph(tmp_path / "photos" / "blue" / f"{number}.png", (0, 0, 255), (400, 900))
    folder = prepare("images", tmp_path / "data", source=tmp_path / "photos")
    train, test = Shards(folder, "train"), Shards(folder, "test")
    assert (len(train), len(test), train.attributes["classes"]) == (18, 2, ["blue", "red"])
    rows = train.rows(np.arange(18))
    assert rows["images"].shape == (18, 3, 224, 224)
    for image, label in zip(rows["images"], rows["labels"], strict=True):
        np.testing.assert_array_equal(image[:, 100, 100], (255, 0, 0) if label else (0, 0, 255))


def test_a_split_that_is_there_is_kept(tmp_path):
    photograph(tmp_path / "train" / "a" / "1.jpg", "white")
    photograph(tmp_path / "train" / "b" / "1.jpg", "black")
    photograph(tmp_path / "val" / "b" / "2.jpg", "black")
    data = images.read(tmp_path)
    np.testing.assert_array_equal(data.arrays["train"]["labels"], [0, 1])
    np.testing.assert_array_equal(data.arrays["test"]["labels"], [1])


def test_the_middle_is_kept(tmp_path):
    photograph(tmp_path / "a" / "1.png", "black", (512, 256))
    with Image.open(tmp_path / "a" / "1.png") as image:
        image.putpixel((256, 128), (255, 255, 255))
        cropped = images._cropped(image)
    assert cropped.shape == (224, 224, 3)
    assert cropped[112, 112].tolist() == [255, 255, 255]


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="--source DIR"):
        images.read(None)
    with pytest.raises(DataError, match="too few images"):
        images.read(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"no image")
    photograph(tmp_path / "a" / "2.jpg", "black")
    with pytest.raises(DataError, match=r"1\.jpg is not an image"):
        images.read(tmp_path)
