"""A rank that the others went on without, and that never reaches them again: the job's exit code is not its own."""

import os
from pathlib import Path

from hpcopt.elastic import company
from hpcopt.errors import EXIT_PEER
from tests.elastic.dying import leave, main
from tests.elastic.runs import Runs
from tests.launching import PATIENCE_S, forking


def cut_off(arguments: list[str], exit_file: str, lives: str) -> None:
    """A process in place 1 of 2, whose first rank is expelled and whose later ones meet nobody."""
    os.environ |= {"PMI_RANK": "1", "PMI_SIZE": "2", "HPCOPT_EXIT_FILE": exit_file}
    company.NOBODY_S = 0.2
    form = company.Company.form

    def form_or_be_expelled(self):
        with Path(lives).open("a", encoding="utf-8") as file:
            file.write(f"{self._life}\n")
        if self._life == 0:
            raise company.ExpelledError("the others have gone on without this rank")
        return form(self)

    company.Company.form = form_or_be_expelled
    leave(main(arguments))


def test_a_rank_that_is_cut_off_for_good(tmp_path, digits):
    Runs(tmp_path, digits / "digits")
    exit_file, lives = tmp_path / "exit_code", tmp_path / "lives"
    arguments = [str(tmp_path / "job.toml"), "--run-dir", str(tmp_path / "run")]
    process = forking().Process(target=cut_off, args=(arguments, str(exit_file), str(lives)))
    process.start()
    try:
        process.join(PATIENCE_S)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == EXIT_PEER
    assert lives.read_text(encoding="utf-8").split() == ["0", "1"]
    assert not exit_file.exists()
