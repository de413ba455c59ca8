"""Imports point down the page of the house: a module may import from its own room or from one below, never from one
above.
"""

import ast
from pathlib import Path

import pytest

import hpcopt

PACKAGE = Path(hpcopt.__file__).parent

# One line a floor, from the top; the rooms of one floor do not know each other.
FLOORS = [
    {"cli", "new", "train", "export", "submit", "checkpoint", "explain", "film", "assure"},
    {"analysis", "study"},
    {"report"},
    {"going_on"},
    {"plan", "training"},
    {"prepare", "testing"},
    {"build", "runs", "session"},
    {"job"},
    {"job_text"},
    {"trainer"},
    {"elastic"},
    {"workloads", "solvers"},
    {"adapters", "pipeline"},
    {"shapes", "replicator"},
    {"exchange"},
    {"comm"},
    {"lowbit"},
    {"models", "optim", "compress", "store"},
    {"dataflow"},
    {"families"},
    {"family"},
    {
        "any_text",
        "config",
        "kernels",
        "lazily",
        "kept_memory",
        "lean_torch",
        "phases",
        "pinned",
        "plugins",
        "randomness",
        "sbatch",
        "seeds",
        "shipped",
        "twice",
    },
    {"held", "hooks"},
    {"errors"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """hpcopt.comm.ring -> comm"""
    return module.split(".")[1]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("hpcopt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if name != "hpcopt":
            found[name] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """All hpcopt modules that a file names in an import, wherever it stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (members & MODULES.keys()) or {node.module}
    return {name for name in names if name.startswith("hpcopt.")}


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=MODULES)
def test_imports_point_down(name, path):
    here = room_of(name)
    assert here in FLOOR, f"{here} has no place on the page"
    for imported in imports(path):
        there = room_of(imported)
        assert there == here or FLOOR[there] > FLOOR[here], (
            f"{name} imports {imported}, which stands above or beside it"
        )


def test_no_circles():
    """Within a room too, and counting imports for annotations alone."""
    rest = {name: imports(path) for name, path in MODULES.items()}
    while leaves := [name for name, imported in rest.items() if not imported & (rest.keys() - {name})]:
        for name in leaves:
            del rest[name]
    assert not rest


def test_the_rule_sees_imports():
    assert "hpcopt.comm.ring" in imports(PACKAGE / "comm" / "doubling.py")
