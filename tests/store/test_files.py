"""Whatever lies where a file should be: nothing is waited for, and nothing is written through a link."""

import os

import pytest

from hpcopt.store.files import NotPlainError, open_to_append, read_plain, remove, replace_text, require_plain, unused


def put(path, kind, elsewhere):
    """Lay something else where a file should be."""
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a device":
            path.symlink_to("/dev/zero")
        case "a symbolic link":
            path.symlink_to(elsewhere)


KINDS = ["a FIFO", "a folder", "a device", "a symbolic link"]


@pytest.fixture
def elsewhere(tmp_path):
    path = tmp_path / "elsewhere.txt"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_there_is_removed_and_what_a_link_leads_to_is_not(tmp_path, elsewhere, kind):
    path = tmp_path / "folder"
    remove(path)
    put(path, kind, elsewhere.parent)
    remove(path)
    assert list(tmp_path.iterdir()) == [elsewhere]


@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_files_are_opened(tmp_path, elsewhere, kind):
    path = tmp_path / "file"
    put(path, kind, elsewhere)
    told = "a symbolic link" if path.is_symlink() else kind
    with pytest.raises(NotPlainError, match=told):
        require_plain(path)
    with pytest.raises(OSError, match=told):
        open_to_append(path)
    if kind == "a symbolic link":  # reading goes through links
        assert read_plain(path, 10) == b"mine"
    else:
        with pytest.raises(NotPlainError, match=kind):
            read_plain(path, 10)
    assert elsewhere.read_text() == "mine"


def test_links_that_point_at_each_other(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        read_plain(tmp_path / "a", 10)


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a symbolic link", "nothing"])
def test_a_text_takes_the_place_of_whatever_is_there(tmp_path, elsewhere, kind):
    for name in ("job.toml", ".job.toml.tmp"):  # the second is where a text is written first
        put(tmp_path / name, kind, elsewhere)
    replace_text(tmp_path / "job.toml", "new")
    assert elsewhere.read_text() == "mine"
    assert not (tmp_path / "job.toml").is_symlink()
    assert (tmp_path / "job.toml").read_text() == "new"
    assert not (tmp_path / ".job.toml.tmp").exists()


def test_sizes_are_bounded_before_reading(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="at most 100"):
        read_plain(tmp_path / "huge", 100)


def test_lines_are_added(tmp_path):
    for line in ("a", "b"):
        with open_to_append(tmp_path / "log.txt") as log:
            print(line, file=log)
    assert (tmp_path / "log.txt").read_text() == "a\nb\n"


def test_a_name_that_nothing_has(tmp_path):
    assert unused(tmp_path, "a", ".sh") == tmp_path / "a.sh"
    (tmp_path / "a.sh").symlink_to("nowhere")
    (tmp_path / "a-2.sh").mkdir()
    assert unused(tmp_path, "a", ".sh") == tmp_path / "a-3.sh"
