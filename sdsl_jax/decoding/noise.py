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
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), row))(
        jnp.asarray(rows, jnp.uint32)
    )


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
    """Noise for the rounds that start at these positions, given the keys of the rows.

    A round's randomness must belong to its start and not to the position of each token: block
    verification has used the noise of dropped drafts already. Draft i takes the (i + 1)-th stretch
    of V + 1 numbers whatever G is, so that a wider trace decodes alike.
    """
    rows = jax.random.key_data(keys)
    # What jax.random.fold_in and jax.random.uniform compute, to the last bit.
    first, second = _threefry(rows[:, 0], rows[:, 1], np.uint32(0), starts)
    number = jax.lax.iota(jnp.uint32, (G + 1) * (V + 1)).reshape(1, G + 1, V + 1)
    words = _threefry(first[:, None, None], second[:, None, None], np.uint32(0), number)
    uniforms = _uniforms(words[0] ^ words[1])
    gumbels = -jnp.log(-jnp.log(uniforms[..., :V]))
    return Noise(uniforms[:, 1:, V], gumbels[:, 0], gumbels[:, 1:])


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def _threefry(
    first: Array, second: Array, high: Array | np.uint32, low: Array
) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al., 2011): the two words that belong to a key and a
    counter of two words each.

    `jax.random` runs it as a loop on a CPU. Written out, it becomes one loop over the numbers with
    what follows it, which takes half as long and compiles faster.
    """
    keys = [jnp.asarray(word, jnp.uint32) for word in (first, second)]
    keys.append(keys[0] ^ keys[1] ^ np.uint32(_PARITY))
    x, y = (jnp.asarray(word, jnp.uint32) + key for word, key in zip((high, low), keys))
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(bits)) | (y >> np.uint32(32 - bits)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _uniforms(bits: Array) -> Array:
    """float32 numbers in (0, 1): the smallest normal number stands for 0."""
    one = np.uint32(0x3F800000)
    tiny = jnp.finfo(jnp.float32).tiny
    unit = jax.lax.bitcast_convert_type((bits >> np.uint32(9)) | one, jnp.float32) - 1
    return jnp.maximum(tiny, unit * (1 - tiny) + tiny)
