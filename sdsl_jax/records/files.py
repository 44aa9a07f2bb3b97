"""Reading and writing of record files: CSV beside a schema, and JSON; a file is never seen half-written."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import secrets
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdsl_jax.counts import read_count
from sdsl_jax.csv_table import read_csv
from sdsl_jax.errors import SdslError, require
from sdsl_jax.records.documents import schema_of, to_json
from sdsl_jax.records.tables import MAY_BE_EMPTY, SCHEMA_VERSION, TABLES
from sdsl_jax.user_files import parse_json, read_text


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which replaces `path` when the block ends.

    Readers therefore see either the old file or all of the new one. The temporary path ends like
    `path`, for writers that choose a format by the name.

    Args:
      path: File to write; its folder is created if missing.

    Raises:
      SdslError: The file cannot be written; the old one is still there.
    """
    # A random name, since several processes may write the same file.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise SdslError(f"cannot write {path} ({error.strerror or error}).") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file at once; see `whole_file`.

    Raises:
      SdslError: The file cannot be written.
    """
    with whole_file(path) as temporary:
        # The name of a file may hold bytes that are no text.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes dataclasses and plain values as JSON; numbers that are not finite become null."""
    text = json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path, kind: type = dict, keys: Sequence[str] = ()) -> Any:
    """Reads a JSON file that holds an object with at least some keys, or a list of such objects.

    Args:
      path: Path to the file.
      kind: dict or list.
      keys: Keys that the object, or every object of the list, must have. With keys, a list must
        hold at least one object.

    Raises:
      SdslError: The file is missing or damaged, or holds something else.
    """
    value = parse_json(read_text(path, "record file"), f"the record file {path} is damaged: it")
    objects = value if kind is list and isinstance(value, list) else [value]
    good = isinstance(value, kind) and all(
        isinstance(item, dict) and all(k in item for k in keys) for item in objects
    )
    require(
        good and (objects or not keys),
        f"the record file {path} is damaged: it must hold {'a list of objects' if kind is list else 'an object'} with the keys "
        f"{', '.join(keys) or 'of a record'}.",
    )
    return value


def write_table(folder: Path, name: str, rows: Sequence[Any]) -> None:
    """Writes `<folder>/<name>.csv`, and `<folder>/schema.json` with type and meaning of every column of every table."""
    fields = dataclasses.fields(TABLES[name])
    path = folder / f"{name}.csv"
    lines = [[_text(getattr(row, f.name)) for f in fields] for row in rows]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([[f.name for f in fields], *lines])
    # First, since it tells our tables from those of others.
    write_json(folder / "schema.json", schema())
    write_text(path, buffer.getvalue())


def _text(value: Any) -> str:
    # A number of numpy's is a float as well, and its repr says so.
    return repr(float(value)) if isinstance(value, float) else str(value)


def schema() -> dict[str, Any]:
    """Version, and for every table its columns with type and description."""
    tables = {name: schema_of(row) for name, row in TABLES.items()}
    return {"schema_version": SCHEMA_VERSION, "tables": tables}


def read_table(
    folder: Path, name: str, path: Path | None = None, *, optional: bool = False
) -> list[Any]:
    """Reads `<folder>/<name>.csv` into rows. Columns outside the schema are ignored.

    Args:
      folder: Folder of the records. Its `schema.json`, if there is one, must be of this version.
      name: Name of the table.
      path: Path to the table, if its file has another name.
      optional: Whether a file that is missing stands for a table without rows.

    Raises:
      SdslError: The file is missing or damaged, lacks a required column, or was written with
        another schema version.
    """
    row_type, path = TABLES[name], path or folder / f"{name}.csv"
    if optional and not path.exists():
        return []
    if (folder / "schema.json").exists():
        version = read_json(folder / "schema.json").get("schema_version")
        require(
            version == SCHEMA_VERSION,
            f"the records in {folder} have schema version {version}; this version of sdsl_jax reads {SCHEMA_VERSION}.",
        )
    table = read_csv(path, "record file", full_rows=True, may_be_empty=True)
    required = [f.name for f in dataclasses.fields(row_type) if f.default is dataclasses.MISSING]
    table.require_columns(*required)
    require(
        len(table) or name in MAY_BE_EMPTY, f"the record file {path} is damaged: it holds no rows."
    )
    # Nothing of a record is a comment.
    require(not table.notes, f"the record file {path} is damaged: {'; '.join(table.notes)}.")
    types = {name: kind for name, kind in typing.get_type_hints(row_type).items() if name in table}
    cells = [table.column(column) for column in types]
    rows = []
    for row, line in zip(zip(*cells), table.lines):
        values = {}
        for (column, kind), text in zip(types.items(), row):
            try:
                values[column] = _value(text, kind)
            except (ValueError, OverflowError):
                raise SdslError(
                    f"the record file {path} is damaged: line {line} holds {text[:40]!r} as {column}, "
                    f"which must be of type {kind.__name__}."
                ) from None
        rows.append(row_type(**values))
    return rows


def _value(text: str, kind: type) -> Any:
    """A cell in the type of its column. Counts may be written as in any table: 1e9 or 125M."""
    try:
        return kind(text)
    except ValueError:
        count = None if kind is str else read_count(text)
        if count is None or (kind is int and not count.is_integer()):
            raise
        return kind(count)


def column(rows: Iterable[Any], name: str) -> list[Any]:
    """One column of a table."""
    return [getattr(row, name) for row in rows]
