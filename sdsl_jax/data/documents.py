"""Documents of files and of Hugging Face data sets, one after another and never all at once.

A document is an iterable of pieces of text, because a .txt file is a single document, however
large. NUL separates documents and is no part of any text; text that holds it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from sdsl_jax.data.folders import kind_of, listed
from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import other_kind, parse_json, reading, reason, text_pieces

# Documents are joined by NUL; the tokenizers turn it into their end-of-document token.
SEPARATOR = "\0"
BYTE_ORDER_MARK = "\ufeff"
# Characters of one line of a .jsonl file.
LONGEST_LINE = 1 << 26
# Characters behind a first NUL in which others are counted.
_COUNTED = 1 << 28
_BATCH_ROWS = 256
_NAME = re.compile(r"(?P<path>[^:@\s]+)(:(?P<name>[^@\s]+))?(@(?P<revision>\S+))?")

# The column that holds the text, or several: the first of them that a row has.
TextColumn = str | tuple[str, ...]
# A document and where it stands in its file, such as "line 3"; nowhere in particular where it is
# the whole file.
_Placed = tuple[str, Iterable[str]]


def documents(
    path: Path, text_column: TextColumn = "text", kind: str = ""
) -> Iterator[Iterable[str]]:
    """Documents of one file: a .txt file is one document, a .jsonl or .parquet file has one in each
    row.

    Text may be compressed (gzip, bzip2, xz, zstd).

    Args:
      path: Path to the file.
      text_column: Column of its rows that holds the text, or several: the first that a row has.
      kind: ".txt", ".jsonl" or ".parquet"; taken from the file's name if omitted.

    Raises:
      SdslError: The file is missing, damaged or of another kind, lacks the column, or its text
        holds NUL.
    """
    kind = kind or kind_of(path)
    require(
        kind in READERS,
        f"the corpus file {path} is of an unknown kind; allowed are {', '.join(READERS)}, and compressed text such as .jsonl.gz.",
    )
    yield from _without_separators(READERS[kind](path, text_column), f"the corpus file {path}")


def hugging_face(name: str, text_column: TextColumn) -> Iterator[Iterable[str]]:
    """Documents of the training split of a data set, streamed: "owner/name" or "owner/name:config",
    either with "@revision".

    Raises:
      SdslError: The library `datasets` is not installed, the data set is not available, or a row
        has no text or holds NUL.
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
        placed = ((f"row {n}", row) for n, row in enumerate(rows, 1))
        texts = (
            (where, (_row_text(row, text_column, where, f"data set {name}"),))
            for where, row in placed
        )
        yield from _without_separators(texts, f"the data set {name}")
    except SdslError:
        raise
    except (
        Exception
    ) as error:  # of the library, of what it reads with and of the network: no common class
        raise SdslError(
            f"the data set {name} cannot be read from Hugging Face ({reason(error)})."
        ) from None


class Separators:
    """Counts the NULs in the texts of one source, which would end documents where none ends.

    Args:
      what: The source, with which messages begin.
    """

    def __init__(self, what: str) -> None:
        self._what, self._count, self._first = what, 0, ""
        self._characters, self._behind_first = 0, 0

    def pass_on(self, pieces: Iterable[str], where: str = "") -> Iterator[str]:
        """The pieces of a text, unchanged.

        Args:
          pieces: Pieces of the text.
          where: Where the text is in its file; if omitted, the line of the first NUL.

        Raises:
          SdslError: So much text followed the first NUL that its reader should not wait for the
            end.
        """
        line = 1
        for piece in pieces:
            self._characters += len(piece)
            if not self._count:
                before, nul, _ = piece.partition(SEPARATOR)
                line += before.count("\n")
                self._first = where or f"line {line}" if nul else ""
            self._count += piece.count(SEPARATOR)
            self._behind_first += len(piece) if self._count else 0
            if self._behind_first > _COUNTED:
                self.refuse()
            yield piece

    def refuse(self) -> None:
        """Raises `SdslError` if there was any NUL."""
        some = "at least " if self._behind_first > _COUNTED else ""
        times = (
            "once, in"
            if self._count == 1 and not some
            else f"{some}{self._count:,} times, first in"
        )
        many = self._count > max(1, self._characters / 8)
        binary = " (so many say that it is UTF-16 without a byte-order mark, or no text)" * many
        require(
            not self._count,
            f"{self._what} holds NUL (U+0000) {times} {self._first}{binary}; NUL "
            "ends a document and cannot be part of one: remove it.",
        )


def _without_separators(placed: Iterable[_Placed], what: str) -> Iterator[Iterable[str]]:
    separators = Separators(what)
    for where, pieces in placed:
        yield separators.pass_on(pieces, where)
    separators.refuse()


