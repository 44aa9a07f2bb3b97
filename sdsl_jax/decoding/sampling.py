"""From logits to the distribution that tokens are drawn from: temperature, then top-k, top-p and
min-p.

The order is that of Hugging Face transformers: the logits are divided by the temperature first, and
each filter sees the normalised probabilities that the one before it left. Draft and target use the
same function, so the distribution that a token was drawn from and the one it is verified against
cannot differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.errors import require
from sdsl_jax.ranges import share_hint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    The values are traced. Which filters are set is static, so filters that are left out cost
    nothing.

    Attributes:
      temperature: Temperature of the softmax; 0 for greedy decoding, where filters change nothing.
      top_k: Keeps the k most probable tokens, and those as probable as the k-th.
      top_p: Keeps the most probable tokens that together reach this mass, and those as probable as
        the last of them.
      min_p: Keeps tokens at least this many times as probable as the most probable one.
    """

    temperature: float | Float[Array, ""] = 1.0
    top_k: int | Int[Array, ""] | None = None
    top_p: float | Float[Array, ""] | None = None
    min_p: float | Float[Array, ""] | None = None

    def check(self) -> Sampling:
        """The same settings with canonical types.

        Raises:
          SdslError: a setting lies outside its range.
        """
        require(
            0 <= self.temperature < math.inf,
            f"the temperature is {self.temperature}; it must be a number from 0 up.",
        )
        require(
            self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}; it must be at least 1."
        )
        require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p is {self.top_p}; it must lie in (0, 1]{share_hint(float(self.top_p or 0))}.",
        )
        require(
            self.min_p is None or 0 <= self.min_p <= 1,
            f"min_p is {self.min_p}; it must lie in [0, 1]{share_hint(float(self.min_p or 0))}.",
        )
        return Sampling(
            jnp.float32(self.temperature),
            None if self.top_k is None else jnp.int32(self.top_k),
            None if self.top_p is None else jnp.float32(self.top_p),
            None if self.min_p is None else jnp.float32(self.min_p),
        )


def _normalise(probs: Float[Array, "... V"]) -> Float[Array, "... V"]:
    return probs / probs.sum(axis=-1, keepdims=True)


def _keep_top_k(probs: Float[Array, "... V"], k: int | Int[Array, ""]) -> Float[Array, "... V"]:
    ranked = -jnp.sort(-probs, axis=-1)
    last = jnp.take(ranked, jnp.minimum(jnp.asarray(k), probs.shape[-1]) - 1, axis=-1)
    return jnp.where(probs >= last[..., None], probs, 0.0)


def _keep_top_p(
    probs: Float[Array, "... V"], mass: float | Float[Array, ""]
) -> Float[Array, "... V"]:
    ranked = -jnp.sort(-probs, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    # The least probable token that is needed to reach the mass; the first token always is needed.
    needed = (before < mass).at[..., 0].set(True)
    last = jnp.min(jnp.where(needed, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(probs >= last, probs, 0.0)


def _keep_min_p(
    probs: Float[Array, "... V"], share: float | Float[Array, ""]
) -> Float[Array, "... V"]:
    return jnp.where(probs >= share * probs.max(axis=-1, keepdims=True), probs, 0.0)


def first_largest(values: Float[Array, "... V"]) -> Int[Array, ...]:
    """`argmax` over the last axis as two plain reductions, which a CPU does many numbers at a time."""
    at = jnp.arange(values.shape[-1], dtype=jnp.int32)
    largest = values.max(axis=-1, keepdims=True)
    return jnp.where(values == largest, at, values.shape[-1] - 1).min(axis=-1)


def finite_logits(logits: Float[Array, "... V"]) -> Bool[Array, ...]:
    """Whether all logits of a position are finite, before any filter.

    One NaN makes every probability NaN. Ids that a model has no row for do not count as broken:
    their logits are finite and lower than all others.
    """
    return jnp.isfinite(logits).all(axis=-1)


def probabilities(logits: Float[Array, "... V"], sampling: Sampling) -> Float[Array, "... V"]:
    """Sampling probabilities in float32; at temperature 0 the largest logit gets all of it."""
    logits = logits.astype(jnp.float32)
    hot = jnp.asarray(sampling.temperature) > 0
    greedy = jax.nn.one_hot(first_largest(logits), logits.shape[-1], dtype=jnp.float32)
    # The largest logit is subtracted before the division, which could otherwise overflow.
    logits = logits - logits.max(axis=-1, keepdims=True)
    probs = jax.nn.softmax(logits / jnp.where(hot, sampling.temperature, 1.0), axis=-1)
    if sampling.top_k is not None:
        probs = _normalise(_keep_top_k(probs, sampling.top_k))
    if sampling.top_p is not None:
        probs = _normalise(_keep_top_p(probs, sampling.top_p))
    if sampling.min_p is not None:
        probs = _normalise(_keep_min_p(probs, sampling.min_p))
    return jnp.where(hot, probs, greedy)


def draw(
    probs: Float[Array, "... C"],
    gumbels: Float[Array, "... C"],
    ids: Int[Array, "... C"] | None = None,
) -> Int[Array, ...]:
    """The token at which ln p + noise is largest, for standard Gumbel noise.

    It is distributed as p, and never a token of probability 0. The noise is an argument so that the
    noise of many draws can be generated at once. `ids` are the tokens that p is of, if not all in order.
    """
    drawn = first_largest(jnp.log(probs) + gumbels)
    return drawn if ids is None else jnp.take_along_axis(ids, drawn[..., None], axis=-1)[..., 0]


def over_all_ids(
    probs: Float[Array, "*R C"], ids: Int[Array, "*R C"], size: int
) -> Float[Array, "*R V"]:
    """Distributions over all `size` ids, from the probabilities of some; those of equal ids are added."""
    rows = np.indices((*probs.shape[:-1], 1), sparse=True)[:-1]
    empty = jnp.zeros((*probs.shape[:-1], size), probs.dtype)
    return empty.at[(*rows, ids)].add(probs, mode="promise_in_bounds")
