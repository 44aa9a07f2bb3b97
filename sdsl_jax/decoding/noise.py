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
    """All randomness of one round, each number made from its place in the round.

    A round's randomness must belong to its start and not to the position of each token: block
    verification has used the noise of dropped drafts already. Draft i takes the (i + 1)-th stretch
    of V + 1 numbers however many follow, so that a wider trace decodes alike; and each id takes its
    own place in it, so that a draft of some ids makes the noise of these alone.

    Attributes:
      uniforms: Uniform numbers for the accept tests.
      residual: Gumbel noise for the token after the accepted drafts.
      words: The key of the round, as two words of each row.
    """

    uniforms: Float[Array, "B G"]
    residual: Float[Array, "B V"]
    words: tuple[Array, Array]

    def draft(
        self, number: Int[Array, ""] | int, ids: Int[Array, "B C"] | None
    ) -> Float[Array, "B C"]:
        """Gumbel noise for draft `number`, counted from 0, of these ids; of all V if None."""
        V = self.residual.shape[1]
        if ids is None:
            ids = jax.lax.broadcasted_iota(jnp.int32, (1, V), 1)
        stretch = jnp.uint32(V + 1) * (jnp.asarray(number, jnp.uint32) + 1)
        return _gumbels(_uniforms(self.words, stretch + ids.astype(jnp.uint32)))


def round_noise(keys: Array, starts: Int[Array, " B"], G: int, V: int) -> Noise:
    """Noise for rounds of up to G drafts that start at these positions, given the keys of the rows."""
    rows = jax.random.key_data(keys)
    # What jax.random.fold_in and jax.random.uniform compute, to the last bit.
    words = _threefry(rows[:, 0], rows[:, 1], np.uint32(0), starts)
    tests = np.arange(1, G + 1, dtype=np.uint32) * np.uint32(V + 1) + np.uint32(V)
    return Noise(
        _uniforms(words, jnp.asarray(tests)[None]),
        _gumbels(_uniforms(words, jax.lax.broadcasted_iota(jnp.uint32, (1, V), 1))),
        words,
    )


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


def _uniforms(words: tuple[Array, Array], numbers: Int[Array, "#B N"]) -> Float[Array, "B N"]:
    """float32 numbers in (0, 1), the smallest normal number standing for 0, by their places in a round."""
    first, second = _threefry(words[0][:, None], words[1][:, None], np.uint32(0), numbers)
    one = np.uint32(0x3F800000)
    tiny = jnp.finfo(jnp.float32).tiny
    bits = (first ^ second) >> np.uint32(9)
    unit = jax.lax.bitcast_convert_type(bits | one, jnp.float32) - 1
    return jnp.maximum(tiny, unit * (1 - tiny) + tiny)


def _gumbels(uniforms: Float[Array, "B N"]) -> Float[Array, "B N"]:
    return -jnp.log(-jnp.log(uniforms))
