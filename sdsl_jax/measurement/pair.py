"""The numbers of one pair of models on one set of prompts: exact acceptance, the live decoder,
whether the two agree, and what the same run would have given otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.data.prompts import Prompts, bytes_after_first
from sdsl_jax.data.tokenizer import Tokenizer
from sdsl_jax.decoding import (
    Decoded,
    Head,
    HybridDraft,
    Model,
    NestedDraft,
    NgramDraft,
    Sampling,
    autoregress,
    one_vocabulary,
    speculate,
)
from sdsl_jax.decoding.decode import drafter_of, require_positions
from sdsl_jax.decoding.lookahead import LookaheadRule
from sdsl_jax.decoding.verification import Verification
from sdsl_jax.errors import require
from sdsl_jax.measurement.events import (
    DecodedStatistics,
    acceptance_report,
    event_columns,
    summarise,
)
from sdsl_jax.measurement.greedy import Divergence, first_divergences
from sdsl_jax.measurement.heads import overlap_after_prompts
from sdsl_jax.measurement.hybrids import with_ngrams_first
from sdsl_jax.measurement.overlap import PairOverlap, pairwise_overlap
from sdsl_jax.measurement.replay import (
    ExpectedRounds,
    SameContextAcceptance,
    VerificationComparison,
    compare_verification,
    expected_rounds,
    same_context_acceptance,
)
from sdsl_jax.models import ModelConfig
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.ranges import require_distinct, require_in
from sdsl_jax.seeds import derive_seed
from sdsl_jax.statistics import Interval, ratio_interval

# Other temperatures that a replayed run is asked about, and the memory that its distributions may take.
_OTHER_TEMPERATURES, _REPLAY_BYTES = (0.0, 0.5, 1.0, 1.5), 2**31

# What can be measured as the draft of a pair.
PairDraft = Model | Head | NgramDraft | HybridDraft


@dataclass(frozen=True)
class PairSettings:
    """How a pair is measured.

    Attributes:
      lookaheads: Drafts per round, γ; each is measured by a run of its own.
      new_tokens: Tokens to generate for each prompt; more than the largest lookahead.
      sampling: Temperature and filters, for draft and target alike.
      verification: "token" or "block".
      stop_tokens: Ids after which a row stops.
      seed: Seed of all sampling.
      batch: Prompts decoded at a time. It changes memory and time, and numbers only by rounding.
      confidence: Confidence of the intervals; prompts are their clusters.
      ngram_first: Shortest n-gram that drafts a round in place of the draft; 0 for the draft alone.
    """

    lookaheads: tuple[int, ...] = (1, 2, 4, 8)
    new_tokens: int = 96
    sampling: Sampling = field(default_factory=Sampling)
    verification: Verification = "token"
    stop_tokens: tuple[int, ...] = ()
    seed: int = 0
    batch: int = 32
    confidence: float = 0.9
    ngram_first: int = 0

    def __post_init__(self):
        require_distinct("the list of lookaheads", self.lookaheads)
        require_in("[1, inf)", "the list of lookaheads", self.lookaheads)
        require(
            self.new_tokens > max(self.lookaheads),
            f"the number of new tokens is {self.new_tokens}; it must exceed the largest lookahead "
            f"({max(self.lookaheads)}), or no round could show all that it accepts.",
        )
        require(0 <= self.seed < 2**31, f"the seed is {self.seed}; it must lie in [0, 2**31).")
        require_in("[1, inf)", "the batch", self.batch)
        require_in("(0, 1)", "the confidence", self.confidence)
        require_in("[0, inf)", "the shortest n-gram that drafts first", self.ngram_first)
        self.sampling.check()


class LookaheadResult(NamedTuple):
    """Results of one run of the decoder.

    Attributes:
      lookahead: γ.
      statistics: Acceptance per test, survival, τ, the paper's α, and the self-check.
      expected: τ of token verification that the exact distributions on the target's own samples
        predict, without decoding; None for an n-gram draft.
      conventions: Every convention of acceptance, over the rounds that began with room for γ + 1
        tokens.
      decoded: Tokens and events, a row per prompt.
      divergences: Where a greedy run differs from the target's own greedy text; None if the run is
        not greedy, or for an n-gram draft.
    """

    lookahead: int
    statistics: DecodedStatistics
    expected: Interval | None
    conventions: dict[str, Interval]
    decoded: Decoded
    divergences: list[Divergence] | None = None

    @property
    def tar(self) -> Interval:
        """The paper's token acceptance rate, (τ − 1)/γ."""
        return Interval(*((tau - 1) / self.lookahead for tau in self.statistics.tokens_per_round))


