"""What the measurement of one pair becomes: plain values for JSON, tables of records, and the generated texts."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from sdsl_jax.data.prompts import Prompts
from sdsl_jax.data.tokenizer import Tokenizer, fingerprint
from sdsl_jax.decoding.loop import STOP_TOKEN
from sdsl_jax.errors import SdslError, require
from sdsl_jax.measurement.conventions import CONVENTIONS
from sdsl_jax.measurement.decoded import event_columns
from sdsl_jax.measurement.pair import LookaheadResult, PairMeasurement, PairSettings
from sdsl_jax.records import AcceptanceRecord, SurvivalRecord, write_json, write_table, write_text
from sdsl_jax.statistics import Interval
from sdsl_jax.training import LoadedModel

# Fewer prompts than this make an interval over them a guess.
_FEW_PROMPTS = 8
# A standard normal lies beyond this once in 16,000 times.
_SUSPICIOUS = 4.0
RECORD_FILES = ("measurement.json", "models.csv", "acceptance.csv", "survival.csv", "events.parquet", "schema.json")


def require_one_tokenizer(draft: LoadedModel, target: LoadedModel) -> None:
    """Raises `SdslError` unless both models read and write the same ids."""

    def name(model: LoadedModel) -> str:
        return f"{model.tokenizer.kind} of {model.tokenizer.vocab_size} entries"

    require(
        fingerprint(draft.tokenizer) == fingerprint(target.tokenizer),
        f"the draft {draft.record.model_id} and the target {target.record.model_id} have different tokenizers ({name(draft)} and "
        f"{name(target)}); a draft must be trained with its target's.",
    )


def input_warnings(
    draft: LoadedModel, target: LoadedModel, prompts: Prompts, settings: PairSettings, wanted: int
) -> list[str]:
    """What a reader should know about the inputs, a sentence each."""
    found = []
    rows, longest = len(prompts.lengths), int(prompts.lengths.max())
    if draft.record.params_digest == target.record.params_digest:
        found.append("draft and target are the same model: every draft is accepted, by construction.")
    elif draft.record.params_total >= target.record.params_total:
        found.append(
            f"the draft has {draft.record.params_total:,} parameters and the target {target.record.params_total:,}: a draft is "
            "usually the smaller of the two."
        )
    if draft.record.data_digest != target.record.data_digest:
        found.append(
            "draft and target were trained on different data; text held out from one may have trained the other."
        )
    if rows < wanted:
        found.append(f"there are only {rows} prompts; {wanted} were asked for.")
    if rows < _FEW_PROMPTS:
        found.append(
            f"the intervals rest on {rows} prompts, which are their clusters; at least {_FEW_PROMPTS} are advisable."
        )
    if prompts.cut:
        found.append(
            f"{prompts.cut} of {rows} prompts were longer than allowed and keep only their last {longest} tokens."
        )
    trained = min(model.data.sequence_length for model in (draft, target))
    if longest + settings.new_tokens > trained:
        found.append(
            f"rows grow to {longest + settings.new_tokens} tokens; the models were trained on sequences of {trained}, and say "
            "little beyond them."
        )
    if settings.verification == "block":
        found.append(
            "block verification decides on blocks as a whole: α and the expected τ are those of token verification, and what is "
            "derived from kept drafts lies above them."
        )
    return found


def result_warnings(measured: PairMeasurement) -> list[str]:
    """What a reader should know about the results, a sentence each."""
    found = []
    for result in measured.lookaheads:
        z = result.statistics.self_check
        if abs(z) > _SUSPICIOUS:
            found.append(
                f"the self-check at γ = {result.lookahead} is {z:.1f} standard errors: the decoder kept another number of drafts "
                "than its own probabilities imply."
            )
    return found


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _interval(value: Interval) -> dict[str, float | None]:
    return {name: _number(x) for name, x in value._asdict().items()}


def _describe(model: LoadedModel) -> dict[str, Any]:
    r = model.record
    return {
        "model_id": r.model_id,
        "folder": str(model.folder),
        "params_nonembedding": r.params_nonembedding,
        "params_total": r.params_total,
        "train_tokens": r.train_tokens,
        "loss_nats": _number(r.loss_nats),
        "params_digest": r.params_digest,
    }


def report(
    draft: LoadedModel,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    measured: PairMeasurement,
    warnings: list[str],
) -> dict[str, Any]:
    """The measurement as plain values; what does not exist is None."""
    sampling = settings.sampling
    return {
        "target": _describe(target),
        "draft": _describe(draft),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "verification": settings.verification,
        "alpha": _interval(measured.alpha),
        "alpha_tokens": measured.positions,
        "per_lookahead": [_describe_lookahead(result) for result in measured.lookaheads],
        "convention_definitions": {name: c._asdict() for name, c in CONVENTIONS.items()},
        "prompts": {
            "source": prompts.domain,
            "count": len(prompts.lengths),
            "available": prompts.available,
            "cut": prompts.cut,
            "shortest": int(prompts.lengths.min()),
            "longest": int(prompts.lengths.max()),
        },
        "new_tokens": settings.new_tokens,
        "stop_tokens": list(settings.stop_tokens),
        "seed": settings.seed,
        "confidence": settings.confidence,
        "warnings": warnings,
    }


def _describe_lookahead(result: LookaheadResult) -> dict[str, Any]:
    s = result.statistics
    return {
        "lookahead": result.lookahead,
        "tokens_per_round": _interval(s.tokens_per_round),
        "expected_tokens_per_round": _interval(result.expected),
        "per_test": _interval(s.per_test),
        "tar": _interval(tar(result)),
        "tar_alpha": _interval(s.tar),
        "survival": [_interval(value) for value in s.survival],
        "self_check": _number(s.self_check),
        "rounds": s.rounds,
        "tests": s.tests,
        "conventions": {row.name: _interval(Interval(row.estimate, row.low, row.high)) for row in result.conventions},
    }


def tar(result: LookaheadResult) -> Interval:
    """The paper's token acceptance rate, (τ − 1)/γ."""
    return Interval(*((value - 1) / result.lookahead for value in result.statistics.tokens_per_round))


