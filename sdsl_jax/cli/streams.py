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
# A letter, and how it is written in ASCII.
_SPELLINGS = [r"α", r"alpha", r"β", r"beta", r"γ", r"gamma", r"δ", r"delta", r"ε", r"epsilon", r"θ", r"theta", r"κ", r"kappa", r"λ", r"lambda", r"Λ", r"Lambda", r"μ", r"mu", r"µ", r"u", r"π", r"pi", r"ρ", r"rho", r"σ", r"sigma", r"τ", r"tau", r"φ", r"phi", r"χ", r"chi", r"ψ", r"psi", r"Σ", r"sum", r"Π", r"product", r"∂", r"d", r"∇", r"grad", r"∘", r"o", r"‖", r"||", r"×", r"x", r"·", r"*", r"±", r"+/-", r"−", r"-", r"–", r"-", r"—", r"-", r"≥", r">=", r"≤", r"<=", r"≈", r"~", r"∞", r"inf", r"√", r"sqrt", r"→", r"->", r"←", r"<-", r"◂", r"<", r"′", r"'", r"…", r"...", r"“", r'"', r"”", r'"', r"‘", r"'", r"’", r"'", r"•", r"*", r"½", r"1/2", r"²", r"^2", r"³", r"^3", r"⁴", r"^4", r"⁵", r"^5", r"⁻", r"^-", r"¹", r"^1", r"₋", r"-"]
_PLAIN = dict(zip(_SPELLINGS[::2], _SPELLINGS[1::2]))


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
