"""On a card: a run has the loss curve of the same run on the CPU, alone and with ranks that share the card."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcopt.prepare import prepare
from hpcopt.train import main

CARD = "cuda"
QUICKSTART = Path(__file__).parents[1] / "jobs" / "quickstart.toml"
EXCHANGES = {
    "ring": ["exchange.name=ring"],
    "half ring": ["exchange.name=ring", "exchange.codec={name='half'}"],
    "qsgd": ["exchange.name=two_phase"],
    "sign": ["exchange.name=two_phase", "exchange.codec={name='sign'}"],
    "top-k": ["exchange.name=two_phase", "exchange.codec={name='topk', fraction=0.1}"],
    "powersgd": ["exchange.name=ring", "exchange.codec={name='powersgd', rank=2}"],
}


def losses(folder: Path, device: str, settings: list[str]) -> np.ndarray:
    run = folder / device
    arguments = [f"run.device={device}", "run.steps=40", f"workload.data={folder}/digits", *settings]
    pairs = [word for setting in arguments for word in ("--set", setting)]
    assert main([str(QUICKSTART), "--run-dir", str(run), *pairs]) == 0
    with h5py.File(run / "metrics.h5") as file:
        assert all((name == b"cpu") == (device == "cpu") for name in file.attrs["devices"])
        return file["steps/loss"][:]


def check(folder: Path, settings: list[str]) -> None:
    found, expected = (losses(folder, device, settings) for device in (CARD, "cpu"))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert expected[-1] < expected[0] / 2


@pytest.mark.gpu
def test_alone(tmp_path):
    prepare("digits", tmp_path)
    check(tmp_path, [])


@pytest.mark.gpu
@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_ranks_that_share_the_card(exchange, shared_tmp_path):
    check(shared_tmp_path, exchange)
