"""The base of every section of a job file."""

import inspect
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from hpcopt.held import Held

OFF = "off"  # None, which TOML cannot say


class Config(BaseModel):
    """Settings of one thing, standing in the file of the thing they build. Frozen; an unknown key is an error. A key
    that may be None says so as ``"off"``. A section without a name, where one of a family is the default, changes keys
    of that default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def may_be_off(cls, key: str) -> bool:
        """Whether a key may be None."""
        field = cls.model_fields.get(key)
        return field is not None and type(None) in get_args(field.annotation)

    @model_validator(mode="before")
    @classmethod
    def _switch_off(cls, section: Any) -> Any:
        if not isinstance(section, dict):
            return section
        return {k: None if isinstance(v, str) and v == OFF and cls.may_be_off(k) else v for k, v in section.items()}

    @model_validator(mode="before")
    @classmethod
    def _keep_the_default(cls, section: Any) -> Any:
        if not isinstance(section, dict):
            return section
        return {key: _filled(value, cls.model_fields.get(key)) for key, value in section.items()}

    @model_serializer(mode="wrap")
    def _say_off(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Where None is left out, and is not the default, the resolved job would else turn it back."""
        section: dict[str, Any] = handler(self)
        if info.exclude_none:
            for key, field in type(self).model_fields.items():
                if getattr(self, key) is None and field.default is not None and field.default_factory is None:
                    section[key] = OFF
        return section


def _filled(value: Any, field: FieldInfo | None) -> Any:
    """A section of a field, with the other keys of its default if it names no other."""
    default = None if field is None else field.default
    if isinstance(default, Choice) and isinstance(value, dict) and "name" not in value:
        return {**default.model_dump(), **value}
    return value


class Choice(Config, Held):
    """A section that is one of a family (``hpcopt/families.py``): another of the family may stand in its place.

    Attributes:
        name: what a job calls it. A builtin declares a short one; any other class has "package.module:Class".
    """

    name: str = ""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "name" not in (own := inspect.get_annotations(cls)):
            cls.__annotations__ = {**own, "name": str}
            cls.name = f"{cls.__module__}:{cls.__qualname__}"
