"""Minimisation from many starts at once, within a box and under constraints: an augmented
Lagrangian, and Newton's method at the end.

    minimise  f(x)   subject to   g(x) ≤ 0   and   low ≤ x ≤ high

Each start descends the augmented Lagrangian (Hestenes, 1969; Powell, 1969; Rockafellar, 1973)

    f(x) + Σ_j [max(0, λ_j + ρ·g_j(x))² − λ_j²]/(2ρ),        λ_j ← max(0, λ_j + ρ·g_j(x)) after each round,

with an Optax optimizer, and a projection keeps it in the box. Newton's method on the conditions of
an optimum (`kkt`) then makes the end exact. docs/theory.md, section 9.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.codesign.kkt import Box, Functions, Linear, Point, polish, residual
from sdsl_jax.solver_status import SolverStatus

if TYPE_CHECKING:
    import optax

# Of Optax, which is imported where a program is traced: a kept one needs none of it.
OPTIMIZERS = ("adam", "nadam", "momentum")

# ρ of the augmented Lagrangian, in units of the objective per squared e-fold of violation.
# Logarithms of metrics bend by less than 1 per e-fold of anything, so that this much dominates them
# without making the problem stiff.
_PENALTY = 10.0
# After a round that ends in a violation of more than this, ρ grows by the factor beside it: where
# hardly any design is feasible, multipliers are large and would be long in coming.
_VIOLATED, _GROWTH = 1e-3, 2.0
# A constraint holds if it does to this share of its limit.
TOLERANCE = 1e-6
# Two starts agree when their objectives differ by less.
_AGREEMENT = 1e-6
# A feasible end with a larger residual of the conditions of an optimum has not converged.
_CONVERGED = 1e-4


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


class Minimum(NamedTuple):
    """The best end of all starts, and how well it satisfies the conditions of an optimum (Karush,
    Kuhn and Tucker).

    Attributes:
      x: The end.
      objective: f there.
      multipliers: Of the constraints, ≥ 0: the gain in f per unit by which a constraint is relaxed.
      kkt_residual: Largest of: projected gradient of the Lagrangian, violation of a constraint,
        multiplier times slack.
      feasible: Whether every constraint holds, to 1e-6.
      violation: Largest g, 0 where every constraint holds.
      starts_agreeing: Share of starts with as good an end.
      at_lower: Whether each variable rests on its lower bound.
      at_upper: Whether each variable rests on its upper bound.
      status: A `SolverStatus`. `ITERATION_CAP` judges feasible ends only: where no design is
        feasible there is no optimum to converge to.
      path: x at every step of the best start.
    """

    x: Float[Array, " V"]
    objective: Float[Array, ""]
    multipliers: Float[Array, " J"]
    kkt_residual: Float[Array, ""]
    feasible: Bool[Array, ""]
    violation: Float[Array, ""]
    starts_agreeing: Float[Array, ""]
    at_lower: Bool[Array, " V"]
    at_upper: Bool[Array, " V"]
    status: Int[Array, ""]
    path: Float[Array, "steps V"]


class _Descent(NamedTuple):
    """One start under way; a carry of the scan over steps."""

    point: Point
    penalty: Array
    memory: optax.OptState


def minimise(
    functions: Functions,
    box: Box,
    starts: Float[Array, "S V"],
    learning_rate: Array | float,
    *,
    optimizer: str,
    steps: int,
    rounds: int = 1,
) -> Minimum:
    """The best of many starts; to be called under `jit`.

    The learning rate falls to zero along a cosine within a round, and starts at 1/(1 + r) of
    `learning_rate` in round r. The best start is the feasible one of least objective; where none is
    feasible, the one that violates least.

    Args:
      functions: x → f(x), g(x).
      box: Bounds of x.
      starts: Points of the unit cube, as of `spread_starts`.
      learning_rate: Initial step size, in units of x.
      optimizer: One of `OPTIMIZERS`.
      steps: Updates in each round.
      rounds: Updates of the multipliers; one round is enough without constraints.
    """
    import optax

    cosine = optax.cosine_decay_schedule(learning_rate, steps)

    def rate(count: Array) -> Array:
        return cosine(count % steps) / (1.0 + count // steps)

    transform = {
        "adam": optax.adam,
        "nadam": optax.nadam,
        "momentum": functools.partial(optax.sgd, momentum=0.9),
    }[optimizer](rate)

    def step(state: _Descent, count: Array) -> tuple[_Descent, Array]:
        (x, multipliers), penalty, memory = state

        def augmented(x: Array) -> tuple[Array, tuple[Array, Array]]:
            f, g = functions(x)
            pressed = jnp.maximum(multipliers + penalty * g, 0.0)
            lagrangian = f + (pressed**2 - multipliers**2).sum() / (2 * penalty)
            return lagrangian, (pressed, g.max(initial=0.0))

        slope, (pressed, violation) = jax.grad(augmented, has_aux=True)(x)
        updates, memory = transform.update(slope, memory, x)
        moved = box.clip(optax.apply_updates(x, updates))
        # By the end of a round x hardly moves any more: the multipliers that it was pressed by are
        # those it ends with.
        last = (count + 1) % steps == 0
        penalty = jnp.where(last & (violation > _VIOLATED), _GROWTH * penalty, penalty)
        return _Descent(Point(moved, jnp.where(last, pressed, multipliers)), penalty, memory), x

    def descend(start: Array) -> tuple[Point, Linear, Array]:
        x = box.low + start * (box.high - box.low)
        none = jnp.zeros_like(jax.eval_shape(functions, x)[1])
        begin = _Descent(Point(x, none), jnp.full_like(x[0], _PENALTY), transform.init(x))
        end, path = jax.lax.scan(step, begin, jnp.arange(rounds * steps))
        return *polish(functions, box, end.point), path

    ends, there, paths = jax.vmap(descend)(starts)
    values, violation = there.objective, jnp.maximum(there.constraints, 0.0).max(-1, initial=0.0)
    # An end without a number is not an optimum.
    finite = jnp.isfinite(values) & jnp.isfinite(violation)
    feasible = finite & (violation <= TOLERANCE)
    rank = jnp.where(finite, jnp.where(feasible.any(), values, violation), jnp.inf)
    best = jnp.argmin(jnp.where(feasible | ~feasible.any(), rank, jnp.inf))
    end, here = jax.tree.map(lambda leaf: leaf[best], (ends, there))
    eps = jnp.finfo(end.x.dtype).eps
    resolution = 8 * eps * (1 + jnp.abs(end.x))
    at_lower, at_upper = end.x <= box.low + resolution, end.x >= box.high - resolution
    error = residual(box, end, here)
    slack = _AGREEMENT + 8 * eps * jnp.abs(values[best])
    return Minimum(
        x=end.x,
        objective=values[best],
        multipliers=end.multipliers,
        kkt_residual=error,
        feasible=feasible[best],
        violation=violation[best],
        starts_agreeing=(feasible & (values <= values[best] + slack)).mean(),
        at_lower=at_lower,
        at_upper=at_upper,
        status=jnp.select(
            [~finite[best], feasible[best] & (error > _CONVERGED), (at_lower | at_upper).any()],
            [SolverStatus.NON_FINITE, SolverStatus.ITERATION_CAP, SolverStatus.ON_BOUND],
            SolverStatus.CONVERGED,
        ),
        path=paths[best],
    )


def convergence_warning(status: Array | int, kkt_residual: Array | float) -> str:
    """What to tell a user where the optimizer failed; empty where it converged, or rests on a bound
    that the problem itself set.
    """
    ended = SolverStatus(int(status))
    if ended <= SolverStatus.ON_BOUND:
        return ""
    remedy = "check the laws and the bounds of the variables"
    if ended == SolverStatus.ITERATION_CAP:
        remedy = (
            f"residual of the optimality conditions {float(kkt_residual):.1g}; "
            "raise its steps or starts"
        )
    return f"the optimizer {ended.message}: {remedy}"