class TextScores(NamedTuple):
    """Scores of both models on the prompts, from each prompt's second token of text on.

    The first token is left out for all models: some see a begin-of-text token before it, and others
    nothing.

    Attributes:
      alpha: E Σ_v min(p_v, q_v) over the positions.
      positions: Tokens predicted in each prompt.
      nats: Summed cross-entropy of each prompt at temperature 1, by role, over the tokens that the
        model can give. Those that a truncated readout rules out would take infinitely many.
      given: Number of these tokens in each prompt, by role.
    """

    alpha: Interval
    positions: Int[np.ndarray, " rows"]
    nats: dict[str, Float[np.ndarray, " rows"]]
    given: dict[str, Int[np.ndarray, " rows"]]


class PairMeasurement(NamedTuple):
    """The numbers of a pair.

    Attributes:
      alpha: E Σ_v min(p_v, q_v) over the positions of the target's own samples, of a head for the
        first draft of a round; None where n-grams draft.
      positions: Number of these positions.
      text: α and both losses on the prompts; None where n-grams draft, for a head, or for prompts of
        one token.
      lookaheads: A result for each lookahead, in the order of the settings.
      expected: Token verification in expectation at every γ up to the largest lookahead, from the
        target's samples; empty for an n-gram draft.
      exact: What α was averaged from, token by token of the samples; None where n-grams draft.
      against: The same of another draft, on the same samples; None if there is none.
    """

    alpha: Interval | None
    positions: int
    text: TextScores | None
    lookaheads: tuple[LookaheadResult, ...]
    expected: tuple[ExpectedRounds, ...] = ()
    exact: ExactAcceptance | None = None
    against: ExactAcceptance | None = None


def measure_models(
    draft: PairDraft,
    target: Model,
    prompts: Prompts,
    settings: PairSettings,
    progress: Progress | None = None,
    against: Model | Head | None = None,
    drawn: dict[int, Samples] | None = None,
) -> PairMeasurement:
    """Measures the acceptance of a pair, by scoring and by decoding.

    Args:
      draft: The drafter.
      target: The model that verifies. Ids must mean the same to both models, though one of the two
        may have more of them.
      prompts: One row each. A row's randomness depends on the seed and its number, not on its batch.
      settings: How to measure.
      progress: Reports progress after every batch.
      against: Another draft, which is scored on the same samples and not decoded; none if n-grams
        draft.
      drawn: Samples of the target that earlier calls with the same prompts and settings have drawn, by
        the number of its logits; they are used again, and new ones are added.

    Raises:
      SdslError: a stop token is not an id of the target, rows exceed a model's table of positions,
        a head was made for a target of another shape, a hybrid draft falls back on a nested one, or
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
    models: dict[str, Model | Head | HybridDraft] = {"target": target}
    if not isinstance(draft, NgramDraft):
        models["draft"] = draft
    if against is not None:
        models["draft to compare with"] = against
    longest, new = int(prompts.lengths.max()), settings.new_tokens
    for role, model in models.items():
        drafter_of(model, target, max(settings.lookaheads))  # a head may be of another target
        require_positions(model, longest + new, role, f"prompts of {longest} and {new} new tokens")
    batches = -(-len(prompts.lengths) // settings.batch)
    parts = 3 + len(settings.lookaheads) + (against is not None)
    progress.start("measure", batches * parts)
    text = samples = exact = other = None
    expected: list[ExpectedRounds] = []
    if not isinstance(draft, NgramDraft):
        if isinstance(draft, Model):
            text = _score_text(draft, target, prompts, settings)
        progress.advance(batches, "prompts")
        kept = {} if drawn is None else drawn
        if (samples := kept.get(target.config.ids)) is None:
            samples = kept[target.config.ids] = sample_target(
                target, prompts, settings, lambda: progress.advance(1, "samples of the target")
            )
        else:
            progress.advance(batches, "samples of the target")
        if isinstance(draft, HybridDraft):
            expected = _expected_of_hybrid(draft, target, samples, settings)
        else:
            exact = exact_acceptance(draft, target, samples, settings)
            expected = exact.expected(settings)
        progress.advance(batches, "exact acceptance")
        if against is not None and exact is not None:
            other = exact_acceptance(against, target, samples, settings)
            progress.advance(batches, "exact acceptance of the other draft")
    results = []
    for lookahead in settings.lookaheads:
        decoded = decode(
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
        divergences = None
        if samples is not None and float(settings.sampling.temperature) == 0:
            # The target's greedy samples are its own greedy text.
            plain = decoded._replace(tokens=samples.tokens)  # type: ignore[arg-type]
            divergences = first_divergences(target, decoded, plain)
        results.append(
            LookaheadResult(
                lookahead,
                summarise(decoded, lookahead, settings.confidence),
                expected[lookahead - 1].tokens_per_round if expected else None,
                report.estimates,
                decoded,
                divergences,
            )
        )
    progress.finish()
    if exact is None:
        return PairMeasurement(None, 0, None, tuple(results), tuple(expected))
    return PairMeasurement(
        exact.alpha, exact.positions, text, tuple(results), tuple(expected), exact, other
    )


def _batches(rows: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers of each batch, and which of them count: all batches have one shape, and rows of the
    beginning fill up the last one."""
    size = min(size, rows)
    for begin in range(0, rows, size):
        numbers = np.arange(begin, begin + size)
        yield numbers % rows, numbers < rows


