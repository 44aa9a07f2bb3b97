"""Exact acceptance of a head on its target's hidden states, draft by draft of a round."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding import Head, Model, Sampling, overlap, probabilities
from sdsl_jax.decoding.feature_drafter import with_tables
from sdsl_jax.errors import require
from sdsl_jax.measurement.overlap import PairOverlap
from sdsl_jax.models import ModelConfig, outputs
from sdsl_jax.models.feature_head import HeadConfig, unrolled

# Bytes that the distributions of a chunk may take, and most contexts in one.
_BYTES, _MOST_ROWS = 2**28, 32


class HeadOverlap(NamedTuple):
    """How a head compares with its target on some contexts.

    Attributes:
      drafts: Sums of Σ_v min(p_v, q_v) for draft 1 … K of a round. Draft k counts positions where a
        round can have begun k − 1 tokens before, within the compared ones.
      drawn: min(1, q(y)/p(y)) of the token y after each compared position, as each draft of a round,
        [contexts, T, K]; None where the tokens were not given.
    """

    drafts: list[PairOverlap]
    drawn: Float[np.ndarray, "contexts T K"] | None


@functools.partial(jax.jit, static_argnames=("target", "taps", "first"))
def _told(
    params: Any,
    tokens: Int[Array, "B L"],
    *,
    target: ModelConfig,
    taps: tuple[int, ...],
    first: int,
) -> tuple[Float[Array, "B T V"], Float[Array, "B L F"]]:
    """The target's logits from a position on, and the hidden states that heads read. A program of its
    own, since it takes long to compile and serves every head."""
    with jax.default_matmul_precision("highest"):
        told = outputs(target, params, tokens, taps=taps)
    assert told.features is not None
    return told.logits[:, first:], told.features


@functools.partial(jax.jit, static_argnames=("head", "first", "drafts"))
def _compare(
    params: Any,
    tokens: Int[Array, "B L"],
    told: tuple[Float[Array, "B T V"], Float[Array, "B L F"]],
    following: Int[Array, "B T"] | None,
    sampling: Sampling,
    *,
    head: HeadConfig,
    first: int,
    drafts: int,
) -> tuple[Float[Array, "K B T"], Float[Array, "B T K"] | None, Float[Array, "B T"] | None]:
    target_logits, features = told
    with jax.default_matmul_precision("highest"):
        logits = unrolled(head, params, tokens, features, drafts, compact=True)
    p = probabilities(target_logits, sampling)
    q = probabilities(logits[:, :, first:], sampling)
    # Of a truncated head only its own ids count: there q is not 0.
    ids = np.asarray(head.body.readout_ids, int)
    p_ids = p[..., ids] if ids.size else p
    accepted = jnp.stack([overlap(p_ids, each) for each in q])
    of_ids = p_ids.sum(axis=-1) if ids.size else None
    if following is None:
        return accepted, None, of_ids
    p_of = jnp.take_along_axis(p, following[..., None], axis=-1)[..., 0]
    column = following
    if ids.size:
        places = np.full(p.shape[-1], -1)
        places[ids] = np.arange(ids.size)
        column = jnp.asarray(places)[following]
    q_of = [
        jnp.where(column >= 0, jnp.take_along_axis(each, column[..., None], axis=-1)[..., 0], 0.0)
        for each in q
    ]
    # The target drew the token; in this pass its probability may still round to 0.
    ratios = jnp.stack(q_of, axis=-1) / jnp.maximum(p_of, jnp.finfo(p_of.dtype).tiny)[..., None]
    return accepted, jnp.minimum(1.0, ratios), of_ids


def head_overlap(
    head: Head,
    target: Model,
    contexts: Int[np.ndarray, "contexts L"],
    *,
    first: int,
    drafts: int,
    sampling: Sampling = Sampling(),  # noqa: B008
    following: Int[np.ndarray, "contexts T"] | None = None,
    counted: Bool[np.ndarray, "contexts T"] | None = None,
) -> HeadOverlap:
    """Compares a head with its target after every position of some contexts.

    Args:
      head: The head.
      target: The target whose hidden states it reads.
      contexts: Token ids, all of one length.
      first: First position whose next-token distribution counts, T = L − first.
      drafts: K, the number of drafts of a round.
      sampling: Sampling of both.
      following: The token after each of these positions.
      counted: Which of these positions count; all of them if None.

    Raises:
      SdslError: Probabilities are not finite.
    """
    head = with_tables(head, target)
    n, length = contexts.shape
    # Logits and probabilities of the target and of every draft.
    each = 8 * (target.config.ids + drafts * (len(head.config.body.readout_ids) or head.config.ids))
    rows = max(1, min(_MOST_ROWS, n, _BYTES // (each * length)))
    accepted, drawn, of_ids = [], [], []
    for begin in range(0, n, rows):
        # Repeats of the first contexts fill up the last chunk.
        index = np.arange(begin, begin + rows) % n
        tokens = jnp.asarray(contexts[index])
        told = _told(
            target.params, tokens, target=target.config, taps=head.config.taps, first=int(first)
        )
        some, ratios, reach = _compare(
            head.params,
            tokens,
            told,
            None if following is None else jnp.asarray(following[index]),
            sampling.check(),
            head=head.config,
            first=int(first),
            drafts=drafts,
        )
        kept = slice(0, min(rows, n - begin))
        accepted.append(np.asarray(some, float)[:, kept])
        if ratios is not None:
            drawn.append(np.asarray(ratios)[kept])
        if reach is not None:
            of_ids.append(np.asarray(reach, float)[kept])
    by_draft = np.concatenate(accepted, axis=1)
    require(
        np.isfinite(by_draft).all(),
        "the logits of the head or of its target are not finite: its weights hold infinities or NaN.",
    )
    if counted is None:
        counted = np.ones((n, length - first), bool)

    def sums(values: np.ndarray, k: int) -> np.ndarray:
        return np.where(counted, values, 0.0)[None, :, k:].sum(axis=-1)

    overlaps = [
        PairOverlap(
            sums(by_draft[k], k),
            counted[:, k:].sum(axis=1),
            np.where(counted & (np.arange(length - first) >= k), by_draft[k], 0.0)[None],
            sums(np.concatenate(of_ids), k) if of_ids else None,
        )
        for k in range(drafts)
    ]
    return HeadOverlap(overlaps, np.concatenate(drawn) if drawn else None)


def overlap_after_prompts(
    head: Head,
    target: Model,
    tokens: Int[np.ndarray, "rows L"],
    starts: Int[np.ndarray, " rows"],
    counted: Int[np.ndarray, " rows"],
    new: int,
    drafts: int,
    sampling: Sampling,
) -> tuple[PairOverlap, Float[np.ndarray, "rows new drafts"]]:
    """Compares a head with its target on samples that follow prompts of different lengths.

    Args:
      head: The head.
      target: The target.
      tokens: Prompts and samples.
      starts: Tokens of each prompt.
      counted: Tokens after each prompt that α counts.
      new: Tokens after each prompt that are wanted.
      drafts: Drafts of a round.
      sampling: Sampling of both.

    Returns:
      The overlap of the first draft of a round, and min(1, q(y)/p(y)) of each wanted token as each
      draft; 0 as a draft that a parallel head does not give.
    """
    first = starts.min()
    given = min(drafts, head.config.parallel or drafts)
    place = np.arange(tokens.shape[1] - first) - (starts - first)[:, None]
    compared = head_overlap(
        head,
        target,
        tokens[:, :-1],
        first=first - 1,
        drafts=given,
        sampling=sampling,
        following=tokens[:, first:],
        counted=(place >= 0) & (place < counted[:, None]),
    )
    assert compared.drawn is not None
    at = (starts - first)[:, None] + np.arange(new)
    drawn = np.take_along_axis(compared.drawn, at[..., None], axis=1)
    return compared.drafts[0], np.pad(drawn, ((0, 0), (0, 0), (0, drafts - given)))
