"""Documents of files and of Hugging Face data sets, one after another and never all at once.

A document is an iterable of pieces of text, because a .txt file is a single one, however large.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sdsl_jax.errors import SdslError, require

_READ_BYTES = 1 << 20
_BATCH_ROWS = 256
_NAME = re.compile(r"(?P<path>[^:@\s]+)(:(?P<name>[^@\s]+))?(@(?P<revision>\S+))?")


def documents(path: Path, text_column: str = "text", kind: str = "") -> Iterator[Iterable[str]]:
    """Documents of one .txt file (the whole file), or of one .jsonl or .parquet file (a column of its rows).

    Args:
      path: of the file.
      text_column: of its rows.
      kind: ".txt", ".jsonl" or ".parquet"; what the file's name ends in if left out.

    Raises:
      SdslError: the file is missing, of another kind, undecodable, or lacks the column.
    """
    kind = kind or path.suffix
    require(kind in READERS, f"the corpus file {path} is of an unknown kind; allowed are {', '.join(READERS)}.")
    yield from READERS[kind](path, text_column)


def hugging_face(name: str, text_column: str = "text") -> Iterator[Iterable[str]]:
    """Documents of the training split of a data set, streamed: "owner/name", "owner/name:config", either with "@revision".

    Raises:
      SdslError: the library `datasets` is not installed, the data set cannot be had, or a row has no text.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise SdslError(
            f"the data set {name!r} is no name; it must read owner/name, owner/name:config or either @revision."
        )
    try:
        import datasets
    except ModuleNotFoundError:
        raise SdslError(
            f"the corpus hf:{name} needs the library datasets, which is not installed; install 'sdsl_jax[datasets]'."
        ) from None
    try:
        rows = datasets.load_dataset(**match.groupdict(), split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield (_row_text(row, text_column, f"row {number}", f"data set {name}"),)
    except SdslError:
        raise
    except Exception as error:  # of the library, of what it reads with and of the network: no common class
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise SdslError(f"the data set {name} cannot be read from Hugging Face ({reason}).") from None


def _read_txt(path: Path, _: str) -> Iterator[Iterable[str]]:
    yield _decoded(path)


def _read_jsonl(path: Path, column: str) -> Iterator[Iterable[str]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise SdslError(f"line {number} of the corpus file {path} is not valid JSON ({error.msg}).") from None
            yield (_row_text(row, column, f"line {number}", f"corpus file {path}"),)


def _read_parquet(path: Path, column: str) -> Iterator[Iterable[str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with open(path, "rb") as opened, parquet.ParquetFile(opened) as file:
            _require_text(column in file.schema_arrow.names, column, "the table", f"corpus file {path}")
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=[column])
            rows = (text for batch in batches for text in batch.column(0).to_pylist())
            for number, text in enumerate(rows, 1):
                yield (_row_text({column: text}, column, f"row {number}", f"corpus file {path}"),)
    except (pyarrow.ArrowInvalid, UnicodeDecodeError):
        raise SdslError(f"the corpus file {path} is not a valid Parquet file.") from None
    except OSError as error:
        raise SdslError(f"the corpus file {path} cannot be read ({error.strerror or error}).") from None


READERS: dict[str, Callable[[Path, str], Iterator[Iterable[str]]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _decoded(path: Path) -> Iterator[str]:
    """Text of a file in pieces, every end of line a newline."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    decoded = 0  # bytes
    try:
        with open(path, "rb") as file:
            while data := file.read(_READ_BYTES):
                yield newlines.decode(data)
                decoded = file.tell() - len(decoder.getstate()[0])
        yield newlines.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise SdslError(f"the corpus file {path} is not valid UTF-8 (byte {decoded + error.start}).") from None
    except OSError as error:
        raise SdslError(f"the corpus file {path} cannot be read ({error.strerror or error}).") from None


def _lines(path: Path) -> Iterator[str]:
    begun: list[str] = []
    for piece in _decoded(path):
        first, *rest = piece.split("\n")
        begun.append(first)
        for line in rest:
            yield "".join(begun)
            begun = [line]
    yield "".join(begun)


def _row_text(row: Any, column: str, where: str, what: str) -> str:
    _require_text(isinstance(row, dict) and isinstance(row.get(column), str), column, where, what)
    try:
        row[column].encode()
    except UnicodeEncodeError:
        raise SdslError(f"{where} of the {what} holds half a surrogate pair, which is no text.") from None
    return row[column]


def _require_text(condition: bool, column: str, where: str, what: str) -> None:
    require(condition, f"{where} of the {what} has no text in the column {column!r} (text_column).")
