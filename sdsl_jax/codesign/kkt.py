"""The conditions of an optimum (Karush, Kuhn and Tucker) as one equation, its solution by Newton's
method, and its derivative.

For minimise f(x) with g(x) ≤ 0 and low ≤ x ≤ high, and with the Lagrangian L(x, λ) = f + λ·g, write
z = (x, λ) and F(z) = (∂L/∂x, −∂L/∂λ) = (∇f + λ·∇g, −g). The conditions then are

    z = P(z − F(z)),     P the projection to the box low ≤ x ≤ high, λ ≥ 0                                  (Robinson, 1980)

A component whose z − F(z) leaves the box is held there; the others are free, and F vanishes in
them. Newton's method on this equation is an active-set method that finds its set anew at each step
(Hintermüller, Ito & Kunisch, 2002).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# x → f(x), g(x).
Functions = Callable[[Array], tuple[Array, Array]]

_NEWTON_STEPS = 8
# Shares of a Newton step that are tried.
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.03)


class Box(NamedTuple):
    """Smallest and largest x."""

    low: Float[Array, " V"]
    high: Float[Array, " V"]

    def clip(self, x: Float[Array, " V"]) -> Array:
        """The nearest point of the box."""
        return jnp.clip(x, self.low, self.high)


class Point(NamedTuple):
    """Variables, and multipliers of the constraints."""

    x: Float[Array, " V"]
    multipliers: Float[Array, " J"]


class Linear(NamedTuple):
    """The equation at a point, and its linearisation with what is held taken out.

    Attributes:
      objective: f.
      constraints: g.
      slope: ∂L/∂x.
      miss: P(z − F(z)) − z, 0 at a solution.
      free: which components are not held.
      matrix: ∂F/∂z in the free rows, the identity in the others.
    """

    objective: Float[Array, ""]
    constraints: Float[Array, " J"]
    slope: Float[Array, " V"]
    miss: Float[Array, " Z"]
    free: Bool[Array, " Z"]
    matrix: Float[Array, "Z Z"]


def _ends(box: Box, constraints: int) -> tuple[Array, Array]:
    none = jnp.zeros(constraints, box.low.dtype)
    return jnp.concatenate([box.low, none]), jnp.concatenate([box.high, none + jnp.inf])


def field(functions: Functions, point: Point) -> tuple[Float[Array, " Z"], tuple[Array, Array]]:
    """F = (∂L/∂x, −∂L/∂λ), and f and g beside it."""

    def lagrangian(x: Array) -> tuple[Array, tuple[Array, Array]]:
        f, g = functions(x)
        return f + point.multipliers @ g, (f, g)

    slope, (f, g) = jax.grad(lagrangian, has_aux=True)(point.x)
    return jnp.concatenate([slope, -g]), (f, g)


def linearised(functions: Functions, box: Box, point: Point) -> Linear:
    """The equation at a point, and its linearisation."""
    z, size = jnp.concatenate(point), len(point.x)
    low, high = _ends(box, len(point.multipliers))

    def at(z: Array) -> tuple[Array, tuple[Array, tuple[Array, Array]]]:
        found, values = field(functions, Point(z[:size], z[size:]))
        return found, (found, values)

    slopes, (found, (f, g)) = jax.jacfwd(at, has_aux=True)(z)
    free = free_components(box, point, found)
    return Linear(
        objective=f,
        constraints=g,
        slope=found[:size],
        miss=jnp.clip(z - found, low, high) - z,
        free=free,
        matrix=free_rows(free, slopes),
    )


def free_components(box: Box, point: Point, found: Float[Array, " Z"]) -> Bool[Array, " Z"]:
    """Which components of a point are not held, given F there."""
    z = jnp.concatenate(point)
    low, high = _ends(box, len(point.multipliers))
    return (z - found > low) & (z - found < high)


def free_rows(free: Bool[Array, " Z"], slopes: Float[Array, "Z Z"]) -> Float[Array, "Z Z"]:
    """∂F/∂z with the rows of what is held replaced by those of the identity."""
    return jnp.where(free[:, None], slopes, jnp.eye(len(free), dtype=slopes.dtype))


def solve_small(matrix: Float[Array, "Z Z"], right: Float[Array, "Z K"]) -> Float[Array, "Z K"]:
    """The x with matrix·x = right, by Gauss-Jordan elimination with row pivots; not finite where the
    matrix is singular.

    A few rows need no LAPACK, and a program that calls it cannot be kept (`kept_programs`).
    """
    size, index = len(matrix), jnp.arange(len(matrix))

    def eliminate(k: Array, rows: Array) -> Array:
        pivot = jnp.argmax(jnp.where(index >= k, jnp.abs(rows[:, k]), -1.0))
        rows = rows[index.at[k].set(pivot).at[pivot].set(k)]
        top = rows[k] / rows[k, k]
        rows = rows - jnp.where(index == k, 0.0, rows[:, k])[:, None] * top[None]
        return rows.at[k].set(top)

    rows = jnp.concatenate([matrix, right], axis=1)
    return jax.lax.fori_loop(0, size, eliminate, rows)[:, size:]


def polish(functions: Functions, box: Box, start: Point) -> tuple[Point, Linear]:
    """A few Newton steps, each the share of a full one that comes nearest to a solution, or none
    where none comes nearer.

    Returns:
      The point reached, and the equation there.
    """
    size = len(start.x)
    low, high = _ends(box, len(start.multipliers))

    def step(
        state: tuple[Array, Array, Linear], _: None
    ) -> tuple[tuple[Array, Array, Linear], None]:
        z, full, here = state
        shares = jnp.asarray(_SHARES, z.dtype)
        tried = jnp.clip(z[None] + shares[:, None] * full[None], low[None], high[None])
        there = jax.vmap(lambda z: linearised(functions, box, Point(z[:size], z[size:])))(tried)
        misses = jnp.abs(there.miss).max(-1)
        # A singular matrix gives no step, but no error either.
        misses = jnp.where(jnp.isfinite(misses), misses, jnp.inf)
        best = jnp.argmin(misses)
        better = misses[best] < jnp.abs(here.miss).max()
        z, here = jax.tree.map(
            lambda new, old: jnp.where(better, new[best], old), (tried, there), (z, here)
        )
        return (z, solve_small(here.matrix, here.miss[:, None])[:, 0], here), None

    # The first turn evaluates the start itself: nothing misses by more than infinity.
    z = jnp.concatenate(start)
    none = jnp.full_like(z, jnp.inf)
    unknown = Linear(
        objective=none[0],
        constraints=none[size:],
        slope=none[:size],
        miss=none,
        free=jnp.zeros(z.shape, bool),
        matrix=jnp.full(2 * z.shape, jnp.inf, z.dtype),
    )
    (z, _, here), _ = jax.lax.scan(step, (z, jnp.zeros_like(z), unknown), length=_NEWTON_STEPS + 1)
    return Point(z[:size], z[size:]), here


def residual(box: Box, point: Point, here: Linear) -> Float[Array, ""]:
    """Largest of: projected gradient of the Lagrangian, violation of a constraint, multiplier times slack."""
    projected = box.clip(point.x - here.slope) - point.x
    violation = jnp.maximum(here.constraints, 0.0)
    return jnp.abs(
        jnp.concatenate([projected, violation, point.multipliers * here.constraints])
    ).max()
