"""hpcopt assure RUN --bound 1e-2: how far a trained network can be trusted, by its run and by demands in operation."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcopt.analysis.assurance.case import Case, Observed, Question, assess
from hpcopt.analysis.assurance.demands import Demands, has_demands
from hpcopt.analysis.assurance.ground import Ground, ground_given, ground_of_run
from hpcopt.analysis.assurance.page import page
from hpcopt.analysis.assurance.plan import make_plan, read_plan
from hpcopt.analysis.assurance.profile import read_profile
from hpcopt.analysis.assurance.text import assumptions, lines_of, short
from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_DONE, EXIT_INTERRUPTED, HpcoptError, JobError
from hpcopt.report.attributes import printable
from hpcopt.report.output import STDOUT, write_out
from hpcopt.runs import open_run

WATCH_S, PAGE_S = 1.0, 5.0
EXIT_NOT_SHOWN = 1

EPILOG = """\
examples:
  hpcopt assure runs/quickstart --bound 0.1 --demands operation.csv --lowest 1e-4
  hpcopt assure runs/quickstart --bound 0.1 --lowest 1e-4 --allow 2 --write-plan plan.json
  hpcopt assure runs/quickstart --bound 0.1 --lowest 1e-4 --demands operation.csv --plan plan.json --watch
  hpcopt assure --theta 0.9 --eps 0.001 --bound 0.01 --seen 0/500

