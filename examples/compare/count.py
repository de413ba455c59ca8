"""Lines of the same job by four libraries, without blanks, comments and docstrings: python examples/compare/count.py"""

import io
import tokenize
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {
    "hpcopt, a `Session`": "ours.py",
    "Lightning Fabric": "with_fabric.py",
    "Horovod": "with_horovod.py",
    "DDP with a hook": "ddp.py",
}
_NOTHING = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines(source: str, imports: bool = True) -> int:
    """Lines that hold code."""
    held: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            text = [part.string for part in statement]
            docstring = len(statement) == 1 and statement[0].type == tokenize.STRING
            if not docstring and (imports or text[0] not in ("import", "from")):
                held |= {row for part in statement for row in range(part.start[0], part.end[0] + 1)}
            statement = []
        elif token.type not in _NOTHING:
            statement.append(token)
    return len(held)


def table() -> str:
    """In Markdown."""
    rows = ["| | lines | without imports |", "|---|---|---|"]
    for name, script in SCRIPTS.items():
        source = (HERE / script).read_text()
        rows.append(f"| {name} (`{script}`) | {lines(source)} | {lines(source, False)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
