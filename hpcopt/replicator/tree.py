"""Nested dicts, lists, tuples and named tuples with tensors for leaves. A number counts as a scalar tensor.

A dict's leaves go in the order of its keys, so that two ranks may have put them in differently.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcopt.errors import UnsupportedError

Tree = Any


def leaves(tree: Tree) -> list[Tensor]:
    """Its tensors; a float counts as float64, an integer as int64.

    Raises:
        UnsupportedError: something in the tree is no tensor, number, dict, list or tuple.
    """
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, float):
        return [torch.tensor(tree, dtype=torch.float64)]
    if isinstance(tree, int):
        return [torch.tensor(tree)]
    return [leaf for _, child in _children(tree) for leaf in leaves(child)]


def like(tree: Tree, values: Sequence[Tensor]) -> Tree:
    """A tree of the same form with other leaves, in the order of ``leaves``."""
    return _fill(tree, iter(values))


def describe(tree: Tree) -> str:
    """For people: "{a: (3,) float32, b: [() int64]}"; leaves that a gradient flows through are marked so."""
    if isinstance(tree, Tensor):
        kind = str(tree.dtype).removeprefix("torch.")
        return f"{tuple(tree.shape)} {kind}{' with gradient' if flows(tree) else ''}"
    if isinstance(tree, int | float):
        return describe(leaves(tree)[0])
    parts = ", ".join(f"{key}: {describe(child)}" if key else describe(child) for key, child in _children(tree))
    if isinstance(tree, dict):
        return f"{{{parts}}}"
    return f"[{parts}]" if isinstance(tree, list) else f"{_name(tree)}({parts})"


def flows(x: Tensor) -> bool:
    """Whether autograd follows what is computed from it."""
    return x.requires_grad and torch.is_grad_enabled()


def plan(tree: Tree) -> str:
    """A text from which another rank makes a tree of the same form: ``unplan``.

    Raises:
        UnsupportedError: it has a named tuple, whose class the other rank may not know.
    """
    return json.dumps(_plan(tree))


def unplan(text: str) -> Tree:
    """A tree of the planned form, of zeros, through which gradients flow where they did."""
    return _unplan(json.loads(text))


def _children(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """What stands in a node, each under its name, or under none."""
    if isinstance(tree, dict):
        yield from ((str(key), tree[key]) for key in sorted(tree, key=str))
    elif isinstance(tree, list | tuple):
        yield from (("", child) for child in tree)
    elif tree is not None:
        raise UnsupportedError(
            f"a {type(tree).__name__} cannot go to other ranks: give tensors and numbers, in dicts, lists and tuples"
        )


def _name(tree: Tree) -> str:
    return "" if tree is None or type(tree) is tuple else type(tree).__name__


def _fill(tree: Tree, values: Iterator[Tensor]) -> Tree:
    if isinstance(tree, Tensor | int | float):
        return next(values)
    filled = [_fill(child, values) for _, child in _children(tree)]
    if isinstance(tree, dict):
        by_key = dict(zip(sorted(tree, key=str), filled, strict=True))
        return {key: by_key[key] for key in tree}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*filled)
    return None if tree is None else type(tree)(filled)


def _plan(tree: Tree) -> Any:
    if isinstance(tree, int | float):
        return _plan(leaves(tree)[0])
    if isinstance(tree, Tensor):
        return ["leaf", list(tree.shape), str(tree.dtype).removeprefix("torch."), flows(tree)]
    if isinstance(tree, dict):
        return ["dict", [[key, _plan(child)] for key, child in tree.items()]]
    if hasattr(tree, "_fields"):
        raise UnsupportedError(f"other ranks may not know the named tuple {_name(tree)}: give a dict or a tuple")
    return ["" if tree is None else type(tree).__name__, [_plan(child) for _, child in _children(tree)]]


_NODES: dict[str, Callable[[list[Any]], Tree]] = {
    "dict": lambda items: {key: _unplan(child) for key, child in items},
    "list": lambda children: [_unplan(child) for child in children],
    "tuple": lambda children: tuple(_unplan(child) for child in children),
    "": lambda _: None,
}


def _unplan(node: Any) -> Tree:
    kind, content, *rest = node
    if kind == "leaf":
        dtype, flowing = rest
        return torch.zeros(content, dtype=getattr(torch, dtype), requires_grad=flowing)
    return _NODES[kind](content)
