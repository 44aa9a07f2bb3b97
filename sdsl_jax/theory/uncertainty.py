"""From uncertain coefficients to uncertain optima: draws of coefficients, and the linear law N* = μ·M + M₀."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.laws import AcceptanceLaw, LossLaw, coefficients
from sdsl_jax.theory.optima import DraftOptimum
from sdsl_jax.theory.scenario import Scenario


def draws_from_covariance(
    law: Any, covariance: Float[Array, "P P"], count: int, key: Key[Array, ""]
) -> Any:
    """Normal draws of a law's coefficients: the same law, of arrays [count].

    Scales such as A and exponents such as a are strongly correlated in any fit, so a diagonal of
    squared standard errors does not replace a covariance.

    Args:
      law: Gives the means.
      covariance: Of the coefficients, in the order of `coefficients(law)`.
      count: Number of draws.
      key: Random key.

    Raises:
      ValueError: The matrix has another size, or is not symmetric and positive semi-definite.
    """
    names = list(coefficients(law))
    matrix = jnp.asarray(covariance)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(
            f"the covariance has the shape {matrix.shape}; {type(law).__name__} has {len(names)} coefficients."
        )
    scale = jnp.sqrt(jnp.diag(matrix))
    unit = matrix / jnp.outer(jnp.where(scale > 0, scale, 1.0), jnp.where(scale > 0, scale, 1.0))
    smallest = float(jnp.linalg.eigvalsh(unit).min())
    if not (smallest > -1e-5 and bool(jnp.allclose(unit, unit.T, atol=1e-5))):
        raise ValueError("the covariance is not symmetric and positive semi-definite.")
    values, vectors = jnp.linalg.eigh(unit)
    deviations = jnp.sqrt(jnp.maximum(values, 0.0))
    normal = jax.random.normal(key, (count, len(names)), unit.dtype) * deviations[None]
    centre = jnp.stack([jnp.asarray(v, unit.dtype) for v in coefficients(law).values()])
    moved = centre[None] + normal @ vectors.T * scale[None]
    return type(law)(**dict(zip(names, moved.T)), about=law.about)


def point_and_draws(law: Any, draws: Any, most: int | None = None) -> Any:
    """A law of arrays [1 + draws]: its fitted coefficients first, their draws after them.

    Args:
      law: Of scalars.
      draws: The same law, of arrays.
      most: Draws that are taken; all if None.
    """

    def stacked(point: Scalar, many: Array) -> Array:
        return jnp.concatenate([jnp.reshape(point, 1), jnp.asarray(many)[:most]])

    return jax.tree.map(stacked, law, draws)


@jax.jit
def optima_of_draws(
    scenario: Scenario, loss_law: LossLaw, acceptance_law: AcceptanceLaw
) -> DraftOptimum:
    """The optimum of a scenario for every draw of its two laws, whose coefficients are arrays [draws].

    Draw i of one law goes with draw i of the other.
    """

    def one(loss: LossLaw, acceptance: AcceptanceLaw) -> DraftOptimum:
        return scenario._replace(loss_law=loss, acceptance_law=acceptance).optimum()

    return jax.vmap(one)(loss_law, acceptance_law)


class LinearLaw(NamedTuple):
    """N* = μ·M + M₀ by least squares, with standard errors for independent residuals.

    Attributes:
      slope: μ.
      intercept: M₀, in parameters.
      slope_error: Standard error of μ.
      intercept_error: Standard error of M₀.
      r_squared: Share of the variance of N* that the line explains.
    """

    slope: Float[Array, "*batch"]
    intercept: Float[Array, "*batch"]
    slope_error: Float[Array, "*batch"]
    intercept_error: Float[Array, "*batch"]
    r_squared: Float[Array, "*batch"]


def linear_law(target_params: Float[Array, " n"], draft_params: Float[Array, " n"]) -> LinearLaw:
    """Regresses N* on M (arXiv 2603.11053). Under `vmap` over draws it turns draws of N* into draws
    of μ and M₀.

    The points of such a pool are computed, not sampled. Its standard errors say how far the curve is
    from a line, not how uncertain either is.
    """
    m, n = jnp.asarray(target_params), jnp.asarray(draft_params)
    count = m.shape[0]
    mean, scale = m.mean(), jnp.std(m)
    x = (m - mean) / scale  # standardised, so that float32 holds the sums
    level, per_scale = n.mean(), (x * n).mean()
    residuals = n - level - per_scale * x
    sigma = jnp.sqrt((residuals**2).sum() / (count - 2))
    return LinearLaw(
        slope=per_scale / scale,
        intercept=level - per_scale * mean / scale,
        slope_error=sigma / jnp.sqrt(count) / scale,
        intercept_error=sigma * jnp.sqrt((1 + (mean / scale) ** 2) / count),
        r_squared=1 - (residuals**2).mean() / jnp.var(n),
    )
