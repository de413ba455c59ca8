"""Arguments that a job gives to somebody's class, held to the signature of its constructor."""

import difflib
import inspect
from collections.abc import Collection, Mapping
from types import NoneType
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

PLAIN = (bool, int, float, str)


def checked(found: type, arguments: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The arguments as the constructor takes them: of the types that it says, or that its defaults have.

    Args:
        found: the class.
        arguments: by name, as TOML has them.
        given: names of those that come from elsewhere.

    Raises:
        ValueError: one is unknown, missing, or of another type; the message names what would be right.
    """
    known = takes(found)
    what = f"{found.__module__}:{found.__qualname__}"
    for name in arguments:
        if name in given:
            raise ValueError(f"{name} of {what} does not stand among its arguments: it has a key of its own, or none")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            others = ", ".join(sorted(known.keys() - set(given)))
            hint = f'did you mean "{near[0]}"?' if near else f"it takes {others}"
            raise ValueError(f'{what} takes no argument "{name}"; {hint}')
    required = [name for name, p in known.items() if not _optional(p) and name not in {*arguments, *given}]
    if required:
        raise ValueError(f"{what} needs {', '.join(required)}, too")
    kinds = _kinds(found)
    return {name: _of_kind(value, kinds.get(name, _of_default(known[name])), name) for name, value in arguments.items()}


def takes(found: type) -> dict[str, inspect.Parameter]:
    """What a constructor takes by name; where it hands on ``**others``, what its base's takes, too."""
    known: dict[str, inspect.Parameter] = {}
    for base in found.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        own = dict(list(inspect.signature(vars(base)["__init__"]).parameters.items())[1:])
        spread = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        first = not known
        known |= {n: p for n, p in own.items() if n not in known and p.kind not in spread and (first or _optional(p))}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values()):
            break
    return known


def _optional(p: inspect.Parameter) -> bool:
    return p.default is not p.empty


def _kinds(found: type) -> dict[str, Any]:
    try:
        return get_type_hints(found.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        return {}


def _of_default(parameter: inspect.Parameter) -> Any:
    kind = type(parameter.default)
    return {int: float}.get(kind, kind) if kind in PLAIN else Any


def _of_kind(value: Any, kind: Any, name: str) -> Any:
    if kind is NoneType:
        return value
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name} = {value!r}: {error.errors()[0]['msg']}") from None
    except (PydanticUserError, TypeError):  # no type that can be checked
        return value
