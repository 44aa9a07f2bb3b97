"""One robust least-squares solver for every law: Levenberg–Marquardt with Huber weights, vmapped over starts and resamples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# residuals(parameters [P], data) -> [n]
Residuals = Callable[[Array, object], Array]

_ITERATIONS = 200
# Two starts agree when their objectives differ by less than this share.
_AGREEMENT = 1e-4


class Solution(NamedTuple):
    """The end of one descent."""

    parameters: Float[Array, " P"]
    objective: Float[Array, ""]


class Fit(NamedTuple):
    """The best of many starts.

    Attributes:
      parameters: at the optimum.
      objective: Σ weight · huber(residual) there.
      residuals: at the optimum, [n].
      starts_agreeing: share of starts that reached the same objective.
      condition_number: of the Jacobian with columns scaled to unit length; large means that some combination of parameters
        is not identified by these data.
    """

    parameters: Float[Array, " P"]
    objective: Float[Array, ""]
    residuals: Float[Array, " n"]
    starts_agreeing: Float[Array, ""]
    condition_number: Float[Array, ""]


def huber(residuals: Array, delta: Array | float) -> Array:
    """r²/2 up to |r| = δ, and δ·(|r| − δ/2) beyond (Huber, 1964)."""
    size = jnp.abs(residuals)
    return jnp.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def minimise(residuals: Residuals, start: Array, data: object, weights: Array, delta: Array | float) -> Solution:
    """Minimises Σ weight · huber(residual) from one start, by reweighted Levenberg–Marquardt steps.

    Each step solves (JᵀWJ + μ·diag(JᵀWJ))·p = −JᵀWr with W = weight · min(1, δ/|r|), is taken only if it lowers the
    objective, and moves μ down on success and up on failure.
    """

    def objective(x):
        return (weights * huber(residuals(x, data), delta)).sum()

    def step(carry, _):
        x, value, damping = carry
        r = residuals(x, data)
        jacobian = jax.jacfwd(residuals)(x, data)
        w = weights * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(r), 1e-30))
        hessian = jacobian.T @ (w[:, None] * jacobian)
        scale = jnp.diag(hessian)
        scale = jnp.maximum(scale, 1e-12 * jnp.max(scale) + 1e-300)
        proposal = x - jnp.linalg.solve(hessian + damping * jnp.diag(scale), jacobian.T @ (w * r))
        proposed = objective(proposal)
        better = proposed < value  # False for NaN
        x = jnp.where(better, proposal, x)
        value = jnp.where(better, proposed, value)
        damping = jnp.clip(jnp.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        return (x, value, damping), None

    first = objective(start)
    carry = (start, jnp.where(jnp.isfinite(first), first, jnp.inf), jnp.asarray(1e-2, start.dtype))
    (x, value, _), _ = jax.lax.scan(step, carry, length=_ITERATIONS)
    return Solution(x, value)


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
    value = jnp.where(jnp.isfinite(ends.objective), ends.objective, jnp.inf)
    best = jnp.argmin(value)
    agreeing = (value <= value[best] * (1 + _AGREEMENT) + 1e-15).mean()
    x = ends.parameters[best]
    jacobian = jax.jacfwd(residuals)(x, data) * jnp.sqrt(weights)[:, None]
    norms = jnp.linalg.norm(jacobian, axis=0)
    singular = jnp.linalg.svd(jacobian / jnp.where(norms > 0, norms, 1.0), compute_uv=False)
    return Fit(x, value[best], residuals(x, data), agreeing, singular[0] / singular[-1])


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

    return jax.vmap(best)(weights)
