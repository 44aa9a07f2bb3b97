"""Exact acceptance of a hybrid draft on samples of its target, draft by draft of a round."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding import NgramDraft


@functools.partial(jax.jit, static_argnames=("ngrams", "new", "drafts"))
def _copied(
    tokens: Int[Array, "rows L"],
    starts: Int[Array, " rows"],
    *,
    ngrams: NgramDraft,
    new: int,
    drafts: int,
) -> tuple[Bool[Array, "rows new"], Bool[Array, "rows new drafts"]]:
    """Whether an n-gram drafts a round that starts at each token after the prompts, and whether each
    of its drafts is the token that followed."""

    def of_row(row: tuple[Array, Array]) -> tuple[Array, Array]:
        text, start = row
        lengths = start + jnp.arange(new)
        texts = jnp.broadcast_to(text, (new, len(text)))
        source = jax.vmap(ngrams.match)(texts, lengths)
        copies = [ngrams.copied(source, texts, lengths, k) for k in range(drafts)]
        at = jnp.minimum(lengths[:, None] + jnp.arange(drafts)[None], len(text) - 1)
        return source >= 0, jnp.stack(copies, axis=1) == text[at]

    return jax.lax.map(of_row, (tokens, starts))


def with_ngrams_first(
    acceptance: Float[np.ndarray, "rows new *drafts"],
    ngrams: NgramDraft,
    tokens: Int[np.ndarray, "rows L"],
    starts: Int[np.ndarray, " rows"],
    drafts: int,
    fallback_drafts: int | None = None,
) -> Float[np.ndarray, "rows new drafts"]:
    """min(1, q(y)/p(y)) of each token of a sample as each draft of a round, where n-grams draft first.

    Which draft a round has depends on the text before the round, so on the token's place in its
    round. A copied token has q = 1, so y came by acceptance if and only if it is that token.

    Args:
      acceptance: The same of the draft to fall back on, as `replay.expected_rounds` takes it.
      ngrams: The n-grams that are looked for first.
      tokens: Prompts and samples.
      starts: Tokens of each prompt.
      drafts: Drafts of a round.
      fallback_drafts: Most drafts of a round that the fallback gives; None for no limit of its own.
    """
    new = acceptance.shape[1]
    matched, right = map(
        np.asarray,
        _copied(
            jnp.asarray(tokens),
            jnp.asarray(starts, jnp.int32),
            ngrams=ngrams,
            new=new,
            drafts=drafts,
        ),
    )
    if acceptance.ndim == 2:
        acceptance = np.repeat(acceptance[..., None], drafts, axis=2)
    mixed = np.array(acceptance[..., :drafts])
    if fallback_drafts is not None:
        # A draft that nobody gives ends its round as one that is not accepted does.
        mixed[..., fallback_drafts:] = 0.0
    for k in range(drafts):
        # Draft k + 1 of a round is k tokens after its start.
        began = slice(0, new - k)
        mixed[:, k:, k] = np.where(matched[:, began], right[:, began, k], mixed[:, k:, k])
    return mixed
