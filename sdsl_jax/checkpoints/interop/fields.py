"""A published config.json, read field by field: what is missing or of the wrong kind is named, with the file."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sdsl_jax.errors import SdslError
from sdsl_jax.user_files import read_json_object

CONFIG = "config.json"
# The largest size that indices of 32 bits reach; no published model comes near it.
LARGEST = 2**31 - 1
_TOO_LARGE = 1e300
_LONGEST_NAME = 100
_MISSING: Any = object()


def shown(value: Any) -> str:
    """A value of a file for a message, shortened where it is long."""
    return reprlib.repr(value)


def printable(name: str) -> str:
    """A name of a file for a message: as it is, unless it is long or has characters that a line cannot show."""
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else reprlib.repr(name)


class Fields:
    """The fields of one JSON object.

    Attributes:
      path: the file, for messages.
      values: as they were read.
    """

    def __init__(
        self,
        path: Path,
        values: dict[str, Any],
        prefix: str = "",
        names: Mapping[str, str] | None = None,
    ):
        """`names` are what the file itself calls fields that it names differently; they serve messages alone."""
        self.path, self.values, self._prefix, self._names = path, values, prefix, names or {}

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Reads a file.

        Raises:
          SdslError: it cannot be read, or holds no JSON object.
        """
        return cls(path, read_json_object(path))

    def without(self, names: Sequence[str]) -> tuple[Fields, tuple[str, ...]]:
        """The fields without some of them, and those that were there to leave out."""
        dropped = tuple(sorted(set(names) & set(self.values)))
        values = {name: value for name, value in self.values.items() if name not in dropped}
        return Fields(self.path, values, self._prefix, self._names), dropped

    def name(self, name: str) -> str:
        """What the file calls a field."""
        return self._names.get(name, self._prefix + printable(name))

    def fail(self, name: str, wanted: str) -> NoReturn:
        """Raises `SdslError` about a field: what it is, and what it must be."""
        value = f"is {shown(self.values[name])}" if name in self.values else "is missing"
        raise SdslError(f"{self.name(name)} of {self.path} {value}; it must be {wanted}.")

    def _get(self, name: str, default: Any) -> Any:
        # Published files write null for what has its default.
        value = self.values.get(name)
        if value is None and default is _MISSING:
            self.fail(name, "given")
        return default if value is None else value

    def whole(self, name: str, default: int = _MISSING, least: int = 1) -> int:
        """A whole number that is not below `least`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.fail(name, f"a whole number of at least {least}")
        if value > LARGEST:
            self.fail(name, f"at most {LARGEST:,}")
        return value

    def number(self, name: str, default: float = _MISSING) -> float:
        """A positive number."""
        value = self._get(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < _TOO_LARGE
        ):
            self.fail(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def choice(self, name: str, options: dict[str, Any], default: str) -> Any:
        """What an option stands for."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in options:
            self.fail(name, " or ".join(map(repr, options)))
        return options[value]

    def table(self, name: str) -> Fields | None:
        """An object within the object; None where there is none."""
        value = self._get(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, "an object")
        return Fields(self.path, value, f"{self.name(name)}.")

    def only(self, name: str, allowed: Sequence[Any], why: str) -> None:
        """Raises `SdslError` where a field is set to what this package does not compute."""
        if self.values.get(name) is not None and self.values[name] not in allowed:
            raise SdslError(
                f"{self.name(name)} of {self.path} is {shown(self.values[name])}; {why}."
            )