The exit code is 0 where the claim holds, 1 where it does not (yet), 2 where something is wrong.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="hpcopt assure",
        description="Say with what confidence a network fails on no more than a bound of its demands, in the worst "
        "case over all priors that agree with what is known.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run directory; its test samples give eps")
    p.add_argument("--bound", type=float, required=True, metavar="P", help="on the probability of failure per demand")
    p.add_argument("--confidence", type=float, default=0.95, metavar="C", help="that is wanted (0.95)")
    p.add_argument("--ahead", type=_counts, default=(100,), metavar="T", help="next demands to survive: 100,1000 (100)")
    before = p.add_argument_group("before operation")
    before.add_argument("--theta", type=float, help="confidence in eps (0.9, or what eps leaves)")
    before.add_argument("--eps", type=float, help="bound before operation (what the test samples give)")
    before.add_argument("--lowest", type=float, default=0.0, metavar="P_L", help="no network of the kind is better (0)")
    before.add_argument("--profile", type=Path, metavar="FILE", help="TOML with a table [profile]: weights by class")
    before.add_argument("--method", choices=("clopper-pearson", "hoeffding"), default="clopper-pearson", help="of eps")
    before.add_argument("--score", metavar="NAME", help="score of the workload that is 0 for a failure (accuracy)")
    seen = p.add_argument_group("in operation").add_mutually_exclusive_group()
    seen.add_argument(
        "--demands", type=Path, metavar="FILE", help="CSV, HDF5, or a run: a column failure or correct, and maybe class"
    )
    seen.add_argument("--seen", type=_tally, metavar="K/N", help="K failures in N demands, without a file")
    rule = p.add_argument_group("a rule planned ahead")
    rule.add_argument(
        "--write-plan", type=Path, metavar="FILE", help="write down when to stop, before there are demands"
    )
    rule.add_argument("--allow", type=int, default=0, metavar="K", help="with it: most failures before rejecting (0)")
    rule.add_argument("--plan", type=Path, metavar="FILE", help="follow it, and check that it was followed")
    p.add_argument("--watch", action="store_true", help="look again as the file grows, until its plan ends, or Ctrl-C")
    p.add_argument("--html", type=Path, metavar="FILE", help="write a page with the argument as a tree")
    p.add_argument("--json", nargs="?", const=STDOUT, type=Path, metavar="FILE", help="write all of it as JSON")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Assess, once or again and again; returns the exit code."""
    print_any_text()
    p = parser()
    options = p.parse_args(arguments)
    if options.watch and options.seen:
        p.error("--watch looks at a file: give --demands, not --seen")
    if options.plan and options.write_plan:
        p.error("--plan follows a plan that --write-plan wrote earlier: give one of them")
    exit_code = EXIT_INTERRUPTED  # until there is a result
    try:
        ground, question, demands = _ground(options), _question(options), _demands(options)
        if options.write_plan:
            _write_plan(ground, question, demands, options)
            return EXIT_DONE
        for look, case in enumerate(_cases(ground, question, demands, options)):
            exit_code = EXIT_DONE if case.holds else EXIT_NOT_SHOWN
            _tell(case, options, first=look == 0)
    except KeyboardInterrupt:
        pass
    except HpcoptError as error:
        print(f"hpcopt assure: error: {error}", file=sys.stderr)
        return error.exit_code
    return exit_code


def _cases(ground: Ground, question: Question, demands: Demands | None, options: argparse.Namespace) -> Iterator[Case]:
    """The case; with --watch again whenever demands have come."""
    plan = read_plan(options.plan) if options.plan else None
    observed: Observed | Demands = Observed(*reversed(options.seen or (0, 0))) if demands is None else demands
    yield (case := assess(question, ground, observed, plan, look=1 if options.watch else None))
    look = 1
    while demands is not None and _goes_on(case, options):
        if demands.look():
            look += 1
            yield (case := assess(question, ground, demands, plan, look))
        else:
            time.sleep(WATCH_S)


def _goes_on(case: Case, options: argparse.Namespace) -> bool:
    """Whether there will be another look."""
    return bool(options.watch) and (case.outcome is None or case.outcome.state == "goes on")


def _tell(case: Case, options: argparse.Namespace, first: bool) -> None:
    """Write the files that are asked for, and say what is claimed, unless JSON goes to standard output."""
    if options.html:
        refresh_s = PAGE_S if _goes_on(case, options) else None
        write_out(options.html, page(case, options.html.parent, options.plan, refresh_s))
    if options.json:
        write_out(options.json, json.dumps(case.as_data(), allow_nan=False))
    if options.json != STDOUT:
        lines = [*lines_of(case), "Assumptions:", *assumptions(case)] if first else [short(case)]
        print("\n".join(map(printable, lines)), flush=True)


def _write_plan(ground: Ground, question: Question, demands: Demands | None, options: argparse.Namespace) -> None:
    """Write the plan and say what it says."""
    if options.allow < 0:
        raise JobError(f"--allow {options.allow}: give the most failures that do not reject the network, 0 or more")
    profile = None if ground.profile is None else dict(ground.profile)
    plan = make_plan(ground.prior, question.bound, question.confidence, options.allow, demands, ground.network, profile)
    plan.write(options.write_plan)
    seen = f"The {plan.start:,} demands that are there already do not count. " if plan.start else ""
    ends = "\n".join(f"  after {n:,} demands with {k} failed: the claim holds" for k, n in enumerate(plan.needed))
    print(f"{seen}Stop\n{ends}\n  at failure {options.allow + 1}: the network is rejected")


def _ground(options: argparse.Namespace) -> Ground:
    profile = read_profile(options.profile) if options.profile else None
    if options.run is None:
        return ground_given(options.theta, options.eps, options.lowest, profile)
    run = open_run(options.run)
    return ground_of_run(run, options.theta, options.eps, options.lowest, profile, options.method, options.score)


def _question(options: argparse.Namespace) -> Question:
    return Question(options.bound, options.confidence, options.ahead)


def _demands(options: argparse.Namespace) -> Demands | None:
    """The stream that is named, or that of the run, if its metrics have one."""
    if options.demands:
        return Demands(options.demands)
    if options.run is not None and not options.seen and has_demands(options.run):
        return Demands(options.run)
    if options.watch or options.plan:
        raise JobError("there is no stream of demands to look at: give --demands FILE")
    return None


def _counts(text: str) -> tuple[int, ...]:
    """Read numbers of demands: "100,1000"."""
    numbers = text.split(",")
    if not all(each.strip().isdecimal() and int(each) > 0 for each in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of demands, such as 100,1000")
    return tuple(map(int, numbers))


def _tally(text: str) -> tuple[int, int]:
    """Read failures in demands: "2/500"."""
    failures, _, demands = text.partition("/")
    if not (failures.strip().isdecimal() and demands.strip().isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of failures in a number of demands, such as 2/500")
    return int(failures), int(demands)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it without a word
    sys.exit(main())