def _in_batches(
    rows: int, size: int, run: Callable[[np.ndarray, np.ndarray], Any], advance: Callable[[], None]
) -> Any:
    """Runs a function of (row numbers, which count) batch by batch and joins its results by row."""
    parts = []
    for numbers, counts in _batches(rows, size):
        result = run(numbers, counts)
        parts.append(jax.tree.map(lambda x, counts=counts: np.asarray(x)[counts], result))
        advance()
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def decode(
    draft: PairDraft,
    target: Model,
    prompts: Prompts,
    lookahead: int,
    settings: PairSettings,
    advance: Callable[[], None] = lambda: None,
    rule: LookaheadRule | None = None,
) -> Decoded:
    """Decodes all prompts at one lookahead, or by one rule, batch by batch.

    Args:
      draft: The drafter.
      target: The model that verifies.
      prompts: The prompts.
      lookahead: γ; the verify pass is as wide as the largest lookahead of the settings needs.
      settings: Sampling, verification, seed and batch.
      advance: Called after every batch.
      rule: Chooses the drafts of each row and round, up to the largest lookahead; None for γ always.

    Returns:
      One run with a row per prompt; `batch_rounds` adds up those of the batches.
    """
    rounds = 0

    def run(numbers: np.ndarray, counts: np.ndarray) -> Decoded:
        nonlocal rounds
        decoded = speculate(
            draft,
            target,
            prompts.tokens[numbers],
            prompt_lengths=prompts.lengths[numbers],
            lookahead=lookahead if rule is None else rule,
            max_lookahead=max(settings.lookaheads),
            new_tokens=np.where(counts, settings.new_tokens, 0),
            sampling=settings.sampling,
            verification=settings.verification,
            seed=derive_seed("pair", settings.seed, lookahead),
            rows=numbers,
            stop_tokens=settings.stop_tokens,
        )
        rounds += int(decoded.batch_rounds)
        return decoded._replace(batch_rounds=None)  # type: ignore[arg-type]  # it has no rows

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
    nats, given = {}, {}
    for role, model, scores in (
        ("target", target, scored.targets["target"]),
        ("draft", draft, scored.drafts["draft"]),
    ):
        assert scores.log_probs is not None
        counted = counts & _can_give(model.config, prompts.tokens[:, lead + 1 :])
        nats[role] = -np.where(counted, scores.log_probs[1], 0.0).sum(axis=1)
        given[role] = counted.sum(axis=1)
    pair = scored.pairs["draft", "target"]
    return TextScores(pair.mean(settings.confidence), positions, nats, given)


def _can_give(model: ModelConfig, tokens: Int[np.ndarray, "rows T"]) -> Bool[np.ndarray, "rows T"]:
    """Which tokens have a logit of their own in a model."""
    return np.isin(tokens, model.readout_ids) if model.readout_ids else tokens < model.vocab_size


