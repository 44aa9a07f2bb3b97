"""Tables of users, and records of studies, read for the fits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sdsl_jax.counts import read_number
from sdsl_jax.csv_table import (
    CsvTable,
    frequent_values,
    is_missing,
    listed_lines,
    listed_names,
    read_csv,
    value_key,
)
from sdsl_jax.errors import SdslError, require
from sdsl_jax.fitting.acceptance import PairTable, pair_table
from sdsl_jax.fitting.loss import LossTable, require_one_objective
from sdsl_jax.records import AcceptanceRecord, ModelRecord, read_table
from sdsl_jax.row_filter import filtered
from sdsl_jax.theory import ModelPoint

# Columns of a table of pairs that stands by itself.
PAIR_COLUMNS = ("draft_params", "draft_loss", "target_params", "target_loss", "alpha")
# A table of a user does not say what its sizes count.
_OWN_COUNT = "the table's"
# Training FLOPs of a token for each parameter, as Kaplan et al. count them.
_FLOPS_PER_TOKEN = 6.0
_LARGEST_FLOPS = 1e36

LossUnit = Literal["nats", "bits", "perplexity"]
# Words in the name of a column that state the unit of its losses.
_UNITS_OF_LOSS = {
    "perplexity": {"ppl", "pplx", "perplexity", "perplexities"},
    "bits per byte": {"bpb", "bpc", "byte", "bytes", "char", "chars"},
    "bits": {"bit", "bits", "bpt"},
    "nats": {"nat", "nats", "nll"},
}


@dataclass(frozen=True)
class Choice:
    """Which rows of a table are read, and how.

    Attributes:
      where: Rows to read, as `row_filter` describes; all if empty.
      skip_incomplete: Leave out rows that lack a needed value, instead of refusing the table.
      loss_unit: Unit of the losses in the table, per token. They are converted to nats.
      objective: Objective of the drafts that are read, "text" for those trained on the text alone;
        empty if the table holds one kind only.
    """

    where: str = ""
    skip_incomplete: bool = False
    loss_unit: LossUnit = "nats"
    objective: str = ""


class ReadTable(NamedTuple):
    """A table as it was read.

    Attributes:
      table: A `LossTable` or a `PairTable`.
      lines: Line of the file of each row.
      params_count: What its sizes count.
      notes: What was chosen or left out in reading it, a sentence each.
    """

    table: Any
    lines: np.ndarray
    params_count: str
    notes: list[str]


# A path to a CSV, a pandas DataFrame, or rows as dictionaries.
TableSource = Any


def open_table(source: TableSource, in_folder: str) -> CsvTable:
    """A table of text from a file, a folder of records, a pandas DataFrame, or rows as dictionaries.

    Args:
      source: The table.
      in_folder: Name of the file to read in a folder.

    Raises:
      SdslError: The file cannot be read, or there are no rows.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        return read_csv(path / in_folder if path.is_dir() else path)
    rows = source.to_dict("records") if hasattr(source, "to_dict") else [*source]
    names = list(dict.fromkeys(name for row in rows for name in row))
    require(rows, "the table holds no rows.")

    def cell(value: Any) -> str:
        return "" if value is None or value != value else str(value).strip()

    cells = [[cell(row.get(name)) for name in names] for row in rows]
    lines = list(range(1, len(rows) + 1))
    return CsvTable(Path("the table"), tuple(map(str, names)), cells, lines, "commas")


def span(values: Any) -> tuple[float, float]:
    """The smallest and the largest value: where a law was fitted."""
    return float(min(values)), float(max(values))


