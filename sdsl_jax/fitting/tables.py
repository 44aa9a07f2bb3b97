"""Anybody's tables, and our own records, as what the fits read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

from sdsl_jax.errors import SdslError, require
from sdsl_jax.fitting.acceptance import PairTable, pair_table
from sdsl_jax.fitting.loss import LossTable
from sdsl_jax.records import AcceptanceRecord, read_table
from sdsl_jax.theory import ModelPoint

# Columns of a table of pairs that stands by itself.
PAIR_COLUMNS = ("draft_params", "draft_loss", "target_params", "target_loss", "alpha")
# What the sizes of a table count that is not ours: nothing says.
_OWN_COUNT = "the table's"


class ReadTable(NamedTuple):
    """A table, what its sizes count, and what had to be chosen or left out in reading it."""

    table: Any
    params_count: str
    notes: list[str]


def read_loss_table(
    path: Path, params_column: str, tokens_column: str, loss_column: str, rung_column: str, max_epochs: float
) -> ReadTable:
    """A CSV of trained models: a row each, with at least its size, its training tokens and its loss.

    Args:
      path: of the file; `models.csv` of a study as it is.
      params_column: holds N.
      tokens_column: holds D.
      loss_column: holds the loss.
      rung_column: holds the name of the training run that a row belongs to; if empty, rows of one size (and, in our records, one
        role and seed) count as one run.
      max_epochs: rows whose column `epochs`, if there is one, exceeds it are left out.

    Raises:
      SdslError: the file cannot be read, lacks a column, or holds a value that is not a positive number.
    """
    frame = _read(path)
    notes = []
    if "epochs" in frame.columns:
        worn = pandas.to_numeric(frame["epochs"], errors="coerce") > max_epochs
        if worn.any():
            notes.append(
                f"{int(worn.sum())} of {len(frame)} rows are left out: they saw their text more than {max_epochs:g} times"
            )
        require(not worn.all(), f"{path} holds no rows of at most {max_epochs:g} epochs; raise --max-epochs.")
        frame = frame[~worn]
    params, tokens, loss = (_positive(frame, name, path) for name in (params_column, tokens_column, loss_column))
    if rung_column:
        _require_columns(frame, (rung_column,), path)
        keys = frame[[rung_column]]
    else:
        keys = frame[[params_column, *(c for c in ("role", "seed") if c in frame.columns)]]
    rungs = keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()
    return ReadTable(LossTable(params, tokens, loss, rungs), _counts(params_column), notes)


def read_pair_table(
    path: Path, models: Path | None, estimator: str, domain: str | None, temperature: float | None
) -> ReadTable:
    """A CSV of measured pairs: `acceptance.csv` of a study beside its `models.csv`, or a table with the columns `PAIR_COLUMNS`.

    A table of one's own may also hold draft_tokens, and draft_id, whose rows are resampled together; without it, rows of one size
    are.

    Args:
      path: of the file.
      models: records of the models, where the pairs only name them; `models.csv` beside `path` if None.
      estimator: rows of our records to take.
      domain: rows to take, where the table has a column domain; the most frequent if None.
      temperature: likewise.

    Raises:
      SdslError: the file cannot be read, or holds too few rows, no such rows, or impossible values.
    """
    frame = _read(path)
    named = {"draft_id", "target_id", "estimator"} <= {*frame.columns}
    if not named:
        require(models is None, f"{path} does not name its models by draft_id and target_id; leave out --models.")
        _require_columns(frame, PAIR_COLUMNS, path)
    notes = []
    if named:
        estimators = frame["estimator"].unique()
        frame = frame[frame["estimator"] == estimator]
        require(len(frame) > 0, f"{path} holds no rows of the estimator {estimator}; it has {_listed(estimators)}.")
    for name, wanted in (("domain", domain), ("temperature", temperature)):
        if name not in frame.columns:
            require(wanted is None, f"{path} has no column {name}, so that no {name} can be chosen.")
            continue
        found = frame[name].value_counts()
        require(len(found) > 0, f"{path} has a column {name} that is empty; fill it in, or leave it out.")
        chosen = found.index[0] if wanted is None else wanted
        require(chosen in found.index, f"{path} holds no rows with the {name} {chosen}; it has {_listed(found.index)}.")
        if len(found) > 1:
            notes.append(f"of {len(found)} values of {name} only {chosen} is fitted")
        frame = frame[frame[name] == chosen]
    alpha = _positive(frame, "alpha", path, probability=True)
    if named:
        return ReadTable(_by_record(frame, path, models, estimator, notes), "non-embedding", notes)
    columns = [_positive(frame, name, path) for name in PAIR_COLUMNS[:-1]]
    tokens = _positive(frame, "draft_tokens", path) if "draft_tokens" in frame.columns else np.full(len(frame), np.nan)
    label = "draft_id" if "draft_id" in frame.columns else "draft_params"
    drafts = frame.groupby(label, sort=False).ngroup().to_numpy()
    targets = frame.groupby("target_params", sort=False).ngroup().to_numpy()
    require(
        len(set(drafts)) >= 4, f"the acceptance laws need pairs of at least 4 drafts; {path} holds {len(set(drafts))}."
    )
    draft = ModelPoint(columns[0], columns[1], tokens)
    return ReadTable(
        PairTable(draft, ModelPoint(columns[2], columns[3]), alpha, drafts, targets, drafts, targets), _OWN_COUNT, notes
    )


def _by_record(frame: pandas.DataFrame, path: Path, models: Path | None, estimator: str, notes: list[str]) -> PairTable:
    source = path.parent / "models.csv" if models is None else models
    require(
        source.exists(),
        f"{path} only names its models, and {source} does not exist; give the records of the models with --models.",
    )
    rows = [
        AcceptanceRecord(str(r.draft_id), str(r.target_id), estimator, 0, 1.0, "", float(r.alpha))
        for r in frame.itertuples()
    ]
    known = read_table(source.parent, "models", source)
    names = {model.model_id for model in known}
    strangers = sum(not {row.draft_id, row.target_id} <= names for row in rows)
    if strangers:
        notes.append(f"{strangers} of {len(rows)} pairs are left out: {source} does not hold their models")
    return pair_table(known, rows, estimator)


def _read(path: Path) -> pandas.DataFrame:
    try:
        frame = pandas.read_csv(path)
    except OSError as error:
        raise SdslError(f"the table {path} cannot be read ({error.strerror or error}).") from None
    except pandas.errors.EmptyDataError:
        raise SdslError(f"the table {path} is empty.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise SdslError(f"the table {path} is not a CSV ({str(error).strip().splitlines()[0]}).") from None
    require(len(frame) > 0, f"the table {path} holds no rows.")
    return frame


def _require_columns(frame: pandas.DataFrame, names: tuple[str, ...], path: Path) -> None:
    missing = [name for name in names if name not in frame.columns]
    require(not missing, f"{path} lacks the column {', '.join(missing)}; it has {_listed(frame.columns)}.")


def _positive(frame: pandas.DataFrame, name: str, path: Path, probability: bool = False) -> np.ndarray:
    _require_columns(frame, (name,), path)
    values = pandas.to_numeric(frame[name], errors="coerce").to_numpy(float)
    good = np.isfinite(values) & ((values >= 0) & (values <= 1) if probability else (values > 0))
    if not good.all():
        first = int(np.argmin(good))
        cell = frame[name].iloc[first]
        held = "nothing" if pandas.isna(cell) else f"'{cell}'"
        raise SdslError(
            f"{path}: line {frame.index[first] + 2} holds {held} as {name}; it must be a "
            f"{'number in [0, 1]' if probability else 'positive number'}."
        )
    return values


def _listed(values: Any) -> str:
    shown = [str(v) for v in values]
    return ", ".join(shown[:12]) + (", …" if len(shown) > 12 else "")


def _counts(params_column: str) -> str:
    return {"params_nonembedding": "non-embedding", "params_total": "total"}.get(params_column, _OWN_COUNT)
