"""Standard output and standard error, which may be closed, full, or unable to show α."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import sys
from typing import TextIO

from sdsl_jax.errors import SdslError

_ERRORS = "sdsl.plain"
_OF_OUTPUT = {errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT}
# A letter, and how it is written in ASCII.
_SPELLINGS = """
α alpha  β beta  γ gamma  δ delta  ε epsilon  θ theta  κ kappa  λ lambda  Λ Lambda  μ mu
µ u  π pi  ρ rho  σ sigma  τ tau  φ phi  χ chi  ψ psi  Σ sum  Π product  ∂ d  ∇ grad  ∘ o
‖ ||  × x  · *  ± +/-  − -  – -  — -  ≥ >=  ≤ <=  ≈ ~  ∞ inf  √ sqrt  → ->  ← <-  ◂ <  ′ '
… ...  “ "  ” "  ‘ '  ’ '  • *  ½ 1/2  ² ^2  ³ ^3  ⁴ ^4  ⁵ ^5  ⁻ ^-  ¹ ^1  ₋ -
"""
_PLAIN = dict(re.findall(r"(\S+) (\S+)", _SPELLINGS))


def plain(text: str) -> str:
    """Text in ASCII: α becomes alpha, ≤ becomes <=, and a letter without a likeness becomes ?."""
    return "".join(map(_plain_letter, text))


def _plain_letter(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _PLAIN:
        return _PLAIN[letter]
    import unicodedata

    name = unicodedata.name(letter, "")
    if name.startswith("BOX DRAWINGS"):
        return "+" if " AND " in name else "|" if "VERTICAL" in name else "-"
    near = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return near or ("" if unicodedata.combining(letter) else "?")


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Spells in ASCII what an encoding lacks; undecodable bytes of file names stay as they are."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in letters):
        return bytes(ord(letter) & 0xFF for letter in letters), error.end
    return plain(letters), error.end


def fill_gaps() -> None:
    """Opens closed standard streams, so that no file that is opened later gets their number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def prepare() -> None:
    """Makes both streams write letters that their encoding lacks in ASCII.

    Raises:
      SdslError: standard output is closed.
    """
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        raise SdslError("standard output is closed; to do without it, redirect it to /dev/null.")
    codecs.register_error(_ERRORS, _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


def refusal(stream: TextIO | None, error: BaseException) -> OSError | None:
    """Why a stream cannot be written; None if it can.

    Args:
      stream: standard output or standard error.
      error: that has been raised. What could not be written may be lost with it, so one more byte
        is tried.
    """
    if stream is None:
        return None
    try:
        stream.flush()
        if isinstance(error, OSError) and error.errno in _OF_OUTPUT:
            os.write(stream.fileno(), b"\n")
    except OSError as refused:
        return refused
    return None


def flush_quietly() -> None:
    """Flushes both streams and ignores errors."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def say(sentence: str) -> None:
    """Prints a line on standard error, and ignores that it cannot be written."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        discard(2)


def discard(number: int) -> None:
    """Discards what is written to a stream from now on.

    Otherwise what the stream still holds would raise an error at the end of the process.

    Args:
      number: 1 for standard output, 2 for standard error.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
