"""An episode as pictures: each state once, with the return of the evaluation."""

import numpy as np
import pytest
from PIL import Image

from hpcopt.errors import JobError
from hpcopt.film import main
from hpcopt.shapes.context import Context
from hpcopt.workloads.control.film import film, write_film
from tests.solvers.actor_critic.tracks import TRACK, track

DRAWN = "tests.solvers.actor_critic.worlds:Drawn"


def test_each_state_is_drawn_once(tmp_path):
    workload = track(environment=DRAWN).build(Context(run_seed=1))
    (batch,) = workload.test_batches(0, 1)
    returns = workload.score(workload.model, batch)["evaluation_return"]
    frames, total = film(workload, workload.model, 2)
    assert total == pytest.approx(float(returns[2]))
    assert [int(frame[0, 0, 0]) for frame in frames] == list(range(len(frames)))  # the step is the shade of red
    assert 1 < len(frames) <= 8
    write_film(frames, tmp_path / "episode.gif")
    with Image.open(tmp_path / "episode.gif") as moving:
        assert moving.n_frames == len(frames) and moving.size == (6, 4)
    write_film(frames, tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as strip:
        assert np.array_equal(np.asarray(strip)[:, :6], frames[0]) and strip.size[0] == 6 * len(frames)


def test_what_cannot_be_drawn_is_said(tmp_path, capsys):
    drawn = track(environment=DRAWN).build(Context())
    with pytest.raises(JobError, match="episodes 0 to 2"):
        film(drawn, drawn.model, 3)
    with pytest.raises(JobError, match=r"\.gif, or a strip"):
        write_film([np.zeros((4, 6, 3), np.uint8)], tmp_path / "film.mpeg")
    blind = track(environment=TRACK).build(Context())
    with pytest.raises(JobError, match="render"):
        film(blind, blind.model, 0)
    assert main([str(tmp_path)]) == 2 and "is not a run directory" in capsys.readouterr().err
