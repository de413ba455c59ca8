"""A job as it is written: the text of a file, and what ``--set`` changes in it."""

import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any, NamedTuple

from hpcopt.errors import JobError

Keys = tuple[str, ...]  # the way to a value: section, ..., key


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file in UTF-8, with a byte-order mark or without one.

    Raises:
        JobError: it cannot be read, is in another encoding, or is not TOML.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from None
    try:
        return tomllib.loads(_decoded(content, path).replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path} is not TOML: {error}").everywhere() from None


def _decoded(content: bytes, path: Path) -> str:
    encoding, at = "UTF-16", ""
    if not content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) and b"\0" not in content:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            encoding, at = "LATIN1", f" (byte 0x{content[error.start]:02x} in line {line})"
    raise JobError(
        f"{path} is not text in UTF-8{at}; if it is in {encoding}: iconv -f {encoding} -t UTF-8 {path} > utf8.toml"
    ).everywhere()


class Setting(NamedTuple):
    """One ``--set SECTION.KEY=VALUE``.

    Attributes:
        keys: the way to the value.
        text: the value as it was typed.
        value: it, as TOML.
        source: what it was typed behind.
    """

    keys: Keys
    text: str
    value: Any
    source: str = "--set"

    @classmethod
    def of(cls, typed: str) -> "Setting":
        """Read it; a value that is not TOML is text.

        Raises:
            JobError: it is not of that form.
        """
        way, equals, text = typed.partition("=")
        keys = tuple(key.strip() for key in way.split("."))
        if not equals or not all(keys):
            raise JobError(f"--set {typed}: write --set section.key=value").everywhere()
        if any("\ud800" <= character <= "\udfff" for character in typed):
            raise JobError(f"--set {typed}: this is not text in UTF-8").everywhere()
        text = text.strip()
        try:
            return cls(keys, text, tomllib.loads(f"value = {text}")["value"])
        except (ValueError, RecursionError) as error:
            if text[:1] in tuple("[{\"'"):
                raise JobError(f"--set {typed}: the value is not TOML: {error}").everywhere() from None
            return cls(keys, text, text)

    def apply(self, raw: dict[str, Any]) -> Keys:
        """Put it into a raw job; give the way to what that made: its key, or the first section that is new.

        Raises:
            JobError: what should be a section is a value.
        """
        section, depth = raw, len(self.keys)
        for index, name in enumerate(self.keys[:-1], 1):
            if name not in section:
                depth = min(depth, index)
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise JobError(f"{self}: {name} is a value, not a section").everywhere()
        section[self.keys[-1]] = self.value
        return self.keys[:depth]

    @property
    def quoted(self) -> str:
        """It again, with a value that is text whatever it looks like."""
        return f"{self.source} '{'.'.join(self.keys)}=\"{self.text}\"'"

    def __str__(self) -> str:
        return f"{self.source} {'.'.join(self.keys)}={self.text}"
