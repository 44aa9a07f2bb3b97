"""What one metric costs in terms of another: fronts by ε-constraint; and a plain grid, to hold solutions against."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdsl_jax.codesign.program import (
    Program,
    ProgramInputs,
    Solved,
    box,
    check,
    design_at,
    objective_and_constraints,
    sweep,
)
from sdsl_jax.errors import require
from sdsl_jax.theory.serving import Design

# A grid is evaluated in chunks of this many points, so that memory does not grow with it.
_CHUNK = 1 << 14
_TOLERANCE = 1e-6


class Front(NamedTuple):
    """The best objective for each limit on a metric.

    Attributes:
      solved: optima, stacked in the order of the limits; its last multiplier is the price of the
        limit.
      values: of the metric at each optimum; below the limit where that does not bind.
      efficient: feasible, and no other point is as good in objective and metric and better in one
        of them.
    """

    solved: Solved
    values: Float[Array, " P"]
    efficient: Bool[Array, " P"]


def pareto(
    program: Program,
    inputs: ProgramInputs,
    metric: str,
    limits: Float[Array | np.ndarray, " P"],
    starts: Float[Array | np.ndarray, "S V"],
    learning_rate: Array | float = 0.1,
) -> Front:
    """The front of the task's objective against a metric, all points as one program (ε-constraint,
    Haimes et al., 1971).

    Limits that are not reached give the same optimum again; of such only those count as efficient
    that no other dominates by more than 1e-6, so that a front may hold one point several times.

    Args:
      program: its constraints hold as well.
      inputs: of the task.
      metric: one of `METRICS` that the task does not constrain.
      limits: on the metric, in its unit.
      starts: points of the unit cube, as of `spread_starts`.
      learning_rate: as of `solve`.

    Raises:
      SdslError: as `solve`, or the metric is constrained already, or a limit is not positive.
    """
    require(
        metric not in program.constraints,
        f"{metric} is a constraint of the task; a front is of another metric.",
    )
    limited = dataclasses.replace(program, constraints=(*program.constraints, metric))
    check(program, inputs)
    each = np.asarray(limits, float)
    require(
        each.ndim == 1 and np.all(each > 0),
        f"limits on {metric} are {each}; each must be positive.",
    )
    many = [inputs._replace(limits=np.append(np.asarray(inputs.limits), limit)) for limit in each]
    solved = sweep(limited, many, starts, learning_rate)
    values = getattr(solved.outcome, metric)
    f, m = solved.objective, jnp.log(values)
    as_good = (f[None] <= f[:, None] + _TOLERANCE) & (m[None] <= m[:, None] + _TOLERANCE)
    better = (f[None] < f[:, None] - _TOLERANCE) | (m[None] < m[:, None] - _TOLERANCE)
    dominated = (as_good & better & solved.feasible[None]).any(-1)
    return Front(solved, values, solved.feasible & ~dominated)


class GridOptimum(NamedTuple):
    """The best point of a grid.

    Attributes:
      design: there; where no point is feasible, of the one that violates least.
      objective: Σ w·ln m there.
      feasible: whether any point is.
    """

    design: Design
    objective: Float[Array, ""]
    feasible: Bool[Array, ""]


@functools.partial(jax.jit, static_argnames=("program", "points"))
def brute_force(program: Program, inputs: ProgramInputs, points: int) -> GridOptimum:
    """The best of `points`^V designs, evenly spaced in the coordinates: slow, coarse, and hard to get wrong."""
    within, both = box(program, inputs), objective_and_constraints(program, inputs)
    shape = (points,) * len(program.variables)

    def place(index: Array) -> Array:
        share = jnp.stack(jnp.unravel_index(index, shape)) / max(points - 1, 1)
        return within.low + share * (within.high - within.low)

    def judge(index: Array) -> tuple[Array, Array]:
        f, g = both(place(index))
        return f, jnp.maximum(g, 0.0).max(initial=0.0)

    values, violation = jax.lax.map(judge, jnp.arange(np.prod(shape)), batch_size=_CHUNK)
    feasible = violation <= _TOLERANCE
    best = jnp.argmin(jnp.where(feasible.any(), jnp.where(feasible, values, jnp.inf), violation))
    return GridOptimum(design_at(program, inputs, place(best)), values[best], feasible.any())
