"""Gradient ascent over (N, γ) with Optax: projected to a box, from many starts at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from sdsl_jax.theory import DraftProblem

OPTIMIZERS = {
    "adam": optax.adam,
    "nadam": optax.nadam,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
}

# Two starts agree when their speed-ups differ by less than this share.
_AGREEMENT = 1e-6


class GradientOptimum(NamedTuple):
    """Where gradient ascent ended.

    Attributes:
      params: N of the best start.
      lookahead: γ of the best start.
      speedup: S there.
      stationarity: largest component of the projected gradient of ln S in (ln N, ln(1 + γ)); 0 at a
        solution.
      starts_agreeing: share of starts that reached the same S.
      path: (N, γ, S) at every step of the best start.
    """

    params: Float[Array, ""]
    lookahead: Float[Array, ""]
    speedup: Float[Array, ""]
    stationarity: Float[Array, ""]
    starts_agreeing: Float[Array, ""]
    path: Float[Array, "steps 3"]


def spread_starts(count: int, dimension: int = 2) -> np.ndarray:
    """Points of the unit cube, [count, dimension]: the additive recurrence R_d with the powers of
    1/φ_d (Roberts, 2018).

    φ_d is the positive root of φ^(d + 1) = φ + 1: the golden ratio for d = 1, the plastic number
    for d = 2.
    """
    root = 1.5
    for _ in range(64):  # a contraction to a sixth or less of the error at each step
        root = (1 + root) ** (1 / (dimension + 1))
    return (0.5 + np.arange(1, count + 1)[:, None] / root ** np.arange(1, dimension + 1)) % 1.0


@functools.partial(jax.jit, static_argnames=("optimizer", "steps"))
def maximise(
    problem: DraftProblem,
    max_lookahead: Array | float,
    starts: Float[Array, "S 2"],
    learning_rate: Array | float,
    *,
    optimizer: str,
    steps: int,
) -> GradientOptimum:
    """Maximises ln S over ln N within the problem's bounds, and γ within its cost model's and at
    most `max_lookahead`.

    The learning rate falls to zero along a cosine; every update is followed by a projection to the
    box, so an optimum on its border is reached exactly.

    Args:
      problem: the design problem.
      max_lookahead: largest γ.
      starts: points of the unit square.
      learning_rate: initial step size, in units of ln N and ln(1 + γ).
      optimizer: a key of `OPTIMIZERS`.
      steps: number of updates.
    """
    fewest, most = problem.cost.lookahead_bounds
    low = jnp.stack(
        [jnp.log(problem.bounds[0]), jnp.full_like(jnp.log(problem.bounds[0]), jnp.log1p(fewest))]
    )
    high = jnp.stack([jnp.log(problem.bounds[1]), jnp.log1p(jnp.minimum(max_lookahead, most))])
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    transform = OPTIMIZERS[optimizer](schedule)
    slope = jax.value_and_grad(problem.log_speedup)

    def ascend(start: Array):
        def step(carry, _):
            x, state = carry
            value, gradient = slope(x)
            updates, state = transform.update(-gradient, state, x)
            moved = optax.projections.projection_box(optax.apply_updates(x, updates), low, high)
            return (moved, state), jnp.stack([jnp.exp(x[0]), jnp.expm1(x[1]), jnp.exp(value)])

        x = low + start * (high - low)
        (x, _), path = jax.lax.scan(step, (x, transform.init(x)), length=steps)
        return x, path

    ends, paths = jax.vmap(ascend)(starts)
    values = jax.vmap(problem.log_speedup)(ends)
    best = jnp.argmax(values)
    x, gradient = ends[best], slope(ends[best])[1]
    projected = optax.projections.projection_box(x + gradient, low, high) - x
    return GradientOptimum(
        params=jnp.exp(x[0]),
        lookahead=jnp.expm1(x[1]),
        speedup=jnp.exp(values[best]),
        stationarity=jnp.abs(projected).max(),
        starts_agreeing=(values >= values[best] - _AGREEMENT).mean(),
        path=paths[best],
    )