def read_loss_table(
    source: TableSource,
    params_column: str,
    tokens_column: str,
    loss_column: str,
    rung_column: str,
    max_epochs: float,
    flops_column: str = "",
    choice: Choice = Choice(),
) -> ReadTable:
    """A table of trained models: a row each, with at least its size, its training tokens and its
    loss.

    Args:
      source: The table; `models.csv` of a study as it is.
      params_column: Column with the sizes N.
      tokens_column: Column with the training tokens D; not read if there is a `flops_column`.
      loss_column: Column with the losses.
      rung_column: Column with the name of the training run. If empty, rows of one size (and, in our
        records, one role and seed) count as one run.
      max_epochs: Rows whose column `epochs`, if there is one, exceeds it are left out.
      flops_column: Column with the training FLOPs C, from which D = C/(6N).
      choice: Which rows are read, and in which unit.

    Raises:
      SdslError: The table cannot be read, lacks a column, or holds a value that is not a positive
        number.
    """
    read = {"--params-column": params_column, "--loss-column": loss_column}
    read["--flops-column" if flops_column else "--tokens-column"] = flops_column or tokens_column
    flags = list(read)
    for i, first in enumerate(flags):
        for second in flags[:i]:
            require(
                read[first] != read[second],
                f"{second} and {first} are both {read[first]}; each is a column of its own.",
            )
    needed = (*read.values(), *([rung_column] if rung_column else []))
    frame, notes = _chosen_rows(open_table(source, "models.csv"), choice, needed)
    notes += _of_the_name(loss_column, choice.loss_unit)
    frame = _of_one_objective(frame, choice.objective)
    if tokens_column == "train_tokens" and not flops_column:
        frame = _of_known_training(frame, notes)
    if "epochs" in frame:
        epochs = [read_number(cell) for cell in frame.column("epochs")]
        worn = np.asarray([value is not None and value > max_epochs for value in epochs])
        if worn.any():
            notes.append(
                f"{worn.sum()} of {len(frame)} rows are left out: they saw their text more than {max_epochs:g} times"
            )
        require(
            not worn.all(),
            f"{frame.path} holds no rows of at most {max_epochs:g} epochs; raise --max-epochs.",
        )
        frame = frame.rows_where(~worn)
    params, loss = frame.counts(params_column), _losses(frame, loss_column, choice.loss_unit)
    if flops_column:
        tokens = frame.counts(flops_column, _LARGEST_FLOPS) / (_FLOPS_PER_TOKEN * params)
        notes.append(f"tokens are C/(6N), from the training FLOPs of {flops_column}")
    else:
        tokens = frame.counts(tokens_column)
    if rung_column:
        keys: list[Any] = [_run_names(frame, rung_column)]
    else:
        keys = [params, *(frame.column(name) for name in ("role", "seed") if name in frame)]
    return ReadTable(
        LossTable(params, tokens, loss, _labels(*keys)),
        np.asarray(frame.lines),
        _counts(params_column),
        notes,
    )


