"""Counts of parameters and tokens as people write and read them: 125M, 4.2B, 1e9, 13,000,000,000."""

from __future__ import annotations

import math
import re
from typing import Annotated

from sdsl_jax.errors import SdslError, require

# Beyond any model or corpus, and far within what single precision holds.
LARGEST = 1e18
# No language model has so few parameters, and none is trained on so few tokens: the suffix is
# missing.
SMALLEST = 1000
_SUFFIXES = {"k": 3, "m": 6, "b": 9, "g": 9, "t": 12}
# Digits in groups behind a 0 are the decimals of a number with a decimal comma.
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
# A group of three digits that no number of a list begins with.
_GROUP = re.compile(r"\d,0\d\d(?!\d)")
_NUMBER = re.compile(r"[+-]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)(e[+-]?\d+)?", re.IGNORECASE)

_BYTES = re.compile(
    r"(?P<number>[\d._]+(e\d+)?)\s*((?P<prefix>[kmgt])(?P<binary>i)?b?|b(ytes)?)?", re.IGNORECASE
)

# Fields of configurations that also take a count as people write it, a string such as "70B".
COUNT = object()
Count = Annotated[float, COUNT]
WholeCount = Annotated[int, COUNT]


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


def read_number(text: str) -> float | None:
    """The number that a text stands for: 3.5, -2, 1e9, 1_000; None for any other text, such as one
    with a suffix or separators.
    """
    plain = text.strip()
    return float(plain.replace("_", "")) if _NUMBER.fullmatch(plain) else None


def read_count(text: str) -> float | None:
    """The number that a text stands for, perhaps with a suffix or thousands separators; None for
    any other text.

    A text with both is ambiguous and gives None: 1,300M may mean 1.3 or 1,300 millions.
    """
    plain = text.strip()
    power = _SUFFIXES.get(plain[-1:].lower())
    if power is None:
        return read_number(
            plain.replace(",", "") if _THOUSANDS.fullmatch(plain.partition(".")[0]) else plain
        )
    plain = plain[:-1].rstrip()
    if _NUMBER.fullmatch(plain) and "e" not in plain.lower():
        return read_number(f"{plain}e{power}")  # rounded once, so that 0.57B is whole
    value = read_number(plain)
    return None if value is None else value * 10.0**power


def short_bytes(value: float) -> str:
    """A size in bytes with three digits and a decimal unit: 12.3 MB."""
    for divisor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * divisor:
            return f"{value / divisor:.3g} {unit}"
    return f"{value:.0f} bytes"


def parse_bytes(text: str, name: str) -> float:
    """A size in bytes: 2GB, 500 MB, 1.5GiB or a plain number.

    Raises:
      SdslError: The text is no size.
    """
    match = _BYTES.fullmatch(text.strip())
    number = None if match is None else read_number(match["number"])
    if match is None or number is None:
        raise SdslError(f"{name} is {text!r}; it must be a size such as 2GB, 500MB or 0.")
    base = 1024 if match["binary"] else 1000
    return number * base ** " kmgt".index((match["prefix"] or " ").lower())


def parse_share(text: str, name: str) -> float:
    """A number such as 0.8, or a percentage such as 80%. The caller checks its range.

    Raises:
      SdslError: The text is no number.
    """
    plain = text.strip()
    number = plain.removesuffix("%").rstrip()
    if not _NUMBER.fullmatch(number):
        raise SdslError(f"{name} is {text!r}; it must be a number such as 0.8.")
    return float(number.replace("_", "")) / (100 if plain.endswith("%") else 1)


def parse_count(text: str, name: str) -> float:
    """A count of parameters or tokens: 30e9, 30B, 180b, 1.5T, 13,000,000,000.

    Raises:
      SdslError: The text is no positive number.
    """
    value = read_count(text)
    if value is None:
        raise SdslError(
            f"{name} is {text!r}; it must be a number such as 30e9, 30B or 30,000,000,000."
        )
    require(
        0 < value <= LARGEST, f"{name} is {text}; it must be positive, and at most {LARGEST:g}."
    )
    return value


def require_plausible(value: float, name: str, shown: str = "") -> float:
    """Returns a number of parameters or training tokens, unless it is so small that its suffix must
    be missing.

    Args:
      value: The number.
      name: Its name, with which messages begin.
      shown: The number as it was written.

    Raises:
      SdslError: It is below `SMALLEST`.
    """
    shown = shown.strip() or f"{value:g}"
    require(value >= SMALLEST, f"{name} is {shown}, too few for any model; did you mean {shown}B?")
    return value


def parse_size(text: str, name: str) -> float:
    """A number of parameters or training tokens; see `parse_count`.

    Raises:
      SdslError: The text is no positive number, or so small that its suffix must be missing.
    """
    return require_plausible(parse_count(text, name), name, text)


def parse_sizes(text: str, name: str) -> list[float]:
    """Numbers of parameters or training tokens, separated by commas.

    Raises:
      SdslError: As `parse_counts` and `parse_size`.
    """
    return [require_plausible(value, name) for value in parse_counts(text, name)]


def parse_counts(text: str, name: str) -> list[float]:
    """Counts separated by commas: 125M,1.3B.

    Raises:
      SdslError: One is no positive number, or the text reads as one number with thousands
        separators.
    """
    if _THOUSANDS.fullmatch(text.strip()) or _GROUP.search(text):
        value = read_count(text)
        one = (
            "one number without commas, such as 13M"
            if value is None
            else f"{exact_count(value)} for one number"
        )
        raise SdslError(
            f"{name} is {text!r}, where commas separate the values of a list; write {one}, or a blank after each comma for "
            "a list."
        )
    return [parse_count(part, name) for part in text.split(",") if part.strip()]
