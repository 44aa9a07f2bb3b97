"""The throughput-optimal draft size, as a one-dimensional problem: γ is eliminated by its closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdsl_jax.theory.lookahead import optimal_lookahead, speedup

Scalar = Float[Array, ""] | Float[np.ndarray, ""] | float

_GRID = 512
_HALVINGS = 60


class DraftOptimum(NamedTuple):
    """The best draft size and what it gives.

    Attributes:
      params: N*, in the parameter count of the functions given; NaN where no size makes speculation pay.
      lookahead: γ* there, a real number.
      acceptance: α there.
      draft_step: d there, in target steps.
      speedup: S there; 1 where speculation does not pay.
      indifference: ends of the interval of sizes around N* that lose at most `tolerance` of S.
      interior: whether speculation pays and N* lies inside the bounds rather than on one of them.
    """

    params: Float[Array, "*batch"]
    lookahead: Float[Array, "*batch"]
    acceptance: Float[Array, "*batch"]
    draft_step: Float[Array, "*batch"]
    speedup: Float[Array, "*batch"]
    indifference: tuple[Float[Array, "*batch"], Float[Array, "*batch"]]
    interior: Bool[Array, "*batch"]


def _bisect(condition: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The point where `condition` turns from true at `low` to false at `high`; `low` may lie above `high`."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        holds = condition(middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    return (low + high) / 2


def optimal_draft(
    acceptance: Callable[[Array], Array],
    draft_step: Callable[[Array], Array],
    verify_pass: Scalar,
    bounds: tuple[Scalar, Scalar],
    tolerance: float = 0.01,
) -> DraftOptimum:
    """Maximises S(α(N), γ*(α(N), c(N)), c(N)) over N (arXiv 2603.11053).

    The maximum is bracketed on a grid in log N and then located as the root of dS/d log N at fixed γ = γ* (by the envelope
    theorem the derivative through γ* is zero). A grid is needed because S ≡ 1 wherever speculation does not pay: there
    every derivative vanishes. May be called under `jit` and `vmap`.

    Args:
      acceptance: α of a draft of N parameters, below 1.
      draft_step: d of a draft of N parameters, in target steps.
      verify_pass: v, in target steps.
      bounds: smallest and largest N.
      tolerance: share of S that the indifference interval gives away.
    """
    grid = jnp.linspace(jnp.log(bounds[0]), jnp.log(bounds[1]), _GRID)

    def best(x: Array):
        n = jnp.exp(x)
        return optimal_lookahead(acceptance(n), draft_step(n), verify_pass)

    def slope(x: Array) -> Array:
        gamma = jax.lax.stop_gradient(best(x).lookahead)

        def at_fixed_lookahead(x):
            n = jnp.exp(x)
            return jnp.log(speedup(acceptance(n), gamma, draft_step(n), verify_pass))

        return jax.grad(at_fixed_lookahead)(x)

    values = jax.vmap(lambda x: best(x).speedup)(grid)
    peak = jnp.argmax(values)
    left, right = grid[jnp.maximum(peak - 1, 0)], grid[jnp.minimum(peak + 1, _GRID - 1)]
    interior = (slope(left) > 0) & (slope(right) < 0)
    x = jnp.where(interior, _bisect(lambda x: slope(x) > 0, left, right), grid[peak])
    top = best(x)
    pays = top.speedup > 1

    floor = (1 - tolerance) * top.speedup
    enough = jax.vmap(lambda x: best(x).speedup)(grid) >= floor
    index = jnp.arange(_GRID)
    below = jnp.max(jnp.where((grid < x) & ~enough, index, -1))
    above = jnp.min(jnp.where((grid > x) & ~enough, index, _GRID))
    good = lambda x: best(x).speedup >= floor  # noqa: E731
    low = jnp.where(below < 0, grid[0], _bisect(good, x, grid[jnp.maximum(below, 0)]))
    high = jnp.where(above >= _GRID, grid[-1], _bisect(good, x, grid[jnp.minimum(above, _GRID - 1)]))

    n = jnp.exp(x)
    none = jnp.nan
    return DraftOptimum(
        params=jnp.where(pays, n, none),
        lookahead=top.lookahead,
        acceptance=jnp.where(pays, acceptance(n), none),
        draft_step=jnp.where(pays, draft_step(n), none),
        speedup=top.speedup,
        indifference=(jnp.where(pays, jnp.exp(low), none), jnp.where(pays, jnp.exp(high), none)),
        interior=interior & pays,
    )
