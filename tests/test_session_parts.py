"""Session(..., reproducible="any ranks"): a loop of one's own has the same bits on any number of ranks."""

import math

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hpcopt
from hpcopt.comm.loopback import run_ranks
from hpcopt.comm.world import World, alone
from hpcopt.errors import JobError
from hpcopt.session import loop
from hpcopt.session.parts import cut_in
from hpcopt.shapes.stats import Scalar
from hpcopt.trainer.virtual import DIGEST

VIRTUAL, BATCH = 5, 17  # parts of three or four samples
POINTS = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(POINTS, POINTS.argmax(1))


class Run:
    """A script that goes on for some steps on some ranks, and then on others."""

    def __init__(self, folder, **run) -> None:
        self.folder, self.run = folder, {"virtual_ranks": VIRTUAL, "reproducible": "any ranks", **run}

    def go(self, ranks: int, steps: int) -> dict[str, bytes]:
        """Parameters, buffers and columns of metrics."""
        states = run_ranks(ranks, lambda transport: self._script(World(transport), steps))
        for state in states if self.run["reproducible"] else ():
            assert all(map(torch.equal, state.values(), states[0].values()))
        with h5py.File(self.folder / "metrics.h5") as file:
            names = [name for name in ("loss", "correct", "spread", DIGEST) if name in file["steps"]]
            columns = {name: file["steps"][name][:] for name in names}
        arrays = {**{name: x.numpy() for name, x in states[0].items()}, **columns}
        return {name: x.tobytes() for name, x in arrays.items()}

    def _script(self, world: World, steps: int) -> dict[str, torch.Tensor]:
        with hpcopt.Session(self.folder, steps=steps, world=world, **self.run) as session:
            generator = torch.Generator().manual_seed(1)
            model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 6))
            for p in model.parameters():
                p.data.copy_(torch.randn(p.shape, generator=generator) / 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            session.keep(model=model, optimizer=optimizer)
            session.exchange(model)
            sampler = session.sampler(DATA, batch=BATCH, uneven=True)
            for batch in session.steps(DataLoader(DATA, batch_sampler=sampler, generator=generator)):
                world.barrier()  # threads share what they draw from: no loop begins beside another's part
                for x, y in session.parts(batch):
                    out = model(x)
                    loss = F.cross_entropy(out, y) * session.weight
                    loss.backward()
                    session.log(loss=loss, correct=Scalar((out.argmax(1) == y).sum(), "sum"), spread=out.std())
                optimizer.step()
            return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.fixture(autouse=True)
def digests_often(monkeypatch):
    monkeypatch.setattr(loop, "DIGEST_EVERY", 2)


def test_the_bits_are_the_same_on_any_number_of_ranks(tmp_path):
    one = Run(tmp_path / "1").go(1, 5)
    assert {"loss", "correct", "spread", DIGEST} <= one.keys()
    digests = np.frombuffer(one[DIGEST])
    assert np.isfinite(digests).tolist() == [False, True, False, True, False] and digests[1] != digests[3]
    for ranks in (2, 3):
        assert Run(tmp_path / f"{ranks}").go(ranks, 5) == one


def test_ranks_may_change_on_the_way(tmp_path):
    one, moved = Run(tmp_path / "1").go(1, 5), Run(tmp_path / "moved")
    for ranks, steps in ((3, 2), (1, 3), (2, 5)):
        found = moved.go(ranks, steps)
    assert found == one


def test_the_numbers_are_those_of_as_many_ranks(tmp_path):
    """Which have a part each, with the same parts of a batch; but for rounding, and what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        Run(tmp_path / "virtual").go(2, 4)
        Run(tmp_path / "ranks", reproducible=None).go(VIRTUAL, 4)
    columns = []
    for folder in ("virtual", "ranks"):
        with h5py.File(tmp_path / folder / "metrics.h5") as file:
            columns.append({name: file["steps"][name][:].tolist() for name in ("loss", "correct", "spread")})
    for name, values in columns[0].items():
        assert values == pytest.approx(columns[1][name], rel=1e-4), name
    assert len(columns[0]["loss"]) == 4 and all(map(math.isfinite, columns[0]["loss"]))


def test_parts_begin_where_they_would_alone():
    """At a cache line, in nests of any kind."""
    batch = (POINTS[:7], {"y": [torch.arange(7)]})
    parts = cut_in(batch, [3, 0, 4])
    for begin, end, (x, rest) in zip((0, 3, 3), (3, 3, 7), parts, strict=True):
        assert torch.equal(x, POINTS[begin:end]) and rest["y"][0].tolist() == list(range(begin, end))
        assert x.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda session, batch: None, "go through the parts of each batch"),
        (lambda session, batch: list(session.parts([*batch, "a note"])), "no str"),
        (lambda session, batch: list(session.parts(torch.zeros(3))), r"shape \(3,\)"),
        (
            lambda session, batch: [session.log(**{f"n{k}": 1}) for k, _ in enumerate(session.parts(batch))],
            "log the same",
        ),
        (lambda session, batch: [session.log(n=Scalar(1, "max")) for _ in session.parts(batch)], "means and sums"),
    ],
)
def test_what_cannot_be_had_is_one_error_on_all_ranks(tmp_path, body, said):
    def program(transport):
        run = {"reproducible": "any ranks", "virtual_ranks": 4}
        with hpcopt.Session(tmp_path / "run", steps=1, world=World(transport), **run) as session:
            session.exchange(nn.Linear(6, 6))
            for batch in session.steps(DataLoader(DATA, batch_sampler=session.sampler(DATA, batch=8))):
                body(session, batch)

    with pytest.raises(JobError, match=said) as refused:
        run_ranks(2, program)
    assert refused.value.on_every_rank


def test_without_a_sampler_or_on_too_many_ranks_it_is_refused(tmp_path):
    def program(transport):
        run = {"reproducible": "any ranks", "virtual_ranks": 2}
        with hpcopt.Session(tmp_path / f"{transport.size}", steps=1, world=World(transport), **run) as session:
            for number in session.steps():
                list(session.parts(number))

    with pytest.raises(JobError, match=r"session\.sampler"):
        run_ranks(1, program)
    with pytest.raises(JobError, match="virtual_ranks = 3 or more"):
        run_ranks(3, program)


def test_what_has_a_state_of_each_ranks_own_is_refused(tmp_path):
    model = nn.Linear(6, 6)
    with hpcopt.Session(tmp_path, steps=1, world=alone(), reproducible="any ranks") as session:
        with pytest.raises(JobError, match=r"keep\(kaisa=\.\.\.\)"):
            session.keep(model=model, kaisa=hpcopt.Kaisa(model, session.world))
        with pytest.raises(JobError, match=r"take exchange"):
            session.local(model, torch.optim.SGD(model.parameters(), lr=0.1))
