"""Raw data -> HDF5 shards, once, offline: ``python -m hpcopt.prepare NAME``. One file a source; training calls
prepare() when the digits are missing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hpcopt.errors import DataError
from hpcopt.prepare import debian, digits, fashion_mnist, fashion_segmentation, images, wordnet
from hpcopt.prepare.dataset import DataSet, write_whole
from hpcopt.prepare.text.sources import TEXTS
from hpcopt.store import graph, text
from hpcopt.store.shards import Shards

if TYPE_CHECKING:
    from hpcopt.comm.world import World

SOURCES: dict[str, Callable[[Path | None], DataSet]] = {
    "digits": digits.read,
    "fashion-mnist": fashion_mnist.read,
    "fashion-segmentation": fashion_segmentation.read,
    "images": images.read,
    "wordnet": wordnet.read,
    "debian": debian.read,
    **{name: source.read for name, source in TEXTS.items()},
}
GRAPHS = ("wordnet", "debian")


def splits_of(name: str) -> tuple[str, ...]:
    """What the rows of a data set's shards are."""
    if name in TEXTS:
        return ("vocabulary", *text.SPLITS)
    return graph.SPLITS if name in GRAPHS else ("train", "test")


def is_prepared(name: str, data_dir: Path) -> bool:
    """Whether data_dir/name holds all its shards, undamaged (reads every byte)."""
    try:
        for split in splits_of(name):
            Shards(Path(data_dir) / name, split).verify()
    except DataError:
        return False
    return True


def prepare(name: str, data_dir: Path, *, force: bool = False, source: Path | None = None) -> Path:
    """Make the shards of a data set in data_dir/name; does nothing if they are there and undamaged, unless forced.

    Args:
        name: one of SOURCES.
        data_dir: folder of data sets; made if it is missing.
        force: make them again in any case.
        source: folder of the raw files, where the source has any.

    Returns:
        The data set's folder. It appears whole or not at all.

    Raises:
        DataError: unknown name, or the raw data is missing or not what it should be.
    """
    if name not in SOURCES:
        raise DataError(f"no data set `{name}`: choose one of {', '.join(SOURCES)}")
    folder = Path(data_dir) / name
    if not force and is_prepared(name, data_dir):
        return folder
    data = SOURCES[name](source)
    write_whole(folder, data, lambda: force or not is_prepared(name, data_dir))
    return folder


def prepare_if_missing(folder: Path | None, world: "World") -> None:
    """Let rank 0 make a data set that hpcopt knows how to make, if its folder is missing. Collective."""
    with world.together():
        if world.rank == 0 and folder and not folder.exists() and folder.name in SOURCES:
            prepare(folder.name, folder.parent)