def loss_on_prompts(
    nats: Float[np.ndarray, " rows"],
    prompts: Prompts,
    tokenizer: Tokenizer,
    confidence: float,
    given: Int[np.ndarray, " rows"] | None = None,
) -> tuple[Interval, Interval]:
    """A model's loss on prompts, from each prompt's second token of text on: nats per token that it can
    give, and bits per byte; NaN where it cannot give every token.

    Args:
      nats: Summed cross-entropy of each prompt.
      prompts: The prompts.
      tokenizer: Their tokenizer.
      confidence: Confidence of the intervals.
      given: Tokens of each prompt that `nats` counts; all of them if None.
    """
    positions = np.maximum(prompts.lengths - 1 - prompts.lead, 0)
    given = positions if given is None else given
    size = bytes_after_first(prompts, tokenizer)
    whole = given.sum() == positions.sum()
    return (
        ratio_interval(nats, given, confidence),
        ratio_interval(nats / math.log(2), size, confidence)
        if whole
        else Interval(math.nan, math.nan, math.nan),
    )


class Samples(NamedTuple):
    """Continuations by the target, with as many tokens beyond `new_tokens` as a last round could draft."""

    tokens: Int[np.ndarray, "rows length"]
    prompt_lengths: Int[np.ndarray, " rows"]


def sample_target(
    target: Model, prompts: Prompts, settings: PairSettings, advance: Callable[[], None]
) -> Samples:
    """Lets the target continue every prompt, with as many more tokens as the largest lookahead needs.

    A table of positions may end before that. What the last rounds would see behind its end is then
    missing.
    """
    beyond = max(settings.lookaheads) - 1
    room = settings.new_tokens + beyond
    lengths = np.clip(
        target.config.position_limit - prompts.lengths.astype(int), settings.new_tokens, room
    )

    def run(numbers: np.ndarray, counts: np.ndarray) -> Array:
        return autoregress(
            target,
            prompts.tokens[numbers],
            prompt_lengths=prompts.lengths[numbers],
            new_tokens=np.where(counts, lengths[numbers], 0),
            sampling=settings.sampling,
            seed=derive_seed("pair", settings.seed, "samples"),
            rows=numbers,
            room=room,
        ).tokens

    return Samples(_in_batches(len(prompts.lengths), settings.batch, run, advance), prompts.lengths)


class ExactAcceptance(NamedTuple):
    """Exact quantities on the target's samples.

    Attributes:
      alpha: Σ_v min(p_v, q_v), averaged over the requested tokens that no stop precedes; of a head,
        as the first draft of a round.
      positions: Number of these tokens.
      overlap: Sums of Σ_v min(p_v, q_v) by row, and its values at the tokens from each prompt's end
        on, [1, rows, tokens].
      acceptance: min(1, q(y)/p(y)) of each sampled token: the probability that it came by
        acceptance. Of a head, as each draft of a round.
      counted: Number of tokens of each row that were requested and that no stop precedes.
      room: Tokens that each row can have before a table of positions ends.
    """

    alpha: Interval
    positions: int
    overlap: PairOverlap
    acceptance: Float[np.ndarray, "rows tokens *drafts"]
    counted: Int[np.ndarray, " rows"]
    room: Int[np.ndarray, " rows"]

    def expected(self, settings: PairSettings) -> list[ExpectedRounds]:
        """Token verification in expectation at every γ up to the largest lookahead.

        Rounds start at any of the `new_tokens` positions that no stop precedes, as in
        `events.summarise`. They may look beyond the last, but not beyond a table of positions.
        """
        return expected_rounds(
            self.acceptance,
            max(settings.lookaheads),
            lengths=self.counted,
            limits=self.room,
            confidence=settings.confidence,
        )


def exact_acceptance(
    draft: Model | Head, target: Model, samples: Samples, settings: PairSettings
) -> ExactAcceptance:
    """Scores a draft on samples of its target: one pass of each model, or of a head one for each draft
    of a round.

    Args:
      draft: The drafter. Ids must mean the same to both models.
      target: The model that wrote the samples.
      samples: Its samples.
      settings: As the samples were drawn.
    """
    if isinstance(draft, Model):
        draft, target = one_vocabulary(draft, target)
    starts = samples.prompt_lengths
    new = settings.new_tokens + max(settings.lookaheads) - 1
    at = starts[:, None] + np.arange(new)
    emitted = np.take_along_axis(samples.tokens, at, axis=1)
    stops = np.isin(emitted, settings.stop_tokens)
    counted = (
        (np.cumsum(stops, axis=1) - stops == 0) & (np.arange(new) < settings.new_tokens)
    ).sum(axis=1)
    first = starts.min()
    room = min(draft.config.position_limit, target.config.position_limit) - starts.astype(int)
    if isinstance(draft, Head):
        lengths, largest = (starts, counted, new), max(settings.lookaheads)
        pair, drawn = overlap_after_prompts(
            draft, target, samples.tokens, *lengths, largest, settings.sampling
        )
    else:
        scored = pairwise_overlap(
            {"draft": draft},
            {"target": target},
            samples.tokens[:, :-1],
            first=starts - 1,
            lengths=starts - 1 + counted,
            samplings=[settings.sampling],
            following=samples.tokens[:, first:],
            by_position=True,
        )
        pair = scored.pairs["draft", "target"]
        drawn = np.take_along_axis(scored.drawn_acceptance("draft", "target"), at - first, axis=1)
    assert pair.by_position is not None
    by_token = np.take_along_axis(pair.by_position, (at - first)[None], axis=2)
    pair = dataclasses.replace(pair, by_position=by_token)
    alpha, positions = pair.mean(settings.confidence), int(pair.positions.sum())
    return ExactAcceptance(alpha, positions, pair, drawn, counted, room)


