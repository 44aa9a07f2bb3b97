"""Verification of drafted tokens, as pure functions of probabilities.

Both rules emit tokens that are distributed exactly as the target's own. Suffixes: G drafted tokens,
V vocabulary, C ids that a draft may be, which are all V or a choice of them.

Token verification (Leviathan et al., 2211.17192; Chen et al., 2302.01318): accept a drafted token v
with probability min(1, p_v / q_v); at the first rejection draw from the residual max(p − q, 0),
normalised; if nothing is rejected, draw one more token from the target.

Block verification (Sun et al., 2403.10444) decides on the block as a whole. With w_0 = 1 and w_i =
min(1, w_{i−1}·p_i/q_i), draft i is the last one kept if it passes a test of probability h_i and no
later one does, h_i chosen so that P(i or more kept | first i drafts) = w_i. It never keeps fewer
drafts on average than token verification, since Π min(1, p/q) ≤ w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding.sampling import draw, over_all_ids

Verification = Literal["token", "block"]


class Verdict(NamedTuple):
    """What verification decided about the drafts of one row.

    Attributes:
      accepted: Number of drafts kept, 0..lookahead.
      next_token: The token drawn after them, from the residual or, if all were kept, from the
        target.
      expected_accepted: Probability that each tested draft is kept, given what came before it: P(i
        or more kept | i − 1 or more kept, first i − 1 drafts) at the positions i = 1 … min(accepted
        + 1, γ), and 0 elsewhere. Under token verification this is Σ_v min(p_v, q_v); under block
        verification it is Σ_v min(w·p_v, q_v)/w, with the weight w of the drafts before.
    """

    accepted: Int[Array, ""]
    next_token: Int[Array, ""]
    expected_accepted: Float[Array, " G"]


def overlap(p: Float[Array, "... V"], q: Float[Array, "... V"]) -> Float[Array, ...]:
    """Σ_v min(p_v, q_v): the probability that a draft drawn from q is accepted by a target p."""
    return jnp.minimum(p, q).sum(axis=-1)


def is_accepted(
    uniform: Float[Array, ...], p: Float[Array, ...], q: Float[Array, ...]
) -> Bool[Array, ...]:
    """Whether a token of target probability p and draft probability q is kept: u·q < p, without a division."""
    return uniform * q < p


def residual(p: Float[Array, "... V"], q: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """max(p − q, 0), normalised; p itself where that is zero everywhere, since there no draft can be rejected."""
    positive = jnp.maximum(p - q, 0.0)
    total = positive.sum(axis=-1, keepdims=True)
    return jnp.where(total > 0, positive / jnp.where(total > 0, total, 1.0), p)


def verify_tokens(
    drafts: Int[Array, " G"],
    draft_probs: Float[Array, "G C"],
    target_probs: Float[Array, "G+1 V"],
    lookahead: Int[Array, ""] | int,
    uniforms: Float[Array, " G"],
    gumbels: Float[Array, " V"],
    ids: Int[Array, "G C"] | None = None,
) -> Verdict:
    """Token verification of the first `lookahead` drafts of one row.

    Args:
      drafts: Drafted tokens, each drawn from its row of `draft_probs`; entries from `lookahead` on
        are ignored.
      draft_probs: q at each drafted position.
      target_probs: p at each drafted position and at the one after the last.
      lookahead: γ, from 0 to G.
      uniforms: Uniform numbers in [0, 1), one for each test, independent of the noise that the
        drafts were drawn with.
      gumbels: Standard Gumbel noise for the token after the accepted ones, independent of both.
      ids: The ids that `draft_probs` are of, where they are not all V in order: no other has a
        probability, and of equal ones at most one has. Only the residual is then made over all V.
    """
    V = target_probs.shape[1]
    chex.assert_shape(
        target_probs, (drafts.shape[0] + 1, V if ids is not None else draft_probs.shape[1])
    )
    positions = jnp.arange(drafts.shape[0])
    drafted = positions < lookahead
    if ids is None:
        p_of_ids, q_of_drafts = target_probs[:-1], draft_probs[positions, drafts]
    else:
        p_of_ids = jnp.take_along_axis(target_probs[:-1], ids, axis=1)
        q_of_drafts = jnp.where(ids == drafts[:, None], draft_probs, 0.0).sum(axis=1)
    kept = is_accepted(uniforms, target_probs[positions, drafts], q_of_drafts)
    accepted = jnp.cumprod(kept & drafted).sum()
    # Past the last draft there is no q to subtract: the bonus token comes from the target itself.
    at = jnp.minimum(accepted, drafts.shape[0] - 1)
    q = jnp.where(accepted < lookahead, draft_probs[at], 0.0)
    if ids is not None:
        q = over_all_ids(q, ids[at], V)
    tested = drafted & (positions <= accepted)
    chance = jnp.where(tested, jnp.minimum(overlap(p_of_ids, draft_probs), 1.0), 0.0)
    next_token = draw(residual(target_probs[accepted], q), gumbels)
    return Verdict(accepted, next_token, chance)


class BlockTests(NamedTuple):
    """The tests of block verification for the drafts of one row.

    Attributes:
      weights: w_i = min(1, w_{i−1}·p_i/q_i), the probability that i or more drafts are kept given
        the first i, for i = 1..G.
      passing: h_i, the probability that the test of draft i passes. The last draft whose test
        passes is the last one kept.
    """

    weights: Float[Array, " G"]
    passing: Float[Array, " G"]


def block_tests(
    drafts: Int[Array, " G"],
    draft_probs: Float[Array, "G V"],
    target_probs: Float[Array, "G+1 V"],
    lookahead: Int[Array, ""] | int,
) -> BlockTests:
    """Weights and tests of the first `lookahead` drafts; arguments as in `verify_tokens`.

    Entries beyond the lookahead have no meaning.

    h_i = Σ_v max(w_i·p_v − q_v, 0) / (Σ_v max(w_i·p_v − q_v, 0) + 1 − w_i) with p and q after the
    i-th draft, and h_γ = w_γ.
    """
    positions = jnp.arange(drafts.shape[0])
    p, q = target_probs[positions, drafts], draft_probs[positions, drafts]

    def step(weight: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        # A drafted token has q > 0; entries beyond the lookahead are arbitrary and never read.
        weight = jnp.minimum(1.0, weight * pair[0] / jnp.where(pair[1] > 0, pair[1], 1.0))
        return weight, weight

    _, weights = jax.lax.scan(step, jnp.ones((), p.dtype), (p, q), unroll=True)
    following = jnp.concatenate([draft_probs[1:], jnp.zeros_like(draft_probs[:1])])
    left = jnp.maximum(weights[:, None] * target_probs[1:] - following, 0.0).sum(axis=-1)
    below = left + 1 - weights
    # If nothing is left and the weight is 1, every later draft passes with certainty, so any value
    # will do.
    inner = jnp.where(below > 0, left / jnp.where(below > 0, below, 1.0), 1.0)
    return BlockTests(weights, jnp.where(positions == lookahead - 1, weights, inner))


def verify_block(
    drafts: Int[Array, " G"],
    draft_probs: Float[Array, "G C"],
    target_probs: Float[Array, "G+1 V"],
    lookahead: Int[Array, ""] | int,
    uniforms: Float[Array, " G"],
    gumbels: Float[Array, " V"],
    ids: Int[Array, "G C"] | None = None,
) -> Verdict:
    """Block verification of the first `lookahead` drafts of one row; arguments as in
    `verify_tokens`.

    The decision depends on the noise of every draft, dropped ones included, so that noise must not
    be used again: a draft's key has to name the block it belongs to, not its position alone.
    """
    G = drafts.shape[0]
    if ids is not None:
        draft_probs = over_all_ids(draft_probs, ids, target_probs.shape[1])
    chex.assert_shape(target_probs, (G + 1, draft_probs.shape[1]))
    positions = jnp.arange(G)
    weights, passing = block_tests(drafts, draft_probs, target_probs, lookahead)
    passed = (uniforms < passing) & (positions < lookahead)
    accepted = jnp.max(jnp.where(passed, positions + 1, 0))

    # The residual takes the weight of the block so far; after the last draft the token comes from
    # the target itself.
    weight = jnp.where(
        (accepted > 0) & (accepted < lookahead), weights[jnp.maximum(accepted - 1, 0)], 1.0
    )
    q = jnp.where(accepted < lookahead, draft_probs[jnp.minimum(accepted, G - 1)], 0.0)
    rest = residual(weight * target_probs[accepted], q)
    # P(i + 1 or more kept | first i drafts) = Σ_v min(w_i·p_v, q_v), and w_i = P(i or more kept |
    # first i drafts).
    before = jnp.concatenate([jnp.ones(1, weights.dtype), weights[:-1]])
    kept = overlap(before[:, None] * target_probs[:-1], draft_probs) / jnp.where(
        before > 0, before, 1.0
    )
    tested = (positions < lookahead) & (positions <= accepted)
    chance = jnp.where(tested, jnp.minimum(kept, 1.0), 0.0)
    return Verdict(accepted, draw(rest, gumbels), chance)


VERIFICATIONS: dict[str, Callable[..., Verdict]] = {"token": verify_tokens, "block": verify_block}
