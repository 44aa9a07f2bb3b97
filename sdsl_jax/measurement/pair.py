"""One pair of models on one set of prompts: exact acceptance, the live decoder, and whether the two agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.data.prompts import Prompts
from sdsl_jax.decoding import (
    Decoded,
    Model,
    NgramDraft,
    Sampling,
    autoregress,
    one_vocabulary,
    speculate,
)
from sdsl_jax.decoding.decode import require_positions
from sdsl_jax.decoding.verification import Verification
from sdsl_jax.errors import require
from sdsl_jax.measurement.conventions import ConventionRow, acceptance_report
from sdsl_jax.measurement.decoded import DecodedStatistics, event_columns, summarise
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.measurement.replay import drawn_acceptance, rounds_of_samples
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.ranges import share_hint
from sdsl_jax.seeds import derive_seed
from sdsl_jax.statistics import Interval, ratio_interval


@dataclass(frozen=True)
class PairSettings:
    """How a pair is measured.

    Attributes:
      lookaheads: drafts per round, γ; each is measured by a run of its own.
      new_tokens: tokens to generate for each prompt; more than the largest lookahead.
      sampling: temperature and filters, of draft and target alike.
      verification: "token" or "block".
      stop_tokens: ids after which a row stops.
      seed: of all sampling.
      batch: prompts decoded at a time; it changes memory and time, and no number but through
        rounding.
      confidence: of the intervals; prompts are their clusters.
    """

    lookaheads: tuple[int, ...] = (1, 2, 4, 8)
    new_tokens: int = 96
    sampling: Sampling = field(default_factory=Sampling)
    verification: Verification = "token"
    stop_tokens: tuple[int, ...] = ()
    seed: int = 0
    batch: int = 32
    confidence: float = 0.9

    def __post_init__(self):
        require(len(self.lookaheads) > 0, "no lookahead is given; name at least one.")
        require(
            min(self.lookaheads) >= 1,
            f"the lookaheads hold {min(self.lookaheads)}; each must be at least 1.",
        )
        require(
            len(set(self.lookaheads)) == len(self.lookaheads),
            f"the lookaheads are {', '.join(map(str, self.lookaheads))}; they repeat a value.",
        )
        require(
            self.new_tokens > max(self.lookaheads),
            f"the number of new tokens is {self.new_tokens}; it must exceed the largest lookahead ({max(self.lookaheads)}), or "
            "no round could show all that it accepts.",
        )
        require(0 <= self.seed < 2**31, f"the seed is {self.seed}; it must lie in [0, 2**31).")
        require(self.batch >= 1, f"the batch is {self.batch}; it must be at least 1.")
        require(
            0 < self.confidence < 1,
            f"the confidence is {self.confidence}; it must lie in (0, 1){share_hint(self.confidence)}.",
        )
        self.sampling.check()


class LookaheadResult(NamedTuple):
    """What one run of the decoder says.

    Attributes:
      lookahead: γ.
      statistics: acceptance per test, survival, τ, the paper's α, and the self-check.
      expected: τ of token verification that the exact distributions on the target's own samples
        predict, without decoding; None for a draft that is no model.
      conventions: every convention of acceptance, over the rounds that began with room for γ + 1
        tokens.
      decoded: tokens and events, a row per prompt.
    """

    lookahead: int
    statistics: DecodedStatistics
    expected: Interval | None
    conventions: list[ConventionRow]
    decoded: Decoded


class TextScores(NamedTuple):
    """What the two models say about the prompts themselves, from each prompt's second token of text
    on.

    The first one is left out for all models alike: some see a begin-of-text token before it, and
    others nothing.

    Attributes:
      alpha: E Σ_v min(p_v, q_v) over their positions.
      losses: cross-entropy of each model in nats per token at temperature 1, by role.
      positions: tokens predicted in each prompt.
      nats: summed cross-entropy of each prompt, by role.
    """

    alpha: Interval
    losses: dict[str, Interval]
    positions: Int[np.ndarray, " rows"]
    nats: dict[str, Float[np.ndarray, " rows"]]


class PairMeasurement(NamedTuple):
    """What was found out about a pair.

    Attributes:
      alpha: E Σ_v min(p_v, q_v) over the positions of the target's own samples; None for a draft
        that is no model.
      positions: how many those are.
      text: the same on the prompts, and both losses there; None for a draft that is no model, or
        prompts of one token.
      lookaheads: one result for each lookahead, in the order of the settings.
    """

    alpha: Interval | None
    positions: int
    text: TextScores | None
    lookaheads: tuple[LookaheadResult, ...]


def measure_pair(
    draft: Model | NgramDraft,
    target: Model,
    prompts: Prompts,
    settings: PairSettings,
    progress: Progress | None = None,
) -> PairMeasurement:
    """Measures a pair.

    Args:
      draft: proposes.
      target: verifies; ids mean to it what they mean to the draft, though one of the two may have
        more of them.
      prompts: one row each; a row's randomness depends on the seed and its number, not on its
        batch.
      settings: how.
      progress: told after every batch.

    Raises:
      SdslError: a stop token is no id of the target, rows outgrow a model's table of positions, or
        logits are not finite.
    """
    progress = progress or Silent()
    if isinstance(draft, Model):
        draft, target = one_vocabulary(draft, target)
    for token in settings.stop_tokens:
        require(
            0 <= token < target.config.ids,
            f"the stop token is {token}; it must lie in [0, {target.config.ids - 1}].",
        )
    models = {"target": target} | ({"draft": draft} if isinstance(draft, Model) else {})
    longest, new = int(prompts.lengths.max()), settings.new_tokens
    for role, model in models.items():
        require_positions(model, longest + new, role, f"prompts of {longest} and {new} new tokens")
    batches = -(-len(prompts.lengths) // settings.batch)
    progress.start("measure", batches * (3 + len(settings.lookaheads)))
    exact = text = None
    if isinstance(draft, Model):
        text = _score_text(draft, target, prompts, settings)
        progress.advance(batches, "prompts")
        samples = sample_target(
            target, prompts, settings, lambda: progress.advance(1, "samples of the target")
        )
        exact = _score(draft, target, samples, settings)
        progress.advance(batches, "exact acceptance")
    results = []
    for lookahead in settings.lookaheads:
        decoded = _decode(
            draft,
            target,
            prompts,
            lookahead,
            settings,
            lambda: progress.advance(1, f"γ = {lookahead}"),  # noqa: B023
        )
        columns = event_columns(decoded)
        columns["batch"] = columns["row"] // settings.batch
        report = acceptance_report(
            columns,
            max_lengths=decoded.max_lengths,
            whole_rounds_only=True,
            confidence=settings.confidence,
        )
        statistics = summarise(decoded, lookahead, settings.confidence)
        expected = None if exact is None else expected_tokens_per_round(exact, lookahead, settings)
        results.append(LookaheadResult(lookahead, statistics, expected, report.table(), decoded))
    progress.finish()
    if exact is None:
        return PairMeasurement(None, 0, None, tuple(results))
    return PairMeasurement(exact.alpha, exact.positions, text, tuple(results))


def _batches(rows: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers of each batch, and which of them are meant: all batches have one shape, the last is filled up."""
    size = min(size, rows)
    for begin in range(0, rows, size):
        numbers = np.arange(begin, begin + size)
        yield numbers % rows, numbers < rows


