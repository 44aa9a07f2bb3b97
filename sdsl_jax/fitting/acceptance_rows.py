"""Acceptance as others publish it, read from tables: a row for each draft, target, domain and lookahead.

Tables of serving engines and papers state tokens per round ("acceptance length"), survival, or α,
and leave many cells empty. What a row does not say is no error here: rows are left out, and a note
says how many and why. Impossible numbers are refused with their line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sdsl_jax.counts import read_number
from sdsl_jax.csv_table import CsvTable, is_missing, listed_lines
from sdsl_jax.errors import require
from sdsl_jax.fitting.acceptance_lengths import LengthTable, length_table
from sdsl_jax.fitting.domain_levels import LevelTable
from sdsl_jax.fitting.tables import TableSource, open_table
from sdsl_jax.row_filter import filtered
from sdsl_jax.theory import acceptance_from_tokens_per_round

# Columns that tell one series of lookaheads from another, where a table has them.
SERIES_COLUMNS = ("source_id", "method", "draft", "target", "domain", "temperature")
KIND, LOOKAHEAD, LENGTH, SURVIVAL, TREE = (
    "method",
    "gamma",
    "acceptance_length",
    "survival",
    "topk",
)
# An α nearer to 0 or 1 has no useful logit.
_EDGE = 1e-3


class AcceptanceRows(NamedTuple):
    """Rows of a table that state acceptance.

    Attributes:
      columns: Cells of each column that the table has, by name; "" where a cell says nothing. Names
        that differ only in blanks and capitals count as one, in the spelling of the first.
      lookahead: γ of each row; 0 where it is not stated.
      tokens_per_round: τ of each row; NaN where it is not stated.
      survival: S_1, S_2, … of each row; empty where they are not stated.
      alpha: α of each row; NaN where it is not stated.
      lines: Line of the file of each row.
      notes: What was left out, a sentence each.
    """

    columns: dict[str, list[str]]
    lookahead: np.ndarray
    tokens_per_round: Float[np.ndarray, " n"]
    survival: list[list[float]]
    alpha: Float[np.ndarray, " n"]
    lines: np.ndarray
    notes: list[str]

    def rows(self, kept: np.ndarray, note: str = "") -> AcceptanceRows:
        """Some of the rows, and a note on the others, in which {n} and {lines} stand for them."""
        if kept.all():
            return self
        out = [int(line) for line, keep in zip(self.lines, kept) if not keep]
        chosen = np.flatnonzero(kept)
        said = note.format(n=len(out), lines=listed_lines(out))
        return AcceptanceRows(
            {name: [cells[i] for i in chosen] for name, cells in self.columns.items()},
            self.lookahead[chosen],
            self.tokens_per_round[chosen],
            [self.survival[i] for i in chosen],
            self.alpha[chosen],
            self.lines[chosen],
            [*self.notes, *([said] if note else [])],
        )

    def labels(self, *names: str) -> list[tuple[str, ...]]:
        """The cells of those of these columns that the table has, row by row."""
        there = [self.columns[name] for name in names if name in self.columns]
        return [*zip(*there)] if there else [()] * len(self.lookahead)


def read_acceptance_rows(source: TableSource, where: str = "") -> AcceptanceRows:
    """Reads acceptance lengths, survival or α, and what they belong to.

    Args:
      source: Path to a CSV, a pandas DataFrame, or rows as dictionaries. Columns that are read,
        where it has them: gamma, acceptance_length (the bonus token included), survival
        (S_1 S_2 …, separated by blanks or semicolons, or as a JSON list), alpha, topk, and those
        that say what a row is about.
      where: Rows to read, as `row_filter` describes; all if empty.

    Raises:
      SdslError: The table cannot be read, states no acceptance, or holds impossible values.
    """
    table = open_table(source, "acceptance.csv")
    notes = list(table.notes)
    if where.strip():
        table, note = filtered(table, where)
        notes.append(note)
    require(
        any(name in table for name in (LENGTH, SURVIVAL, "alpha")),
        f"{table.path} has no column acceptance_length, survival or alpha, one of which states the acceptance.",
    )
    names = [name for name in dict.fromkeys(table.names) if name]
    columns = {
        name: _same_names(table.column(name)) for name in names if table.names.count(name) == 1
    }
    tree = _numbers(table, TREE, lambda x: x >= 0, "a number of branches")
    gamma = _numbers(
        table, LOOKAHEAD, lambda x: x >= 0 and x == int(x), "a whole number of drafted tokens"
    )
    tau = _numbers(
        table, LENGTH, lambda x: x >= 1, "tokens per round, bonus token included: 1 or more"
    )
    alpha = _numbers(table, "alpha", lambda x: 0 <= x <= 1, "a share such as 0.7")
    survival = _survival(table)
    lookahead = np.nan_to_num(gamma).astype(int)
    wrong = (tau > lookahead + 1) & (lookahead > 0) & ~(tree > 1)
    require(
        not wrong.any(),
        f"{table.path}: line {np.asarray(table.lines)[wrong][:1].sum()} states {tau[wrong][:1].sum():g} tokens per round "
        f"with {lookahead[wrong][:1].sum()} drafted tokens; a chain emits at most one more than it drafts.",
    )
    rows = AcceptanceRows(columns, lookahead, tau, survival, alpha, np.asarray(table.lines), notes)
    rows = rows.rows(
        ~(tree > 1),
        "{n} rows draft a tree (topk above 1) and are left out: these laws are of chains",
    )
    states = ~np.isnan(rows.tokens_per_round) | ~np.isnan(rows.alpha)
    states |= np.asarray([len(s) > 0 for s in rows.survival], bool)
    rows = rows.rows(states, "{n} rows state no acceptance and are left out")
    require(
        len(rows.lookahead) > 0, f"{table.path} holds no row that states the acceptance of a chain."
    )
    return rows


def _same_names(cells: list[str]) -> list[str]:
    """Cells with one spelling for each name, whatever its blanks and capitals."""
    spelling: dict[str, str] = {}
    return [
        "" if is_missing(cell) else spelling.setdefault(re.sub(r"\s", "", cell).casefold(), cell)
        for cell in cells
    ]


def _numbers(
    table: CsvTable, name: str, allowed: Callable[[float], bool], what: str
) -> Float[np.ndarray, " n"]:
    """A column of numbers, NaN where a cell is empty or there is no such column."""
    values = np.full(len(table), np.nan)
    if name not in table:
        return values
    for i, (cell, line) in enumerate(zip(table.column(name), table.lines)):
        if is_missing(cell):
            continue
        value = read_number(cell)
        require(
            value is not None and np.isfinite(value) and allowed(value),
            f"{table.path}: line {line} holds {cell[:40]!r} as {name}; it must be {what}.",
        )
        values[i] = value
    return values


def _survival(table: CsvTable) -> list[list[float]]:
    if SURVIVAL not in table:
        return [[] for _ in range(len(table))]
    found = []
    for cell, line in zip(table.column(SURVIVAL), table.lines):
        values: list[float] = []
        if not is_missing(cell):
            try:
                listed = json.loads(cell) if cell.startswith("[") else re.split(r"[;,\s|]+", cell)
                values = [float(x) for x in listed if x != ""]
            except (ValueError, TypeError):
                values = [np.nan]
            require(
                bool(np.all(np.isfinite(values)))
                and all(0 <= b <= a <= 1 for a, b in zip([1.0, *values], values)),
                f"{table.path}: line {line} holds {cell[:40]!r} as survival; it must be shares of rounds that do not rise, "
                "such as 0.8 0.6 0.4.",
            )
        found.append(values)
    return found


class Lengths(NamedTuple):
    """Tokens per round by series, and the rows that they came from."""

    table: LengthTable
    rows: AcceptanceRows

    def part(self, name: str) -> list[str]:
        """The cell of a column for each series.

        Raises:
          SdslError: The table has no such column, or a series has several values of it.
        """
        cells: dict[Hashable, set[str]] = {}
        found = self.rows.columns.get(name, [])
        for label, cell in zip(self.rows.labels(*SERIES_COLUMNS), found):
            cells.setdefault(label, set()).add(cell)
        known = ", ".join(c for c in SERIES_COLUMNS if c in self.rows.columns) or "none"
        require(
            bool(cells),
            f"the table has no column {name}; its columns that tell one series from another are: {known}.",
        )
        require(
            all(len(values) == 1 for values in cells.values()),
            f"{name} differs between rows of one series; only what a whole series has in common can be left out, "
            f"and the table's columns that tell one series from another are: {known}.",
        )
        return [min(cells[label]) for label in self.table.labels]

    @property
    def kinds(self) -> list[str]:
        """Kind of drafter of each series; "all" where the table does not tell kinds apart."""
        return self.part(KIND) if KIND in self.rows.columns else ["all"] * len(self.table.labels)


def series_of_lengths(rows: AcceptanceRows) -> Lengths:
    """Tokens per round of each series (draft, target, domain) at each lookahead.

    Survival S_1 … S_K of a row gives τ at every lookahead up to K, as if S_k did not depend on the
    lookahead.

    Args:
      rows: Of `read_acceptance_rows`.

    Raises:
      SdslError: No row states tokens per round at a lookahead, or survival.
    """
    by_survival = np.asarray([len(s) > 0 for s in rows.survival], bool)
    by_length = ~np.isnan(rows.tokens_per_round) & (rows.lookahead > 0)
    rows = rows.rows(
        by_survival | by_length,
        "{n} rows state no tokens per round at a lookahead and are left out",
    )
    require(
        len(rows.lookahead) > 0,
        "no row states tokens per round with a lookahead (acceptance_length and gamma), or survival.",
    )
    labels, gammas, taus = [], [], []
    for i, label in enumerate(rows.labels(*SERIES_COLUMNS)):
        steps = [(int(rows.lookahead[i]), float(rows.tokens_per_round[i]))]
        if rows.survival[i]:
            steps = [*enumerate((1 + np.cumsum(rows.survival[i])).tolist(), start=1)]
        for gamma, tau in steps:
            labels.append(label)
            gammas.append(gamma)
            taus.append(tau)
    return Lengths(length_table(labels, gammas, taus), rows)


class Levels(NamedTuple):
    """Logits of acceptance with their factors, and the rows that they came from."""

    table: LevelTable
    rows: AcceptanceRows
    alpha: Float[np.ndarray, " n"]


# Factors with random levels, where a table has them and they have more than one level.
_FACTORS = ("domain", "target", "draft")
# Fixed parts: a coefficient for each further value, and slopes.
_KINDS = ("method", "gamma", "temperature")
_SLOPES = {"draft_loss": ("draft_slope", -1.0), "target_loss": ("target_slope", 1.0)}


def rows_of_levels(rows: AcceptanceRows) -> Levels:
    """logit α by domain, target and draft, and by kind of drafter.

    α is inverted from tokens per round at the row's lookahead, or else taken from the column alpha.
    If every row states draft_loss and target_loss, the fixed part is the logit plane.

    Args:
      rows: Of `read_acceptance_rows`.

    Raises:
      SdslError: There is no column domain, it has one value only, or no domain has two rows.
    """
    require(
        "domain" in rows.columns, "the table has no column domain, whose levels are to be fitted."
    )
    by_length = ~np.isnan(rows.tokens_per_round) & (rows.lookahead > 0)
    usable = (by_length | ~np.isnan(rows.alpha)) & np.asarray(
        [bool(name) for name in rows.columns["domain"]], bool
    )
    rows = rows.rows(usable, "{n} rows state no domain, or no α and no length, and are left out")
    by_length = ~np.isnan(rows.tokens_per_round) & (rows.lookahead > 0)
    alpha = rows.alpha.copy()
    if by_length.any():
        alpha[by_length] = np.asarray(
            acceptance_from_tokens_per_round(
                rows.tokens_per_round[by_length], rows.lookahead[by_length].astype(float)
            ),
            float,
        )
    # A table that repeats one number for every load has measured it once.
    keys = [
        *zip(
            *(rows.columns.get(name, [""] * len(alpha)) for name in (*_FACTORS, *_KINDS)),
            alpha.tolist(),
        )
    ]
    first = np.asarray([keys.index(key) == i for i, key in enumerate(keys)])
    rows, alpha = rows.rows(first, "{n} rows repeat another one and count once"), alpha[first]
    edge = (alpha < _EDGE) | (alpha > 1 - _EDGE)
    if edge.any():
        rows.notes.append(
            f"{edge.sum()} acceptances lie within {_EDGE:g} of 0 or 1 and are moved there"
        )
    alpha = np.clip(alpha, _EDGE, 1 - _EDGE)
    count = len(alpha)
    domains = len(set(rows.columns["domain"]))
    require(
        domains > 1,
        f"the table states the acceptance of {domains} domain{'s' * (domains != 1)}; levels of domains need at least 2.",
    )
    require(
        domains < count,
        f"the table states one acceptance for each of its {domains} domains; levels need a domain with two rows "
        "or more, and rows that repeat another one count once.",
    )
    fixed, names = [np.ones(count)], ["level"]
    for name in _KINDS:
        values = rows.columns.get(name, [""] * count)
        for value in list(dict.fromkeys(values))[1:]:
            fixed.append(np.asarray([v == value for v in values], float))
            names.append(f"{name} {value or 'not stated'}")
    slopes = {name: [read_number(c) for c in rows.columns.get(name, [])] for name in _SLOPES}
    if all(values and None not in values for values in slopes.values()):
        for name, (slope, sign) in _SLOPES.items():
            fixed.append(sign * np.asarray(slopes[name], float))
            names.append(slope)
    factors: dict[str, list[Hashable]] = {}
    for name in _FACTORS:
        labels: list[Hashable] = list(rows.columns.get(name, []))
        if 1 < len(set(labels)) < count:
            factors[name] = labels
    table = LevelTable(np.log(alpha / (1 - alpha)), np.stack(fixed, axis=1), tuple(names), factors)
    return Levels(table, rows, alpha)
