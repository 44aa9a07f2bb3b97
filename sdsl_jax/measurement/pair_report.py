"""What the measurement of one pair becomes: plain values for JSON, tables of records, and the generated texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.checkpoints.identity import identity
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.data.prompts import Prompts, bytes_after_first
from sdsl_jax.data.tokenizer import Tokenizer, same_tokens
from sdsl_jax.decoding.loop import STOP_TOKEN
from sdsl_jax.errors import require
from sdsl_jax.measurement.conventions import CONVENTIONS
from sdsl_jax.measurement.decoded import FALSE_ALARM, alarm_score
from sdsl_jax.measurement.generation import GenerationTimes
from sdsl_jax.measurement.pair import LookaheadResult, PairMeasurement, PairSettings, TextScores
from sdsl_jax.measurement.retokenised import Retokenised
from sdsl_jax.records import write_text
from sdsl_jax.statistics import Interval, ratio_interval

# Fewer prompts than this make an interval over them a guess.
_FEW_PROMPTS = 8
# What drafts are called that are no model.
NGRAM = "ngram"


class Draft(NamedTuple):
    """What proposes: a loaded model, or n-grams.

    Attributes:
      name: in tables.
      model: None for n-grams.
    """

    name: str
    model: LoadedModel | None


def share_tokens(draft: LoadedModel, target: LoadedModel) -> bool:
    """Whether ids mean the same to both models."""
    return same_tokens(draft.tokenizer, target.tokenizer)


def require_one_tokenizer(draft: LoadedModel, target: LoadedModel) -> None:
    """Raises `SdslError` unless ids mean the same to both models."""

    def name(model: LoadedModel) -> str:
        return f"{model.tokenizer.kind} of {model.tokenizer.vocab_size} entries"

    require(
        share_tokens(draft, target),
        f"the draft {draft.record.model_id} and the target {target.record.model_id} have different tokenizers ({name(draft)} and "
        f"{name(target)}), so that no draft token could be accepted as a token of the target and nothing is decoded; "
        "--retokenised compares them on the target's text instead.",
    )


def input_warnings(
    draft: LoadedModel | None,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    wanted: int,
) -> list[str]:
    """What a reader should know about the inputs, a sentence each."""
    found = []
    if draft is not None and math.isnan(draft.record.loss_nats) != math.isnan(
        target.record.loss_nats
    ):
        found.append(
            "one model brings its loss on text held out from its own training, the other gets its loss on these prompts: records "
            "of the pair are not fit for acceptance laws."
        )
    rows, longest = len(prompts.lengths), int(prompts.lengths.max())
    if draft is None:
        found.append("the draft is no model: there is no exact α, only what the decoder shows.")
    elif identity(draft) == identity(target):
        found.append(
            "draft and target are the same model: every draft is accepted, by construction and up to rounding."
        )
    elif draft.record.params_total >= target.record.params_total:
        found.append(
            f"the draft has {draft.record.params_total:,} parameters and the target {target.record.params_total:,}: a draft is "
            "usually the smaller of the two."
        )
    if draft is not None and draft.record.data_digest != target.record.data_digest:
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
    trained = min((m.longest for m in (draft, target) if m is not None and m.longest), default=0)
    if trained and longest + settings.new_tokens > trained:
        found.append(
            f"rows grow to {longest + settings.new_tokens} tokens; the models are made for sequences of {trained}, and say "
            "little beyond them."
        )
    if settings.verification == "block":
        found.append(
            "block verification decides on blocks as a whole: α and the expected τ are those of token verification, and what is "
            "derived from kept drafts lies above them."
        )
    return found + loading_warnings(draft, target)


def loading_warnings(draft: LoadedModel | None, target: LoadedModel) -> list[str]:
    """What a reader should know about how the two models were read, a sentence each."""
    found = [*(draft.warnings if draft is not None else ()), *target.warnings]
    found += [
        f"{model.folder} was read without {', '.join(model.ignored_settings)}, as --ignore-key says."
        for model in (draft, target)
        if model is not None and model.ignored_settings
    ]
    return list(dict.fromkeys(found))


def result_warnings(measured: PairMeasurement) -> list[str]:
    """What a reader should know about the results, a sentence each.

    The warning about a self-check comes by mistake in at most `decoded.FALSE_ALARM` of all
    measurements.
    """
    found = []
    for result in measured.lookaheads:
        z = result.statistics.self_check
        if abs(z) > alarm_score(len(measured.lookaheads)):
            found.append(
                f"the self-check at γ = {result.lookahead} has a score of {z:+.1f}: the decoder kept "
                f"{'more' if z > 0 else 'fewer'} drafts than its own probabilities allow. A decoder without errors gives this "
                f"warning in at most one of {1 / FALSE_ALARM:,.0f} measurements."
            )
    return found


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _interval(value: Interval) -> dict[str, float | None]:
    return {name: _number(x) for name, x in value._asdict().items()}


def bits_per_byte(
    text: TextScores, role: str, prompts: Prompts, tokenizer: Tokenizer, confidence: float
) -> Interval:
    """The loss on the prompts per byte of their text, from each prompt's second token on."""
    return ratio_interval(
        text.nats[role] / math.log(2), bytes_after_first(prompts, tokenizer), confidence
    )


