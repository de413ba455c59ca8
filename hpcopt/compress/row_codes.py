"""Payloads of rows of a matrix: a few numbers a row, then packed codes of a few bits: those of PSQ and BHQ."""

from math import prod
from typing import Self

from pydantic import Field

from hpcopt.compress.codec import Codec
from hpcopt.compress.scaled_codes import packed_bytes

FLAT = 512  # values of a row, where nobody says


class RowCodes(Codec):
    """What such codecs share. A row is so many values that follow each other; the last one may be short."""

    bits: int = Field(4, ge=2, le=8, description="a value")
    columns: int | None = Field(
        None,
        ge=1,
        description=f"values of a row; by default those of the parameter's matrix, or of a sample, and {FLAT} where "
        "there is none",
    )

    @property
    def top(self) -> int:
        """B, the largest code."""
        return int(2**self.bits - 1)

    @property
    def bucket(self) -> int:
        """Values of a row."""
        return self.columns or FLAT

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Self:
        """With rows as the tensor has them: all that belongs to one place of its first dimension."""
        columns = prod(shape[1:]) if len(shape) > 1 else None
        return self.model_copy(update={"columns": columns}) if columns and not self.columns else self

    def rows(self, n: int) -> int:
        """How many rows n values are."""
        return -(-n // self.bucket)

    def _code_bytes(self, n: int) -> int:
        return packed_bytes(n, self.bits)
