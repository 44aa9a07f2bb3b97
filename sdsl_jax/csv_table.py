"""Tables that users bring: columns of text by name, each row with its line in the file.

A row is never shifted against the header: cells beyond it must be empty, and a column without a
name is never read. Nothing here imports jax.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdsl_jax.counts import LARGEST, read_count, read_number
from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import share_hint
from sdsl_jax.user_files import read_text, reason

# Characters and rows of a table; a few kilobytes of a compressed one can stand for gigabytes.
_LARGEST_TEXT = 64 << 20
_MOST_ROWS = 1_000_000
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SEPARATOR_NAMES = ", ".join(_SEPARATORS.values())
# What stands in a cell that has nothing to say, in lower case.
_MISSING = frozenset(
    {"", "na", "n/a", "#n/a", "nan", "<na>", "null", "none", "nil", "-", "--", "–", "—", "?"}
)
_OTHER_FORMATS = (
    (re.compile(r"\{|\[\s*[\[{]"), "JSON; write it as CSV"),
    (re.compile(r"<"), "HTML or XML; save the table as CSV"),
    (re.compile(r"\|"), "a Markdown table; save it as CSV"),
)
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # the first line of some spreadsheets' CSV
# Units that the names of columns state: params (M), tokens_B, size [millions].
_UNIT = re.compile(
    r"[\s_(\[](?P<unit>k|m|b|bn|t|thousand|million|billion|trillion)s?[)\]]?$", re.IGNORECASE
)
# Numbers in such a unit are smaller than any that are not.
_LARGEST_IN_UNITS = 1e5
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)
_ONE_GROUP = re.compile(r"[+-]?\d{1,3},\d{3}")
# Thousands as other countries separate them: by points, apostrophes and blanks of any width.
_OTHER_GROUPS = re.compile(r"\d{1,3}(?:(?:\.\d{3}){2,}|(?:['’]\d{3})+|(?:\s\d{3})+)")
_MOST_LISTED = 12


def is_missing(cell: str) -> bool:
    """Whether a cell is empty or says that its value is unknown, such as NA."""
    return cell.strip().lower() in _MISSING


def listed_names(names: Sequence[str]) -> str:
    """Names for a message, in quotes if they have blanks or signs."""
    shown = [
        name if re.fullmatch(r"[\w./:-]+", name) else repr(name) for name in names[:_MOST_LISTED]
    ]
    return ", ".join(shown) + (", …" if len(names) > _MOST_LISTED else "")


def listed_lines(lines: Sequence[int]) -> str:
    """Lines of a file for a message: "line 3", "lines 3, 9 and 12", or the first few of many."""
    shown = [str(line) for line in sorted(set(lines))]
    if len(shown) > _MOST_LISTED:
        return f"lines {', '.join(shown[:_MOST_LISTED])}, …"
    return (
        f"line {shown[0]}" if len(shown) == 1 else f"lines {', '.join(shown[:-1])} and {shown[-1]}"
    )


@dataclass(frozen=True)
class CsvTable:
    """A table.

    Attributes:
      path: Path to the file.
      names: Names of the columns in order, without surrounding blanks; "" where the header has
        none.
      rows: Cells of each row, one for each name, without surrounding blanks.
      lines: Line of the file at which each row begins.
      separator: What separates the cells, in words.
      notes: What was skipped in reading.
    """

    path: Path
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    separator: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return bool(name) and name in self.names

    def require_columns(self, *names: str) -> None:
        """Raises `SdslError` unless the table has each of these columns exactly once."""
        by = "" if self.separator == "commas" else f", its cells separated by {self.separator}"
        s = "s" * (sum(name not in self.names for name in names) > 1)
        named = [name for name in self.names if name]
        missing = [name for name in names if name not in named]
        blank = len(self.names) == 1 and re.search(r"\s", self.names[0])
        hint = "; separate its columns by commas" if missing and blank else ""
        require(
            not missing,
            f"{self.path} lacks the column{s} {listed_names(missing)}; it has {listed_names(named) or 'no names'}{by}{hint}.",
        )
        for name in names:
            count = named.count(name)
            require(
                count == 1,
                f"{self.path} has {count} columns called {name}; rename or remove all but one.",
            )

    def column(self, name: str) -> list[str]:
        """The cells of a column.

        Raises:
          SdslError: There is no such column, or more than one.
        """
        self.require_columns(name)
        at = self.names.index(name)
        return [row[at] for row in self.rows]

    def rows_where(self, kept: Sequence[bool] | np.ndarray) -> CsvTable:
        """The table with some of its rows."""
        chosen = [i for i, keep in enumerate(kept) if keep]
        return replace(
            self, rows=[self.rows[i] for i in chosen], lines=[self.lines[i] for i in chosen]
        )

    def counts(self, name: str, largest: float = LARGEST) -> np.ndarray:
        """A column of counts such as 125M, 1e9 or 13,000,000,000, as floats [rows].

        Raises:
          SdslError: There is no such column; a cell holds no positive number, or one above
            `largest`; or the column's name states a unit that its cells leave out.
        """
        values = self._numbers(name, read_count, largest)
        at = _UNIT.search(name)
        if at and len(values) and values.max() < _LARGEST_IN_UNITS:
            example, suffix = self.column(name)[0], at["unit"][0].upper().replace("K", "k")
            raise SdslError(
                f"{self.path}: the name of the column {name!r} states a unit ({at['unit']}), and its cells, such as "
                f"{example}, do not; write {example}{suffix}."
            )
        return values

    def numbers(self, name: str) -> np.ndarray:
        """A column of positive numbers, as floats [rows].

        Raises:
          SdslError: There is no such column, or a cell holds no positive number.
        """
        return self._numbers(name, read_number)

    def amounts(self, name: str) -> np.ndarray:
        """A column of numbers of 0 or more, as floats [rows].

        Raises:
          SdslError: There is no such column, or a cell holds no such number.
        """
        return self._numbers(name, read_number, zero=True)

    def shares(self, name: str) -> np.ndarray:
        """A column of numbers in [0, 1], as floats [rows].

        Raises:
          SdslError: There is no such column, or a cell holds no such number.
        """
        return self._numbers(name, read_number, 1.0, share=True)

    def is_unclear(self, cell: str) -> bool:
        """Whether a cell such as 1,300 may have a decimal comma, because commas do not separate the
        cells.
        """
        return self.separator != "commas" and bool(_ONE_GROUP.fullmatch(cell))

    def _numbers(
        self,
        name: str,
        read: Callable[[str], float | None],
        largest: float = np.finfo(float).max,
        share: bool = False,
        zero: bool = False,
    ) -> np.ndarray:
        cells = self.column(name)
        values = []
        for cell, line in zip(cells, self.lines):
            value = read(cell)
            allowed = (
                value is not None
                and (value > 0 or ((share or zero) and value == 0))
                and value <= largest
            )
            if value is None or self.is_unclear(cell) or not allowed:
                quote = '"' if "'" in cell else "'"
                held = f"{quote}{cell[:40]}{quote}" if cell else "nothing"
                rule = "a number in [0, 1]" if share else "a positive number"
                rule = "0 or a positive number" if zero else rule
                if value is not None and value > largest and not share:
                    rule += f", and at most {largest:g}"
                hint = self._hint(cell, value, share)
                if (
                    not hint
                    and value is None
                    and 2 * sum(read(other) is not None for other in cells) > len(cells)
                ):
                    column = name if re.fullmatch(r"[\w.]+", name) else f"`{name}`"
                    hint = f"; --where '{column} != \"{cell}\"' leaves such rows out" * (
                        not set(cell) & set("\"'")
                    )
                raise SdslError(
                    f"{self.path}: line {line} holds {held} as {name}; it must be {rule}{hint}."
                )
            values.append(value)
        return np.asarray(values, float)

    def _hint(self, cell: str, value: float | None, share: bool) -> str:
        """What to write instead of an unusable cell, if that can be guessed."""
        if is_missing(cell):
            return "; --skip-incomplete leaves such rows out"
        if share and value is None and cell.endswith("%"):
            value = read_number(cell[:-1])
            return "" if value is None else f"; write it as a share: {value / 100:g}"
        if share and value is not None:
            return share_hint(value)
        if _DECIMAL_COMMA.fullmatch(cell) and (value is None or self.separator != "commas"):
            return f"; write a decimal point, as in {cell.replace(',', '.')}"
        if _OTHER_GROUPS.fullmatch(cell):
            return f"; write it without separators, {re.sub('[^0-9]', '', cell)}"
        return ""


class _Row(NamedTuple):
    line: int
    cells: list[str]


def read_csv(
    path: str | Path,
    what: str = "table",
    *,
    lower: bool = False,
    full_rows: bool = False,
    may_be_empty: bool = False,
) -> CsvTable:
    """Reads a table of text with a header, compressed or not.

    Cells are separated by commas, semicolons, tabs or vertical bars, whichever splits the header
    into the most cells. Quoted cells may hold separators and line ends. Empty rows and lines that
    begin with # are skipped.

    Args:
      path: Path to the file.
      what: What messages call it.
      lower: Whether to put names of columns into lower case.
      full_rows: Whether to refuse a row with fewer cells than the header; otherwise the rest of the
        row is missing.
      may_be_empty: Whether a header alone is enough.

    Raises:
      SdslError: The file cannot be read, is no table, holds no rows, or has a row that does not fit
        the header.
    """
    path = Path(path)
    text = read_text(path, what, limit=_LARGEST_TEXT)
    require(text.strip(), f"the {what} {path} is empty.")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SdslError(
            f"the {what} {path} is not text: line {line} holds a NUL character (UTF-16 without a byte-order mark, perhaps); "
            "save it as UTF-8."
        )
    other = next((name for pattern, name in _OTHER_FORMATS if pattern.match(text.lstrip())), None)
    require(other is None, f"the {what} {path} is {other}.")
    start, separator = _header_start(text)
    rows = _parsed(text, start, separator, f"the {what} {path}")
    header = next(rows, None)
    require(header is not None, f"the {what} {path} holds only comments.")
    assert header is not None
    names = [" ".join(name.split()) for name in header.cells]
    filled = [name for name in names if name]
    require(
        not all(read_number(name) is not None for name in filled),
        f"the {what} {path} has no header: line {header.line}, the first, holds {listed_names(filled)}, and must hold the names "
        "of the columns.",
    )
    body = []
    for row in rows:
        body.append(row)
        require(
            len(body) <= _MOST_ROWS,
            f"the {what} {path} holds more than {_MOST_ROWS:,} rows, the most that is read.",
        )
    comments = [row for row in body if row.cells[0].startswith("#")]
    if len(comments) == len(body):  # names of rows, such as #1
        comments = []
    body = [row for row in body if not (comments and row.cells[0].startswith("#"))]
    require(body or may_be_empty, f"the {what} {path} holds no rows below its header.")
    while (
        len(names) > 1
        and not names[-1]
        and all(not any(row.cells[len(names) - 1 :]) for row in body)
    ):
        names.pop()  # a separator at the end of the header
    for row in body:
        if full_rows and len(row.cells) < len(names):
            raise SdslError(
                f"the {what} {path} is damaged: line {row.line} holds {len(row.cells)} cells, fewer than its {len(names)} "
                "columns."
            )
        _fit(row, names, header.line, f"the {what} {path}")
    notes = []
    if comments:
        notes.append(
            f"what begins with # is left out as a comment: {listed_lines([row.line for row in comments])}"
        )
    return CsvTable(
        path,
        tuple(name.lower() if lower else name for name in names),
        [row.cells for row in body],
        [row.line for row in body],
        _SEPARATORS[separator],
        tuple(notes),
    )


def _fit(row: _Row, names: list[str], header_line: int, where: str) -> None:
    """Gives a row exactly one cell for each name.

    Raises:
      SdslError: It holds something beyond the header, or under an empty heading.
    """
    width = len(names)
    surplus = len(row.cells) - width
    if surplus > 0 and any(row.cells[width:]):
        raise SdslError(
            f"{where}: line {row.line} holds {len(row.cells)} cells, more cells than columns (line {header_line} names {width}); "
            "a cell with a separator in it needs quotes, and every column a name."
        )
    row.cells[width:] = []
    row.cells.extend([""] * (width - len(row.cells)))
    # The first column may be the numbers of the rows, which some programs write without a heading.
    for i in range(1, width):
        require(
            names[i] or not row.cells[i],
            f"{where}: column {i + 1} has no name in line {header_line}, but line {row.line} holds {row.cells[i][:40]!r} in it.",
        )


def _header_start(text: str) -> tuple[int, str]:
    """Where the header begins, and the separator that splits it into the most cells; a comma if in
    doubt.
    """
    start, stated = 0, ""
    while start < len(text):
        end = text.find("\n", start)
        line = text[start : len(text) if end < 0 else end].strip()
        first = _SEPARATOR_LINE.fullmatch(line) if not start else None
        if first:
            stated = first[1]
        elif line and not line.startswith("#"):
            break
        start = len(text) if end < 0 else end + 1
    if stated in _SEPARATORS:
        return start, stated
    head = text[start : start + csv.field_size_limit()]

    def cells(separator: str) -> int:
        try:
            row: list[str] = next(
                csv.reader(
                    io.StringIO(head, newline="\n"), delimiter=separator, skipinitialspace=True
                ),
                [],
            )
        except csv.Error:
            return 0
        return sum(bool(cell.strip()) for cell in row)

    return start, max(_SEPARATORS, key=cells)


def _parsed(text: str, start: int, separator: str, where: str) -> Iterator[_Row]:
    """Rows with any content, their cells without blanks around them."""
    before = text.count("\n", 0, start)
    file = io.StringIO(text, newline="\n")
    file.seek(start)
    reader = csv.reader(file, delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    while True:
        line = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quote is not closed" if "end of data" in str(error) else reason(error)
            if "expected after" in why:
                why = f"what follows a quoted cell is none of the separators {_SEPARATOR_NAMES}"
            raise SdslError(
                f"{where} is damaged or not a CSV: the row of line {line} cannot be parsed ({why})."
            ) from None
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield _Row(line, cells)


def value_key(cell: str) -> float | str:
    """What a cell is compared by: its number if it is one, so that 1 and 1.0 are equal, or else its
    text.
    """
    value = read_number(cell)
    return cell.strip() if value is None else value


def frequent_values(cells: Sequence[str]) -> list[str]:
    """The different values of a column, the most frequent first. Missing cells do not count; 1 and
    1.0 are one value.
    """
    first: dict[float | str, str] = {}
    for cell in cells:
        if not is_missing(cell):
            first.setdefault(value_key(cell), cell)
    counted = Counter(value_key(cell) for cell in cells if not is_missing(cell))
    return [first[key] for key, _ in counted.most_common()]