def _in_batches(
    rows: int, size: int, run: Callable[[np.ndarray, np.ndarray], Any], advance: Callable[[], None]
) -> Any:
    """Runs a function of (row numbers, which are meant) batch by batch and joins what it returns, a row per row."""
    parts = []
    for numbers, meant in _batches(rows, size):
        found = run(numbers, meant)
        parts.append(jax.tree.map(lambda x, meant=meant: np.asarray(x)[meant], found))
        advance()
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _decode(
    draft: Model | NgramDraft,
    target: Model,
    prompts: Prompts,
    lookahead: int,
    settings: PairSettings,
    advance: Callable[[], None],
) -> Decoded:
    rounds = 0

    def run(numbers: np.ndarray, meant: np.ndarray) -> Decoded:
        nonlocal rounds
        decoded = speculate(
            draft,
            target,
            prompts.tokens[numbers],
            prompt_lengths=prompts.lengths[numbers],
            lookahead=lookahead,
            max_lookahead=max(settings.lookaheads),
            new_tokens=np.where(meant, settings.new_tokens, 0),
            sampling=settings.sampling,
            verification=settings.verification,
            seed=derive_seed("pair", settings.seed, lookahead),
            rows=numbers,
            stop_tokens=settings.stop_tokens,
        )
        rounds += int(decoded.batch_rounds)
        return decoded._replace(batch_rounds=None)  # type: ignore[arg-type]  # no row of it

    joined = _in_batches(len(prompts.lengths), settings.batch, run, advance)
    return joined._replace(batch_rounds=np.int32(rounds))


