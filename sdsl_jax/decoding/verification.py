"""Verification of drafted tokens: pure functions of probabilities that know no model.

Token verification (Leviathan et al., 2211.17192; Chen et al., 2302.01318): accept a drafted token v with probability
min(1, p_v / q_v); at the first rejection draw from the residual max(p − q, 0), normalised; if nothing is rejected, draw
one more token from the target. The emitted tokens are then distributed exactly as the target's own. Suffixes: G drafted
tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Verdict(NamedTuple):
    """What verification decided about the drafts of one row.

    Attributes:
      accepted: number of drafts kept, 0..lookahead.
      next_token: the token drawn after them, from the residual or, if all were kept, from the target.
    """

    accepted: Int[Array, ""]
    next_token: Int[Array, ""]


def probabilities(logits: Float[Array, "... V"], temperature: Float[Array, ""] | float) -> Float[Array, "... V"]:
    """Sampling probabilities in float32: softmax(logits / temperature), or all on the largest logit at temperature 0."""
    logits = logits.astype(jnp.float32)
    greedy = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)
    hot = temperature > 0
    return jnp.where(hot, jax.nn.softmax(logits / jnp.where(hot, temperature, 1.0), axis=-1), greedy)


def sample(key: Array, probs: Float[Array, " V"]) -> Int[Array, ""]:
    """A token drawn from probabilities; one of probability zero is never drawn."""
    return jax.random.categorical(key, jnp.log(probs)).astype(jnp.int32)


def overlap(p: Float[Array, "... V"], q: Float[Array, "... V"]) -> Float[Array, ...]:
    """Σ_v min(p_v, q_v): the probability that a draft drawn from q is accepted by a target p."""
    return jnp.minimum(p, q).sum(axis=-1)


def is_accepted(uniform: Float[Array, ...], p: Float[Array, ...], q: Float[Array, ...]) -> Bool[Array, ...]:
    """Whether a token of target probability p and draft probability q is kept: u·q < p, which needs no division."""
    return uniform * q < p


def residual(p: Float[Array, "... V"], q: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """max(p − q, 0), normalised; p itself where p = q, since there nothing can have been rejected."""
    positive = jnp.maximum(p - q, 0.0)
    total = positive.sum(axis=-1, keepdims=True)
    return jnp.where(total > 0, positive / jnp.where(total > 0, total, 1.0), p)


def verify_tokens(
    drafts: Int[Array, " G"],
    draft_probs: Float[Array, "G V"],
    target_probs: Float[Array, "G+1 V"],
    lookahead: Int[Array, ""] | int,
    accept_key: Array,
    residual_key: Array,
) -> Verdict:
    """Token verification of the first `lookahead` drafts of one row.

    Args:
      drafts: drafted tokens, each drawn from its row of `draft_probs`; those from `lookahead` on are not looked at.
      draft_probs: q at each drafted position.
      target_probs: p at each drafted position and at the one after the last.
      lookahead: γ, from 1 to G.
      accept_key: for the uniforms, one for each position; independent of the key that the drafts were drawn with.
      residual_key: for the token after the accepted ones; independent of both.
    """
    chex.assert_shape(target_probs, (drafts.shape[0] + 1, draft_probs.shape[1]))
    positions = jnp.arange(drafts.shape[0])
    uniforms = jax.random.uniform(accept_key, drafts.shape)
    kept = is_accepted(uniforms, target_probs[positions, drafts], draft_probs[positions, drafts])
    accepted = jnp.cumprod(kept & (positions < lookahead)).sum()
    # Past the last draft there is no q to subtract: the bonus token comes from the target itself.
    draft_probs = jnp.where((positions < lookahead)[:, None], draft_probs, 0.0)
    q = jnp.concatenate([draft_probs, jnp.zeros_like(draft_probs[:1])])[accepted]
    return Verdict(accepted, sample(residual_key, residual(target_probs[accepted], q)))
