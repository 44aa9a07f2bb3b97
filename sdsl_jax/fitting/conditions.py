"""The logit law in the loss gap, with level and slope that depend on conditions, and its local form."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.fitting.solver import refit
from sdsl_jax.theory import LogitGap, ModelPoint

# The start of a fit takes logits of α, clipped to this distance from 0 and 1.
_CLIP = 1e-3


class GapFits(NamedTuple):
    """One fit for every row of weights.

    Attributes:
      levels: Coefficients of the level, [R, a].
      slopes: Coefficients of the slope, [R, b].
      predicted: α of every observation under every fit, also where it had no weight, [R, n].
    """

    levels: Float[np.ndarray, "R a"]
    slopes: Float[np.ndarray, "R b"]
    predicted: Float[np.ndarray, "R n"]


class _Data(NamedTuple):
    gap: Array
    alpha: Array
    levels: Array
    slopes: Array


def _predict(x: Array, data: _Data) -> Array:
    count = data.levels.shape[1]
    law = LogitGap(data.levels @ x[:count], data.slopes @ x[count:])
    return law(ModelPoint(1.0, data.gap), ModelPoint(1.0, 0.0))


def _residuals(x: Array, data: _Data) -> Array:
    return _predict(x, data) - data.alpha


def fit_gap_laws(
    gap: Float[np.ndarray, " n"],
    alpha: Float[np.ndarray, " n"],
    levels: Float[np.ndarray, "n a"],
    slopes: Float[np.ndarray, "n b"],
    weights: Float[np.ndarray, "R n"],
    huber_delta: float,
) -> GapFits:
    """Fits `LogitGap` with level `levels @ u` and slope `slopes @ v` of each observation, for every
    row of weights.

    Args:
      gap: Draft loss minus target loss, in nats per token.
      alpha: Measured acceptance.
      levels: Design matrix of the level; a column of ones gives the plain law.
      slopes: Design matrix of the slope.
      weights: Weights of the observations; 0 leaves one out.
      huber_delta: Residual in α at which the Huber loss turns linear.
    """
    logits = np.clip(alpha, _CLIP, 1 - _CLIP)
    design = np.concatenate([levels, -slopes * gap[:, None]], axis=1)
    start = np.linalg.lstsq(design, np.log(logits / (1 - logits)), rcond=None)[0]
    with jax.enable_x64(True):
        data = _Data(*(jnp.asarray(x, jnp.float64) for x in (gap, alpha, levels, slopes)))
        starts = jnp.asarray(np.stack([start, start / 2]))
        x = refit(_residuals, starts, data, weights, huber_delta).parameters
        predicted = np.asarray(jax.vmap(_predict, in_axes=(0, None))(x, data))
    vectors, count = np.asarray(x), levels.shape[1]
    return GapFits(vectors[:, :count], vectors[:, count:], predicted)


def local_acceptance(
    gap: Float[np.ndarray, " n"],
    alpha: Float[np.ndarray, " n"],
    at: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, "R n"],
    bandwidth: float,
    huber_delta: float,
) -> Float[np.ndarray, "R m"]:
    """α at other gaps, by local regression: a `LogitGap` at each, with weights that fall off with
    the distance in gap.

    Args:
      gap: Draft loss minus target loss, in nats per token.
      alpha: Measured acceptance.
      at: Gaps to predict α at. Outside the range of `gap`, the fit at its end is extended.
      weights: Weights of the observations in each resample.
      bandwidth: Standard deviation of the Gaussian fall-off, in nats.
      huber_delta: Residual in α at which the Huber loss turns linear.
    """
    nearest = np.clip(at, gap.min(), gap.max())
    kernel = np.exp(-0.5 * np.square((gap - nearest[:, None]) / bandwidth))
    ones = np.ones((len(gap), 1))
    joint = (weights[:, None] * kernel).reshape(-1, len(gap))
    fits = fit_gap_laws(gap, alpha, ones, ones, joint, huber_delta)
    law = LogitGap(fits.levels.reshape(-1, len(at)), fits.slopes.reshape(-1, len(at)))
    with jax.enable_x64(True):
        return np.asarray(law(ModelPoint(1.0, at[None]), ModelPoint(1.0, 0.0)))
