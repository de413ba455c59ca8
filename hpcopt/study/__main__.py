"""hpcopt study FILE.toml: do the points of a grid, on one rank or on many; hpcopt study report STUDY: show them."""

import argparse
import os
import sys
from pathlib import Path

from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_DONE, EXIT_REQUEUE, JobError
from hpcopt.plugins import current_folder_first
from hpcopt.trainer.ending import Ending
from hpcopt.trainer.signals import StopSignals

PATIENCE_S = 1e6  # a rank that has no point left waits for the others' last ones

EPILOG = """\
examples:
  mpirun -n 2 hpcopt study jobs/study_rates.toml      the points are dealt over the ranks
  sbatch --array=0-9 slurm/study.sh FILE.toml         and over the tasks of a job array
  hpcopt study report studies/study_rates             medians in the terminal; --help has pages, pictures and tables

What was killed or stopped goes on by the same command. Values added to an axis are further points of the same study.

exit codes: 0 done; 1 a bug, with its rank's traceback; 2 bad input: the message says what to do; 70 another rank
failed; 85 told to stop before the end: submit the same command again; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt study",
        description="Do the points of a grid of small runs, each once, and keep their results in one table.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("study", type=Path, metavar="FILE.toml", help='study file; or "report STUDY"')
    p.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one key of the file, such as base.run.epochs=2",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: studies/NAME)")
    p.add_argument("--fresh", action="store_true", help="begin anew; a folder that is there is moved aside")
    p.add_argument("--again", action="store_true", help="do the points that failed again")
    p.add_argument("--dry-run", action="store_true", help="check all points, say how many there are, and do none")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Do the points, and turn whatever goes wrong into a message and an exit code."""
    print_any_text()
    typed = sys.argv[1:] if arguments is None else arguments
    if typed[:1] == ["report"]:
        from hpcopt.study.report import main as report

        return report(typed[1:])
    options = parser().parse_args(typed)
    with StopSignals() as signals, Ending(alone=options.dry_run) as ending:
        ending.exit_code = run(options, signals, ending)
    ending.leave_exit_code()
    return ending.exit_code


def run(options: argparse.Namespace, signals: StopSignals, ending: Ending) -> int:
    """Do what the options say; give the exit code."""
    if options.fresh and "SLURM_ARRAY_TASK_ID" in os.environ:
        raise JobError("--fresh in a job array: each task would move the others' folder aside; name another --out")
    current_folder_first()

    import torch

    from hpcopt.comm.launch import launch_from, usable_threads
    from hpcopt.comm.world import alone, connect
    from hpcopt.lean_torch import keep_dynamo_out
    from hpcopt.study.folder import Folder
    from hpcopt.study.study_file import read_study_file
    from hpcopt.study.table import FAILED, LEFT
    from hpcopt.study.trials import trial_of
    from hpcopt.study.work import require_jobs, run_study

    keep_dynamo_out()
    world = alone() if options.dry_run else connect(stall_s=PATIENCE_S)
    ending.world = None if options.dry_run else world

    def say(text: str) -> None:
        if launch_from().rank == 0:
            print(text, flush=True)

    with world.together():
        study = read_study_file(options.study, options.settings)
    folder = options.out or Path("studies") / study.name
    torch.set_num_threads(usable_threads(world.local_size))
    if options.dry_run:
        trial_of(study, Folder(folder), world, signals)
        require_jobs(study, world, say)
        say(f"{study.name}: {len(study.points):,} points into {folder}; {', '.join(study.points[0])}")
        return EXIT_DONE
    table = run_study(study, folder, world, signals, fresh=options.fresh, again=options.again, say=say)
    stopped = world.sum([signals.received is not None])[0] > 0
    left, failed = (int((table.status == status).sum()) for status in (LEFT, FAILED))
    say(f"{len(table) - left:,} of {len(table):,} points are done, {failed:,} of them failed: {folder}")
    if failed:
        say(f"  {next(message for message in table.message if message)}")
    if left and stopped:
        say("stopped before the end; the same command goes on")
        return EXIT_REQUEUE
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