def read_pair_table(
    source: TableSource,
    models: Path | None,
    estimator: str,
    domain: str | None,
    temperature: float | None,
    choice: Choice = Choice(),
) -> ReadTable:
    """A table of measured pairs: `acceptance.csv` of a study beside its `models.csv`, or a table with
    the columns `PAIR_COLUMNS`.

    Such a table may also hold draft_tokens, and draft_id. Rows of one draft_id are resampled
    together; without it, rows of one size.

    Args:
      source: The table.
      models: Records of the models, where the pairs only name them; `models.csv` beside the table
        if None.
      estimator: Estimator whose rows are read, in records of a study.
      domain: Domain whose rows are read, where the table has a column domain; the most frequent if
        None.
      temperature: Temperature whose rows are read; the most frequent if None.
      choice: Which rows are read, and in which unit.

    Raises:
      SdslError: The table cannot be read, or holds too few rows, no such rows, or impossible values.
    """
    whole = open_table(source, "acceptance.csv")
    path = whole.path
    named = all(name in whole for name in ("draft_id", "target_id", "estimator"))
    if not named:
        require(
            models is None,
            f"{path} does not name its models by draft_id and target_id; leave out --models.",
        )
    require(
        not named or choice.loss_unit == "nats",
        f"the losses of records are in nats; --loss-unit {choice.loss_unit} belongs to a table of one's own.",
    )
    needed: tuple[str, ...] = ("draft_id", "target_id", "alpha")
    if not named:
        optional = [name for name in ("draft_tokens", "draft_id") if _says_anything(whole, name)]
        needed = (*PAIR_COLUMNS, *optional)
    frame, notes = _chosen_rows(whole, choice, needed)
    if named:
        estimators = frame.column("estimator")
        kept = [cell == estimator for cell in estimators]
        require(
            any(kept),
            f"{path} holds no rows of the estimator {estimator}; it has {listed_names(list(dict.fromkeys(estimators)))}.",
        )
        frame = frame.rows_where(kept)
    for name, asked in (("domain", domain), ("temperature", temperature)):
        if name not in frame:
            require(asked is None, f"{path} has no column {name}, so that no {name} can be chosen.")
            continue
        cells = frame.column(name)
        values = frequent_values(cells)
        require(values, f"{path} has a column {name} that is empty; fill it in, or leave it out.")
        chosen = values[0] if asked is None else str(asked)
        kept = [value_key(cell) == value_key(chosen) for cell in cells]
        require(
            any(kept),
            f"{path} holds no rows with the {name} {chosen}; it has {listed_names(values)}.",
        )
        if len(values) > 1:
            notes.append(f"of {len(values)} values of {name} only {chosen} is fitted")
        frame = frame.rows_where(kept)
    alpha = frame.shares("alpha")
    if named:
        table, known = _by_record(frame, alpha, models, estimator, choice.objective, notes)
        return ReadTable(table, np.asarray(frame.lines)[known], "non-embedding", notes)
    require(not choice.objective, f"{path} does not name its models, and so not their objectives.")
    sizes = {role: frame.counts(f"{role}_params") for role in ("draft", "target")}
    losses = {
        role: _losses(frame, f"{role}_loss", choice.loss_unit) for role in ("draft", "target")
    }
    tokens = (
        frame.counts("draft_tokens") if "draft_tokens" in needed else np.full(len(frame), np.nan)
    )
    drafts = _labels(_run_names(frame, "draft_id") if "draft_id" in needed else sizes["draft"])
    targets = _labels(sizes["target"])
    require(
        len(set(drafts)) >= 4,
        f"the acceptance laws need pairs of at least 4 drafts; {path} holds {len(set(drafts))}.",
    )
    draft = ModelPoint(sizes["draft"], losses["draft"], tokens)
    target = ModelPoint(sizes["target"], losses["target"])
    table = PairTable(draft, target, alpha, drafts, targets, drafts, targets)
    return ReadTable(table, np.asarray(frame.lines), _OWN_COUNT, notes)


def _chosen_rows(
    table: CsvTable, choice: Choice, needed: tuple[str, ...]
) -> tuple[CsvTable, list[str]]:
    """The rows that were asked for, and notes on what was left out."""
    table.require_columns(*needed)
    notes = list(table.notes)
    if choice.where.strip():
        table, note = filtered(table, choice.where)
        notes.append(note)
    if choice.skip_incomplete:
        columns = [table.column(name) for name in needed]
        whole = [not any(is_missing(cell) for cell in cells) for cells in zip(*columns)]
        require(any(whole), f"every row of {table.path} lacks one of {listed_names(needed)}.")
        if not all(whole):
            lines = [line for line, keep in zip(table.lines, whole) if not keep]
            notes.append(
                f"{len(lines)} of {len(table)} rows are left out: values are missing in {listed_lines(lines)}"
            )
            table = table.rows_where(whole)
    return table, notes


def _of_known_training(table: CsvTable, notes: list[str]) -> CsvTable:
    """The rows of a record table but those of published models, whose `train_tokens` is 0."""
    if "params_digest" not in table:
        return table
    unknown = np.asarray([read_number(cell) == 0 for cell in table.column("train_tokens")])
    if unknown.all() or not unknown.any():
        return table
    notes.append(f"{unknown.sum()} of {len(table)} rows are left out: their training is not known")
    return table.rows_where(~unknown)


def _of_one_objective(table: CsvTable, objective: str) -> CsvTable:
    """The rows of targets, and of the drafts that were trained for one objective.

    Raises:
      SdslError: There are drafts of several objectives and none was chosen, or none of the one that
        was.
    """
    columns = ("objective", "teacher_digest", "parent_digest")
    if not all(name in table for name in columns):
        require(not objective, f"{table.path} has no column objective, so that none can be chosen.")
        return table
    names = [*columns, *(name for name in ("kind", "readout") if name in table)]
    cells: dict[str, list[Any]] = {
        name: ["" if is_missing(c) else c for c in table.column(name)] for name in names
    }
    if "readout" in cells:
        cells["readout"] = [int(read_number(c) or 0) for c in cells["readout"]]
    kinds = [
        ModelRecord("", "", 0, 0, 0, 0, 0.0, 0.0, **dict(zip(names, row)))
        for row in zip(*cells.values())
    ]
    roles = table.column("role") if "role" in table else ["draft"] * len(kinds)
    trained_for = ["" if role == "target" else kind.trained_for for role, kind in zip(roles, kinds)]
    there = {name for name in trained_for if name}
    if not objective:
        require_one_objective([*there])
        return table
    require(
        objective in there,
        f"{table.path} holds no drafts of the objective {objective}; it has {listed_names(sorted(there))}.",
    )
    return table.rows_where([name in ("", objective) for name in trained_for])


