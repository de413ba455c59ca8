"""The base of every section of a job file."""

import inspect
from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings of one thing, standing in the file of the thing they build. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Choice(Config):
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
