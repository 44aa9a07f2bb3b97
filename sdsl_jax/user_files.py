"""Files that users bring. They are opened, decompressed, decoded and parsed here, and every failure
becomes one sentence.

The first bytes of a file tell its compression and encoding; a byte-order mark is never text.
Nothing here imports jax.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import tomllib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from sdsl_jax.errors import SdslError, require

# Characters of a file that is read as a whole; a few kilobytes of a compressed one can stand for
# gigabytes.
LARGEST_TEXT = 256 << 20
_READ_BYTES = 1 << 20
# By the first bytes: what a file is compressed with.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
# By the first bytes: what a file is instead of text, and what to do about it.
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with git lfs pull",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"PAR1": "a Parquet file",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"SQLite format 3": "a database",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEAD = 64


def other_kind(head: bytes) -> str | None:
    """What the first bytes of a file say it is instead of text, and what to do about it; None if
    they say nothing.
    """
    return next((said for magic, said in _OTHERS.items() if head.startswith(magic)), None)


def reason(error: BaseException) -> str:
    """The first line of an exception's message without its full stop, or the name of its class."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def reading(path: str | Path, what: str = "file") -> Iterator[None]:
    """Turns every error of reading a user's file into an `SdslError` that names the file.

    That covers whatever readers raise on damaged input: errors of the file system, of
    decompression, decoding and parsing, of depth and of memory. Other errors of the program pass
    through.

    Args:
      path: Path to the file.
      what: What messages call it, such as "table".
    """
    try:
        yield
    except SdslError:
        raise
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise SdslError(
            f"the {what} {path} is not valid UTF-8 ({byte}); save it as UTF-8."
        ) from None
    except EOFError:
        raise SdslError(
            f"the {what} {path} is truncated: its compressed data end too early."
        ) from None
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise SdslError(
            f"the {what} {path} is damaged: it cannot be decompressed ({reason(error)})."
        ) from None
    except RecursionError:
        raise SdslError(f"the {what} {path} is nested too deeply to be read.") from None
    except MemoryError:
        raise SdslError(f"the {what} {path} needs more memory than there is.") from None
    except OSError as error:
        raise SdslError(f"the {what} {path} cannot be read ({reason(error)}).") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise SdslError(
            f"the {what} {path} is damaged or of another format ({reason(error)})."
        ) from None


def open_bytes(path: str | Path) -> BinaryIO:
    """Opens a file for reading; a compressed one (gzip, bzip2, xz, zstd) is decompressed.

    Raises:
      SdslError: The file's name says that it is compressed, but its first bytes do not.
    """
    path = Path(path)
    # Looked into without reading on: what comes through a pipe cannot be opened twice.
    file = open(path, "rb")  # noqa: SIM115
    head = file.peek(_HEAD)[:_HEAD]
    kind = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
    promised = SUFFIXES.get(path.suffix.lower())
    if promised not in (None, kind):
        file.close()
        is_ = other_kind(head) or (
            f"a {kind} file" if kind else f"not {promised}, though its name says so"
        )
        raise SdslError(f"the file {path} is {is_}.")
    if kind is None:
        return file
    source: Any = file
    if file.seekable():  # what opens by path also closes
        file.close()
        source = path
    if kind == "gzip":
        return cast(BinaryIO, gzip.open(source, "rb"))
    if kind == "bzip2":
        return cast(BinaryIO, bz2.open(source, "rb"))
    if kind == "xz":
        return cast(BinaryIO, lzma.open(source, "rb"))
    import pyarrow

    return cast(
        BinaryIO, pyarrow.input_stream(str(path) if source is path else file, compression="zstd")
    )


def read_bytes(path: Path, offset: int, size: int, name: str) -> bytearray:
    """Some bytes of a file.

    Args:
      path: Path to the file.
      offset: Position of the first byte.
      size: Number of bytes.
      name: Tensor that they belong to, for messages.

    Raises:
      SdslError: The file ends too early.
    """
    data = bytearray(size)
    buffer = memoryview(data)
    with reading(path), open(path, "rb", buffering=0) as file:
        file.seek(offset)
        filled = 0
        while filled < size:  # file systems of a network may bring less than was asked for
            brought = file.readinto(buffer[filled:])
            if not brought:
                raise SdslError(f"the file {path} became shorter while the tensor {name} was read.")
            filled += brought
    return data


def text_pieces(path: str | Path, what: str, newlines: bool = True) -> Iterator[str]:
    """The text of a file in pieces, decompressed and without its byte-order mark.

    Args:
      path: Path to the file; UTF-8, or UTF-16 or UTF-32 after a byte-order mark.
      what: What messages call it.
      newlines: Whether every line end becomes a newline.

    Raises:
      SdslError: The file cannot be read, is damaged, or is no text.
    """
    with reading(path, what), open_bytes(path) as file:
        data = file.read(_READ_BYTES)
        is_ = other_kind(data[:_HEAD])
        require(is_ is None, f"the {what} {path} is {is_}.")
        encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
        codec = codecs.getincrementaldecoder(encoding)()
        decoder: Any = io.IncrementalNewlineDecoder(codec, translate=True) if newlines else codec
        decoded = 0
        try:
            while data:
                yield decoder.decode(data)
                decoded += len(data)
                data = file.read(_READ_BYTES)
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            # The codec keeps the first bytes of a character that a piece cuts, and counts from
            # them.
            at = max(0, decoded - (len(error.object) - len(data))) + error.start
            byte = error.object[error.start]
            is_utf = encoding.removesuffix("-sig").upper()
            guess = (
                "; Latin-1 or Windows-1252 perhaps" if encoding == "utf-8" and byte >= 0x80 else ""
            )
            raise SdslError(
                f"the {what} {path} is not valid {is_utf} (byte {at} is 0x{byte:02x}{guess}); save it as UTF-8."
            ) from None


def read_text(
    path: str | Path, what: str = "file", newlines: bool = True, limit: int = LARGEST_TEXT
) -> str:
    """The whole text of a file; see `text_pieces`.

    Raises:
      SdslError: As there, or the file holds more than `limit` characters.
    """
    pieces, length = [], 0
    for piece in text_pieces(path, what, newlines):
        pieces.append(piece)
        length += len(piece)
        require(
            length <= limit,
            f"the {what} {path} holds more than {limit:,} characters, the most that is read.",
        )
    return "".join(pieces)


def parse_json(text: str | bytes, where: str) -> Any:
    """JSON from a user, whose depth and numbers may be anything.

    Args:
      text: Text to parse.
      where: Where it is, with which messages begin.

    Raises:
      SdslError: It is not valid, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise SdslError(f"{where} is not valid JSON (it is nested too deeply).") from None
    except ValueError as error:  # syntax, or a whole number of thousands of digits
        said = reason(error)
        if isinstance(error, json.JSONDecodeError) and "\n" not in error.doc.strip():
            said = f"{error.msg}, column {error.colno}"  # the number of the line is the caller's to say
        raise SdslError(f"{where} is not valid JSON ({said}).") from None


def read_json_object(path: str | Path, what: str = "file") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      SdslError: The file cannot be read, is not valid JSON, or holds something else.
    """
    value = parse_json(read_text(path, what), f"the {what} {path}")
    require(isinstance(value, dict), f"the {what} {path} holds no JSON object.")
    return value


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
      SdslError: The file cannot be read, or is not valid TOML.
    """
    text = read_text(path, what)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise SdslError(f"the {what} {path} is not valid TOML (it is nested too deeply).") from None
    except ValueError as error:
        raise SdslError(f"the {what} {path} is not valid TOML: {reason(error)}.") from None
