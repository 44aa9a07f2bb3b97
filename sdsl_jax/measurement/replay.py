"""What a run would have given otherwise, from stored probabilities: other lookaheads, other
samplings, another verification.

Each function states what it holds fixed. `expected_rounds` is the exact expectation of token
verification at any lookahead. `same_context_acceptance` keeps the contexts that were visited, and
`compare_verification` the blocks that were drafted. Suffixes: B rows, R rounds, G largest lookahead,
T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding import Sampling, overlap, probabilities
from sdsl_jax.errors import require
from sdsl_jax.statistics import Interval, ratio_interval, student_quantile
from sdsl_jax.theory import Rounds, acceptance_from_tokens_per_round, rounds_over_sample


class ExpectedRounds(NamedTuple):
    """Expected outcome of token verification at one lookahead; samples are the clusters of the
    intervals.

    Attributes:
      lookahead: γ.
      tokens_per_round: τ = 1 + Σ_k S_k: accepted drafts, and one more token for each round.
      survival: S_1 … S_γ, the share of rounds whose first k drafts are accepted.
      accepted_per_test: Σ_{k=1..γ} S_k / Σ_{k=0..γ−1} S_k; a draft behind a rejection is not tested.
      alpha: The α whose geometric formula gives τ at this γ.
      alpha_change: α(γ) − α(1); 0 if acceptance is i.i.d., whatever the α.
      rounds: Expected number of rounds that were averaged.
      residuals: How far each sample moves τ from its mean over all; they add up to 0. Those of two
        drafts on the same samples tell how well the difference of their τ is known.
    """

    lookahead: int
    tokens_per_round: Interval
    survival: list[Interval]
    accepted_per_test: Interval
    alpha: Interval
    alpha_change: Interval
    rounds: float
    residuals: Float[np.ndarray, " samples"]


@jax.jit
def _rounds(
    acceptance: Float[Array, "samples T *drafts"], starts: Int[Array, "G samples"]
) -> list[Rounds]:
    """The rounds of γ = 1 … G over every sample, as one program."""
    return [
        jax.vmap(lambda sample, count, gamma=gamma: rounds_over_sample(sample, gamma, count))(
            acceptance, counts
        )
        for gamma, counts in enumerate(starts, 1)
    ]


# dα/dτ, for several τ and γ at once.
_slopes = jax.jit(jax.vmap(jax.grad(acceptance_from_tokens_per_round)))


def drawn_acceptance(target_log_probs: np.ndarray, draft_log_probs: np.ndarray) -> np.ndarray:
    """min(1, q(y)/p(y)): the probability that a token drawn from the target came by acceptance.

    Args:
      target_log_probs: ln p(y), of any shape.
      draft_log_probs: ln q(y), of the same shape.
    """
    # The target drew y, so ln p is finite. In this pass it may still be −∞, where a filter's border
    # or a tie at temperature 0 falls differently.
    log_p = np.maximum(target_log_probs, np.log(np.finfo(np.float32).tiny))
    return np.exp(np.minimum(0.0, draft_log_probs - log_p))


def expected_rounds(
    acceptance: Float[np.ndarray, "samples T *drafts"],
    largest: int,
    *,
    lengths: Any = None,
    limits: Any = None,
    confidence: float = 0.9,
) -> list[ExpectedRounds]:
    """Expected outcome of every lookahead γ = 1 … `largest` from samples of the target, without
    decoding.

    Given that the token emitted at a tested position is y, it came by acceptance with probability
    min(1, q(y)/p(y)). One sample of the target, scored once by both models at the sampling that it
    was drawn with, thus gives the exact probability of every course of rounds that leads to it
    (`theory.rounds_over_sample`). Averaged over samples, this is the expectation of the live decoder
    under token verification. The first position of a sample starts a round.

    Rounds count that start at one of the first `lengths` positions and have γ drafts before the
    limit. With `lengths` = T − `largest` + 1, every γ counts the same starts, and only the lookahead
    differs between two results. With the defaults, drafts that reach beyond a stop count by the
    acceptance that stands there. To count them as not accepted, as raw events do, set it to 0.

    The interval of the change of α is linearised: sample i moves τ(γ) by its residual over the
    rounds, α(γ) by that times dα/dτ, and the difference of two α by the difference of the two moves.
    Their spread over the samples, with Student's t, is that of `ratio_interval`.

    Args:
      acceptance: min(1, q(y)/p(y)) of each token of each sample, see `drawn_acceptance`; or as each
        draft of a round, [samples, T, `largest` or more], where q depends on that.
      largest: The largest γ, at most T.
      lengths: Positions of each sample, or of all, at which a round may start; the limits by
        default.
      limits: Tokens that each sample, or all, could have had; T by default.
      confidence: Confidence of the intervals.

    Raises:
      SdslError: the acceptance or `largest` is out of range, or no sample has room for a block.
    """
    require(
        acceptance.ndim in (2, 3)
        and acceptance.size > 0
        and np.all((acceptance >= 0) & (acceptance <= 1)),
        f"the acceptance has shape {acceptance.shape} or values outside [0, 1]; it must be [samples, tokens].",
    )
    n, width = acceptance.shape[:2]
    require(
        acceptance.ndim == 2 or acceptance.shape[2] >= largest,
        f"acceptances are given for {acceptance.shape[-1]} drafts of a round; the largest lookahead is {largest}.",
    )
    require(
        1 <= largest <= width, f"the largest lookahead is {largest}; it must lie in [1, {width}]."
    )
    limits = np.broadcast_to(np.minimum(width if limits is None else limits, width), (n,))
    lengths = np.broadcast_to(limits if lengths is None else lengths, (n,))
    require(
        np.all((lengths >= 0) & (lengths <= limits)),
        f"lengths run from {lengths.min()} to {lengths.max()} and limits from {limits.min()} to "
        f"{limits.max()}; they must satisfy 0 <= length <= limit.",
    )
    gammas = np.arange(1, largest + 1)
    starts = np.minimum(lengths, limits - gammas[:, None] + 1)
    without = [gamma for gamma, room in zip(gammas, (starts > 0).any(axis=1)) if not room]
    require(
        not without,
        f"no sample has room for a block of {without[0] if without else 0} drafts; use longer samples.",
    )
    rounds = [
        (np.asarray(counted.started, float), np.asarray(counted.survived, float))
        for counted in _rounds(acceptance.astype(np.float32), starts.astype(np.int32))
    ]
    taus = [
        ratio_interval(started + survived.sum(axis=1), started, confidence)
        for started, survived in rounds
    ]
    tau = jnp.asarray([value.estimate for value in taus])
    alphas = np.asarray(acceptance_from_tokens_per_round(np.asarray(taus), gammas[:, None]), float)
    slopes = np.asarray(_slopes(tau, jnp.asarray(gammas, tau.dtype)), float)
    residuals = np.stack(
        [
            (survived.sum(axis=1) - (value.estimate - 1) * started) / started.sum()
            for (started, survived), value in zip(rounds, taus)
        ]
    )
    moves = slopes[:, None] * residuals
    errors = (
        np.sqrt(n / (n - 1) * np.square(moves - moves[0]).sum(axis=1))
        if n > 1
        else np.full(largest, np.nan)
    )
    halves = student_quantile(0.5 + confidence / 2, n - 1) * errors
    changes = alphas[:, 0] - alphas[0, 0]
    return [
        ExpectedRounds(
            lookahead=int(gamma),
            tokens_per_round=taus[i],
            survival=[ratio_interval(survived[:, k], started, confidence) for k in range(gamma)],
            accepted_per_test=ratio_interval(
                survived.sum(axis=1), started + survived[:, :-1].sum(axis=1), confidence
            ),
            alpha=Interval(*map(float, alphas[i])),
            alpha_change=Interval(
                float(changes[i]), float(changes[i] - halves[i]), float(changes[i] + halves[i])
            ),
            rounds=float(started.sum()),
            residuals=residuals[i],
        )
        for i, (gamma, (started, survived)) in enumerate(zip(gammas, rounds))
    ]


class SameContextAcceptance(NamedTuple):
    """α at another sampling, in the contexts of the recorded run.

    Attributes:
      sampling: The other sampling.
      acceptance: Mean of Σ_v min(p_v, q_v), with contexts as clusters.
      positions: Number of positions averaged.
      basis: Always "same-context": decoding at this sampling would visit other contexts, where α may
        differ.
    """

    sampling: Sampling
    acceptance: Interval
    positions: int
    basis: str = "same-context"


@jax.jit
def _overlap_sums(
    log_p: Array, log_q: Array, counts: Array, recorded: Array, sampling: Sampling
) -> Array:
    # ln p · T₀ are logits that the recorded temperature T₀ turns into p. Positions that do not count
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
    """α at other samplings, from the distributions of one run and in the contexts it visited.

    Args:
      target_log_probs: ln p at each position, in nats; −∞ for tokens that the recorded sampling
        filtered out, which no other sampling brings back.
      draft_log_probs: ln q at the same positions.
      samplings: Samplings to compute α at.
      recorded_temperature: Temperature of the run. It must be positive: greedy decoding leaves
        nothing to rescale.
      counts: Positions that hold distributions; all by default.
      confidence: Confidence of the intervals.

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
        f"the recorded temperature is {recorded_temperature}; it must be positive for other temperatures to follow from it.",
    )
    counts = np.ones(shapes[0][:2], bool) if counts is None else np.asarray(counts, bool)
    require(
        counts.shape == shapes[0][:2],
        f"counts has shape {counts.shape}; it must be {shapes[0][:2]}.",
    )
    require(counts.any(), "no position counts; at least one must hold distributions.")
    log_p, log_q = (
        jnp.asarray(target_log_probs, jnp.float32),
        jnp.asarray(draft_log_probs, jnp.float32),
    )
    results = []
    for sampling in samplings:
        sums = _overlap_sums(
            log_p, log_q, jnp.asarray(counts), jnp.float32(recorded_temperature), sampling.check()
        )
        interval = ratio_interval(np.asarray(sums, float), counts.sum(axis=1), confidence)
        results.append(SameContextAcceptance(sampling, interval, int(counts.sum())))
    return results