def _expected_of_hybrid(
    draft: HybridDraft, target: Model, samples: Samples, settings: PairSettings
) -> list[ExpectedRounds]:
    """Token verification in expectation, with n-grams where they occur and else the fallback."""
    require(
        isinstance(draft.fallback, Model | Head),
        "the draft to fall back on is a nested one, whose expected rounds are not known; measure one of its slices.",
    )
    assert not isinstance(draft.fallback, NestedDraft)
    fallback = exact_acceptance(draft.fallback, target, samples, settings)
    mixed = with_ngrams_first(
        fallback.acceptance,
        draft.ngrams,
        samples.tokens,
        samples.prompt_lengths,
        max(settings.lookaheads),
        draft.fallback_lookahead,
    )
    return fallback._replace(acceptance=mixed).expected(settings)


class Replay(NamedTuple):
    """What a run would have given otherwise, from its stored distributions.

    Attributes:
      lookahead: γ of the run.
      verification: Token against block verification on the run's blocks.
      temperatures: α at other temperatures, in the contexts of the run's tested drafts; empty for a
        greedy run.
    """

    lookahead: int
    verification: VerificationComparison
    temperatures: list[SameContextAcceptance]


def replay_run(
    draft: PairDraft,
    target: Model,
    prompts: Prompts,
    settings: PairSettings,
    lookahead: int,
    rows: int,
) -> Replay:
    """Decodes some prompts once more, keeping all distributions, and replays that run.

    Args:
      draft: The drafter, with the target's ids.
      target: The model that verifies.
      prompts: The first `rows` of these are decoded, as `measure_models` decodes them.
      settings: Settings of the pair.
      lookahead: γ.
      rows: Number of prompts; all if there are fewer.

    Raises:
      SdslError: the distributions of so many rows would need more than 2 GiB.
    """
    rows = min(rows, len(prompts.lengths))
    each = 4 * settings.new_tokens * (2 * lookahead + 1) * target.config.ids
    require(
        rows * each <= _REPLAY_BYTES,
        f"the distributions of {rows} prompts would take {rows * each / 2**30:.1f} GiB; replay at most "
        f"{_REPLAY_BYTES // each} prompts, or use fewer new tokens.",
    )
    decoded = speculate(
        draft,
        target,
        prompts.tokens[:rows],
        prompt_lengths=prompts.lengths[:rows],
        lookahead=lookahead,
        new_tokens=settings.new_tokens,
        sampling=settings.sampling,
        verification=settings.verification,
        seed=derive_seed("pair", settings.seed, lookahead),
        stop_tokens=settings.stop_tokens,
        keep_distributions=True,
    )
    blocks, events = jax.tree.map(np.asarray, (decoded.blocks, decoded.events))
    comparison = compare_verification(
        blocks.drafts,
        blocks.draft_probs,
        blocks.target_probs,
        events.proposed,
        confidence=settings.confidence,
    )
    temperature, others = float(settings.sampling.temperature), []
    if temperature > 0:
        B, R, G, V = blocks.draft_probs.shape
        tested = np.arange(G) < np.minimum(events.verified + 1, events.proposed)[..., None]
        with np.errstate(divide="ignore"):
            log_p, log_q = (
                np.log(x).reshape(B, R * G, V)
                for x in (blocks.target_probs[:, :, :G], blocks.draft_probs)
            )
        others = same_context_acceptance(
            log_p,
            log_q,
            [Sampling(t) for t in _OTHER_TEMPERATURES if t != temperature],
            recorded_temperature=temperature,
            counts=tested.reshape(B, R * G),
            confidence=settings.confidence,
        )
    return Replay(lookahead, comparison, others)
