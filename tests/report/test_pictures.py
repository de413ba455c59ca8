"""Pictures of all plots."""

import importlib.util
import shutil

from hpcopt.report.__main__ import main
from tests.conftest import require


def test_a_picture_a_plot(run_dir, tmp_path):
    there = importlib.util.find_spec("kaleido") is not None and shutil.which("chromium") is not None
    require("chromium", there, "`pip install kaleido` and `apt-get install chromium`")
    assert main([str(run_dir), "--png", str(tmp_path / "png")]) == 0
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "png").iterdir()}
    assert set(pictures) == {
        "loss.png", "test_accuracy.png", "test_loss.png", "phases.png", "bytes.png", "waiting-known.png"
    }  # fmt: skip
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in pictures.values())
