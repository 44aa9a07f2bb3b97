"""One parameter of dependence for every pair, from its tokens per round at a few lookaheads.

What identifies it, with the mean acceptance α known: at γ = 0 nothing is tested, and as γ → ∞ every
position is, so that τ = 1/(1 − α) whatever the order of acceptances. In between τ depends on the
dependence, most at small γ: a persistent chain has S₁ = α/(1 + ρ(1 − α)) at γ = 1. So fit to γ = 1
and to a second lookahead near 4, where runs of several positions count. Larger ones say ever less.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.compiler_options import quick_jit
from sdsl_jax.errors import require
from sdsl_jax.fitting.solver import minimise
from sdsl_jax.theory import BetaAcceptance, PersistentAcceptance, tokens_per_round

# Least-squares without an outlier rule: there are two or three residuals.
_SQUARE = 1e9
_STARTS = (-3.0, -1.0, 1.0)
_NEARLY_ONE = 0.999
_LEAST_SPREAD = 1e-6


class DependenceFit(NamedTuple):
    """One model of dependence, fitted to each pair by itself.

    Attributes:
      parameter: Persistence ρ, concentration a + b, or the fitted α.
      rmse: Root mean square error of ln τ at the lookaheads fitted to.
      tokens_per_round: Predicted τ.
      status: How each fit ended: values of `SolverStatus`.
    """

    parameter: Float[np.ndarray, " pairs"]
    rmse: Float[np.ndarray, " pairs"]
    tokens_per_round: Float[np.ndarray, "pairs lookaheads"]
    status: Int[np.ndarray, " pairs"]


def _persistence(x: Array, alpha: Array) -> Array:
    """ρ in the range that makes a chain: α + ρ(1 − α) ≥ 0, α(1 − ρ) ≤ 1, ρ < 1."""
    low = _NEARLY_ONE * jnp.maximum(-alpha / (1 - alpha), -(1 - alpha) / alpha)
    return low + (_NEARLY_ONE - low) * jax.nn.sigmoid(x)


def _concentration(x: Array, alpha: Array) -> Array:
    """a + b from 1/(a + b + 1), the correlation of two positions of a prompt, between nearly 0 and nearly 1."""
    correlation = _LEAST_SPREAD + (_NEARLY_ONE - 2 * _LEAST_SPREAD) * jax.nn.sigmoid(x)
    return 1 / correlation - 1


def _persistent(rho: Array, alpha: Array, lookahead: int) -> Array:
    return PersistentAcceptance(alpha, rho).tokens_per_round(lookahead)


def _beta(concentration: Array, alpha: Array, lookahead: int) -> Array:
    beta = BetaAcceptance(alpha * concentration, (1 - alpha) * concentration)
    return beta.tokens_per_round_over_prompts(lookahead)


class _Model(NamedTuple):
    parameter: Callable[[Array, Array], Array]  # of an unbounded number and α
    tokens_per_round: Callable[[Array, Array, int], Array]  # of the parameter, α and γ


DEPENDENCE_MODELS: dict[str, _Model] = {
    # Not a model of dependence: what the geometric formula can do with as many free numbers as the
    # others have.
    "geometric_fitted": _Model(
        lambda x, _: jax.nn.sigmoid(x), lambda fitted, _, gamma: tokens_per_round(fitted, gamma)
    ),
    "beta": _Model(_concentration, _beta),
    "persistent": _Model(_persistence, _persistent),
}


@functools.partial(quick_jit, static_argnames=("name", "fitted", "predicted"))
def _solve(
    name: str, alpha: Array, tau: Array, fitted: tuple[int, ...], predicted: tuple[int, ...]
):
    model = DEPENDENCE_MODELS[name]

    def one(alpha: Array, tau: Array) -> tuple[Array, ...]:
        def predict(x: Array, lookaheads: tuple[int, ...]) -> Array:
            parameter = model.parameter(x[0], alpha)
            return jnp.stack(
                [model.tokens_per_round(parameter, alpha, gamma) for gamma in lookaheads]
            )

        def residuals(x: Array, data: object) -> Array:
            return jnp.log(predict(x, fitted)) - jnp.log(tau)

        starts = jnp.asarray(_STARTS, alpha.dtype)[:, None]
        ends = jax.vmap(
            lambda start: minimise(residuals, start, None, jnp.ones(len(fitted)), _SQUARE)
        )(starts)
        best = jnp.argmin(jnp.where(jnp.isfinite(ends.objective), ends.objective, jnp.inf))
        x = ends.parameters[best]
        rmse = jnp.sqrt(jnp.square(residuals(x, None)).mean())
        return model.parameter(x[0], alpha), rmse, predict(x, predicted), ends.status[best]

    return jax.vmap(one)(alpha, tau)


def fit_dependence(
    alpha: Float[np.ndarray, " pairs"],
    tau: Float[np.ndarray, "pairs fitted"],
    fitted: tuple[int, ...],
    predicted: tuple[int, ...],
) -> dict[str, DependenceFit]:
    """Fits every model of dependence to τ at some lookaheads, α held fixed, and predicts τ at
    others.

    Args:
      alpha: Mean acceptance over all positions of each pair, in (0, 1).
      tau: Tokens per round at the lookaheads fitted to.
      fitted: Lookaheads to fit to.
      predicted: Lookaheads to predict τ at.

    Raises:
      SdslError: An α lies outside (0, 1), or a τ is below 1.
    """
    alpha, tau = np.asarray(alpha, float), np.asarray(tau, float)
    require(
        np.all((alpha > 0) & (alpha < 1)),
        f"mean acceptances run from {alpha.min():g} to {alpha.max():g}; dependence is fitted only within (0, 1).",
    )
    require(
        np.all(tau >= 1),
        f"the smallest tokens per round is {tau.min():g}; none can be below 1.",
    )
    with jax.enable_x64(True):
        solved = {
            name: _solve(name, jnp.asarray(alpha), jnp.asarray(tau), fitted, predicted)
            for name in DEPENDENCE_MODELS
        }
    return {name: DependenceFit(*map(np.asarray, values)) for name, values in solved.items()}
