"""Randomness of the decoders, keyed by what a number belongs to: the run, the row, the position at
which the round starts, and the place in the round.

Uniforms have the 23 bits of float32, as in `jax.random.categorical`. Tokens with probabilities near
1e-7 and below are therefore drawn slightly too seldom; in a vocabulary of tens of thousands with a
flat tail this may add up to 0.001.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def row_keys(seed: int, rows: Int[np.ndarray, " B"]) -> Array:
    """One key per row, from the seed and the row's number, so that a row decodes alike alone and in any batch."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(
        jnp.asarray(rows, jnp.uint32)
    )


def start_keys(keys: Array, buffer: int) -> Array:
    """One key per row and position at which a round may start, [B, L].

    A round's randomness must belong to its start and not to the position of each token: block
    verification has used the noise of dropped drafts already.
    """
    return jax.vmap(
        lambda key: jax.vmap(lambda start: jax.random.fold_in(key, start))(jnp.arange(buffer))
    )(keys)


class Noise(NamedTuple):
    """All randomness of one round, generated at once because many small draws cost more.

    Attributes:
      uniforms: Uniform numbers for the accept tests.
      residual: Gumbel noise for the token after the accepted drafts.
      drafts: Gumbel noise for the drafts.
    """

    uniforms: Float[Array, "B G"]
    residual: Float[Array, "B V"]
    drafts: Float[Array, "B G V"]


def round_noise(keys: Array, starts: Int[Array, " B"], G: int, V: int) -> Noise:
    """Noise for the rounds that start at these positions, given the keys of all positions.

    Draft i takes the (i + 1)-th stretch of V + 1 numbers whatever G is, so that a wider trace
    decodes alike.
    """

    def of_row(keys: Array, start: Array) -> Array:
        tiny = jnp.finfo(jnp.float32).tiny
        return jax.random.uniform(keys[start], (G + 1, V + 1), minval=tiny)

    uniforms = jax.vmap(of_row)(keys, starts)
    gumbels = -jnp.log(-jnp.log(uniforms[..., :V]))
    return Noise(uniforms[:, 1:, V], gumbels[:, 0], gumbels[:, 1:])
