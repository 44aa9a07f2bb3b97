"""The throughput-optimal draft size: a search over N alone, with γ from its closed form or a bracketed root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdsl_jax.errors import SdslError, require
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
from sdsl_jax.theory.domain import check_function, known_numbers
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
      params: Best size N*, in the parameter count of the functions. Where speculation pays at no
        size, the size that comes nearest to paying.
      lookahead: Best lookahead γ* at N*, a real number.
      lookahead_integer: Best integer lookahead at N*.
      acceptance: α at N*, as the function gave it: 0 or less and 1 or more are possible.
      draft_step: Cost d of a draft step at N*, in target steps.
      speedup: S at γ*; 1 where speculation does not pay.
      speedup_integer: S at the best integer lookahead.
      speculate: Whether an integer lookahead beats plain decoding at N*.
      indifference_1pct: Smallest and largest size around N* that lose at most 1% of S. Plain
        decoding counts as S = 1.
      indifference_5pct: The same for 5%.
      interior: Whether N* is a stationary point inside the bounds at which some γ pays.
      saturates: Whether α reaches 1 at N* or at an end of its 5% interval. An unbounded law then has
        no optimum.
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
    saturates: Bool[Array, "*batch"]


class Peak(NamedTuple):
    """A maximum over x = ln N, the grid that located it, and whether it is a stationary point inside the bounds."""

    x: Array
    grid: Array
    values: Array
    interior: Array


def maximise_over_sizes(objective: Callable[[Array], Array], low: Array, high: Array) -> Peak:
    """The global maximum of a smooth function of ln N on [low, high], up to the resolution of a
    grid of 64 points.

    Inside a bracket of the grid, the maximum is a root of the derivative. Its own derivatives with
    respect to everything that the objective closes over follow from the implicit function theorem,
    to every order. A maximum at an end of the interval moves with that end.

    Args:
      objective: Function of x = ln N.
      low: Smallest ln N.
      high: Largest ln N.
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
        crossed = crossing(with_slope(function), grid[left], grid[right], start)
        return jnp.where(interior, crossed, start)

    stop_gradient = jax.lax.stop_gradient
    root = jax.lax.custom_root(slope, stop_gradient(grid[peak]), solve, divided)
    # At a kink of a user's function the slope jumps over zero: it is a maximum, but the theorem does
    # not apply to it.
    drop = at_ends[0] - at_ends[1]
    stationary = interior & (jnp.abs(slope(stop_gradient(root))) <= _KINK * stop_gradient(drop))
    end = jnp.where(peak == 0, low, jnp.where(peak == _GRID - 1, high, stop_gradient(grid[peak])))
    x = jnp.where(stationary, root, jnp.where(interior, stop_gradient(root), end))
    return Peak(x, grid, values, stationary)


def _indifference(
    objective: Callable[[Array], Array], peak: Peak, shares: tuple[float, ...]
) -> list[tuple[Array, Array]]:
    """For each share, the sizes around the peak that lose at most this share of the best S.

    Plain decoding counts as S = 1.
    """
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

    # No tangents here: a loop that carries one cannot be differentiated in reverse mode.
    floors = jax.lax.stop_gradient(best + jnp.log1p(-jnp.asarray(shares, x.dtype)))
    outside, inside, open_ended = jax.vmap(bracket)(floors)
    # All ends in one loop: the objective is compiled once.
    ends = jax.vmap(jax.vmap(end, (0, 0, None)))(outside, inside, floors)
    ends = jnp.exp(jnp.where(open_ended, grid[jnp.array([0, -1])], ends))
    return [(pair[0], pair[1]) for pair in ends]


def check_bounds(bounds: tuple[Scalar, Scalar]) -> None:
    """Raises `SdslError` for bounds out of order, where they are known at call time (not under `jit`)."""
    low, high = (known_numbers("a bound of the draft size", bound) for bound in bounds)
    if low is not None and high is not None:
        require(
            np.all((low > 0) & (low < high)),
            f"the bounds of the draft size are {low} and {high}; they must be positive and rising.",
        )


def check_acceptance(best: DraftOptimum) -> None:
    """Raises `SdslError` where the acceptance reaches 1 around an optimum, where that is known at call time."""
    if not isinstance(best.saturates, jax.core.Tracer) and bool(np.any(best.saturates)):
        raise SdslError(
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

    The search takes the best of 64 sizes, evenly spaced in ln N, and refines it between its
    neighbours; it does not see narrower peaks. γ is real here. Where a real lookahead below 1 pays
    and no integer does at N*, `speculate` is false, and no N with an integer γ gains more than
    `speedup`.

    `acceptance` and `draft_step` are plain functions that jax can differentiate. The optimum can be
    differentiated, under `jit` and `vmap` too, with respect to everything they close over, and with
    respect to a bound that it lies on. The indifference intervals cannot, and at a kink of the
    functions N* counts as fixed.

    Args:
      acceptance: N -> α of a draft of N parameters. At 0 or less no token is accepted.
      draft_step: N -> cost d of a draft step, in target steps.
      bounds: Smallest and largest N, both positive.
      verify_pass: Cost v ≥ 1 of a verify pass, in target steps.

    Raises:
      SdslError: The bounds are out of order, or the acceptance reaches 1 around the optimum, so
        that no finite lookahead is optimal. Under `jit`, where no value is known, `saturates` is
        true in the result instead.
    """
    check_function("the acceptance", acceptance, "a function of the draft size: lambda n: 0.7")
    check_function("the draft step", draft_step, "a function of the draft size: lambda n: n / 70e9")
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
    """Maximises S = τ(α(N), γ)/C(N, γ) over N and γ, where the cost C of a round is any convex
    function of γ.

    At each N the best γ is a bracketed root, with first derivatives only. Everything else is as in
    `optimal_draft`. With an acceptance of 1 or more γ* is the largest lookahead, and `saturates` is
    true.

    Args:
      acceptance: N -> α of a draft of N parameters.
      draft_step: N -> cost d of a draft step, in target steps.
      numbers: N -> all that the cost of a round depends on, besides γ.
      round_cost: (numbers, γ) -> cost of a round, positive, in target steps.
      bounds: Smallest and largest N, both positive.
      lookahead_bounds: Smallest γ, at least 1, and largest.

    Raises:
      SdslError: As `optimal_draft`.
    """
    check_bounds(bounds)

    def log_speedup(n: Array) -> Array:
        alpha, inputs = acceptance(n), numbers(n)
        gamma = best_lookahead(alpha, inputs, round_cost, lookahead_bounds)
        return jnp.log(tokens_per_round(alpha, gamma) / round_cost(inputs, gamma))

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
    """The best size, from the log speed-up of each size at its best lookahead, and that lookahead."""
    low, high = (jnp.log(jnp.asarray(b, jnp.result_type(float))) for b in bounds)

    @jax.jit  # traced once, though it is mapped, differentiated and solved in turn
    def objective(x: Array) -> Array:
        return log_speedup(jnp.exp(x))

    peak = maximise_over_sizes(objective, low, high)
    n = jnp.exp(peak.x)
    alpha, best = acceptance(n), lookahead(n)
    fixed = jax.tree.map(jax.lax.stop_gradient, peak)
    one_percent, five_percent = _indifference(objective, fixed, (0.01, 0.05))
    saturates = (
        (alpha >= 1) | (acceptance(five_percent[0]) >= 1) | (acceptance(five_percent[1]) >= 1)
    )
    optimum = DraftOptimum(
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
        saturates=saturates,
    )
    check_acceptance(optimum)
    return optimum
