"""Which models make a pair, and what a reader should know about a measured one, a sentence each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sdsl_jax.checkpoints.identity import identity
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.data.prompts import Prompts
from sdsl_jax.data.tokenizer import same_tokens
from sdsl_jax.decoding import Decoded
from sdsl_jax.errors import require
from sdsl_jax.measurement.events import FALSE_ALARM, alarm_score
from sdsl_jax.measurement.latency import GenerationTimes
from sdsl_jax.measurement.pair import PairMeasurement, PairSettings

# With fewer prompts than this, an interval over them is a guess.
_FEW_PROMPTS = 8
# Texts that share so many tokens in a row say the same; where more than this share of the rows does,
# they are no independent clusters.
_SAME_WORDS, _ALIKE = 8, 0.25


def share_tokens(draft: LoadedModel, target: LoadedModel) -> bool:
    """Whether ids mean the same to both models."""
    return same_tokens(draft.tokenizer, target.tokenizer)


def require_one_tokenizer(draft: LoadedModel, target: LoadedModel) -> None:
    """Raises `SdslError` unless ids mean the same to both models."""

    def name(model: LoadedModel) -> str:
        return f"{model.tokenizer.kind} of {model.tokenizer.vocab_size} entries"

    require(
        share_tokens(draft, target),
        f"the draft {draft.record.model_id} and the target {target.record.model_id} have different tokenizers "
        f"({name(draft)} and {name(target)}), so the target cannot accept any draft token and nothing is decoded; "
        "--retokenised compares them on the target's text instead.",
    )


def require_own_target(draft: LoadedModel, target: LoadedModel) -> None:
    """Checks that a head on its target's tables is used with that target.

    Raises:
      SdslError: It is another one.
    """
    head, record = draft.head, draft.record
    require(
        head is None or not head.on_tables or record.teacher_digest == target.record.params_digest,
        f"{record.model_id} is a head on the tables of the target with the digest {record.teacher_digest[:12]}, and "
        f"{target.record.model_id} has {target.record.params_digest[:12]}; measure it with its own, the weights as loaded.",
    )


def input_warnings(
    draft: LoadedModel | None,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    requested: int,
) -> list[str]:
    """What a reader should know about the inputs, a sentence each."""
    warnings = []
    if draft is not None and math.isnan(draft.record.loss_nats) != math.isnan(
        target.record.loss_nats
    ):
        warnings.append(
            "one model has a loss on text held out from its training, the other only its loss on these prompts: "
            "do not fit acceptance laws to records of this pair."
        )
    rows, longest = len(prompts.lengths), int(prompts.lengths.max())
    if draft is None:
        warnings.append("the draft is no model: there is no exact α, only what the decoder shows.")
    elif identity(draft) == identity(target):
        warnings.append(
            "draft and target are the same model: every draft is accepted, up to rounding."
        )
    elif draft.record.params_total >= target.record.params_total:
        warnings.append(
            f"the draft has {draft.record.params_total:,} parameters and the target {target.record.params_total:,}: a draft is "
            "usually the smaller of the two."
        )
    if settings.ngram_first:
        warnings.append(
            f"n-grams of at least {settings.ngram_first} tokens draft first: acceptance is a mixture of two drafts, so there is "
            "no exact α, and no lookahead follows from these figures; measure the model without --ngram-first for its own."
        )
    if draft is not None and draft.record.data_digest != target.record.data_digest:
        warnings.append(
            "draft and target were trained on different data; text held out from one may have trained the other."
        )
    if rows < requested:
        warnings.append(f"there are only {rows} prompts; {requested} were asked for.")
    if rows < _FEW_PROMPTS:
        warnings.append(
            f"the intervals have only {rows} prompts as clusters; use at least {_FEW_PROMPTS}."
        )
    if prompts.cut:
        warnings.append(
            f"{prompts.cut} of {rows} prompts were longer than allowed and keep only their last {longest} tokens."
        )
    trained = min((m.longest for m in (draft, target) if m is not None and m.longest), default=0)
    if trained and longest + settings.new_tokens > trained:
        warnings.append(
            f"rows grow to {longest + settings.new_tokens} tokens; the models were made for sequences of {trained}, "
            "and acceptance beyond that says little."
        )
    if settings.verification == "block":
        warnings.append(
            "block verification decides on whole blocks: α and the expected τ are those of token verification, "
            "and quantities derived from kept drafts are larger."
        )
    return warnings + loading_warnings(draft, target)


def loading_warnings(draft: LoadedModel | None, target: LoadedModel) -> list[str]:
    """What a reader should know about how the two models were read, a sentence each."""
    models = [model for model in (draft, target) if model is not None]
    warnings = [text for model in models for text in model.warnings]
    warnings += [
        f"{model.folder} was read without {', '.join(model.ignored_settings)}, as --ignore-key says."
        for model in models
        if model.ignored_settings
    ]
    return list(dict.fromkeys(warnings))


def result_warnings(measured: PairMeasurement) -> list[str]:
    """What a reader should know about the results, a sentence each.

    The warning about a self-check is a false alarm in at most `events.FALSE_ALARM` of all
    measurements.
    """
    warnings = []
    first = measured.lookaheads[0]
    if first.divergences is not None:
        alike, rows = texts_alike(first.decoded), len(first.decoded.tokens)
        if rows > 1 and alike > max(1, _ALIKE * rows):
            warnings.append(
                f"{alike} of {rows} greedy texts run into the same {_SAME_WORDS} tokens: prompts are then not independent, and "
                "intervals and tests over prompts promise too much."
            )
    for result in measured.lookaheads:
        z = result.statistics.self_check
        if abs(z) > alarm_score(len(measured.lookaheads)):
            warnings.append(
                f"the self-check at γ = {result.lookahead} has a score of {z:+.1f}: the decoder kept "
                f"{'more' if z > 0 else 'fewer'} drafts than its own probabilities allow. A decoder without errors gives this "
                f"warning in at most one of {1 / FALSE_ALARM:,.0f} measurements."
            )
    return warnings


def texts_alike(decoded: Decoded) -> int:
    """How many rows hold the stretch of 8 tokens, in the second half of their new text, that most rows
    hold there. Greedy texts of small models fall into loops, and many into the same one."""
    rows_with: Counter[tuple[int, ...]] = Counter()
    for ids, begin, end in zip(decoded.tokens, decoded.prompt_lengths, decoded.lengths):
        half = np.asarray(ids)[(begin + end) // 2 : end].tolist()
        rows_with.update(
            {tuple(half[i : i + _SAME_WORDS]) for i in range(len(half) - _SAME_WORDS + 1)}
        )
    return max(rows_with.values(), default=0)


def timing_warnings(times: Sequence[GenerationTimes]) -> list[str]:
    """What a reader should know about the times of requests, a sentence each."""
    return [
        f"the time per token at γ = {each.lookahead} is not positive: the machine was busy with other work; measure again."
        for each in times
        if each.per_token_seconds.estimate <= 0
    ]


def comparison_warnings(draft: LoadedModel, against: LoadedModel, target: LoadedModel) -> list[str]:
    """What a reader of a comparison of two drafts should know, a sentence each."""
    warnings = []
    if identity(draft) == identity(against):
        warnings.append("the two drafts are the same model.")
    if (draft.head is None) != (against.head is None):
        warnings.append(
            "one of the two drafts is a head, whose α is that of the first draft of a round: compare the tokens per round."
        )
    if against.record.data_digest != target.record.data_digest:
        warnings.append(
            "the draft to compare with and the target were trained on different data; text held out from one may have "
            "trained the other."
        )
    return warnings + loading_warnings(against, target)
