"""Whatever is done to the files of a run, the commands that read it say so, and write nowhere else."""

import os
import shutil

from hypothesis import example, given
from hypothesis import strategies as st

from hpcopt.checkpoint import EXIT_DIFFERENT
from tests.fuzz.commands import TABLE, run, scratch
from tests.fuzz.damage import FILES, PARTS, attribute, damages, linked

VICTIM = b"precious\n"


def places() -> st.SearchStrategy[str]:
    """Files of a run directory; metrics and checkpoints more often."""
    parts = [f"checkpoints/step_0000000{step}/{part}" for step in (2, 4, 4) for part in PARTS]
    return st.sampled_from([*FILES, *parts, *["metrics.h5"] * 6])


@example(damage=[("metrics.h5", attribute((0, "hostnames", -1)))], training=["--resume"], view=[])
@example(damage=[("metrics.h5", linked("itself")), ("metrics.h5", linked("itself"))], training=[], view=[])
@given(
    damage=st.lists(st.tuples(places(), damages()), min_size=1, max_size=3),
    training=st.sampled_from([["--resume"], [], ["--fresh"]]),
    view=st.sampled_from([[], ["--json"], ["--csv"], ["--extra-p"]]),
)
def test_run_directories(runs, damage, training, view):
    attempt(runs, damage, training, view)


def attempt(runs, damage, training=(), view=()) -> None:
    """Damage a copy of the good run; then let all commands read it, and train on."""
    with scratch() as folder:
        here, victim = folder / "run", folder / "victim"
        shutil.copytree(runs["good"], here)
        other = shutil.copytree(runs["other"], folder / "other")
        victim.write_bytes(VICTIM)
        for place, spoil in damage:
            path = here / place
            if path.parent.is_dir() and os.path.realpath(path) != str(victim):  # a link there spoils enough
                spoil(path, other)
        run("checkpoint", "ls", str(here)).require_sentence()
        run("checkpoint", "verify", str(here)).require_sentence()
        run("checkpoint", "diff", str(here), str(other)).require_sentence(codes={*TABLE, EXIT_DIFFERENT})
        run("report", str(here), str(other), *view).require_sentence()
        arguments = ["good.toml", "--run-dir", str(here), "--set=run.steps=6"]
        run("train", *arguments, *training).require_sentence()
        run("report", str(here)).require_sentence()
        assert victim.read_bytes() == VICTIM
