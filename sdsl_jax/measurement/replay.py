"""What a run would have given otherwise, from stored probabilities: other lookaheads, other
samplings, another verification.

Each function says what it keeps fixed. `expected_rounds` keeps nothing: it is the exact expectation
of token verification, whatever the lookahead. `same_context_acceptance` keeps the contexts that
were visited, and `compare_verification` the blocks that were drafted. Suffixes: B rows, R rounds, G
largest lookahead, T positions, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding import Sampling, overlap, probabilities
from sdsl_jax.errors import require
from sdsl_jax.statistics import Interval, ratio_interval
from sdsl_jax.theory import Rounds, rounds_over_sample


class ExpectedRounds(NamedTuple):
    """Expected outcome of token verification at one lookahead; intervals take samples as clusters.

    Attributes:
      lookahead: γ.
      tokens_per_round: τ = 1 + Σ_k S_k: accepted drafts and one more token for each round.
      survival: S_1 … S_γ, the share of rounds whose first k drafts are accepted, at the block
        starts of this γ.
      rounds: expected number of rounds behind them.
    """

    lookahead: int
    tokens_per_round: Interval
    survival: list[Interval]
    rounds: float


class SampleRounds(NamedTuple):
    """`theory.Rounds` of each sample, float64.

    Attributes:
      started: expected number of rounds.
      survived: of these, those whose first k = 1 … γ drafts are accepted.
    """

    started: Float[np.ndarray, " samples"]
    survived: Float[np.ndarray, "samples gamma"]


@functools.partial(jax.jit, static_argnames="lookahead")
def _rounds(
    acceptance: Float[Array, "samples T"], starts: Int[Array, " samples"], lookahead: int
) -> Rounds:
    return jax.vmap(lambda sample, count: rounds_over_sample(sample, lookahead, count))(
        acceptance, starts
    )


def rounds_of_samples(
    acceptance: Float[np.ndarray, "samples T"], starts: Int[np.ndarray, " samples"], lookahead: int
) -> SampleRounds:
    """Expected rounds over each sample, see `theory.rounds_over_sample`; compiled once for each
    lookahead and shape.

    Args:
      acceptance: min(1, q(y)/p(y)) of each token.
      starts: count only rounds that start at one of so many first positions of each sample.
      lookahead: γ, from 1 to T.
    """
    rounds = _rounds(
        jnp.asarray(acceptance, jnp.float32), jnp.asarray(starts, jnp.int32), lookahead
    )
    return SampleRounds(np.asarray(rounds.started, float), np.asarray(rounds.survived, float))


def drawn_acceptance(target_log_probs: np.ndarray, draft_log_probs: np.ndarray) -> np.ndarray:
    """min(1, q(y)/p(y)): the probability that a token which the target drew came by acceptance; of any shape."""
    # It was drawn, so ln p is finite, unless a filter's border or a tie at temperature 0 falls
    # differently in this pass.
    log_p = np.maximum(target_log_probs, np.log(np.finfo(np.float32).tiny))
    return np.exp(np.minimum(0.0, draft_log_probs - log_p))


def expected_rounds(
    target_log_probs: Float[np.ndarray, "samples T"],
    draft_log_probs: Float[np.ndarray, "samples T"],
    lookaheads: Sequence[int],
    *,
    lengths: Int[np.ndarray, " samples"] | None = None,
    limits: Int[np.ndarray, " samples"] | None = None,
    confidence: float = 0.9,
) -> list[ExpectedRounds]:
    """Expected survival and τ of every lookahead from samples of the target, without decoding.

    Given that the token emitted at a tested position is y, it came by acceptance with probability
    min(1, q(y)/p(y)). So one sample of the target, scored once by both models at the sampling it
    was drawn with, holds the exact probability of every course of rounds that leads to it
    (`theory.rounds_over_sample`); averaged over samples, it is the expectation of the live decoder
    under token verification. The first position of a sample starts a round.

    Counted are rounds that start where γ drafts fit before the sample's limit, which is known when
    a round starts. A sample shorter than its limit ended with a stop token: rounds that reach it
    count, and drafts behind it count as not accepted, as in raw events. To count exactly the rounds
    with room for γ + 1 tokens, leave the last position of the limit out.

    Args:
      target_log_probs: ln p(y) of each token of each sample.
      draft_log_probs: ln q(y) of the same tokens.
      lookaheads: every γ that is wanted, each from 1 to T.
      lengths: tokens of each sample; T if left out. What stands behind them is not looked at.
      limits: tokens that each sample could have had, T if left out.
      confidence: of the intervals.

    Raises:
      SdslError: shapes differ, a value lies outside its range, a token of a sample has no
        probability under the target, or no sample has room for a whole block.
    """
    log_p, log_q = np.asarray(target_log_probs, float), np.asarray(draft_log_probs, float)
    require(
        log_p.ndim == 2 and log_p.size > 0 and log_p.shape == log_q.shape,
        f"the log-probabilities have shapes {log_p.shape} and {log_q.shape}; both must be [samples, tokens].",
    )
    n, width = log_p.shape
    limits = np.broadcast_to(np.asarray(width if limits is None else limits), (n,))
    lengths = np.broadcast_to(
        np.asarray(np.minimum(width, limits) if lengths is None else lengths), (n,)
    )
    require(
        bool(np.all((lengths >= 0) & (lengths <= limits) & (limits <= width))),
        f"lengths run from {lengths.min()} to {lengths.max()} and limits from {limits.min()} to {limits.max()}; they must "
        f"satisfy 0 <= length <= limit <= {width}.",
    )
    real = np.arange(width) < lengths[:, None]
    require(
        not np.isnan(log_q[real]).any() and bool(np.all(log_p[real] > -np.inf)),
        "a token of a sample has no log-probability, or −∞ under the target; the target must have drawn it.",
    )
    # Nothing behind a stop is accepted, and nothing starts there.
    acceptance = np.where(
        real, np.exp(np.minimum(0, np.where(real, log_q, 0) - np.where(real, log_p, 0))), 0
    )
    found = []
    for lookahead in lookaheads:
        require(
            1 <= lookahead <= width, f"the lookahead is {lookahead}; it must lie in [1, {width}]."
        )
        started, survived = rounds_of_samples(
            acceptance, np.minimum(lengths, limits - lookahead + 1), lookahead
        )
        require(
            bool(started.sum() > 0),
            f"no sample has room for a block of {lookahead} drafts; longer samples are needed.",
        )
        found.append(
            ExpectedRounds(
                lookahead,
                ratio_interval(started + survived.sum(axis=1), started, confidence),
                [ratio_interval(survived[:, k], started, confidence) for k in range(lookahead)],
                float(started.sum()),
            )
        )
    return found


class SameContextAcceptance(NamedTuple):
    """α at another sampling, on the contexts of the recorded run.

    Attributes:
      sampling: that α belongs to.
      acceptance: mean of Σ_v min(p_v, q_v), contexts as clusters.
      positions: how many were averaged.
      basis: always "same-context": decoding at this sampling would visit other contexts, and α
        differs from one to another.
    """

    sampling: Sampling
    acceptance: Interval
    positions: int
    basis: str = "same-context"


@jax.jit
def _overlap_sums(
    log_p: Array, log_q: Array, counts: Array, recorded: Array, sampling: Sampling
) -> Array:
    # ln p · T₀ are logits that the recorded temperature T₀ turned into p. Rows that do not count
    # may hold no distribution.
    p, q = (
        probabilities(jnp.where(counts[..., None], x * recorded, 0.0), sampling)
        for x in (log_p, log_q)
    )
    return jnp.where(counts, overlap(p, q), 0.0).sum(axis=-1)


def same_context_acceptance(
    target_log_probs: Float[np.ndarray, "contexts T V"],
    draft_log_probs: Float[np.ndarray, "contexts T V"],
    samplings: Sequence[Sampling],
    *,
    recorded_temperature: float = 1.0,
    counts: Bool[np.ndarray, "contexts T"] | None = None,
    confidence: float = 0.9,
) -> list[SameContextAcceptance]:
    """α at other samplings from the distributions of one run, at the contexts which that run
    visited.

    Args:
      target_log_probs: ln p at each position, in nats; −∞ for tokens that the recorded sampling had
        filtered out, which no other sampling brings back.
      draft_log_probs: ln q at the same positions.
      samplings: that α is wanted at.
      recorded_temperature: of the run, above 0: greedy decoding leaves nothing to rescale.
      counts: which positions hold distributions; all if left out.
      confidence: of the intervals.

    Raises:
      SdslError: shapes differ, the recorded temperature is not positive, or no position counts.
    """
    shapes = np.shape(target_log_probs), np.shape(draft_log_probs)
    require(
        len(shapes[0]) == 3 and shapes[0] == shapes[1],
        f"the log-probabilities have shapes {shapes[0]} and {shapes[1]}; both must be [contexts, positions, vocabulary].",
    )
    require(
        recorded_temperature > 0,
        f"the recorded temperature is {recorded_temperature}; it must be positive, for other temperatures to follow from it.",
    )
    counts = np.ones(shapes[0][:2], bool) if counts is None else np.asarray(counts, bool)
    require(
        counts.shape == shapes[0][:2],
        f"counts has shape {counts.shape}; it must be {shapes[0][:2]}.",
    )
    require(bool(counts.any()), "no position counts; at least one must hold distributions.")
    log_p, log_q = (
        jnp.asarray(target_log_probs, jnp.float32),
        jnp.asarray(draft_log_probs, jnp.float32),
    )
    found = []
    for sampling in samplings:
        sums = _overlap_sums(
            log_p, log_q, jnp.asarray(counts), jnp.float32(recorded_temperature), sampling.check()
        )
        interval = ratio_interval(np.asarray(sums, float), counts.sum(axis=1), confidence)
        found.append(SameContextAcceptance(sampling, interval, int(counts.sum())))
    return found


class VerificationComparison(NamedTuple):
    """Token against block verification on the same blocks; intervals take rows as clusters.

    The blocks are those of the recorded run. Decoding by the other rule would start its blocks
    elsewhere.

    Attributes:
      token: Σ_i Π_{j≤i} min(1, p_j/q_j) of each block; 0 where nothing was drafted.
      block: Σ_i w_i of each block, w_i = min(1, w_{i−1}·p_i/q_i); never less than `token`.
      token_accepted: mean of `token` over blocks: accepted drafts per round.
      block_accepted: mean of `block`.
      gain: mean of the difference, paired block by block.
      rounds: blocks with at least one draft.
    """

    token: Float[np.ndarray, "B R"]
    block: Float[np.ndarray, "B R"]
    token_accepted: Interval
    block_accepted: Interval
    gain: Interval
    rounds: int


@jax.jit
def _expected_accepted(
    drafts: Array, draft_probs: Array, target_probs: Array, proposed: Array
) -> tuple[Array, Array]:
    G = drafts.shape[-1]
    q, p = (
        jnp.take_along_axis(probs[..., :G, :], drafts[..., None], axis=-1)[..., 0]
        for probs in (draft_probs, target_probs)
    )
    drafted = jnp.expand_dims(jnp.arange(G), tuple(range(proposed.ndim))) < proposed[..., None]
    # A draft has a positive q, or it could not have been drawn. Where nothing was drafted, nothing
    # survives.
    ratio = jnp.where(drafted, p / jnp.where(drafted, q, 1.0), 0.0)

    def keep(chance: Array, r: Array) -> tuple[Array, Array]:
        chance = jnp.minimum(1.0, chance * r)
        return chance, chance

    _, kept = jax.lax.scan(keep, jnp.ones(proposed.shape, ratio.dtype), jnp.moveaxis(ratio, -1, 0))
    return jnp.cumprod(jnp.minimum(1.0, ratio), axis=-1).sum(axis=-1), kept.sum(axis=0)


def compare_verification(
    drafts: Int[Any, "B R G"],
    draft_probs: Float[Any, "B R G V"],
    target_probs: Float[Any, "B R G+1 V"],
    proposed: Int[Any, "B R"],
    *,
    confidence: float = 0.9,
) -> VerificationComparison:
    """Expected accepted drafts of stored blocks under token and under block verification (Sun et
    al., 2403.10444).

    Each term is the probability that the block is kept up to draft i, given the drafts so far.
    Token verification keeps them one by one, with probability Π min(1, p/q). Block verification
    lets a draft that the target likes more than the draft model did make up for an earlier one that
    it likes less: w_i.

    Args:
      drafts: drafted tokens; as in `Decoded.blocks`, so are the next two.
      draft_probs: q at each drafted position.
      target_probs: p at the same positions, and at the one after the last, which is not looked at.
      proposed: drafts of each round; those behind are not looked at.
      confidence: of the intervals.

    Raises:
      SdslError: shapes do not fit, or a draft has no probability under the draft model.
    """
    arrays = [np.asarray(x) for x in (drafts, draft_probs, target_probs, proposed)]
    shapes = [x.shape for x in arrays]
    B, R, G = shapes[0] if len(shapes[0]) == 3 else (0, 0, 0)
    V = shapes[1][-1] if len(shapes[1]) == 4 else 0
    require(
        G > 0 and shapes == [(B, R, G), (B, R, G, V), (B, R, G + 1, V), (B, R)],
        f"drafts, draft_probs, target_probs and proposed have shapes {shapes}; they must be [B, R, G], [B, R, G, V], "
        "[B, R, G + 1, V] and [B, R].",
    )
    count = arrays[3]
    require(
        0 <= count.min() <= count.max() <= G and count.max() > 0,
        f"proposed runs from {count.min()} to {count.max()}; it must lie in [0, {G}] and be positive in some round.",
    )
    drafted = np.arange(G) < count[..., None]
    chosen = np.take_along_axis(arrays[1], np.where(drafted, arrays[0], 0)[..., None], axis=-1)[
        ..., 0
    ]
    require(
        bool(np.all(chosen[drafted] > 0)),
        "a draft has probability 0 under the draft model, which cannot have drawn it.",
    )
    token, block = (
        np.asarray(x, float) for x in _expected_accepted(*(jnp.asarray(x) for x in arrays))
    )
    rounds = (count > 0).sum(axis=1)
    mean = lambda values: ratio_interval(values.sum(axis=1), rounds, confidence)  # noqa: E731
    return VerificationComparison(
        token, block, mean(token), mean(block), mean(block - token), int(rounds.sum())
    )
