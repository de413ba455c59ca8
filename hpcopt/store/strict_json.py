"""JSON that every parser takes: it knows no NaN and no infinity, so null stands for both."""

import json
import math
from typing import Any


def dumps(tree: Any, indent: int | None = None) -> str:
    """A tree of dicts, lists, tuples, text and numbers as JSON text."""
    return json.dumps(_finite(tree), indent=indent, allow_nan=False)


def mapping(text: str) -> dict[str, Any]:
    """The object that a text of anybody's holds; of anything else, none: {}."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
