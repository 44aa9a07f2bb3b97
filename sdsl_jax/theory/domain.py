"""What users pass is checked where its values are known: numbers and arrays, but nothing that `jit`, `grad` or `vmap` traces."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import require_in


def known_numbers(name: str, value: Any) -> np.ndarray | None:
    """The numbers of an argument; None where they are traced.

    Args:
      name: The argument, with which messages begin.
      value: A number or an array.

    Raises:
      SdslError: It is something else, such as a string, or holds NaN.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    # What is no number becomes an array of objects or characters.
    numbers = np.asarray(value)
    require(
        jax.dtypes.issubdtype(numbers.dtype, np.number),
        f"{name} is {value!r}; it must be a number, such as 0.7 or 32e9.",
    )
    require(not np.isnan(numbers).any(), f"{name} is not a number (NaN).")
    return numbers


def check_numbers(interval: str, name: str, value: Any) -> None:
    """Raises `SdslError` for a known number outside an interval; see `known_numbers` and `require_in`."""
    numbers = known_numbers(name, value)
    if numbers is not None and numbers.size:
        for end in (numbers.min(), numbers.max()):
            require_in(interval, name, float(end))


def check_function(name: str, value: Any, such_as: str) -> None:
    """Raises `SdslError` for a law or a function that cannot be called.

    Args:
      name: The argument, with which the message begins.
      value: What was given.
      such_as: An example of what to give.
    """
    if not callable(value):
        plain = isinstance(value, str | int | float)
        shown = repr(value) if plain else f"a {type(value).__name__}"
        give = "its attribute law" if hasattr(value, "law") else such_as
        raise SdslError(f"{name} is {shown}, which cannot be called; give {give}.")
