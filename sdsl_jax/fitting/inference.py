"""How uncertain a fitted law is: covariance at the optimum, profile intervals, and bootstrap resamples."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.fitting.forms import POSITIVE, Form
from sdsl_jax.fitting.solver import Fit, Pin, constrained
from sdsl_jax.statistics import student_quantile
from sdsl_jax.theory import coefficients

# Where a profile is looked at, in standard errors from the estimate; an interval that has not ended
# there is open.
_PROFILE_STEPS = np.concatenate([np.arange(1, 17) / 4, np.geomspace(5, 64, 8)])


def bootstrap_weights(groups: int, draws: int, seed: int) -> Float[np.ndarray, "draws groups"]:
    """How often each group is drawn in each bootstrap resample."""
    random = np.random.default_rng(seed)
    return random.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(float)


def resampled(labels: np.ndarray, draws: int, seed: int) -> Float[np.ndarray, "draws n"]:
    """Bootstrap weights of rows whose groups, given by their labels, are drawn as wholes."""
    names, of = np.unique(labels, return_inverse=True)
    return bootstrap_weights(len(names), draws, seed)[:, of]


class Spread(NamedTuple):
    """The noise of a table about its law, as a Huber fit sees it.

    Attributes:
      score: Σψ²/(n − P), the variance of the score ψ = clip(r, −δ, δ).
      slope: mean of ψ′, the share of residuals within δ.
    """

    score: float
    slope: float


def spread(residuals: np.ndarray, parameters: int, delta: float) -> Spread:
    """The two moments that every standard error of a Huber fit rests on.

    Where δ is far below the noise too few residuals lie within it to be counted: the share within a
    wider band is counted instead and scaled down, the estimate of a density at 0 that quantile
    regression uses (Powell, 1991). As many residuals as there are parameters are close to 0 by the
    fit itself, and do not count.
    """
    n = len(residuals)
    psi = np.clip(residuals, -delta, delta)
    scale = np.median(np.abs(residuals)) / 0.6745
    band = max(delta, 1.06 * scale * n**-0.2)
    within = max((np.abs(residuals) <= band).sum() - parameters, 1) / max(n - parameters, 1)
    return Spread(
        float(np.square(psi).sum() / max(n - parameters, 1)), float(within * delta / band)
    )


def covariance(form: Form, best: Fit, data: Any, delta: float) -> Float[np.ndarray, "P P"]:
    """Covariance of the coefficients: (E ψ² / (E ψ′)²)·(JᵀJ)⁻¹ of the solver's vector, carried over
    by the delta method.

    It is infinite or meaningless along directions that the data do not see; those are given a
    variance of infinity.
    """
    jacobian = np.asarray(best.jacobian)
    moments = spread(np.asarray(best.residuals), jacobian.shape[1], delta)
    with np.errstate(all="ignore"):
        inverse = np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-14, hermitian=True)
        slopes = np.asarray(_slopes(form, best.parameters, data))
        found = slopes @ (inverse * moments.score / moments.slope**2) @ slopes.T
    unseen = (slopes != 0) @ (np.linalg.norm(jacobian, axis=0) < 1e-9 * np.linalg.norm(jacobian))
    found[unseen, unseen] = np.inf
    return found


@functools.partial(jax.jit, static_argnames="form")
def _slopes(form: Form, x: Array, data: Any) -> Array:
    """∂coefficients/∂x."""
    return jax.jacfwd(lambda at: jnp.stack(list(coefficients(form.to_law(at, data)).values())))(x)


def profile_intervals(
    form: Form, best: Fit, data: Any, delta: float, errors: np.ndarray, confidence: float
) -> dict[str, tuple[float, float]]:
    """Profile intervals: values of a coefficient at which the best of all other coefficients is not
    significantly worse.

    The criterion is 2·(ρ(profile) − ρ(best))·E ψ′/E ψ² ≤ t², which is asymptotically χ² with one
    degree of freedom for a Huber fit (Ronchetti, 1982) and the F criterion of nonlinear least
    squares where δ is large. Scales and exponents are followed in their logarithms; a floor E that
    rests on its bound, near 0, is followed up to the smallest loss instead. An end that is not
    found within 64 standard errors is open: infinite, or 0 for a scale or an exponent.

    Args:
      form: of the law.
      best: the fit.
      data: that it was made from.
      delta: of the Huber loss.
      errors: standard errors of the coefficients, in the solver's order, to set the pace.
      confidence: of the intervals.
    """
    names = form.names()
    law = coefficients(form.to_law(best.parameters, data))
    values = np.asarray([float(law[name]) for name in names])
    moments = spread(np.asarray(best.residuals), len(best.parameters), delta)
    level = student_quantile(0.5 + confidence / 2, len(best.residuals) - len(names))
    scale = np.asarray([name in POSITIVE and value > 0 for name, value in zip(names, values)])
    # A floor on its bound has no standard error to set the pace, and is too near 0 for its
    # logarithm to lead anywhere.
    smallest = float(np.exp(np.min(data.log_loss))) if "E" in names else np.inf
    no_floor = np.asarray([name == "E" for name in names]) & (values < 1e-4 * smallest)
    logarithmic = scale & ~no_floor
    with np.errstate(all="ignore"):
        paces = np.where(logarithmic, errors / values, errors)
    paces = np.where(
        np.isfinite(paces) & (paces > 0), np.minimum(paces, np.where(logarithmic, 2.0, np.inf)), 0.1
    )
    paces[no_floor] = smallest / _PROFILE_STEPS[-1]
    sides = np.asarray([-1.0, 1.0])
    steps = (
        sides[:, None, None] * paces[None, :, None] * _PROFILE_STEPS
    )  # [side, coefficient, step]
    with np.errstate(over="ignore"):
        at = np.where(
            logarithmic[:, None], values[:, None] * np.exp(steps), values[:, None] + steps
        )
    at = np.where(no_floor[:, None], np.maximum(at, values[:, None]), at)
    which = np.tile(np.arange(len(names)), 2)
    objective = np.asarray(
        constrained(
            form.residuals,
            pin_of(form),
            starting_points(form, best),
            which,
            at.reshape(len(which), -1),
            data,
            np.ones(len(best.residuals)),
            delta,
        )
    ).reshape(steps.shape)
    lowest = min(float(best.objective), float(np.nanmin(objective)))
    root = np.sqrt(np.maximum(2 * (objective - lowest) * moments.slope / moments.score, 0))
    found = {}
    for k, name in enumerate(names):
        low, high = (_crossing(at[s, k], root[s, k], values[k], level) for s in range(2))
        open_low = 0.0 if scale[k] else -np.inf
        found[name] = (open_low if low is None else low, np.inf if high is None else high)
    return found


def starting_points(form: Form, best: Fit) -> Float[Array, "S P"]:
    """Where a descent on other weights, or with a coefficient held, begins.

    At the optimum, and for a law with a floor also at half of the largest floor: where the optimum
    rests on a bound, the gradient vanishes there.
    """
    here = best.parameters[None]
    return jnp.concatenate([here, here.at[:, 0].set(0.0)]) if form.name == "chinchilla" else here


def _crossing(at: np.ndarray, root: np.ndarray, value: float, level: float) -> float | None:
    """Where the root of the profile, which is nearly a line, first crosses the level."""
    beyond = np.nonzero((root >= level) & np.isfinite(root))[
        0
    ]  # past a bound of the form it is infinite
    if not len(beyond):
        return None
    i = beyond[0]
    before, here = (value, at[i]) if i == 0 else (at[i - 1], at[i])
    low, high = (0.0, root[0]) if i == 0 else (root[i - 1], root[i])
    return float(before + (here - before) * (level - low) / max(high - low, 1e-12))


@functools.cache
def pin_of(form: Form) -> Pin:
    """(x, k, value, data) -> x with coefficient k of the law at a value; one function for each
    form, so that it compiles once.

    Only component k of x moves: an exponent turns the law about the middle of the table and leaves
    its size there as it is. With A held instead, the size term of every model of the table would
    jump by orders of magnitude, and the descent start far off.
    """

    def pin(x: Array, k: Array, value: Array, data: Any) -> Array:
        current = jnp.stack(list(coefficients(form.to_law(x, data)).values()))
        chosen = jnp.arange(len(current)) == k
        return jnp.where(
            chosen, form.to_vector(form.law_type(*jnp.where(chosen, value, current)), data), x
        )

    return pin