def _describe(
    model: LoadedModel, role: str, prompts: Prompts, text: TextScores | None, confidence: float
) -> dict[str, Any]:
    r = model.record
    on_prompts = None
    if text is not None:
        loss = text.losses[role]
        on_prompts = {
            "loss_nats": _interval(loss),
            "perplexity": _interval(Interval(*(math.exp(x) for x in loss))),
            "bits_per_byte": _interval(
                bits_per_byte(text, role, prompts, model.tokenizer, confidence)
            ),
        }
    return {
        "model_id": r.model_id,
        "folder": str(model.folder),
        "params_nonembedding": r.params_nonembedding,
        "params_total": r.params_total,
        "train_tokens": r.train_tokens,
        "loss_nats": _number(r.loss_nats),
        "params_digest": r.params_digest,
        "identity": identity(model),
        "unknown_settings": list(model.unknown_settings),
        "ignored_settings": list(model.ignored_settings),
        "on_prompts": on_prompts,
    }


def report(
    draft: Draft,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    measured: PairMeasurement,
    times: list[GenerationTimes],
    warnings: list[str],
    how: dict[str, Any],
) -> dict[str, Any]:
    """The measurement as plain values; what does not exist is None."""
    sampling, text = settings.sampling, measured.text
    return {
        "target": _describe(target, "target", prompts, text, settings.confidence),
        "draft": {"model_id": draft.name}
        if draft.model is None
        else _describe(draft.model, "draft", prompts, text, settings.confidence),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "verification": settings.verification,
        "lossless": True,
        "how": how,
        "alpha": None if measured.alpha is None else _interval(measured.alpha),
        "alpha_tokens": measured.positions,
        "alpha_on_prompts": None if text is None else _interval(text.alpha),
        "per_lookahead": [_describe_lookahead(result) for result in measured.lookaheads],
        "generation": [_describe_times(each) for each in times],
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


def _describe_times(times: GenerationTimes) -> dict[str, Any]:
    return {
        "lookahead": times.lookahead,
        "first_token_seconds": _interval(times.first_token),
        "per_token_seconds": _interval(times.per_token),
        "total_seconds": _interval(times.total),
        "speedup": _interval(times.speedup),
        "new_tokens": times.new_tokens,
        "requests": times.requests,
    }


def _describe_lookahead(result: LookaheadResult) -> dict[str, Any]:
    s = result.statistics
    return {
        "lookahead": result.lookahead,
        "tokens_per_round": _interval(s.tokens_per_round),
        "expected_tokens_per_round": None
        if result.expected is None
        else _interval(result.expected),
        "per_test": _interval(s.per_test),
        "tar": _interval(tar(result)),
        "tar_alpha": _interval(s.tar),
        "survival": [_interval(value) for value in s.survival],
        "self_check": _number(s.self_check),
        "rounds": s.rounds,
        "tests": s.tests,
        "conventions": {
            row.name: _interval(Interval(row.estimate, row.low, row.high))
            for row in result.conventions
        },
    }


def tar(result: LookaheadResult) -> Interval:
    """The paper's token acceptance rate, (τ − 1)/γ."""
    return Interval(
        *((value - 1) / result.lookahead for value in result.statistics.tokens_per_round)
    )


def report_retokenised(
    draft: LoadedModel,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    found: Retokenised,
) -> dict[str, Any]:
    """A re-tokenised measurement as plain values."""

    def describe(model: LoadedModel, role: str) -> dict[str, Any]:
        scores = found.roles[role]
        return {
            "model_id": model.record.model_id,
            "folder": str(model.folder),
            "params_total": model.record.params_total,
            "identity": identity(model),
            "loss_nats": _interval(scores.loss),
            "bits_per_byte": _interval(scores.bits_per_byte),
            "tokens_per_stretch": scores.tokens_per_stretch,
        }

    return {
        "target": describe(target, "target"),
        "draft": describe(draft, "draft"),
        "lossless": False,
        "protocol": "re-tokenised: the target's text in the draft's tokens, compared between places where both cut it; nothing "
        "was decoded",
        "temperature": settings.sampling.temperature,
        "alpha_retokenised": _interval(found.alpha),
        "stretches": found.stretches,
        "prompts": {
            "source": prompts.domain,
            "count": len(prompts.lengths),
            "with_stretches": found.rows,
        },
        "new_tokens": settings.new_tokens,
        "seed": settings.seed,
        "confidence": settings.confidence,
        "warnings": loading_warnings(draft, target),
    }


def write_tokens(
    path: Path, prompts: Prompts, measured: PairMeasurement, tokenizer: Tokenizer
) -> None:
    """Writes what was generated, a JSON object a line: row, lookahead, prompt, text, tokens, and
    why the row stopped.

    Raises:
      SdslError: the file cannot be written.
    """
    lines = []
    for result in measured.lookaheads:
        decoded = result.decoded
        assert decoded.events is not None
        stopped = (np.asarray(decoded.events.stop_reason) == STOP_TOKEN).any(axis=1)
        for row, (ids, begin, end) in enumerate(
            zip(decoded.tokens, decoded.prompt_lengths, decoded.lengths)
        ):
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
