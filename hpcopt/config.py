"""The base of every section of a job file."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings of one thing, standing in the file of the thing they build. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
