"""Counts of parameters and tokens as people write and read them: 125M, 4.2B, 1e9, 13,000,000,000."""

from __future__ import annotations

import math
import re

from sdsl_jax.errors import SdslError, require

# Beyond any model or corpus, and far within what single precision holds.
LARGEST = 1e18
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d+)?", re.IGNORECASE)


def short_count(value: float | None) -> str:
    """A count with at most three digits and a suffix: 189M, 3.2k; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    for divisor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * divisor:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.3g}"


def exact_count(value: float) -> str:
    """A count as a command line takes it without loss: 70B, or all of its digits."""
    short = short_count(value)
    return short if read_count(short) == value else f"{value:.15g}"


def read_count(text: str) -> float | None:
    """The number that a text stands for, with a suffix or thousands separators if it has any; None if it is none."""
    plain = text.strip()
    factor = _SUFFIXES.get(plain[-1:].lower(), 1.0)
    plain = plain[:-1].rstrip() if factor > 1 else plain
    if _THOUSANDS.fullmatch(plain.partition(".")[0]):
        plain = plain.replace(",", "")
    return float(plain.replace("_", "")) * factor if _NUMBER.fullmatch(plain) else None


def percent_hint(value: float) -> str:
    """What a sentence about a share that is out of range should add where per cent were probably meant, as in 80 for 0.8."""
    return f"; did you mean {value:g}%, which is {value / 100:g}?" if 1 < value <= 100 else "."


def parse_share(text: str, name: str) -> float:
    """A number such as 0.8, or the same in per cent, 80%; its range is for the caller to check.

    Raises:
      SdslError: it is no number.
    """
    plain = text.strip()
    number = plain.removesuffix("%").rstrip()
    if not _NUMBER.fullmatch(number):
        raise SdslError(f"{name} is {text!r}; it must be a number such as 0.8.")
    return float(number.replace("_", "")) / (100 if plain.endswith("%") else 1)


def parse_count(text: str, name: str) -> float:
    """A count of parameters or tokens: 30e9, 30B, 180b, 1.5T, 13,000,000,000.

    Raises:
      SdslError: it is not a positive number.
    """
    value = read_count(text)
    if value is None:
        raise SdslError(f"{name} is {text!r}; it must be a number such as 30e9, 30B or 30,000,000,000.")
    require(0 < value <= LARGEST, f"{name} is {text}; it must be positive, and at most {LARGEST:g}.")
    return value


def parse_counts(text: str, name: str) -> list[float]:
    """Counts separated by commas: 125M,1.3B.

    Raises:
      SdslError: one is not a positive number; or the text reads as one number with thousands separators.
    """
    if _THOUSANDS.fullmatch(text.strip()):
        short = exact_count(float(text.replace(",", "")))
        raise SdslError(
            f"{name} is {text!r}, where commas separate the values of a list; write {short} for one number, or a blank behind "
            "each comma for a list."
        )
    return [parse_count(part, name) for part in text.split(",") if part.strip()]
