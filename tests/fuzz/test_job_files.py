"""Any job file and any ``--set`` end in a plan and training, or in a sentence."""

from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.commands import run, scratch
from tests.fuzz.job_files import as_toml, example_job, files, is_quick, jobs, settings_texts


def attempt(content: bytes, *settings: str) -> None:
    """Plan a job; train two steps of one that can be planned."""
    with scratch() as folder:
        (folder / "job.toml").write_bytes(content)
        arguments = [str(folder / "job.toml"), *(f"--set={text}" for text in settings)]
        planned = run("train", *arguments, "--dry-run").require_sentence()
        if planned.exit_code == 0:
            run("train", *arguments, "--run-dir", str(folder / "run"), "--set=run.steps=2").require_sentence()


@given(content=files())
def test_job_files(ground, content):
    attempt(content)


@example(job=example_job(), settings=["exchange.adversary.=\x1b[31m"])  # the escape code reached the terminal
@given(job=jobs(spoiled=1), settings=st.lists(settings_texts().filter(is_quick), min_size=1, max_size=3))
def test_settings(ground, job, settings):
    attempt(as_toml(job), *settings)
