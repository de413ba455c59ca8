"""Classes of anybody's, held to the signatures of the base that they fill in. Those of ours mypy holds to them.

A method that gives something else than its base says is a JobError, which names the class, the method and both kinds,
where it would be a traceback of the code that takes it.
"""

import inspect
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import cache, wraps
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from hpcopt.errors import JobError

_HOUSE = __name__.partition(".")[0]
_ASKED = {"__getattr__", "__getattribute__", "__setattr__"}  # None takes other methods away, and nothing can be without
_NUMBERS: dict[Any, tuple[type, ...]] = {int: (int, Integral), float: (float, Real)}  # numpy's, too; the usual first


class Held:
    """A base whose subclasses outside hpcopt are held to its signatures."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if cls.__module__.partition(".")[0] == _HOUSE:
            return
        for name, own in list(vars(cls).items()):
            promise = next(
                (vars(base)[name] for base in cls.__mro__[:0:-1] if _ours(base) and name in vars(base)), None
            )
            what = f"{cls.__module__}:{cls.__qualname__}.{name}"
            if name == "__init__" or inspect.isfunction(promise):
                if not _is_method(own):
                    raise TypeError(f"{what} is {_short(own)}, not a method")
                if inspect.isfunction(own) and promise is not None:
                    if name != "__init__":
                        _require_same_call(own, promise, what)
                    setattr(cls, name, _held(own, promise, f"{what}() gave"))
            elif _python_calls(name) and callable(inherited := getattr(super(cls, cls), name, None)):
                if _is_plain(own) or (own is None and name in _ASKED):
                    raise TypeError(f"{what} is {_short(own)}, not a method")
                if inspect.isfunction(own) and inspect.isfunction(inherited):
                    _require_same_call(own, inherited, what)
            elif isinstance(promise, property):
                if isinstance(own, property) and own.fget is not None:
                    setattr(cls, name, property(_held(own.fget, promise.fget, f"{what} is")))
                elif not isinstance(own, property) and not fits(own, kind := _promised(promise.fget)):
                    raise TypeError(f"{what} is {_short(own)}, not {_words(kind)}")
            elif promise is not None and not isinstance(own, property) and not fits(own, kind := _declared(cls, name)):
                raise TypeError(f"{what} is {_short(own)}, not {_words(kind)}")
            elif isinstance(own, property) and inspect.isfunction(getattr(super(cls, cls), name, None)):
                raise TypeError(f"{what} is {_short(own)}, not a method")  # of a library's class, as pydantic's


def require_methods(thing: object, base: type) -> None:
    """Hold an object to the methods of a base that is a library's: each must still be one.

    Raises:
        JobError: one is something that cannot be called.
    """
    _require_methods(cast(Hashable, type(thing)), base)


@cache
def _require_methods(kind: type, base: type) -> None:
    """Once for a class: what a plug-in gives at each step is held to it, too."""
    for cls in kind.__mro__[: kind.__mro__.index(base)]:
        for name, own in vars(cls).items():
            what = f"{cls.__module__}:{cls.__qualname__}.{name}"
            if (name in _ASKED or inspect.isfunction(getattr(base, name, None))) and not _is_method(own):
                raise JobError(f"{what} is {_short(own)}, not a method")
            if name == "__getattr__" and inspect.isfunction(own):
                try:
                    _require_same_call(own, _getattr, what)
                except TypeError as error:
                    raise JobError(str(error)) from None


def require_attributes(thing: Held, base: type[Held]) -> None:
    """Hold an object to the attributes that its base declares.

    Raises:
        JobError: one is missing, or of another kind.
    """
    if _ours(type(thing)):
        return
    for name, kind in _hints(cast(Hashable, base)).items():
        what = f"{type(thing).__module__}:{type(thing).__qualname__}.{name}"
        if not hasattr(thing, name):
            raise JobError(f"{what} is missing: it is {_words(kind)}")
        if not fits(value := getattr(thing, name), kind):
            raise JobError(f"{what} is {_short(value)}, not {_words(kind)}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind that an annotation names, as far as that can be told without using it up."""
    return fitting_to(kind)(value)


@cache
def fitting_to(kind: Any) -> Callable[[Any], bool]:
    """``fits`` of one kind, made once: to take an annotation apart takes far longer than to look at a value."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        ways = [fitting_to(one) for one in inner]
        return lambda value: any(way(value) for way in ways)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in inner
    if origin is ClassVar:
        return fitting_to(inner[0])
    if kind in _NUMBERS:
        numbers, but = _NUMBERS[kind], bool if kind is int else ()
        return lambda value: isinstance(value, numbers) and not isinstance(value, but)
    found = origin or kind
    if found is Any or not isinstance(found, type) or getattr(found, "_is_protocol", False):
        return lambda _: True
    if not inner or origin is Callable:
        return lambda value: isinstance(value, found)
    first, last = fitting_to(inner[0]), fitting_to(inner[-1])

    def check(value: Any) -> bool:
        if not isinstance(value, found):
            return False
        if isinstance(value, Mapping):
            return all(first(k) and last(v) for k, v in value.items())
        return not isinstance(value, Collection) or all(map(first, value))

    return check


def _require_same_call(own: Callable[..., Any], promise: Callable[..., Any], what: str) -> None:
    """Raise TypeError if a method cannot be called with all that its base's takes."""
    takes, asked = inspect.signature(own), inspect.signature(promise)
    places = [p for p in asked.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [name for name, p in asked.parameters.items() if p.kind is p.KEYWORD_ONLY]
    try:
        takes.bind(*places, **dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(f"{what}{takes} cannot be called with {asked}: {error}") from None


def _getattr(self: Any, name: str) -> Any:
    """As ``__getattr__`` is called."""


def _is_method(own: Any) -> bool:
    return callable(own) or isinstance(own, staticmethod | classmethod)


def _python_calls(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_plain(value: Any) -> bool:
    """Whether it is neither a method of any kind nor None, which takes one away."""
    return value is not None and not callable(value) and not hasattr(value, "__get__")


def _ours(found: type) -> bool:
    return found.__module__.partition(".")[0] == _HOUSE


def _held(own: Callable[..., Any], promise: Any, what: str) -> Callable[..., Any]:
    @wraps(own)
    def held(*arguments: Any, **named: Any) -> Any:
        given = own(*arguments, **named)
        kind = _promised(promise)
        if kind is not type(None) and not fits(given, kind):
            raise JobError(f"{what} {_short(given)}, not {_words(kind)}")
        if kind in type(given).__mro__:  # of a library, as networks and optimizers are
            require_methods(given, kind)
        return given

    return held


def _declared(cls: type, name: str) -> Any:
    """The kind that the outermost base of ours declares an attribute of classes to be; Any: it says nothing."""
    return next((h[name] for base in cls.__mro__[:0:-1] if _ours(base) and name in (h := _hints(base))), Any)


@cache
def _promised(promise: Any) -> Any:
    return _hints(promise).get("return", Any)


@cache
def _hints(thing: Hashable) -> dict[str, Any]:
    try:
        return get_type_hints(thing)
    except NameError:  # a name that only mypy imports
        return {}


def _short(value: Any) -> str:
    """A value for a message; its own ``repr`` may be long, or raise."""
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__qualname__}"
    return text if len(text) < 80 and "\n" not in text else f"a {type(value).__qualname__}"


def _words(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
