"""hpcopt explain RUN: say what a trained network looks at, on one rank or on many."""

import argparse
import sys
from pathlib import Path

from hpcopt.any_text import print_any_text
from hpcopt.plugins import current_folder_first
from hpcopt.trainer.ending import Ending
from hpcopt.trainer.signals import StopSignals

EPILOG = """\
examples:
  hpcopt explain runs/quickstart                           64 test samples by all methods that fit
  mpirun -n 8 hpcopt explain runs/fashion --rows 0:10000 --methods integrated,grad_cam
  hpcopt explain my_net:Net --weights net.safetensors --inputs pictures/*.png

The results do not depend on the number of ranks. What was killed or stopped goes on by the same command.

exit codes: 0 done; 1 a bug, with its rank's traceback; 2 bad input: the message says what to do; 70 another rank
failed; 85 told to stop before the end: submit the same command again; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from hpcopt.analysis.explain.methods import METHODS
    from hpcopt.analysis.explain.question import Settings

    p = argparse.ArgumentParser(
        prog="hpcopt explain",
        description="Say what parts of its inputs a trained network looks at.",
        epilog="methods:\n" + "\n".join(f"  {name:<14} {m.about}" for name, m in METHODS.items()) + "\n\n" + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("subject", metavar="RUN", help='run directory, or a network by its dotted name, "my_net:Net"')
    p.add_argument("--methods", default="all", help="names, separated by commas (default: all that fit the network)")
    p.add_argument("--rows", help="which inputs: 0:100, or 3,5,8 (default: the first 64)")
    p.add_argument("--inputs", nargs="+", type=Path, metavar="FILE", help=".npy files or pictures, not the test split")
    p.add_argument("--weights", type=Path, help="of a network by its dotted name: safetensors, or a run directory")
    p.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE", help="that network is made with; VALUE is TOML"
    )
    p.add_argument("--target", default="predicted", help="class that is asked about: predicted, label, or a number")
    p.add_argument("--layer", help="of class activation maps, as named_modules() has it (default: the last with maps)")
    p.add_argument(
        "--baseline", type=float, help='what "not there" is: a value of inputs (0), or a token\'s number ([MASK] or 0)'
    )
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    p.add_argument(
        "--pictures",
        metavar="KINDS",
        help="of what layers answer to too: logit, filter, layer, dream, inversion, "
        "prototypes, or all; of --layer, where one is named",
    )
    p.add_argument("--curves", type=int, default=64, help="of how many inputs curves against random are drawn (64)")
    p.add_argument("--scored", type=int, default=8, help="of how many inputs explanations are scored by quantus (8)")
    for name, field in Settings.model_fields.items():
        p.add_argument(f"--{name}", type=type(field.default), help=f"{field.description} ({field.default})")
    p.add_argument("--out", type=Path, metavar="FILE", help="of the results (default: RUN/explanations.h5)")
    p.add_argument("--html", type=Path, metavar="FILE", help="write the results as one page that needs nothing else")
    p.add_argument("--fresh", action="store_true", help="begin anew, whatever FILE holds")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Explain, and turn whatever goes wrong into a message and an exit code."""
    print_any_text()
    options = parser().parse_args(arguments)
    with StopSignals() as signals, Ending() as ending:
        current_folder_first()

        import torch

        from hpcopt.analysis.explain.command import explain
        from hpcopt.comm.launch import usable_threads
        from hpcopt.comm.world import connect

        ending.world = connect()
        torch.set_num_threads(usable_threads(ending.world.local_size))
        ending.exit_code = explain(options, ending.world, lambda: signals.received is not None)
    ending.leave_exit_code()
    return ending.exit_code


if __name__ == "__main__":
    sys.exit(main())
