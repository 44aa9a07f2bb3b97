"""Standard output and standard error, which may be closed, full, or unable to show α."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from typing import TextIO

from sdsl_jax.errors import SdslError

_ERRORS = "sdsl.plain"
_OF_OUTPUT = {errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT}
_PLAIN = {
    **{
        "α": "alpha",
        "β": "beta",
        "γ": "gamma",
        "δ": "delta",
        "ε": "epsilon",
        "θ": "theta",
        "κ": "kappa",
    },
    **{
        "λ": "lambda",
        "Λ": "Lambda",
        "μ": "mu",
        "µ": "u",
        "π": "pi",
        "ρ": "rho",
        "σ": "sigma",
        "τ": "tau",
    },
    **{
        "φ": "phi",
        "χ": "chi",
        "ψ": "psi",
        "Σ": "sum",
        "Π": "product",
        "∂": "d",
        "∇": "grad",
        "∘": "o",
        "‖": "||",
    },
    **{
        "×": "x",
        "·": "*",
        "±": "+/-",
        "−": "-",
        "–": "-",
        "—": "-",
        "≥": ">=",
        "≤": "<=",
        "≈": "~",
        "∞": "inf",
    },
    **{
        "√": "sqrt",
        "→": "->",
        "←": "<-",
        "◂": "<",
        "′": "'",
        "…": "...",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
    },
    **{
        "•": "*",
        "½": "1/2",
        "²": "^2",
        "³": "^3",
        "⁴": "^4",
        "⁵": "^5",
        "⁻": "^-",
        "¹": "^1",
        "₋": "-",
    },
}


def plain(text: str) -> str:
    """Text in ASCII letters: α is alpha, ≤ is <=, a line of a box is -, | or +, and what has no likeness is ?."""
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
    """What an encoding cannot express, in letters that it can; bytes of file names that are no text, as they are."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in letters):
        return bytes(ord(letter) & 0xFF for letter in letters), error.end
    return plain(letters), error.end


def fill_gaps() -> None:
    """Where a standard stream is closed, a file that is opened later must not get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def prepare() -> None:
    """Lets both streams write every letter somehow.

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
    """Writes out what both streams still hold, as far as possible."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def say(sentence: str) -> None:
    """Prints a line on standard error; where that cannot be written, nobody is there to read it."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        discard(2)


def discard(number: int) -> None:
    """From now on what is written to a stream goes nowhere, so that what it still holds makes no
    error at the end.

    Args:
      number: 1 for standard output, 2 for standard error.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