def _score_text(
    draft: Model, target: Model, prompts: Prompts, settings: PairSettings
) -> TextScores | None:
    """One pass of each model over the prompts."""
    lead = prompts.lead
    positions = np.maximum(prompts.lengths - 1 - lead, 0)
    if not positions.any():
        return None
    scored = pairwise_overlap(
        {"draft": draft},
        {"target": target},
        prompts.tokens[:, :-1],
        first=lead,
        lengths=prompts.lengths - 1,
        samplings=[settings.sampling, Sampling()],
        following=prompts.tokens[:, lead + 1 :],
    )
    counts = np.arange(prompts.tokens.shape[1] - 1 - lead) < positions[:, None]
    nats = {
        role: -np.where(counts, scores.log_probs[1], 0.0).sum(axis=1)  # type: ignore[index]
        for role, scores in (
            ("target", scored.targets["target"]),
            ("draft", scored.drafts["draft"]),
        )
    }
    pair = scored.pairs["draft", "target"]
    losses = {
        role: ratio_interval(sums, positions, settings.confidence) for role, sums in nats.items()
    }
    return TextScores(pair.mean(pair.acceptance[0], settings.confidence), losses, positions, nats)


class _Samples(NamedTuple):
    """Continuations by the target, with as many tokens beyond `new_tokens` as a last round could look ahead."""

    tokens: Int[np.ndarray, "rows length"]
    prompt_lengths: Int[np.ndarray, " rows"]


def sample_target(
    target: Model, prompts: Prompts, settings: PairSettings, advance: Callable[[], None]
) -> _Samples:
    """Lets the target continue every prompt, with as many tokens more as the largest lookahead may
    look ahead.

    A table of positions may end before; what the last rounds would have seen behind its end is then
    missing.
    """
    beyond = max(settings.lookaheads) - 1
    room = settings.new_tokens + beyond
    wanted = np.clip(
        target.config.position_limit - prompts.lengths.astype(int), settings.new_tokens, room
    )

    def run(numbers: np.ndarray, meant: np.ndarray) -> Array:
        return autoregress(
            target,
            prompts.tokens[numbers],
            prompt_lengths=prompts.lengths[numbers],
            new_tokens=np.where(meant, wanted[numbers], 0),
            sampling=settings.sampling,
            seed=derive_seed("pair", settings.seed, "samples"),
            rows=numbers,
            room=room,
        ).tokens

    return _Samples(
        _in_batches(len(prompts.lengths), settings.batch, run, advance), prompts.lengths
    )


class ExactAcceptance(NamedTuple):
    """Exact quantities on the target's samples.

    Attributes:
      alpha: Σ_v min(p_v, q_v), averaged over the tokens asked for that no stop precedes.
      positions: how many those are.
      acceptance: min(1, q(y)/p(y)) of each sampled token: the probability that it came by
        acceptance.
      counted: how many of the row's first tokens were asked for and are not behind a stop.
      room: tokens that each row could have, before a table of positions ends.
    """

    alpha: Interval
    positions: int
    acceptance: Float[np.ndarray, "rows tokens"]
    counted: Int[np.ndarray, " rows"]
    room: Int[np.ndarray, " rows"]


def _score(
    draft: Model, target: Model, samples: _Samples, settings: PairSettings
) -> ExactAcceptance:
    """One pass of each model over the samples."""
    starts = samples.prompt_lengths
    new = settings.new_tokens + max(settings.lookaheads) - 1
    at = starts[:, None] + np.arange(new)
    emitted = np.take_along_axis(samples.tokens, at, axis=1)
    stops = np.isin(emitted, settings.stop_tokens)
    counted = (
        (np.cumsum(stops, axis=1) - stops == 0) & (np.arange(new) < settings.new_tokens)
    ).sum(axis=1)
    first = starts.min()
    scored = pairwise_overlap(
        {"draft": draft},
        {"target": target},
        samples.tokens[:, :-1],
        first=starts - 1,
        lengths=starts - 1 + counted,
        samplings=[settings.sampling],
        following=samples.tokens[:, first:],
    )
    pair = scored.pairs["draft", "target"]
    log_p, log_q = (
        np.take_along_axis(scores.log_probs[0], at - first, axis=1)  # type: ignore[index]
        for scores in (scored.targets["target"], scored.drafts["draft"])
    )
    return ExactAcceptance(
        pair.mean(pair.acceptance[0], settings.confidence),
        int(pair.positions.sum()),
        drawn_acceptance(log_p, log_q),
        counted,
        min(draft.config.position_limit, target.config.position_limit) - starts.astype(int),
    )


def expected_tokens_per_round(
    exact: ExactAcceptance, lookahead: int, settings: PairSettings
) -> Interval:
    """τ of token verification at block starts of this lookahead, from the target's samples and
    without decoding.

    As in `decoded.summarise`, rounds start at any of the `new_tokens` positions that no stop
    precedes, and may look beyond the last, but not beyond the end of a table of positions.
    """
    acceptance = exact.acceptance[:, : settings.new_tokens + lookahead - 1]
    starts = np.minimum(exact.counted, exact.room - lookahead + 1)
    started, survived = rounds_of_samples(acceptance, starts, lookahead)
    return ratio_interval(started + survived.sum(axis=-1), started, settings.confidence)
