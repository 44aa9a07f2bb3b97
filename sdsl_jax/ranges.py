"""Ranges that the numbers of a user must lie in, and one wording for those that do not."""

from __future__ import annotations

import math
from typing import Any

from sdsl_jax.errors import SdslError, require


def share_hint(value: float) -> str:
    """How to write a number that looks like a percentage as a share, as the end of a sentence.

    Smaller numbers may as well be acceptance lengths.
    """
    return f"; write it as a share: {value / 100:g}" if 10 <= value <= 100 else ""


def require_in(interval: str, name: str, value: Any) -> None:
    """Checks a number, or every number of a tuple, against an interval.

    Args:
      interval: in mathematical notation: "(0, 1]", "[1, inf)".
      name: of the value, for the message.
      value: a number, or a tuple of numbers.

    Raises:
      SdslError: a value lies outside, or is not a number.
    """
    low, high = map(float, interval[1:-1].split(","))
    several = isinstance(value, tuple)
    for number in value if several else (value,):
        above = number >= low if interval[0] == "[" else number > low
        below = number <= high if interval[-1] == "]" else number < high
        if not (above and below):
            said = f"holds {number}; every value" if several else f"is {number}; it"
            hint = share_hint(number) if high == 1 else ""
            raise SdslError(f"{name} {said} must {in_words(interval)}{hint}.")


def in_words(interval: str) -> str:
    """What a value of an interval such as "[1, inf)" must do: "be at least 1"."""
    low, high = map(float, interval[1:-1].split(","))
    if math.isinf(low):
        return f"be at most {high:g}"
    if math.isfinite(high):
        return f"lie in {interval}"
    if low == 0:
        return "be positive" if interval[0] == "(" else "not be negative"
    return f"be at least {low:g}"


def require_fields(section: str, config: Any, **intervals: str) -> None:
    """Checks fields of a section of settings, each against its interval.

    Raises:
      SdslError: as `require_in`; the name is that of section and field.
    """
    for name, interval in intervals.items():
        require_in(interval, f"{section}.{name}", getattr(config, name))


def require_distinct(name: str, values: tuple[Any, ...], may_be_empty: bool = False) -> None:
    """Checks that a list is not empty and repeats no value.

    Raises:
      SdslError: it is empty and must not be, or holds a value twice.
    """
    require(may_be_empty or len(values) > 0, f"{name} is empty; it must hold at least one value.")
    require(len(set(values)) == len(values), f"{name} is {list(values)}; it repeats a value.")
