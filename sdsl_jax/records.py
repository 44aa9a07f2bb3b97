"""The tables that cross stages: one frozen dataclass per row, written as CSV beside a schema.

Everything from fitting onward reads only these, so laws, optima and figures can be redone in seconds without weights, and
from anybody's measurements. Units stand in the column names; `SCHEMA_VERSION` changes when a column changes its meaning.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import secrets
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sdsl_jax.errors import SdslError, require

SCHEMA_VERSION = 1
Row = TypeVar("Row")


def _column(description: str, **default: Any) -> Any:
    return dataclasses.field(metadata={"description": description}, **default)


@dataclass(frozen=True)
class ModelRecord:
    """One trained model; a row of `models.csv`."""

    model_id: str = _column("name of the model, unique in the study")
    role: str = _column("draft or target")
    params_nonembedding: int = _column("parameters other than embedding and head")
    params_total: int = _column("all parameters")
    train_tokens: int = _column("tokens trained on, repetitions counted")
    seed: int = _column("seed of initialisation and data order")
    loss_nats: float = _column("cross-entropy on the test split, nats per token")
    perplexity: float = _column("exp(loss_nats)")
    params_digest: str = _column("SHA-256 over the parameters in canonical order", default="")
    loss_nats_low: float = _column("lower end of the 90 % interval of loss_nats, windows as clusters", default=math.nan)
    loss_nats_high: float = _column("upper end of the 90 % interval of loss_nats", default=math.nan)
    validation_loss_nats: float = _column("cross-entropy on the validation split, nats per token", default=math.nan)
    bits_per_byte: float = _column("loss_nats / ln 2 / bytes per token", default=math.nan)
    validation_bits_per_byte: float = _column("validation_loss_nats / ln 2 / bytes per token", default=math.nan)
    evaluation_windows: int = _column("windows of each split that the losses were asked for", default=0)
    epochs: float = _column("train_tokens / tokens of the training split", default=math.nan)
    unique_tokens: int = _column("different tokens trained on, at most those of the training split", default=0)
    layers: int = _column("Transformer blocks", default=0)
    width: int = _column("size of the residual stream", default=0)
    flops_per_token: float = _column("forward FLOPs per token, head and attention included", default=math.nan)
    weight_bytes: int = _column("bytes of the weights in float32", default=0)
    learning_rate: float = _column("peak learning rate", default=math.nan)
    batch_size: int = _column("sequences per step", default=0)
    steps: int = _column("optimiser steps", default=0)
    train_seconds: float = _column("wall-clock seconds of training that led to this model", default=math.nan)
    compile_seconds: float = _column("of train_seconds, those spent compiling", default=math.nan)
    data_wait_share: float = _column(
        "share of the other train_seconds in which the device waited for a batch", default=math.nan
    )
    spikes: int = _column("steps whose loss was a spike", default=0)
    skipped_steps: int = _column("steps that changed nothing, their loss or gradient not being finite", default=0)
    data_digest: str = _column("SHA-256 over the tokenised corpus and its splits", default="")
    device: str = _column("device trained on", default="")
    versions: str = _column("versions of python, jax and flax", default="")
    checkpoint: str = _column("folder of the weights, relative to the study's folder", default="")

    @property
    def tokens_per_second(self) -> float:
        """Speed of training without compilation; not a number where it was not recorded."""
        seconds = self.train_seconds - (0.0 if math.isnan(self.compile_seconds) else self.compile_seconds)
        return self.train_tokens / seconds if seconds > 0 else math.nan


@dataclass(frozen=True)
class AcceptanceRecord:
    """One estimate of the acceptance probability of a pair; a row of `acceptance.csv`.

    Estimators: `teacher_forced_text` and `teacher_forced_samples` are E Σ_v min(p_v, q_v) (Leviathan et al., 2211.17192) on
    held-out text and on the target's own samples; `decoded_per_test` is accepted over tested drafts in the live decoder;
    `decoded_tar` inverts 1 + γ·TAR = (1 − α^(γ+1))/(1 − α) (arXiv 2603.11053).
    """

    draft_id: str = _column("draft model")
    target_id: str = _column("target model")
    estimator: str = _column("how alpha was measured")
    lookahead: int = _column("draft tokens per round, γ; 0 where the estimator has none")
    temperature: float = _column("sampling temperature")
    domain: str = _column("text that the contexts come from")
    alpha: float = _column("acceptance probability")
    alpha_low: float = _column("lower end of its interval, prompts as clusters", default=math.nan)
    alpha_high: float = _column("upper end of its interval", default=math.nan)
    confidence: float = _column("confidence of the interval", default=math.nan)
    clusters: int = _column("windows or prompts", default=0)
    tokens: int = _column("positions that were averaged", default=0)


@dataclass(frozen=True)
class SurvivalRecord:
    """P(the first k drafts of a round are all accepted) at one lookahead; a row of `survival.csv`."""

    draft_id: str = _column("draft model")
    target_id: str = _column("target model")
    lookahead: int = _column("draft tokens per round, γ")
    temperature: float = _column("sampling temperature")
    domain: str = _column("text that the prompts come from")
    position: int = _column("k, from 1 to the lookahead")
    survival: float = _column("share of rounds whose first k drafts were accepted")
    survival_low: float = _column("lower end of its interval, prompts as clusters", default=math.nan)
    survival_high: float = _column("upper end of its interval", default=math.nan)
    confidence: float = _column("confidence of the interval", default=math.nan)
    rounds: int = _column("rounds observed", default=0)
    tokens_per_round: float = _column(
        "tau = 1 + sum of survival over positions, of the same lookahead", default=math.nan
    )
    tokens_per_round_low: float = _column("lower end of its interval", default=math.nan)
    tokens_per_round_high: float = _column("upper end of its interval", default=math.nan)


@dataclass(frozen=True)
class LatencyRecord:
    """The time of one decoding step; a row of `latency.csv`."""

    model_id: str = _column("model that was timed")
    operation: str = _column("decode (one new token) or verify (several)")
    width: int = _column("new tokens per row in the step")
    batch: int = _column("rows")
    context: int = _column("positions already in the cache")
    seconds: float = _column("median seconds of the step")
    seconds_low: float = _column("lower end of the median's interval", default=math.nan)
    seconds_high: float = _column("upper end of the median's interval", default=math.nan)
    confidence: float = _column("confidence of the interval", default=math.nan)
    repetitions: int = _column("timed repetitions, each of several steps", default=0)
    device: str = _column("device timed on", default="")


@dataclass(frozen=True)
class ClockRecord:
    """Speculative against autoregressive decoding on the clock; a row of `clock.csv`."""

    draft_id: str = _column("draft model")
    target_id: str = _column("target model")
    lookahead: int = _column("draft tokens per round, γ")
    temperature: float = _column("sampling temperature")
    batch: int = _column("rows")
    speculative_tokens_per_second: float = _column("median over repetitions")
    autoregressive_tokens_per_second: float = _column("median over repetitions, interleaved in the same process")
    tokens_per_round: float = _column("emitted tokens per row and round in the timed runs")
    speedup: float = _column("median of the ratio of the two rates")
    speedup_low: float = _column("smallest ratio", default=math.nan)
    speedup_high: float = _column("largest ratio", default=math.nan)
    repetitions: int = _column("interleaved repetitions", default=0)
    device: str = _column("device timed on", default="")


TABLES: dict[str, type] = {
    "models": ModelRecord,
    "acceptance": AcceptanceRecord,
    "survival": SurvivalRecord,
    "latency": LatencyRecord,
    "clock": ClockRecord,
}


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that it is never seen half-written.

    Raises:
      SdslError: the folder cannot be written to.
    """
    # A name of its own: several processes may write the same file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SdslError(f"cannot write {path} ({error.strerror}).") from None


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as JSON; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, kind: type = dict, keys: Sequence[str] = ()) -> Any:
    """Reads a JSON file that holds an object with at least some keys, or a list of such objects.

    Args:
      path: of the file.
      kind: dict or list.
      keys: that the object, or every object of the list, must have; a list must then hold at least one.

    Raises:
      SdslError: the file is missing or damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SdslError(f"the record file {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise SdslError(f"the record file {path} is damaged: it is not valid JSON ({error}).") from None
    objects = value if kind is list and isinstance(value, list) else [value]
    good = isinstance(value, kind) and all(isinstance(item, dict) and all(k in item for k in keys) for item in objects)
    require(
        good and (bool(objects) or not keys),
        f"the record file {path} is damaged: it must hold {'a list of objects' if kind is list else 'an object'} with the keys "
        f"{', '.join(keys) or 'of a record'}.",
    )
    return value


def write_table(folder: Path, name: str, rows: Sequence[Any]) -> None:
    """Writes `<folder>/<name>.csv`, and `<folder>/schema.json` with type and meaning of every column of every table."""
    fields = dataclasses.fields(TABLES[name])
    path = folder / f"{name}.csv"
    lines = [[_text(getattr(row, f.name)) for f in fields] for row in rows]
    buffer = _CsvLines()
    csv.writer(buffer, lineterminator="\n").writerows([[f.name for f in fields], *lines])
    write_text(path, "".join(buffer.lines))
    write_json(folder / "schema.json", schema())


class _CsvLines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def schema() -> dict[str, Any]:
    """Version, and for every table its columns with type and description."""
    tables = {
        name: {f.name: {"type": f.type, "description": f.metadata["description"]} for f in dataclasses.fields(row)}
        for name, row in TABLES.items()
    }
    return {"schema_version": SCHEMA_VERSION, "tables": tables}


def read_table(folder: Path, name: str) -> list[Any]:
    """Reads `<folder>/<name>.csv` into rows. Columns that are not in the schema are passed over.

    Raises:
      SdslError: the file is missing or damaged, lacks a required column, or was written with another schema version.
    """
    row_type, path = TABLES[name], folder / f"{name}.csv"
    if (folder / "schema.json").exists():
        version = read_json(folder / "schema.json").get("schema_version")
        require(
            version == SCHEMA_VERSION,
            f"the records in {folder} have schema version {version}; this version of sdsl_jax reads {SCHEMA_VERSION}.",
        )
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            present = reader.fieldnames or []
            required = [f.name for f in dataclasses.fields(row_type) if f.default is dataclasses.MISSING]
            missing = [column for column in required if column not in present]
            require(not missing, f"the record file {path} is damaged: it lacks the column {', '.join(missing)}.")
            rows = [_parse(row, row_type, path, reader.line_num) for row in reader]
            # Clock rows need weights, and may be missing; a study without any other kind of row is none.
            require(bool(rows) or name == "clock", f"the record file {path} is damaged: it holds no rows.")
            return rows
    except OSError as error:
        raise SdslError(f"the record file {path} cannot be read ({error.strerror}).") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise SdslError(f"the record file {path} is damaged: {error}.") from None


def _parse(row: dict[str, Any], row_type: type, path: Path, line: int) -> Any:
    types = typing.get_type_hints(row_type)
    values = {}
    for column, kind in types.items():
        if column not in row:
            continue
        try:
            require(row[column] is not None, "")
            values[column] = kind(row[column])
        except ValueError:
            raise SdslError(
                f"the record file {path} is damaged: line {line} holds {row[column]!r} as {column}, "
                f"which must be of type {kind.__name__}."
            ) from None
    return row_type(**values)


def column(rows: Iterable[Any], name: str) -> list[Any]:
    """One column of a table."""
    return [getattr(row, name) for row in rows]
