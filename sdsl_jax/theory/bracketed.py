r"""Bracketed roots, and the best lookahead where the cost of a round is not linear in it.

On a device, memory limits a verify pass at first and arithmetic later. Its time is a convex
function of the lookahead γ, and so is the cost C(γ) of a round. Tokens per round τ(γ) are concave.
The ratio S = τ/C is then quasi-concave: it rises to a single maximum and falls from there, and

    d ln S/dγ = τ′/τ − C′/C

changes sign once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.lookahead import LookaheadOptimum, tokens_per_round

# A safeguarded Newton iteration takes 4 to 6 steps; bisection alone would close a bracket of
# doubles in these.
_STEPS = 60


class _Bracket(NamedTuple):
    """A search under way: the ends of the bracket, the point to try next, whether it is the root."""

    step: Array
    positive: Array
    negative: Array
    x: Array
    done: Array


def crossing(value_and_slope: Callable, positive: Array, negative: Array, start: Array) -> Array:
    """The root of a function in a bracket, by Newton steps, and by halving where a step leaves it.

    Halving alone would close the bracket in the steps that are allowed, so that the search always
    ends at the root.

    Args:
      value_and_slope: x -> the function and its derivative.
      positive: Point at which the function is above 0; it may lie above `negative`.
      negative: Point at which it is below 0.
      start: A point between them.
    """
    eps = jnp.finfo(start.dtype).eps
    resolution = 4 * eps * jnp.maximum(jnp.abs(positive), jnp.abs(negative))

    def unfinished(state: _Bracket) -> Array:
        open_ = jnp.abs(state.positive - state.negative) > resolution
        return (state.step < _STEPS) & ~state.done & open_

    def advance(state: _Bracket) -> _Bracket:
        step, positive, negative, x, _ = state
        value, slope = value_and_slope(x)
        positive, negative = jnp.where(value > 0, x, positive), jnp.where(value > 0, negative, x)
        newton = x - value / jnp.where(slope == 0, 1.0, slope)
        taken = (slope != 0) & ((newton - positive) * (newton - negative) <= 0)
        # Newton's errors square: after a step as small as √eps the next one would be lost in
        # rounding.
        done = taken & (jnp.abs(newton - x) <= jnp.sqrt(eps))
        x = jnp.where(taken, newton, (positive + negative) / 2)
        return _Bracket(step + 1, positive, negative, x, done)

    begin = _Bracket(jnp.zeros((), int), positive, negative, start, jnp.zeros_like(start, bool))
    return jax.lax.while_loop(unfinished, advance, begin).x


def slope_of(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The derivative of a function of one number."""
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def with_slope(function: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, Array]]:
    """A function of one number together with its derivative."""
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))


def divided(linear: Callable[[Array], Array], y: Array) -> Array:
    """Solves linear(x) = y for numbers: the tangent of a root."""
    curvature = linear(jnp.ones_like(y))
    return y / jnp.where(curvature == 0, 1.0, curvature)


# (numbers that the cost depends on, γ) -> cost of a round in target steps, positive and convex in γ.
RoundCost = Callable[[Any, Array], Array]


def best_lookahead(
    acceptance: Scalar, numbers: Any, round_cost: RoundCost, bounds: tuple[Scalar, Scalar]
) -> Float[Array, ""]:
    """The γ within bounds that maximises τ(α, γ)/C(γ), whether or not that beats plain decoding.

    First derivatives only: nested implicit differentiation would multiply compile time. The root is
    located without derivatives with respect to α and the numbers. A last Newton step from it, which
    moves nothing, carries those of the implicit function theorem.

    Args:
      acceptance: α. At 0 or less no token is accepted, at 1 or more every token.
      numbers: All that the cost depends on, besides γ.
      round_cost: (numbers, γ) -> cost C of a round.
      bounds: Smallest and largest γ. A γ on a bound moves with the bound alone.
    """
    dtype = jnp.result_type(acceptance, float)
    smallest, largest = (jnp.asarray(bound, dtype) for bound in bounds)

    # In ln(1 + γ) the curvature changes least between the bounds, and Newton's steps reach
    # farthest.
    @jax.jit  # traced once, however often it is differentiated
    def log_speedup(inputs: tuple[Array, Any], u: Array) -> Array:
        gamma = jnp.expm1(u)
        return jnp.log(tokens_per_round(inputs[0], gamma)) - jnp.log(round_cost(inputs[1], gamma))

    def slope(inputs: tuple[Array, Any]) -> Callable[[Array], Array]:
        return slope_of(functools.partial(log_speedup, inputs))

    inputs = (jnp.asarray(acceptance), numbers)
    fixed_slope = slope(jax.lax.stop_gradient(inputs))
    low, high = (jnp.log1p(jax.lax.stop_gradient(bound)) for bound in (smallest, largest))
    at_bounds = jax.vmap(fixed_slope)(jnp.stack([low, high]))
    rises, falls = at_bounds[0] > 0, at_bounds[1] < 0
    root = crossing(with_slope(fixed_slope), low, high, (low + high) / 2)
    curvature = slope_of(fixed_slope)(root)
    step = slope(inputs)(root) / jnp.where(curvature < 0, curvature, -1.0)
    inside = jnp.expm1(root - (step - jax.lax.stop_gradient(step)))
    return jnp.where(rises & falls, inside, jnp.where(rises, largest, smallest))


def bracketed_optimum(
    acceptance: Scalar, numbers: Any, round_cost: RoundCost, bounds: tuple[Scalar, Scalar]
) -> LookaheadOptimum:
    """γ* ≥ 1 and S* of a round at any convex cost, and the best integer γ; plain decoding, S = 1,
    where none is faster.

    Args:
      acceptance: Acceptance probability α.
      numbers: All that the cost depends on, besides γ.
      round_cost: (numbers, γ) -> cost C of a round.
      bounds: Smallest γ, at least 1, and largest; integers.
    """

    def speedup(gamma: Array) -> Array:
        return tokens_per_round(acceptance, gamma) / round_cost(numbers, gamma)

    gamma = best_lookahead(acceptance, numbers, round_cost, bounds)
    best = speedup(gamma)
    # S has a single maximum, so the best whole γ is a neighbour of γ*.
    below, above = (rounded(jax.lax.stop_gradient(gamma)) for rounded in (jnp.floor, jnp.ceil))
    at_below, at_above = speedup(below), speedup(above)
    whole, at_whole = jnp.where(at_above > at_below, above, below), jnp.maximum(at_above, at_below)
    return LookaheadOptimum(
        lookahead=jnp.where(best > 1, gamma, 0.0),
        speedup=jnp.where(best > 1, best, 1.0),
        lookahead_integer=jnp.where(at_whole > 1, whole, 0.0),
        speedup_integer=jnp.where(at_whole > 1, at_whole, 1.0),
        speculate=at_whole > 1,
    )