def _read_txt(path: Path, _: TextColumn) -> Iterator[_Placed]:
    yield "", text_pieces(path, "corpus file")


def _read_jsonl(path: Path, column: TextColumn) -> Iterator[_Placed]:
    for number, line in _lines(path):
        if line.strip():
            where = f"line {number}"
            row = parse_row(line, f"{where} of the corpus file {path}")
            yield where, (_row_text(row, column, where, f"corpus file {path}"),)


def _read_parquet(path: Path, column: TextColumn) -> Iterator[_Placed]:
    import pyarrow
    from pyarrow import parquet

    with reading(path, "corpus file"), open(path, "rb") as opened:
        head = opened.read(64)
        is_ = other_kind(head)
        require(head.startswith(b"PAR1") or is_ is None, f"the corpus file {path} is {is_}.")
        try:
            with parquet.ParquetFile(opened) as file:
                columns = _text_columns(file.schema_arrow, column, path)
                batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    where = f"row {number}"
                    yield where, (_row_text(row, column, where, f"corpus file {path}"),)
        except MemoryError:
            raise
        except UnicodeDecodeError:
            raise SdslError(
                f"the column {_named(column)} of the corpus file {path} is not valid UTF-8."
            ) from None
        except pyarrow.ArrowException as error:
            raise SdslError(
                f"the corpus file {path} is not a valid Parquet file ({reason(error)})."
            ) from None


def _text_columns(schema: Any, column: TextColumn, path: Path) -> list[str]:
    """Those of the columns of text that a table has, at least one."""
    names = list(schema.names)
    columns = [name for name in _columns(column) if name in names]
    _require_text(columns, column, "the table", f"corpus file {path}", names)
    for name in columns:
        require(
            names.count(name) == 1,
            f"the corpus file {path} has {names.count(name)} columns called {name!r}.",
        )
        kind = schema.field(name).type
        value = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
        require(
            str(value) in ("string", "large_string", "string_view"),
            f"the column {name!r} (text_column) of the corpus file {path} is of the type {kind}; it must hold text.",
        )
    return columns


READERS: dict[str, Callable[[Path, TextColumn], Iterator[_Placed]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers."""
    begun: list[str] = []
    number, length = 1, 0
    for piece in text_pieces(path, "corpus file"):
        first, *rest = piece.split("\n")
        begun.append(first)
        length += len(first)
        require(
            length <= LONGEST_LINE,
            f"line {number} of the corpus file {path} is longer than {LONGEST_LINE:,} characters, the most of a row.",
        )
        for line in rest:
            yield number, "".join(begun)
            begun, number, length = [line], number + 1, len(line)
    yield number, "".join(begun)


def parse_row(line: str, where: str) -> Any:
    """The JSON of one line of a .jsonl file.

    Args:
      line: The line.
      where: Where it is, with which messages begin.

    Raises:
      SdslError: The line is not valid JSON.
    """
    line = line.removeprefix(BYTE_ORDER_MARK)  # of a file that was appended to another
    require(
        SEPARATOR not in line,
        f"{where} holds NUL (U+0000): the file is damaged, or UTF-16 without a byte-order mark.",
    )
    require(
        not line.lstrip().startswith("<"),
        f"{where} is not valid JSON (it begins like a web page or XML).",
    )
    return parse_json(line, where)


def _row_text(row: Any, column: TextColumn, where: str, what: str) -> str:
    require(
        isinstance(row, dict),
        f"{where} of the {what} is not a JSON object, one of which must stand in each line.",
    )
    text: Any = next((row[name] for name in _columns(column) if row.get(name) is not None), None)
    _require_text(isinstance(text, str), column, where, what, row)
    require_characters(text, f"{where} of the {what}")
    return text


def _columns(column: TextColumn) -> tuple[str, ...]:
    return (column,) if isinstance(column, str) else column


def _named(column: TextColumn) -> str:
    return " or ".join(map(repr, _columns(column)))


def require_characters(text: str, where: str) -> None:
    """Raises `SdslError`, beginning with `where`, unless a text from JSON can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SdslError(f"{where} holds half a surrogate pair, which is no text.") from None


def few_names(names: Collection[str]) -> str:
    """The names of a row's columns, quoted; enough of many or long names to recognise them."""
    quoted = [name if len(name) <= 40 else f"{name[:40]}…" for name in map(repr, names)]
    return listed(quoted, 8) or "none"


def _require_text(
    condition: object, column: TextColumn, where: str, what: str, names: Collection[str]
) -> None:
    has = "" if {*_columns(column)} & {*names} else f"; it has {few_names(names)}"
    require(
        condition,
        f"{where} of the {what} has no text in the column {_named(column)} (text_column){has}.",
    )
