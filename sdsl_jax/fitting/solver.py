"""One robust least-squares solver for every law: Levenberg–Marquardt on a Huber loss, vmapped over starts and resamples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# residuals(parameters [P], data) -> [n]
Residuals = Callable[[Array, object], Array]

_ITERATIONS = 200
# A descent ends after so many steps in a row that gain, or if refused had hoped for, less than this share of the objective.
_TOLERANCE, _PATIENCE = 1e-9, 4
# Resamples that descend together: all wait for the slowest, so that small groups waste less.
_TOGETHER = 16
# Two starts agree when their objectives differ by less than this share.
_AGREEMENT = 1e-4


class Solution(NamedTuple):
    """The end of one descent."""

    parameters: Float[Array, " P"]
    objective: Float[Array, ""]
    iterations: Int[Array, ""]


class Fit(NamedTuple):
    """The best of many starts.

    Attributes:
      parameters: at the optimum.
      objective: Σ weight · huber(residual) there.
      residuals: at the optimum, [n].
      jacobian: ∂residuals/∂parameters there.
      starts_agreeing: share of starts that reached the same objective.
      condition_number: of the Jacobian with columns scaled to unit length; large means that some combination of parameters
        is not identified by these data. Parameters that move no residual at all do not count.
    """

    parameters: Float[Array, " P"]
    objective: Float[Array, ""]
    residuals: Float[Array, " n"]
    jacobian: Float[Array, "n P"]
    starts_agreeing: Float[Array, ""]
    condition_number: Float[Array, ""]


def huber(residuals: Array, delta: Array | float) -> Array:
    """r²/2 up to |r| = δ, and δ·(|r| − δ/2) beyond (Huber, 1964)."""
    size = jnp.abs(residuals)
    return jnp.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def minimise(residuals: Residuals, start: Array, data: object, weights: Array, delta: Array | float) -> Solution:
    """Minimises Σ weight · huber(residual) from one start.

    Every iteration tries two steps p = −(JᵀWJ + μ·diag(JᵀVJ))⁻¹ JᵀVr and takes the better one if it lowers the objective; μ
    falls on success and rises on failure. V = weight · min(1, δ/|r|) are the IRLS weights. With W = V the step is safe and
    slow where most residuals exceed δ, as with the customary δ = 10⁻³ they do; with W = weight · [|r| ≤ δ], the true second
    derivative of the Huber loss, it is a Newton step, and converges quadratically near the end.
    """

    def objective(x: Array) -> Array:
        value = (weights * huber(residuals(x, data), delta)).sum()
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def step(carry):
        x, value, damping, idle, count = carry
        r, jacobian = residuals(x, data), jax.jacfwd(residuals)(x, data)
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
        proposals = x - jnp.linalg.solve(matrices, jnp.broadcast_to(gradient, (2, *gradient.shape))[..., None])[..., 0]
        proposed = jax.vmap(objective)(proposals)
        best = jnp.argmin(proposed)
        better = proposed[best] < value
        gain = jnp.where(better, value - proposed[best], 0.0)
        # What the safe step hoped for; a step refused in spite of high hopes only asks for more damping.
        hoped = jnp.where(better, gain, gradient @ (x - proposals[0]))
        return (
            jnp.where(better, proposals[best], x),
            value - gain,
            jnp.clip(jnp.where(better, damping / 3, damping * 4), 1e-12, 1e12),
            jnp.where(hoped > _TOLERANCE * value, 0, idle + 1),
            count + 1,
        )

    def unfinished(carry):
        *_, idle, count = carry
        return (idle < _PATIENCE) & (count < _ITERATIONS)

    zero = jnp.zeros((), int)
    begin = (start, objective(start), jnp.asarray(1e-2, start.dtype), zero, zero)
    x, value, _, _, count = jax.lax.while_loop(unfinished, step, begin)
    return Solution(x, value, count)


@functools.partial(jax.jit, static_argnames="residuals")
def fit(
    residuals: Residuals, starts: Float[Array, "S P"], data: object, weights: Float[Array, " n"], delta: Array | float
) -> Fit:
    """The best of many starts, all at once.

    Args:
      residuals: function of parameters and data; hashable, since it is static.
      starts: initial parameters.
      data: pytree of arrays that `residuals` reads.
      weights: of the rows; 0 leaves a row out.
      delta: where the Huber loss turns from square to linear.
    """
    ends = jax.vmap(lambda start: minimise(residuals, start, data, weights, delta))(starts)
    best = jnp.argmin(ends.objective)
    agreeing = (ends.objective <= ends.objective[best] * (1 + _AGREEMENT) + 1e-15).mean()
    x = ends.parameters[best]
    jacobian = jax.jacfwd(residuals)(x, data)
    weighted = jacobian * jnp.sqrt(weights)[:, None]
    norms = jnp.linalg.norm(weighted, axis=0)
    scaled = weighted / jnp.where(norms > 0, norms, 1.0)
    singular = jnp.linalg.svd(jnp.concatenate([scaled, jnp.diag(norms == 0)]), compute_uv=False)
    condition = singular[0] / singular[-1]
    return Fit(x, ends.objective[best], residuals(x, data), jacobian, agreeing, condition)


@functools.partial(jax.jit, static_argnames="residuals")
def refit(
    residuals: Residuals, starts: Float[Array, "S P"], data: object, weights: Float[Array, "R n"], delta: Array | float
) -> Float[Array, "R P"]:
    """Parameters for every row of weights (a bootstrap resample, a left-out group), the best from the same few starts.

    More than one start matters: from an optimum on a bound, where the gradient vanishes, no resample would ever leave it.
    """

    def best(w: Array) -> Array:
        ends = jax.vmap(lambda start: minimise(residuals, start, data, w, delta))(starts)
        return ends.parameters[jnp.argmin(ends.objective)]

    return jax.lax.map(best, weights, batch_size=_TOGETHER)


@functools.partial(jax.jit, static_argnames=("residuals", "pin"))
def constrained(
    residuals: Residuals,
    pin: Callable[[Array, Array, Array, object], Array],
    start: Float[Array, " P"],
    which: Int[Array, " K"],
    values: Float[Array, "K G"],
    data: object,
    weights: Float[Array, " n"],
    delta: Array | float,
) -> Float[Array, "K G"]:
    """The smallest objective where one quantity is held at a value: the profile of the objective.

    Args:
      residuals: function of parameters and data.
      pin: (parameters, which quantity, value, data) -> parameters near by at which it has that value.
      start: the optimum without constraint.
      which: quantities to hold.
      values: at each of G values in turn; each descent starts where the one before it ended, so they should move away from the
        optimum.
      data: pytree of arrays that `residuals` reads.
      weights: of the rows.
      delta: of the Huber loss.
    """

    def one(k: Array, line: Array) -> Array:
        def move(x: Array, value: Array) -> tuple[Array, Array]:
            held = lambda y, d: residuals(pin(y, k, value, d), d)  # noqa: E731
            end = minimise(held, pin(x, k, value, data), data, weights, delta)
            return pin(end.parameters, k, value, data), end.objective

        return jax.lax.scan(move, start, line)[1]

    return jax.vmap(one)(which, values)