def _says_anything(table: CsvTable, name: str) -> bool:
    return name in table and not all(is_missing(cell) for cell in table.column(name))


def _run_names(table: CsvTable, name: str) -> list[Any]:
    """The keys of the training runs in a column.

    Raises:
      SdslError: A row names no run; all such rows would count as one.
    """
    cells = table.column(name)
    for cell, line in zip(cells, table.lines):
        require(
            not is_missing(cell),
            f"{table.path}: line {line} names no run as {name}; --skip-incomplete leaves such rows out.",
        )
    return [value_key(cell) for cell in cells]


def _of_the_name(column: str, unit: LossUnit) -> list[str]:
    """A warning where the name of the column of losses states another unit than it is read in."""
    words = set(re.split("[^a-z0-9]+", column.lower()))
    for stated, names in _UNITS_OF_LOSS.items():
        if words & names:
            advice = (
                "multiply bits per byte by bytes per token, and read them with --loss-unit bits"
            )
            if stated in get_args(LossUnit):
                advice = f"--loss-unit {stated} reads it as such"
            return (
                []
                if unit == stated or (unit == "bits" and stated == "bits per byte")
                else [
                    f"the name of the column {column} says {stated}, and it is read as {unit}; {advice}"
                ]
            )
    return []


def _losses(table: CsvTable, name: str, unit: LossUnit) -> np.ndarray:
    """Losses in nats."""
    values = table.numbers(name)
    if unit == "bits":
        return values * np.log(2)
    if unit == "perplexity":
        if (values <= 1).any():
            first = int(np.argmax(values <= 1))
            raise SdslError(
                f"{table.path}: line {table.lines[first]} holds {values[first]:g} as {name}; a perplexity is above 1."
            )
        return np.log(values)
    return values


def _labels(*keys: Sequence[Any] | np.ndarray) -> np.ndarray:
    """A number for each row, in order of appearance; rows with equal keys share it."""
    numbers: dict[Any, int] = {}
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in zip(*keys)])


def _by_record(
    frame: CsvTable,
    alpha: np.ndarray,
    models: Path | None,
    estimator: str,
    objective: str,
    notes: list[str],
) -> tuple[PairTable, np.ndarray]:
    """The pairs whose models have a record, and a mask of their rows."""
    source = frame.path.parent / "models.csv" if models is None else models
    require(
        source.exists(),
        f"{frame.path} only names its models, and {source} does not exist; give the records of the models with --models.",
    )
    rows = [
        AcceptanceRecord(draft, target, estimator, 0, 1.0, "", float(value))
        for draft, target, value in zip(frame.column("draft_id"), frame.column("target_id"), alpha)
    ]
    known = read_table(source.parent, "models", source)
    if objective:
        kinds = sorted({model.trained_for for model in known if model.role == "draft"})
        require(
            objective in kinds,
            f"{source} holds no drafts of the objective {objective}; it has {listed_names(kinds)}.",
        )
        known = [m for m in known if m.role == "target" or m.trained_for == objective]
        out = {row.draft_id for row in rows} - {model.model_id for model in known}
        notes.append(
            f"only drafts of the objective {objective} are fitted; {len(out)} others are left out"
        )
    names = {model.model_id for model in known}
    kept = np.asarray([{row.draft_id, row.target_id} <= names for row in rows])
    if not kept.all() and not objective:
        notes.append(
            f"{(~kept).sum()} of {len(rows)} pairs are left out: {source} does not hold their models"
        )
    return pair_table(known, rows, estimator), kept


def _counts(params_column: str) -> str:
    return {"params_nonembedding": "non-embedding", "params_total": "total"}.get(
        params_column, _OWN_COUNT
    )
