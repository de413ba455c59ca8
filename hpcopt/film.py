"""hpcopt film RUN: an episode of a trained agent as a moving picture, or as a strip of pictures."""

import argparse
import sys
from pathlib import Path

from hpcopt.any_text import print_any_text
from hpcopt.plugins import current_folder_first
from hpcopt.trainer.ending import Ending

EPILOG = """\
examples:
  hpcopt film runs/pendulum                            runs/pendulum/episode.gif
  hpcopt film runs/hopper --episode 3 --out hop.png    a strip of pictures

exit codes: 0 done; 1 a bug, with its traceback; 2 bad input: the message says what to do; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt film",
        description="Draw an evaluation episode of a trained agent.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", type=Path, help="run directory")
    p.add_argument("--episode", type=int, default=0, help="its number among those of the evaluation (0)")
    p.add_argument("--out", type=Path, metavar="FILE", help=".gif moves, .png is a strip (default: RUN/episode.gif)")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Draw, and turn whatever goes wrong into a message and an exit code."""
    print_any_text()
    options = parser().parse_args(arguments)
    with Ending(alone=True) as ending:
        current_folder_first()

        from hpcopt.errors import JobError
        from hpcopt.runs import open_run
        from hpcopt.workloads.control.film import film, write_film
        from hpcopt.workloads.control.workload import Control

        run = open_run(options.run)
        workload = run.workload
        if not isinstance(workload, Control):
            raise JobError(f'{options.run} is a run of [workload] name = "{run.job.workload.name}": it acts nowhere')
        frames, total = film(workload, run.model, options.episode)
        out = options.out or options.run / "episode.gif"
        write_film(frames, out)
        print(f"{out}: {len(frames)} pictures, return {total:.6g}")
    return ending.exit_code


if __name__ == "__main__":
    sys.exit(main())