class VerificationComparison(NamedTuple):
    """Token against block verification on the same blocks; rows are the clusters of the intervals.

    The blocks are those of the recorded run. Decoding by the other rule would start its blocks
    elsewhere.

    Attributes:
      token: Σ_i Π_{j≤i} min(1, p_j/q_j) of each block; 0 where nothing was drafted.
      block: Σ_i w_i of each block, w_i = min(1, w_{i−1}·p_i/q_i); never less than `token`.
      token_accepted: Mean of `token` over blocks: accepted drafts per round.
      block_accepted: Mean of `block`.
      gain: Mean difference, paired block by block.
      rounds: Blocks with at least one draft.
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
    # A draft has a positive q, or it could not have been drawn. Positions without a draft keep
    # nothing.
    ratio = jnp.where(drafted, p / jnp.where(drafted, q, 1.0), 0.0)

    def keep(weight: Array, r: Array) -> tuple[Array, Array]:
        weight = jnp.minimum(1.0, weight * r)
        return weight, weight

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
    Token verification keeps drafts one by one, with probability Π min(1, p/q). Under block
    verification, w_i, a draft that the target prefers can make up for an earlier one that it does
    not.

    Args:
      drafts: Drafted tokens, as in `Decoded.blocks`; so are the next two.
      draft_probs: q at each drafted position.
      target_probs: p at the same positions and at the one after the last, which is ignored.
      proposed: Drafts of each round; entries behind them are ignored.
      confidence: Confidence of the intervals.

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
        np.all(chosen[drafted] > 0),
        "a draft has probability 0 under the draft model, which therefore cannot have drawn it.",
    )
    token, block = (
        np.asarray(x, float) for x in _expected_accepted(*(jnp.asarray(x) for x in arrays))
    )
    rounds = (count > 0).sum(axis=1)
    mean = lambda values: ratio_interval(values.sum(axis=1), rounds, confidence)  # noqa: E731
    return VerificationComparison(
        token, block, mean(token), mean(block), mean(block - token), int(rounds.sum())
    )