def require_new_folder(folder: Path) -> None:
    """Makes a folder for records, and raises `SdslError` if it holds some already or cannot be made."""
    held = [name for name in RECORD_FILES if (folder / name).exists()]
    require(not held, f"the folder {folder} already holds {held[0] if held else ''}; name a new one for these records.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SdslError(f"cannot write {folder} ({error.strerror}).") from None


def write_records(
    folder: Path,
    draft: LoadedModel,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    measured: PairMeasurement,
    answer: dict[str, Any],
) -> None:
    """Writes models.csv, acceptance.csv, survival.csv, events.parquet and, with all settings, measurement.json.

    Raises:
      SdslError: the folder cannot be written to.
    """
    pair: dict[str, Any] = {
        "draft_id": draft.record.model_id,
        "target_id": target.record.model_id,
        "temperature": float(settings.sampling.temperature),
        "domain": prompts.domain,
        "confidence": settings.confidence,
    }
    clusters = len(prompts.lengths)

    def acceptance(estimator: str, lookahead: int, value: Interval, tokens: int) -> AcceptanceRecord:
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

    rows = [acceptance("teacher_forced_samples", 0, measured.alpha, measured.positions)]
    survival, frames = [], []
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
        columns = {name: pair[name] for name in ("draft_id", "target_id", "temperature")}
        frames.append(pandas.DataFrame(event_columns(result.decoded)).assign(lookahead=lookahead, **columns))
    models = {m.record.params_digest: m.record for m in (draft, target)}
    write_table(folder, "models", list(models.values()))
    write_table(folder, "acceptance", rows)
    write_table(folder, "survival", survival)
    events, partial = folder / "events.parquet", folder / ".events.parquet.partial"
    try:
        pandas.concat(frames, ignore_index=True).to_parquet(partial, index=False)
        os.replace(partial, events)
    except OSError as error:
        raise SdslError(f"cannot write {events} ({error.strerror}).") from None
    write_json(folder / "measurement.json", answer)


def write_tokens(path: Path, prompts: Prompts, measured: PairMeasurement, tokenizer: Tokenizer) -> None:
    """Writes what was generated, a JSON object a line: row, lookahead, prompt, text, tokens, and why the row stopped.

    Raises:
      SdslError: the file cannot be written.
    """
    lines = []
    for result in measured.lookaheads:
        decoded = result.decoded
        assert decoded.events is not None
        stopped = (np.asarray(decoded.events.stop_reason) == STOP_TOKEN).any(axis=1)
        for row, (ids, begin, end) in enumerate(zip(decoded.tokens, decoded.prompt_lengths, decoded.lengths)):
            line = {
                "lookahead": result.lookahead,
                "row": row,
                "prompt": tokenizer.decode(ids[:begin]),
                "text": tokenizer.decode(ids[begin:end]),
                "tokens": np.asarray(ids[begin:end]).tolist(),
                "stopped_by": "stop token" if stopped[row] else "length",
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
