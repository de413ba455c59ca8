"""hpcopt COMMAND: ``python -m hpcopt.COMMAND`` by a shorter name, from any folder.

Nothing of a command is imported before it is chosen, so that 128 ranks, and ``--help``, pay for none of the others.
"""

import difflib
import runpy
import sys
from pathlib import Path

import hpcopt
from hpcopt.any_text import print_any_text
from hpcopt.errors import EXIT_BAD_INPUT, EXIT_DONE

COMMANDS = {
    "new": "lay out a project of your own: network, data set, job, batch scripts, test",
    "train": "train one job, on one rank or on thousands",
    "prepare": "turn raw data into the HDF5 shards that training reads",
    "report": "show what runs measured: in the terminal, as a page, as pictures and tables",
    "assure": "say how far a trained network can be trusted, from its run and from demands in operation",
    "export": "hand a run to TensorBoard, Weights & Biases, MLflow, OpenTelemetry or a viewer of traces",
    "explain": "say what a trained network looks at, input by input",
    "film": "draw an episode of a trained agent",
    "checkpoint": "look into checkpoints, check them, take the model out",
    "study": "run a grid of small jobs or of a function's points, each once, into one table; report on it",
    "submit": "put a job into SLURM's queue, or print its batch script",
}


def main() -> int:
    """Run a command as ``python -m`` would; returns the exit code of what needs none."""
    print_any_text()
    command, *arguments = sys.argv[1:] or ["--help"]
    match command:
        case "-h" | "--help":
            print(usage())
        case "--version":
            print(f"hpcopt {hpcopt.__version__}")
        case _ if command in COMMANDS:
            run(command, arguments)
        case _:
            near = difflib.get_close_matches(command, COMMANDS, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(COMMANDS)}"
            print(f'hpcopt: error: no command "{command}"; {hint}', file=sys.stderr)
            return EXIT_BAD_INPUT
    return EXIT_DONE


def usage() -> str:
    """A line for each command."""
    lines = "\n".join(f"  {name:<10}  {text}" for name, text in COMMANDS.items())
    return f"usage: hpcopt COMMAND ...\n\n{lines}\n\nhpcopt COMMAND --help has more, hpcopt --version the version."


def run(command: str, arguments: list[str]) -> None:
    """Run a command's module as the program, so that a job's dotted names are found in the current folder."""
    sys.argv = [f"hpcopt {command}", *arguments]
    if not sys.flags.safe_path:  # python -m puts the current folder where a script has its own
        sys.path[0] = str(Path.cwd())
    runpy.run_module(f"hpcopt.{command}", run_name="__main__", alter_sys=True)
