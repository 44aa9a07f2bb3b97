"""Records of measured pairs: one folder takes as many pairs as one likes, and its tables are what the fits read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas

from sdsl_jax.checkpoints.identity import are_different, identity
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.data.prompts import Prompts
from sdsl_jax.device import device_name
from sdsl_jax.errors import SdslError, require
from sdsl_jax.measurement.decoded import event_columns
from sdsl_jax.measurement.generation import GenerationTimes
from sdsl_jax.measurement.pair import PairMeasurement, PairSettings
from sdsl_jax.measurement.pair_report import Draft, bits_per_byte
from sdsl_jax.records import (
    AcceptanceRecord,
    GenerationRecord,
    ModelRecord,
    SurvivalRecord,
    read_json,
    read_table,
    require_records_folder,
    whole_file,
    write_json,
    write_table,
)
from sdsl_jax.statistics import Interval

_TABLES = ("models", "acceptance", "survival", "generation")
MEASUREMENTS, EVENTS = "measurements.json", "events.parquet"
WRITTEN = (*(f"{table}.csv" for table in _TABLES), MEASUREMENTS, EVENTS)


class PairName(NamedTuple):
    """What tells one measurement from another in a folder."""

    draft_id: str
    target_id: str
    temperature: float
    domain: str


def pair_name(
    draft: Draft, target: LoadedModel, prompts: Prompts, settings: PairSettings
) -> PairName:
    """The name of a measurement."""
    temperature = float(settings.sampling.temperature)
    return PairName(draft.name, target.record.model_id, temperature, prompts.domain)


def measured_pairs(folder: Path) -> set[PairName]:
    """What a folder holds already; nothing if it does not exist.

    Raises:
      SdslError: its records are damaged.
    """
    if not (folder / "survival.csv").exists():
        return set()
    return {
        PairName(r.draft_id, r.target_id, r.temperature, r.domain)
        for r in read_table(folder, "survival")
    }


def how_measured(settings: PairSettings, reading: dict[str, Any]) -> dict[str, Any]:
    """What all pairs of a folder must share, for its tables do not say it: filters, verification, and how models are read."""
    sampling = settings.sampling
    filters = {name: getattr(sampling, name) for name in ("top_k", "top_p", "min_p")}
    # On how many devices the weights lie changes nothing; what was left out of a model stands with
    # the model.
    kept = {key: value for key, value in reading.items() if key not in ("devices", "ignore_keys")}
    return {**filters, "verification": settings.verification, **kept}


def require_room(folder: Path, name: PairName, how: dict[str, Any]) -> None:
    """Makes a folder for records.

    Raises:
      SdslError: it cannot be made, holds this very measurement already, others that were made in
        another way, or files of somebody else.
    """
    require_records_folder(folder, WRITTEN, mark="schema.json")
    for other in _answers(folder):
        for key, value in how.items():
            require(
                key not in other.get("how", {}) or other["how"][key] == value,
                f"the folder {folder} holds pairs measured with {key} = {other.get('how', {}).get(key)!r}, and this is "
                f"{value!r}; its tables do not tell them apart: name another folder.",
            )
    require(
        name not in measured_pairs(folder),
        f"the folder {folder} already holds the draft {name.draft_id} with the target {name.target_id} at temperature "
        f"{name.temperature:g} on {name.domain}; name another folder.",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SdslError(f"cannot write {folder} ({error.strerror}).") from None


def require_same_models(folder: Path, *models: LoadedModel) -> None:
    """Raises `SdslError` unless every model of a name is one and the same, in the records of a
    folder and among those given.

    Compared are sizes, digests of parameters and identities, as far as the records hold them: older
    ones have no identity, and what they do not tell is taken for the same.
    """
    held = _others(folder, "models", None)
    digests = {m.model_id: [m.params_digest] for m in held}
    sizes = {m.model_id: m.params_total for m in held}
    for answer in _answers(folder):
        for about in (answer["draft"], answer["target"]):
            digests.setdefault(about["model_id"], []).append(about.get("identity", ""))
    for m in models:
        name, own = m.record.model_id, (m.record.params_digest, identity(m))
        known = digests.setdefault(name, [])
        require(
            sizes.setdefault(name, m.record.params_total) == m.record.params_total
            and not any(are_different(one, other) for one in known for other in own),
            f"the folder {folder} would hold two models of the name {name}, of which {m.folder} is one: their weights, "
            "configurations or tokenizers differ; rename one of them, or name another folder for the records.",
        )
        known += own


def append_records(
    folder: Path,
    draft: Draft,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    measured: PairMeasurement,
    times: list[GenerationTimes],
    answer: dict[str, Any],
) -> None:
    """Adds a pair to models.csv, acceptance.csv, survival.csv, generation.csv, events.parquet and
    measurements.json.

    A model whose loss is not on record gets its loss on these prompts. What an interrupted call
    left of the pair is replaced.

    Raises:
      SdslError: the folder cannot be written to, its records are damaged, or hold another model of
        the same name, or losses of such models on another text.
    """
    name = pair_name(draft, target, prompts, settings)
    require_same_models(folder, *(m for m in (draft.model, target) if m is not None))
    held: dict[str, list[Any]] = {table: _others(folder, table, name) for table in _TABLES}
    loaded = {"draft": draft.model, "target": target}
    text = measured.text
    fresh = []
    for role, m in loaded.items():
        if m is not None and text is not None:
            bits = bits_per_byte(text, role, prompts, m.tokenizer, settings.confidence)
            fresh.append(with_loss(m.record, role, text.losses[role], bits))
        elif m is not None:
            fresh.append(dataclasses.replace(m.record, role=m.record.role or role))
    models = {m.model_id: m for m in held["models"]}
    for model in fresh:
        texts = {
            row.domain
            for row in held["acceptance"]
            if model.model_id in (row.draft_id, row.target_id)
        }
        require(
            not math.isnan(loaded_loss(loaded, model)) or not texts - {prompts.domain},
            f"the folder {folder} holds {model.model_id} on {', '.join(sorted(texts))}, and models.csv has one loss of a model; "
            f"name another folder for {prompts.domain}.",
        )
        models.setdefault(model.model_id, model)
    acceptance, survival = _acceptance(name, settings, measured, len(prompts.lengths))
    dtype = str(jax.tree.leaves(target.params)[0].dtype)
    # The target alone is timed again with every draft; a row for each says what its speed-up was
    # measured against.
    timed = [_generation(name, each, settings.confidence, dtype) for each in times]
    frames = [
        pandas.DataFrame(event_columns(result.decoded)).assign(
            lookahead=result.lookahead, **name._asdict()
        )
        for result in measured.lookaheads
    ]
    if (folder / EVENTS).exists():
        earlier = pandas.read_parquet(folder / EVENTS)
        same = np.logical_and.reduce(
            [earlier[key] == value for key, value in name._asdict().items()]
        )
        frames.insert(0, earlier[~same])
    answers = _other_answers(folder, name)
    with whole_file(folder / EVENTS) as path:
        pandas.concat(frames, ignore_index=True).to_parquet(path, index=False)
    write_table(folder, "models", list(models.values()))
    write_table(folder, "acceptance", held["acceptance"] + acceptance)
    write_table(folder, "generation", held["generation"] + timed)
    write_json(folder / MEASUREMENTS, [*answers, answer])
    # Last: a pair counts as measured once it is in here.
    write_table(folder, "survival", held["survival"] + survival)


def with_loss(
    record: ModelRecord, role: str, loss: Interval, bits_per_byte: Interval
) -> ModelRecord:
    """A record with its loss on the prompts, where it has none of its own."""
    record = dataclasses.replace(record, role=record.role or role)
    if not math.isnan(record.loss_nats):
        return record
    return dataclasses.replace(
        record,
        loss_nats=loss.estimate,
        loss_nats_low=loss.low,
        loss_nats_high=loss.high,
        perplexity=math.exp(loss.estimate),
        bits_per_byte=bits_per_byte.estimate,
    )


def _others(folder: Path, table: str, name: PairName | None) -> list[Any]:
    """The rows of a table that are not of this pair; those of models are of none."""
    if not (folder / f"{table}.csv").exists():
        return []
    rows = read_table(folder, table)
    if table == "models":
        return rows
    return [r for r in rows if (r.draft_id, r.target_id, r.temperature, r.domain) != name]


def _answers(folder: Path) -> list[Any]:
    return read_json(folder / MEASUREMENTS, list) if (folder / MEASUREMENTS).exists() else []


def _other_answers(folder: Path, name: PairName) -> list[Any]:
    def named(answer: dict[str, Any]) -> tuple[Any, ...]:
        ids = (answer["draft"]["model_id"], answer["target"]["model_id"])
        return (*ids, answer["temperature"], answer["prompts"]["source"])

    return [answer for answer in _answers(folder) if named(answer) != name]


def loaded_loss(loaded: dict[str, LoadedModel | None], record: ModelRecord) -> float:
    """The loss that a model brought with it; not a number if it brought none."""
    return next(
        (m.record.loss_nats for m in loaded.values() if m and m.record.model_id == record.model_id),
        math.nan,
    )


def append_acceptance(
    folder: Path, models: list[ModelRecord], row: AcceptanceRecord, answer: dict[str, Any]
) -> None:
    """Adds a pair that was not decoded: to models.csv, measurements.json and, last, acceptance.csv.

    Raises:
      SdslError: the folder cannot be written to, or its records are damaged.
    """
    name = PairName(row.draft_id, row.target_id, row.temperature, row.domain)
    held = {table: _others(folder, table, name) for table in ("models", "acceptance")}
    known = {m.model_id: m for m in (*models, *held["models"])}
    answers = _other_answers(folder, name)
    write_table(folder, "models", list(known.values()))
    write_json(folder / MEASUREMENTS, [*answers, answer])
    write_table(folder, "acceptance", [*held["acceptance"], row])


def _acceptance(
    name: PairName, settings: PairSettings, measured: PairMeasurement, clusters: int
) -> tuple[list[AcceptanceRecord], list[SurvivalRecord]]:
    pair: dict[str, Any] = {**name._asdict(), "confidence": settings.confidence}

    def acceptance(
        estimator: str, lookahead: int, value: Interval, tokens: int
    ) -> AcceptanceRecord:
        return AcceptanceRecord(
            **pair,
            estimator=estimator,
            lookahead=lookahead,
            alpha=value.estimate,
            alpha_low=value.low,
            alpha_high=value.high,
            clusters=clusters,
            tokens=tokens,
        )

    rows = []
    if measured.alpha is not None:
        rows.append(acceptance("teacher_forced_samples", 0, measured.alpha, measured.positions))
    if measured.text is not None:
        rows.append(
            acceptance(
                "teacher_forced_text", 0, measured.text.alpha, int(measured.text.positions.sum())
            )
        )
    survival = []
    for result in measured.lookaheads:
        s, lookahead = result.statistics, result.lookahead
        rows.append(acceptance("decoded_per_test", lookahead, s.per_test, s.tests))
        rows.append(acceptance("decoded_tar", lookahead, s.tar, s.rounds * lookahead))
        survival += [
            SurvivalRecord(
                **pair,
                lookahead=lookahead,
                position=k,
                survival=value.estimate,
                survival_low=value.low,
                survival_high=value.high,
                rounds=s.rounds,
                tokens_per_round=s.tokens_per_round.estimate,
                tokens_per_round_low=s.tokens_per_round.low,
                tokens_per_round_high=s.tokens_per_round.high,
            )
            for k, value in enumerate(s.survival, 1)
        ]
    return rows, survival


def _generation(
    name: PairName, times: GenerationTimes, confidence: float, dtype: str
) -> GenerationRecord:
    return GenerationRecord(
        **name._asdict(),
        lookahead=times.lookahead,
        new_tokens=times.new_tokens,
        first_token_seconds=times.first_token.estimate,
        per_token_seconds=times.per_token.estimate,
        total_seconds=times.total.estimate,
        total_seconds_low=times.total.low,
        total_seconds_high=times.total.high,
        speedup=times.speedup.estimate,
        speedup_low=times.speedup.low,
        speedup_high=times.speedup.high,
        confidence=confidence,
        requests=times.requests,
        dtype=dtype,
        device=device_name(),
    )
