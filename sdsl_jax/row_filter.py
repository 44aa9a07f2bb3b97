"""Which rows of a table are read: `--where` compares columns, with and, or, not and parentheses.

A filter is parsed by this grammar, and nothing in it is ever evaluated as code:

    either     = both ("or" both)*
    both       = negated ("and" negated)*
    negated    = "not" negated | "(" either ")" | comparison
    comparison = operand (sign operand)+          signs: == != < <= > >=
    operand    = number or count | 'text' | "text" | column | `column with blanks`
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from sdsl_jax.counts import read_count
from sdsl_jax.csv_table import CsvTable, is_missing, listed_names
from sdsl_jax.errors import SdslError, require

_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<column>`[^`]+`)|(?P<text>'[^']*'|"[^"]*")|(?P<sign>==|!=|<=|>=|<|>)|(?P<mark>[()])"""
    r"""|(?P<word>[^\s()<>=!'"`&|;]+))"""
)
_DEEPEST = 50

Cells = Mapping[str, str]
# Whether a row is kept, from its cells and the line that messages name.
Test = Callable[[Cells, int], bool]
Operand = Callable[[Cells], str]


def filtered(table: CsvTable, text: str) -> tuple[CsvTable, str]:
    """The rows of a table that a filter keeps, and a sentence on how many they are.

    Two operands that are numbers are compared as numbers, others as text, which can only be equal
    or not. A missing cell is neither smaller nor larger than anything.

    Args:
      table: The table.
      text: The filter, such as `params >= 1e8 and (role == 'draft' or not seed == 0)`.

    Raises:
      SdslError: The filter cannot be parsed, names a column that does not exist, compares texts by
        size, or keeps no row.
    """
    parser = _Parser(text, table)
    test = parser.parse()
    used = [(name, table.names.index(name)) for name in parser.columns]
    kept = [
        test({name: row[at] for name, at in used}, line)
        for row, line in zip(table.rows, table.lines)
    ]
    require(any(kept), f"--where {text!r} keeps none of the {len(table)} rows of {table.path}.")
    return table.rows_where(
        kept
    ), f"{sum(kept)} of {len(kept)} rows are fitted, those with {text.strip()}"


class _Parser:
    def __init__(self, text: str, table: CsvTable):
        self.text, self.table = text, table
        self.columns: set[str] = set()
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise self.error(f"cannot be read at {text[at:].strip()[:20]!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self.at = 0

    def error(self, why: str) -> SdslError:
        return SdslError(
            f"--where {self.text!r} {why}; write comparisons (==, !=, <, <=, >, >=) joined by and, or, not and parentheses, "
            "texts in quotes."
        )

    def parse(self) -> Test:
        test = self.either(0)
        if self.at < len(self.tokens):
            raise self.error(f"has no and or or before {self.tokens[self.at][1]!r}")
        return test

    def word(self, text: str) -> bool:
        """Steps over a word or a parenthesis if it is the next token; returns whether it did."""
        kind, value = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        taken = kind in ("word", "mark") and value.lower() == text
        self.at += taken
        return taken

    def either(self, depth: int) -> Test:
        tests = [self.both(depth)]
        while self.word("or"):
            tests.append(self.both(depth))
        return (
            tests[0]
            if len(tests) == 1
            else lambda cells, line: any(test(cells, line) for test in tests)
        )

    def both(self, depth: int) -> Test:
        tests = [self.negated(depth)]
        while self.word("and"):
            tests.append(self.negated(depth))
        return (
            tests[0]
            if len(tests) == 1
            else lambda cells, line: all(test(cells, line) for test in tests)
        )

    def negated(self, depth: int) -> Test:
        require(depth < _DEEPEST, f"--where is nested more than {_DEEPEST} deep.")
        if self.word("not"):
            test = self.negated(depth + 1)
            return lambda cells, line: not test(cells, line)
        if self.word("("):
            test = self.either(depth + 1)
            if not self.word(")"):
                raise self.error("lacks a closing parenthesis")
            return test
        return self.comparison()

    def comparison(self) -> Test:
        left = self.operand()
        parts: list[tuple[Operand, str, Operand]] = []
        while self.at < len(self.tokens) and self.tokens[self.at][0] == "sign":
            sign = self.tokens[self.at][1]
            self.at += 1
            right = self.operand()
            parts.append((left, sign, right))
            left = right
        if not parts:
            raise self.error(f"has no comparison after {self.tokens[self.at - 1][1]!r}")
        return lambda cells, line: all(
            self.compare(a(cells), sign, b(cells), line) for a, sign, b in parts
        )

    def operand(self) -> Operand:
        kind, value = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind not in ("column", "text", "word") or (
            kind == "word" and value.lower() in ("and", "or", "not")
        ):
            raise self.error(
                f"lacks a column or a value {f'before {value!r}' if value else 'at its end'}"
            )
        self.at += 1
        if kind == "text" or (kind == "word" and read_count(value) is not None):
            constant = value[1:-1] if kind == "text" else value
            return lambda cells: constant
        name = value[1:-1].strip() if kind == "column" else value
        require(
            name in self.table,
            f"--where names {name}, which is no column of {self.table.path} (it has {listed_names(self.table.names)}); put a "
            "text in quotes, and a column with blanks in its name in backticks.",
        )
        self.table.require_columns(name)
        self.columns.add(name)
        return lambda cells: cells[name]

    def compare(self, left: str, sign: str, right: str, line: int) -> bool:
        a, b = read_count(left), read_count(right)
        if a is not None and b is not None:
            return _SIGNS[sign](a, b)
        if sign in ("==", "!="):
            return _SIGNS[sign](left.strip(), right.strip())
        if is_missing(left) or is_missing(right):
            return False
        raise SdslError(
            f"--where compares {left!r} {sign} {right!r} in line {line} of {self.table.path}, and only numbers have an "
            "order; leave such rows out first, as in x != 'text' and x < 3."
        )
