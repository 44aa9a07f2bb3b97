"""One robust least-squares solver for every law: Levenberg–Marquardt on a Huber loss, vmapped over starts and resamples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.compiler_options import quick_jit
from sdsl_jax.solver_status import SolverStatus

# residuals(parameters [P], data) -> [n]
Residuals = Callable[[Array, Any], Array]
# hold(parameters [P], index of a quantity, its value, data) -> nearby parameters at which the
# quantity has the value
Hold = Callable[[Array, Array, Array, Any], Array]

_ITERATIONS = 200
_CONVERGED, _CAP = int(SolverStatus.CONVERGED), int(SolverStatus.ITERATION_CAP)
_NON_FINITE = int(SolverStatus.NON_FINITE)
# A descent ends after so many steps in a row that gain, or if refused had hoped for, less than this
# share of the objective.
_TOLERANCE, _PATIENCE = 1e-9, 4
# Descents that run together: all wait for the slowest, so that small groups waste less.
_TOGETHER = 8
# Columns of the Jacobian that are shorter than this share of the longest are rounding errors.
_UNSEEN = 1e-12
# Two starts agree when their objectives differ by less than this share.
_AGREEMENT = 1e-4


class Solution(NamedTuple):
    """The end of one descent, or of many with a leading axis (then NumPy's arrays).

    Attributes:
      parameters: Where it ended, [P].
      objective: Σ weight · huber(residual) there.
      status: A `SolverStatus`.
    """

    parameters: Float[Array, "*batch P"]
    objective: Float[Array, "*batch"]
    status: Int[Array, "*batch"]

    def unconverged(self) -> float:
        """Share of the descents that did not converge."""
        return float((np.asarray(self.status) != SolverStatus.CONVERGED).mean())


class Fit(NamedTuple):
    """The best of many starts.

    Attributes:
      parameters: At the optimum.
      objective: Σ weight · huber(residual) there.
      residuals: At the optimum, [n].
      jacobian: ∂residuals/∂parameters there.
      starts_agreeing: Share of starts that reached the same objective.
      condition_number: Condition number of the Jacobian with columns scaled to unit length. Large
        means that some combination of parameters is not identified by these data. Parameters that
        move no residual at all do not count.
      status: How the best descent ended.
    """

    parameters: Float[Array, " P"]
    objective: Float[Array, ""]
    residuals: Float[Array, " n"]
    jacobian: Float[Array, "n P"]
    starts_agreeing: float
    condition_number: float
    status: SolverStatus


class _State(NamedTuple):
    """A descent under way: where it is, the damping μ, steps in a row without gain, steps in all."""

    parameters: Array
    objective: Array
    damping: Array
    idle: Array
    tried: Array


def huber(residuals: Array, delta: Array | float) -> Array:
    """r²/2 up to |r| = δ, and δ·(|r| − δ/2) beyond (Huber, 1964)."""
    size = jnp.abs(residuals)
    return jnp.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def minimise(
    residuals: Residuals, start: Array, data: object, weights: Array, delta: Array | float
) -> Solution:
    """Minimises Σ weight · huber(residual) from one start.

    Every iteration tries two steps p = −(JᵀWJ + μ·diag(JᵀVJ))⁻¹ JᵀVr and takes the better one if it
    lowers the objective; μ falls on success and rises on failure. V = weight · min(1, δ/|r|) are
    the IRLS weights. With W = V the step is safe and slow where most residuals exceed δ, as with
    the customary δ = 10⁻³ they do; with W = weight · [|r| ≤ δ], the true second derivative of the
    Huber loss, it is a Newton step, and converges quadratically near the end.
    """

    def objective(x: Array) -> Array:
        value = (weights * huber(residuals(x, data), delta)).sum()
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def step(state: _State) -> _State:
        x, value, damping, idle, tried = state
        r, jacobian = residuals(x, data), jax.jacfwd(residuals)(x, data)
        # A column of rounding errors belongs to a parameter that the data do not show: it stays
        # where it is.
        norms = jnp.linalg.norm(jacobian, axis=0)
        jacobian = jnp.where(norms > _UNSEEN * norms.max(), jacobian, 0.0)
        v = weights * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(r), 1e-30))
        gradient = jacobian.T @ (v * r)
        majoriser = jacobian.T @ (v[:, None] * jacobian)
        second = jacobian.T @ ((weights * (jnp.abs(r) <= delta))[:, None] * jacobian)
        scale = jnp.diag(majoriser)
        scale = jnp.maximum(scale, 1e-12 * jnp.max(scale) + 1e-300)
        # Few residuals lie within δ: without some damping the second matrix may be singular.
        matrices = jnp.stack(
            [
                majoriser + damping * jnp.diag(scale),
                second + jnp.maximum(damping, 1e-6) * jnp.diag(scale),
            ]
        )
        proposals = (
            x[None]
            - jnp.linalg.solve(
                matrices, jnp.broadcast_to(gradient, (2, *gradient.shape))[..., None]
            )[..., 0]
        )
        proposed = jax.vmap(objective)(proposals)
        best = jnp.argmin(proposed)
        better = proposed[best] < value
        gain = jnp.where(better, value - proposed[best], 0.0)
        # What the safe step hoped for; a step refused in spite of high hopes only asks for more
        # damping.
        hoped = jnp.where(better, gain, gradient @ (x - proposals[0]))
        return _State(
            parameters=jnp.where(better, proposals[best], x),
            objective=value - gain,
            damping=jnp.clip(jnp.where(better, damping / 3, damping * 4), 1e-12, 1e12),
            idle=jnp.where(hoped > _TOLERANCE * value, 0, idle + 1),
            tried=tried + 1,
        )

    def unfinished(state: _State) -> Array:
        return (state.idle < _PATIENCE) & (state.tried < _ITERATIONS)

    zero = jnp.zeros((), int)
    begin = _State(start, objective(start), jnp.asarray(1e-2, start.dtype), zero, zero)
    end = jax.lax.while_loop(unfinished, step, begin)
    status = jnp.where(end.idle >= _PATIENCE, _CONVERGED, _CAP)
    status = jnp.where(jnp.isfinite(end.objective), status, _NON_FINITE)
    return Solution(end.parameters, end.objective, status)


@functools.partial(quick_jit, level=1, static_argnames=("residuals", "hold"))
def _descend(
    residuals: Residuals,
    hold: Hold | None,
    starts: Array,
    which: Array,
    values: Array,
    data: object,
    weights: Array,
    delta: Array,
) -> Solution:
    """A group of descents, each with its own start, weights, and quantity held at a value (−1: none)."""

    def one(start: Array, k: Array, value: Array, w: Array) -> Solution:
        if hold is None:
            return minimise(residuals, start, data, w, delta)
        moved = lambda x: jnp.where(k < 0, x, hold(x, k, value, data))  # noqa: E731
        return minimise(lambda x, d: residuals(moved(x), d), moved(start), data, w, delta)

    return jax.vmap(one)(starts, which, values, weights)


def descend(
    residuals: Residuals,
    starts: Float[Any, "R P"],
    data: object,
    weights: Float[Any, "R n"],
    delta: float,
    hold: Hold | None = None,
    which: Int[np.ndarray, " R"] | None = None,
    values: Float[np.ndarray, " R"] | None = None,
) -> Solution:
    """Many descents, in groups of one size, so that one compilation serves any number of them.

    The data may have more rows than there are weights: the rest is padding and weighs nothing.

    Args:
      residuals: Function of parameters and data; hashable, since it is static.
      starts: Initial parameters of each descent.
      data: Pytree of arrays that `residuals` reads.
      weights: Weights of the rows in each descent.
      delta: Residual at which the Huber loss turns from square to linear.
      hold: Function that holds a quantity at a value.
      which: Index of the quantity that each descent holds; −1, the default, holds none.
      values: Value that each descent holds its quantity at.
    """
    starts, weights = np.asarray(starts), np.asarray(weights, float)
    rows_of_data = jax.eval_shape(residuals, jnp.asarray(starts[0]), data).shape[0]
    weights = np.pad(weights, ((0, 0), (0, rows_of_data - weights.shape[1])))
    count = len(starts)
    indices = np.full(count, -1) if which is None else np.asarray(which)
    at = np.zeros(count) if values is None else np.asarray(values, float)
    ends = []
    for begin in range(0, count, _TOGETHER):
        rows = np.arange(begin, begin + _TOGETHER) % count
        ends.append(
            _descend(
                residuals,
                hold,
                starts[rows],
                indices[rows],
                at[rows],
                data,
                weights[rows],
                jnp.asarray(delta, float),
            )
        )
    # NumPy from here on: every small operation of JAX would be a program of its own.
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *ends)


@functools.partial(jax.jit, static_argnames="residuals")
def _linearise(residuals: Residuals, x: Array, data: object) -> tuple[Array, Array]:
    return residuals(x, data), jax.jacfwd(residuals)(x, data)


def fit(
    residuals: Residuals,
    starts: Float[Any, "S P"],
    data: object,
    weights: Float[Any, " n"],
    delta: float,
    hold: Hold | None = None,
) -> Fit:
    """The best of many starts.

    Args:
      residuals: Function of parameters and data; hashable, since it is static.
      starts: Initial parameters.
      data: Pytree of arrays that `residuals` reads.
      weights: Weights of the rows; 0 leaves a row out.
      delta: Residual at which the Huber loss turns from square to linear.
      hold: As in `descend`, if profiles are to follow: they share its compilation.
    """
    ends = descend(
        residuals, starts, data, np.broadcast_to(weights, (len(starts), len(weights))), delta, hold
    )
    objectives = np.asarray(ends.objective)
    best = int(np.argmin(objectives))
    x = ends.parameters[best]
    errors, jacobian = (rows[: len(weights)] for rows in _linearise(residuals, x, data))
    return Fit(
        parameters=x,
        objective=ends.objective[best],
        residuals=errors,
        jacobian=jacobian,
        starts_agreeing=(objectives <= objectives[best] * (1 + _AGREEMENT) + 1e-15).mean(),
        condition_number=condition_number(jacobian, weights),
        status=SolverStatus(int(ends.status[best])),
    )


def condition_number(jacobian: Float[Array, "n P"], weights: Float[Any, " n"]) -> float:
    """Condition number of the weighted Jacobian with columns scaled to unit length.

    Parameters that move no residual at all do not count.
    """
    weighted = np.asarray(jacobian) * np.sqrt(np.asarray(weights))[:, None]
    norms = np.linalg.norm(weighted, axis=0)
    if not np.isfinite(weighted).all() or not (norms > 0).any():
        return float("inf")
    singular = np.linalg.svd(weighted[:, norms > 0] / norms[norms > 0], compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")


def _best_of_each(ends: Solution, starts: int) -> Solution:
    """The best of every so many descents in a row."""
    best = np.asarray(ends.objective).reshape(-1, starts).argmin(axis=1)
    return jax.tree.map(lambda x: x[np.arange(len(best)) * starts + best], ends)


def refit(
    residuals: Residuals,
    starts: Float[Any, "S P"],
    data: object,
    weights: Float[Any, "R n"],
    delta: float,
    hold: Hold | None = None,
) -> Solution:
    """One fit for every row of weights (a bootstrap resample, a left-out group), the best from the
    same few starts.

    More than one start matters: from an optimum on a bound, where the gradient vanishes, no
    resample would ever leave it.

    Returns:
      Solutions with a leading axis [R].
    """
    starts, weights = np.asarray(starts), np.asarray(weights, float)
    ends = descend(
        residuals,
        np.tile(starts, (len(weights), 1)),
        data,
        np.repeat(weights, len(starts), axis=0),
        delta,
        hold,
    )
    return _best_of_each(ends, len(starts))


def constrained(
    residuals: Residuals,
    hold: Hold,
    starts: Float[Any, "S P"],
    which: Int[np.ndarray, " K"],
    values: Float[np.ndarray, "K G"],
    data: object,
    weights: Float[Any, " n"],
    delta: float,
) -> Solution:
    """The fit with quantity which[k] held at each of values[k]: its objective is a profile.

    Every descent begins at a start, usually the optimum without constraint, moved to where the
    quantity has its value; of several starts the best end counts.

    Returns:
      Solutions with leading axes [K, G].
    """
    starts, values = np.asarray(starts), np.asarray(values, float)
    each, count = len(starts), values.size
    ends = descend(
        residuals,
        np.tile(starts, (count, 1)),
        data,
        np.broadcast_to(weights, (count * each, len(weights))),
        delta,
        hold,
        np.repeat(which, values.shape[1] * each),
        np.repeat(values.ravel(), each),
    )
    best = _best_of_each(ends, each)
    return jax.tree.map(lambda x: x.reshape(*values.shape, *x.shape[1:]), best)
