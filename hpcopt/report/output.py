"""Where a command's files go."""

from pathlib import Path

from hpcopt.errors import MetricsError
from hpcopt.store.files import replace_text

STDOUT = Path("-")


def write_out(file: Path, text: str) -> None:
    """Write to a file, or to standard output if it is called `-`.

    Raises:
        MetricsError: the file cannot be written.
    """
    if file == STDOUT:
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
        return
    try:
        if file.is_file():  # nobody who looks at it meanwhile finds half of it
            replace_text(file.resolve(), text)
        else:
            file.write_text(text, encoding="utf-8")
    except OSError as cause:
        raise MetricsError(f"cannot write {file}: {cause.strerror}") from cause
