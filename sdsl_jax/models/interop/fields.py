"""A published config.json, read field by field: what is missing or of the wrong kind is named, with the file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sdsl_jax.errors import SdslError

CONFIG = "config.json"
_MISSING: Any = object()


class Fields:
    """The fields of one JSON object.

    Attributes:
      path: the file, for messages.
      values: as they were read.
    """

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = ""):
        self.path, self.values, self._prefix = path, values, prefix

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Reads a file.

        Raises:
          SdslError: it cannot be read, or holds no JSON object.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SdslError(f"the file {path} cannot be read ({error.strerror or error}).") from None
        except (ValueError, RecursionError):
            raise SdslError(f"the file {path} is not valid JSON.") from None
        if not isinstance(values, dict):
            raise SdslError(f"the file {path} holds no JSON object.")
        return cls(path, values)

    def fail(self, name: str, wanted: str) -> NoReturn:
        """Raises `SdslError` about a field: what it is, and what it must be."""
        value = f"is {self.values[name]!r}" if name in self.values else "is missing"
        raise SdslError(f"{self._prefix}{name} of {self.path} {value}; it must be {wanted}.")

    def _get(self, name: str, default: Any) -> Any:
        # Published files write null for what has its default.
        value = self.values.get(name)
        if value is None and default is _MISSING:
            self.fail(name, "given")
        return default if value is None else value

    def whole(self, name: str, default: int = _MISSING) -> int:
        """A whole number of at least 1."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(name, "a whole number of at least 1")
        return value

    def number(self, name: str, default: float = _MISSING) -> float:
        """A positive number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
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
        return Fields(self.path, value, f"{self._prefix}{name}.")

    def only(self, name: str, allowed: Sequence[Any], why: str) -> None:
        """Raises `SdslError` where a field is set to what this package does not compute."""
        if self.values.get(name) is not None and self.values[name] not in allowed:
            raise SdslError(f"{self._prefix}{name} of {self.path} is {self.values[name]!r}; {why}.")
