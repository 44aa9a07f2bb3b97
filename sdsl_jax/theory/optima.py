"""The throughput-optimal draft size, as a one-dimensional problem: γ is eliminated by its closed form, or by a bracketed root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.bracketed import (
    RoundCost,
    best_lookahead,
    bracketed_optimum,
    crossing,
    divided,
    slope_of,
    with_slope,
)
from sdsl_jax.theory.lookahead import (
    LookaheadOptimum,
    best_log_speedup,
    check_domain,
    optimal_lookahead_unchecked,
    tokens_per_round,
)

# Points of the grid in ln N that brackets the maximum: a ratio of 1.25 between neighbours over six
# decades.
_GRID = 64
# At a root the slope is this share of its change over the bracket, or less.
_KINK = 1e-3


class DraftOptimum(NamedTuple):
    """The best draft size and what it gives. Never NaN for finite inputs.

    Attributes:
      params: N*, in the parameter count of the functions given; where speculation pays at no size,
        the size that comes nearest to paying.
      lookahead: γ* there, a real number.
      lookahead_integer: the best whole γ there.
      acceptance: α there, as the function gave it: 0 or less and 1 or more are possible.
      draft_step: d there, in target steps.
      speedup: S at γ*; 1 where speculation does not pay.
      speedup_integer: S at the best whole γ.
      speculate: whether a whole lookahead beats plain decoding at N*.
      indifference_1pct: ends of the interval of sizes around N* that lose at most 1% of S, plain
        decoding counted as S = 1.
      indifference_5pct: the same for 5%.
      interior: whether N* is a stationary point inside the bounds at which some γ pays.
      certain: whether α reaches 1 at N* or at an end of its 5% interval: an unbounded law has then
        no optimum to speak of.
    """

    params: Float[Array, "*batch"]
    lookahead: Float[Array, "*batch"]
    lookahead_integer: Float[Array, "*batch"]
    acceptance: Float[Array, "*batch"]
    draft_step: Float[Array, "*batch"]
    speedup: Float[Array, "*batch"]
    speedup_integer: Float[Array, "*batch"]
    speculate: Bool[Array, "*batch"]
    indifference_1pct: tuple[Float[Array, "*batch"], Float[Array, "*batch"]]
    indifference_5pct: tuple[Float[Array, "*batch"], Float[Array, "*batch"]]
    interior: Bool[Array, "*batch"]
    certain: Bool[Array, "*batch"]


class Peak(NamedTuple):
    """A maximum over x = ln N: where, the grid that found it, and whether it is a stationary point inside."""

    x: Array
    grid: Array
    values: Array
    interior: Array


def maximise_over_sizes(objective: Callable[[Array], Array], low: Array, high: Array) -> Peak:
    """The global maximum of a smooth function of ln N on [low, high], up to the resolution of a
    grid of 64 points.

    Inside a bracket of the grid the maximum is located as a root of the derivative, whose own
    derivatives with respect to everything the objective closes over come from the implicit function
    theorem, to every order. A maximum at an end of the interval moves with that end.
    """
    share = jnp.arange(_GRID) / (_GRID - 1)
    grid = low + (high - low) * share.astype(jnp.result_type(low, float))
    values = jax.vmap(objective)(grid)
    peak = jnp.argmax(values)
    left, right = jnp.maximum(peak - 1, 0), jnp.minimum(peak + 1, _GRID - 1)
    slope = slope_of(objective)
    at_ends = jax.vmap(slope)(grid[jnp.stack([left, right])])
    interior = (at_ends[0] > 0) & (at_ends[1] < 0)

    def solve(function, start):
        found = crossing(with_slope(function), grid[left], grid[right], start)
        return jnp.where(interior, found, start)

    still = jax.lax.stop_gradient
    root = jax.lax.custom_root(slope, still(grid[peak]), solve, divided)
    # At a kink of a user's function the slope jumps over zero: a maximum, but none that the theorem
    # applies to.
    drop = at_ends[0] - at_ends[1]
    stationary = interior & (jnp.abs(slope(still(root))) <= _KINK * still(drop))
    end = jnp.where(peak == 0, low, jnp.where(peak == _GRID - 1, high, still(grid[peak])))
    x = jnp.where(stationary, root, jnp.where(interior, still(root), end))
    return Peak(x, grid, values, stationary)


def _indifference(
    objective: Callable[[Array], Array], peak: Peak, shares: tuple[float, ...]
) -> list[tuple[Array, Array]]:
    """For each share, the sizes around the peak whose S, or plain decoding, is at least 1 − share of the best."""
    x, grid, index = peak.x, peak.grid, jnp.arange(_GRID)
    best = jnp.maximum(objective(x), 0.0)

    def bracket(floor: Array) -> tuple[Array, Array, Array]:
        """Outer and inner ends on either side, and which of them are the ends of the grid."""
        enough = jnp.maximum(peak.values, 0.0) >= floor
        below = jnp.max(jnp.where((grid < x) & ~enough, index, -1))
        above = jnp.min(jnp.where((grid > x) & ~enough, index, _GRID))
        outside = jnp.stack([grid[jnp.maximum(below, 0)], grid[jnp.minimum(above, _GRID - 1)]])
        inside = [
            jnp.minimum(grid[jnp.minimum(below + 1, _GRID - 1)], x),
            jnp.maximum(grid[jnp.maximum(above - 1, 0)], x),
        ]
        return outside, jnp.stack(inside), jnp.stack([below < 0, above >= _GRID])

    def end(outside: Array, inside: Array, floor: Array) -> Array:
        def value_and_slope(at: Array) -> tuple[Array, Array]:
            return jax.lax.stop_gradient(
                jax.jvp(lambda t: objective(t) - floor, (at,), (jnp.ones_like(at),))
            )

        return crossing(value_and_slope, inside, outside, (inside + outside) / 2)

    # Cut off from all tangents: a loop that carried one could not be differentiated in reverse
    # mode.
    floors = jax.lax.stop_gradient(best + jnp.log1p(-jnp.asarray(shares, x.dtype)))
    outside, inside, open_ended = jax.vmap(bracket)(floors)
    # All ends in one loop: the objective is compiled once.
    ends = jax.vmap(jax.vmap(end, (0, 0, None)))(outside, inside, floors)
    ends = jnp.exp(jnp.where(open_ended, grid[jnp.array([0, -1])], ends))
    return [(pair[0], pair[1]) for pair in ends]


def check_bounds(bounds: tuple[Scalar, Scalar]) -> None:
    """Raises `ValueError` for bounds out of order, as far as they are known at call time (not under `jit`)."""
    if not any(isinstance(b, jax.core.Tracer) for b in bounds):
        low, high = (np.asarray(b) for b in bounds)
        if not np.all((low > 0) & (low < high)):
            raise ValueError(
                f"the bounds of the draft size are {low} and {high}; they must be positive and rising."
            )


def check_acceptance(best: DraftOptimum) -> None:
    """Raises `ValueError` where the acceptance reaches 1 around an optimum, as far as that is known at call time."""
    if not isinstance(best.certain, jax.core.Tracer) and bool(np.any(best.certain)):
        raise ValueError(
            f"the acceptance reaches 1 around {float(np.max(best.params)):g} parameters (it is {float(np.max(best.acceptance)):g}"
            " there); it must stay below, or no finite lookahead is optimal."
        )


def optimal_draft(
    acceptance: Callable[[Array], Array],
    draft_step: Callable[[Array], Array],
    bounds: tuple[Scalar, Scalar],
    verify_pass: Scalar = 1.0,
) -> DraftOptimum:
    """Maximises S(α(N), γ*(α(N), d(N), v), d(N), v) over N (arXiv 2603.11053).

    The best of 64 sizes, evenly spaced in ln N, is refined between its neighbours: peaks narrower
    than that are not seen. γ is real here; where a real lookahead below 1 pays and no whole one
    does at N*, `speculate` is false, and no choice of N and a whole γ gains more than `speedup`.

    `acceptance` and `draft_step` are plain functions that jax can differentiate; the optimum may be
    differentiated, under `jit` and `vmap` too, with respect to anything they close over, and with
    respect to the bounds where it lies on one. (The indifference intervals are not differentiable;
    at a kink of these functions N* counts as fixed.)

    Args:
      acceptance: α of a draft of N parameters. Where it is 0 or less no token is accepted.
      draft_step: d of a draft of N parameters, in target steps.
      bounds: smallest and largest N, both positive.
      verify_pass: v ≥ 1, in target steps.

    Raises:
      ValueError: the bounds are out of order, or the acceptance reaches 1 around the optimum, so
        that no finite lookahead is optimal, as far as that is known at call time. Under `jit` the
        result then says `certain`.
    """
    check_bounds(bounds)
    check_domain(0.5, 1.0, verify_pass)
    return _optimal_draft(
        acceptance,
        draft_step,
        bounds,
        lambda n: best_log_speedup(acceptance(n), draft_step(n), verify_pass),
        lambda n: optimal_lookahead_unchecked(acceptance(n), draft_step(n), verify_pass),
    )


def optimal_draft_of_rounds(
    acceptance: Callable[[Array], Array],
    draft_step: Callable[[Array], Array],
    numbers: Callable[[Array], Any],
    round_cost: RoundCost,
    bounds: tuple[Scalar, Scalar],
    lookahead_bounds: tuple[Scalar, Scalar],
) -> DraftOptimum:
    """Maximises S = τ(α(N), γ)/C(N, γ) over N and γ, where a round's cost C is any convex function
    of γ.

    At each N the best γ is a bracketed root, with first derivatives only; everything else is as in
    `optimal_draft`. An acceptance of 1 or more is followed to the largest lookahead, and `certain`
    says so.

    Args:
      acceptance: α of a draft of N parameters.
      draft_step: d of a draft of N parameters, in target steps.
      numbers: all that the cost of a round of a draft of N parameters depends on, besides γ.
      round_cost: C(numbers(N), γ) > 0 of a whole round, in target steps.
      bounds: smallest and largest N, both positive.
      lookahead_bounds: smallest γ, at least 1, and largest.

    Raises:
      ValueError: as `optimal_draft` does.
    """
    check_bounds(bounds)

    def log_speedup(n: Array) -> Array:
        alpha, given = acceptance(n), numbers(n)
        gamma = best_lookahead(alpha, given, round_cost, lookahead_bounds)
        return jnp.log(tokens_per_round(alpha, gamma) / round_cost(given, gamma))

    return _optimal_draft(
        acceptance,
        draft_step,
        bounds,
        log_speedup,
        lambda n: bracketed_optimum(acceptance(n), numbers(n), round_cost, lookahead_bounds),
    )


def _optimal_draft(
    acceptance: Callable[[Array], Array],
    draft_step: Callable[[Array], Array],
    bounds: tuple[Scalar, Scalar],
    log_speedup: Callable[[Array], Array],
    lookahead: Callable[[Array], LookaheadOptimum],
) -> DraftOptimum:
    """The best size, given what each size is worth at its best lookahead, and that lookahead."""
    low, high = (jnp.log(jnp.asarray(b, jnp.result_type(float))) for b in bounds)

    @jax.jit  # traced once, though it is mapped, differentiated and solved in turn
    def objective(x: Array) -> Array:
        return log_speedup(jnp.exp(x))

    peak = maximise_over_sizes(objective, low, high)
    n = jnp.exp(peak.x)
    alpha, best = acceptance(n), lookahead(n)
    still = jax.tree.map(jax.lax.stop_gradient, peak)
    one_percent, five_percent = _indifference(objective, still, (0.01, 0.05))
    certain = (alpha >= 1) | (acceptance(five_percent[0]) >= 1) | (acceptance(five_percent[1]) >= 1)
    found = DraftOptimum(
        params=n,
        lookahead=best.lookahead,
        lookahead_integer=best.lookahead_integer,
        acceptance=jnp.asarray(alpha),
        draft_step=jnp.asarray(draft_step(n)),
        speedup=best.speedup,
        speedup_integer=best.speedup_integer,
        speculate=best.speculate,
        indifference_1pct=one_percent,
        indifference_5pct=five_percent,
        interior=peak.interior & (best.speedup > 1),
        certain=certain,
    )
    check_acceptance(found)
    return found
