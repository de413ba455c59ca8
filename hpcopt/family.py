"""A family of config classes that is open: builtins by short names, anybody's by "package.module:Class"."""

import difflib
import importlib
from functools import cache
from typing import Any, get_args

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PydanticUserError,
    SerializationInfo,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from hpcopt.config import Choice
from hpcopt.errors import JobError
from hpcopt.plugins import import_class

_ANY_OTHER = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": r"^[\w.]+:[\w.]+$"}},
    "required": ["name"],
}


class Family:
    """What may stand in one kind of section. Annotates the type that the classes must have::

        optimizer: Annotated[OptimizerConfig, OPTIMIZERS] = SgdConfig()

    A section becomes an object of the class that its ``name`` names; an object of the type is taken as it is.
    """

    def __init__(self, what: str, default: str = "", **builtins: str) -> None:
        """Args:
        what: a word for one of them, in messages.
        default: the name of a section that has none.
        builtins: "module:Class" by short name.
        """
        self.what, self._default, self._builtins = what, default, builtins
        self._plugged_in: dict[str, type[Choice]] = {}

    def find(self, name: str) -> type[Choice]:
        """The class of a short or a dotted name.

        Raises:
            ValueError: there is none; the message says what there is.
        """
        if name in self._builtins:
            return _builtin(self._builtins[name])
        if ":" not in name:
            near = difflib.get_close_matches(name, self._builtins, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"? There are' if near else "there are"
            known = ", ".join(self._builtins)
            raise ValueError(
                f'there is no {self.what} "{name}"; {hint} {known}, and "package.module:Class" for one of your own'
            )
        self._plugged_in[name] = found = import_class(name, Choice)
        return found

    def choices(self, kind: Any) -> dict[str, type[Choice]]:
        """The classes of a kind that are known by now, by name. Imports all builtins."""
        classes = {name: _builtin(place) for name, place in self._builtins.items()} | self._plugged_in
        return {name: found for name, found in classes.items() if issubclass(found, kind)}

    def class_of(self, section: Any) -> type[Choice] | None:
        """The class that a section asks for, as far as that can be told: for a message about its keys."""
        if isinstance(section, Choice):
            return type(section)
        try:
            return self.find(section.get("name", self._default))
        except (AttributeError, TypeError, ValueError):
            return None

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def schema(_: CoreSchema, json_handler: GetJsonSchemaHandler) -> JsonSchemaValue:
            known = [_referable(found) for found in self.choices(kind).values()]
            union = json_handler(core_schema.union_schema([*known, core_schema.any_schema()]))
            return {"anyOf": [*union["anyOf"][:-1], _ANY_OTHER]}

        return core_schema.no_info_plain_validator_function(
            lambda section: self._validated(section, kind),
            serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True),
            metadata={"pydantic_js_functions": [schema]},
        )

    def _validated(self, section: Any, kind: Any) -> Any:
        if isinstance(section, kind):
            return section
        if not isinstance(section, dict):
            raise ValueError(f"this is a section of keys, one of them name, not {section!r}")
        try:
            found = self._fitting(section.get("name", self._default), kind)
        except ValueError as error:
            complaint = PydanticCustomError("name", "{complaint}", {"complaint": str(error)})
            raise ValidationError.from_exception_data(
                self.what, [{"type": complaint, "loc": ("name",), "input": section.get("name")}]
            ) from None
        try:
            made = found.model_validate({key: value for key, value in section.items() if key != "name"})
        except PydanticUserError as error:  # of somebody's class: an annotation that names nothing
            raise ValueError(str(error.message)) from None
        except TypeError as error:  # a method that is asked for is missing, or __init__ is no ordinary one
            raise ValueError(f"{found.__qualname__} cannot be made: {error}") from error
        if lacking := [key for key in found.model_fields if not hasattr(made, key)]:
            raise ValueError(f"{found.__qualname__}.__init__ sets no {', '.join(lacking)}: leave it to pydantic")
        return made

    def _fitting(self, name: Any, kind: Any) -> type[Choice]:
        if not name:
            raise ValueError(f"which {self.what}? There are {', '.join(self._builtins)}")
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no text")
        found = self.find(name)
        if not issubclass(found, kind):
            raise ValueError(
                f'"{name}" does not fit here, where {_words(kind)} is asked for; '
                f"these do: {', '.join(self.choices(kind))}"
            )
        return found


@cache
def _builtin(place: str) -> type[Choice]:
    module, _, name = place.partition(":")
    found: type[Choice] = getattr(importlib.import_module(module), name)
    return found


def _referable(found: type[Choice]) -> CoreSchema:
    """A class's schema such that a JSON schema holds it once, however often it is named."""
    schema: Any = found.__pydantic_core_schema__
    reference = {"ref": f"{found.__module__}.{found.__qualname__}:{id(found)}"}
    if schema["type"] == "definitions":
        return {**schema, "schema": {**reference, **schema["schema"]}}
    return {**reference, **schema}


def _words(kind: Any) -> str:
    return " or ".join(f"a {k.__name__}" for k in get_args(kind) or (kind,))


def _dump(section: Choice, info: SerializationInfo) -> dict[str, Any]:
    dump = section.model_dump(mode=info.mode, exclude_none=info.exclude_none, exclude_defaults=info.exclude_defaults)
    if not isinstance(dump, dict):
        raise JobError(f"{type(section).__qualname__}.model_dump() gave {type(dump).__name__}, not a dictionary")
    return dump
