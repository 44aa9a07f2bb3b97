"""How far the truth lies from a law whose form is wrong, at sizes that the fit has not seen.

A bootstrap of a fit tells how uncertain the coefficients are if the form of the law holds. This
module estimates what the form misses (Kennedy & O'Hagan, 2001): truth = law + δ, with a smooth
error δ in the logarithm of each variable of the table, such as the sizes of draft and target. Each
error is a Gaussian process. What the coefficients can take up of it is no error of the form: the
part of δ that refitting on the same table would absorb is subtracted, so that δ is orthogonal to
the law (Plumlee, 2017) and nothing is counted twice.

The assumption is that the law errs beyond the table as smoothly, and on the same scale, as it does
between the sizes of the table. Nothing in a table can show an error that begins beyond it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.statistics import root_mean_square
from sdsl_jax.theory import LOSS_LAWS, ModelPoint, coefficients, point_and_draws

# Rounds of importance sampling of the variances, and draws in each.
_ROUNDS, _PER_ROUND = 7, 256
# More models than this take seconds: rows of one size then share their error instead.
_MOST_MODELS = 200
# A round takes up only so much of the likelihood that its draws are worth so many.
_WORTH = 64
# What is known of the logarithms of the variances beforehand: smooth errors are as large as the
# residuals, errors of models and rows smaller, all within a factor of e or so; errors vary over a
# factor of 5 in their variable. Mean and standard deviation.
_PRIOR_SMOOTH, _PRIOR_MODEL, _PRIOR_NOISE = (0.0, 1.0), (-1.0, 1.0), (-0.5, 1.0)
_PRIOR_LENGTH = (float(np.log(1.6)), 0.4)
# Waves that make up one draw of a smooth error.
_WAVES = 32


class Variable(NamedTuple):
    """A variable that the form of a law may be wrong in.

    Attributes:
      values: Its value in each row, positive.
      models: Label of the trained model or run of each row whose own error its rows share; None if
        the variable has none.
    """

    values: Float[np.ndarray, " n"]
    models: np.ndarray | None = None


@dataclass(frozen=True)
class ErrorInVariable:
    """What a law misses in one variable.

    Attributes:
      smooth: Draws of the standard deviation of the smooth error.
      levels: Values of the variable in the table, [levels].
      absorbed: What an error of 1 at each level moves each coefficient by, [levels][coefficients].
    """

    smooth: list[float]
    levels: list[float]
    absorbed: list[list[float]]


@dataclass(frozen=True)
class Discrepancy:
    """What the form of a law misses; draw i belongs to draw i of the coefficients.

    Attributes:
      unit: Unit of the errors: log of the loss, or acceptance probability.
      variables: Smooth errors by variable.
      length: Draws of the length over which they vary, in e-folds of the variable.
      model: Draws of the standard deviation of the error that all rows of one model share.
      noise: Draws of the standard deviation of the error of single rows.
      effective_draws: Independent draws that the weighted draws of the variances are worth.
    """

    unit: str
    variables: dict[str, ErrorInVariable]
    length: list[float]
    model: list[float]
    noise: list[float]
    effective_draws: float


def fit_discrepancy(
    gradient: Float[np.ndarray, "n P"],
    residuals: Float[np.ndarray, " n"],
    variables: dict[str, Variable],
    *,
    unit: str,
    draws: int,
    seed: int,
) -> Discrepancy:
    """Estimates what the form of a law misses from the residuals of its fit.

    Variances and length have log-normal priors on the scale of the residuals. Their posterior uses
    the restricted likelihood: that of the part of the residuals which no coefficient of the law can
    change (Patterson & Thompson, 1971). It is sampled by importance, in rounds that take up the
    likelihood step by step. Few sizes say little about a variance; its draws then vary, and
    intervals have the tails that small samples ask for.

    Args:
      gradient: ∂(law)/∂(coefficients) in every row, in `unit`.
      residuals: Predicted − measured.
      variables: Variables that the form may be wrong in.
      unit: Unit of the residuals.
      draws: Draws that are wanted.
      seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    names = list(variables)
    scale = np.linalg.norm(gradient, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    left, singular, right = np.linalg.svd(gradient / scale, full_matrices=False)
    seen = singular > 1e-8 * singular.max()
    left = left[:, seen]
    inverse = ((right[seen].T / singular[seen]) @ left.T) / scale[:, None]
    incidence = {name: _levels(variable) for name, variable in variables.items()}
    if sum(len(values) for values, _ in incidence.values()) > _MOST_MODELS:
        variables = {name: Variable(variable.values) for name, variable in variables.items()}
        incidence = {name: _levels(variable) for name, variable in variables.items()}
    own = residuals - left @ (left.T @ residuals)
    unit_size = max(root_mean_square(own), 1e-9)
    likelihood = _Likelihood(left, own / unit_size, list(incidence.values()), variables)
    priors = [_PRIOR_LENGTH, _PRIOR_MODEL, _PRIOR_NOISE, *[_PRIOR_SMOOTH] * len(names)]
    sampled = _sample(likelihood, np.asarray(priors), draws, random)
    length, *deviations = np.exp(sampled.logs.T)
    model, noise, *smooth = (_short(unit_size * x) for x in deviations)
    found = {}
    for name, of_variable in zip(names, smooth):
        values, rows = incidence[name]
        levels = np.unique(values)
        absorbed = [_short(inverse @ rows[:, values == x].sum(axis=1)) for x in levels]
        found[name] = ErrorInVariable(of_variable, levels.tolist(), absorbed)
    return Discrepancy(unit, found, _short(length), model, noise, sampled.worth)


def scatter_alone(deviation: float, unit: str, draws: int) -> Discrepancy:
    """Rows that scatter independently about a law whose form holds."""
    return Discrepancy(unit, {}, [1.0] * draws, [0.0] * draws, [deviation] * draws, float(draws))


class _Likelihood:
    """The restricted log likelihood of residuals, as a function of log (length, deviations)."""

    def __init__(
        self,
        left: np.ndarray,
        residuals: np.ndarray,
        incidence: list[tuple[np.ndarray, np.ndarray]],
        variables: dict[str, Variable],
    ) -> None:
        z = np.concatenate([rows for _, rows in incidence], axis=1)
        outside = z - left @ (left.T @ z)  # the part of an error that no coefficient takes up
        own = residuals - left @ (left.T @ residuals)
        self.gram, self.moment, self.total = outside.T @ outside, outside.T @ own, float(own @ own)
        self.freedom = left.shape[0] - left.shape[1]
        self.logs = [np.log(values) for values, _ in incidence]
        self.centring = [_centring(values) for values, _ in incidence]
        self.has_models = [variable.models is not None for variable in variables.values()]

    def __call__(self, logs: Float[np.ndarray, "k H"]) -> Float[np.ndarray, " k"]:
        length, model, noise, *smooth = np.exp(logs.T)
        count, size = len(logs), len(self.moment)
        kernel, start = np.zeros((count, size, size)), 0
        for of_variable, x, centred, has_models in zip(
            smooth, self.logs, self.centring, self.has_models
        ):
            block = slice(start, start := start + len(x))
            squared = np.square((x[:, None] - x) / length[:, None, None])
            own = np.square(model) * has_models + 1e-8 * np.square(of_variable)
            smoothed = np.square(of_variable)[:, None, None] * np.exp(-squared / 2)
            kernel[:, block, block] = centred @ smoothed @ centred.T
            kernel[:, block, block] += own[:, None, None] * np.eye(len(x))
        root = np.linalg.cholesky(kernel)
        inner = root.mT @ self.gram @ root / np.square(noise)[:, None, None]
        half = np.linalg.cholesky(inner + np.eye(size))
        explained = np.linalg.solve(half, (root.mT @ self.moment)[..., None])[..., 0]
        explained = np.square(explained).sum(axis=1) / np.square(noise)
        determinant = np.log(np.diagonal(half, axis1=1, axis2=2)).sum(axis=1)
        quadratic = (self.total - explained) / np.square(noise)
        return -determinant - self.freedom * np.log(noise) - quadratic / 2


def _centring(values: np.ndarray) -> Float[np.ndarray, "levels levels"]:
    """Subtracts the mean over different values: an error that is the same everywhere is none of a
    variable."""
    different, of, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.eye(len(values)) - 1 / (len(different) * count[of])


class _Sample(NamedTuple):
    logs: np.ndarray
    worth: float


def _sample(
    likelihood: _Likelihood, priors: np.ndarray, draws: int, random: np.random.Generator
) -> _Sample:
    """Draws of the posterior under normal priors, by adaptive importance sampling.

    Each round draws from a t distribution about what the last one found, and raises the likelihood
    to the largest power of which the draws are still worth `_WORTH` (Chopin, 2002).
    """
    mean, deviation = priors.T
    centre, root = mean, np.diag(deviation)
    freedom = 8
    for _ in range(_ROUNDS):
        normal = random.standard_normal((_PER_ROUND, len(mean)))
        radius = np.sqrt(freedom / random.chisquare(freedom, (_PER_ROUND, 1)))
        unit = normal * radius
        logs = centre + unit @ root.T
        proposal = -0.5 * (freedom + len(mean)) * np.log1p(np.square(unit).sum(axis=1) / freedom)
        prior = -0.5 * np.square((logs - mean) / deviation).sum(axis=1)
        # Beyond six standard deviations of the prior nothing is worth computing.
        fit = likelihood(np.clip(logs, mean - 6 * deviation, mean + 6 * deviation))
        power = 1.0
        weights = _weights(prior + fit - proposal)
        while power > 1e-4 and 1 / np.square(weights).sum() < _WORTH:
            power *= 0.7
            weights = _weights(prior + power * fit - proposal)
        centre = weights @ logs
        spread = (logs - centre).T @ (weights[:, None] * (logs - centre))
        root = np.linalg.cholesky(1.2 * spread + 1e-6 * np.diag(np.square(deviation)))
    # Systematic resampling, in random order so that draw i does not tell its weight.
    places = (np.arange(draws) + random.uniform()) / draws
    chosen = np.searchsorted(np.cumsum(weights), places).clip(0, len(weights) - 1)
    return _Sample(logs[random.permutation(chosen)], float(1 / np.square(weights).sum()))


def _weights(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _short(values: np.ndarray) -> list[float]:
    """Numbers of eight digits, as a file holds draws."""
    return [float(f"{x:.8g}") for x in values]


def _levels(variable: Variable) -> tuple[np.ndarray, np.ndarray]:
    """The value of every model or level of a variable, and which rows have it, [n, levels]."""
    values = np.asarray(variable.values, float)
    labels = values if variable.models is None else variable.models
    _, first, of = np.unique(labels, return_index=True, return_inverse=True)
    return values[first], np.eye(len(first))[of]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Waves:
    """A smooth error in the logarithm of a variable: Σ (cosine·cos(frequency·ln x) +
    sine·sin(frequency·ln x)) − mean.

    Arrays [waves], and [draws, waves] of many; `mean`, the mean over the table, has no [waves].
    """

    cosine: Array | np.ndarray
    sine: Array | np.ndarray
    frequency: Array | np.ndarray
    mean: Array | np.ndarray

    def __call__(self, value: Any) -> Array:
        """The error at positive values of the variable, of any shape."""
        angle = jnp.tensordot(jnp.log(jnp.asarray(value)), self.frequency, axes=0)
        return jnp.cos(angle) @ self.cosine + jnp.sin(angle) @ self.sine - self.mean


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BentLaw:
    """A law with an error of its form: law + δ − what its coefficients would absorb of δ.

    Called as the law itself: with N and D for a loss, with draft and target for an acceptance.

    Attributes:
      law: The law, of one draw of its coefficients.
      estimate: The fitted law, about which absorption is linear.
      absorbed: What δ moves each coefficient by on the table of the fit.
      errors: Smooth errors by variable.
    """

    law: Any
    estimate: Any
    absorbed: Any
    errors: dict[str, Waves]

    def __call__(self, *point: Any) -> Array:
        """Loss, or acceptance; an error raises no acceptance to 1."""
        of_loss = _of_loss(self.law)
        predict = _log_loss if of_loss else _alpha
        _, absorbed = jax.jvp(lambda law: predict(law, *point), (self.estimate,), (self.absorbed,))
        variables = _variables(*point)
        error = sum(waves(variables[name]) for name, waves in self.errors.items()) - absorbed
        value = self.law(*point)
        if of_loss:
            return value * jnp.exp(error)
        return jnp.where(value < 1, jnp.minimum(value + error, 1 - 1e-6), value + error)


def bent_laws(found: Discrepancy, law: Any, draws: Any, seed: int) -> BentLaw:
    """A law and its draws with errors of the form: arrays [1 + draws], the law itself, unbent, first.

    Args:
      found: Errors of the form.
      law: The fitted law.
      draws: The same law, of arrays [draws]; as many as `found` holds.
      seed: Of the errors.
    """
    random, count = np.random.default_rng(seed), len(found.noise)
    errors, shift = {}, np.zeros((count, len(coefficients(law))))
    for name, error in found.variables.items():
        shape = (count, _WAVES)
        # Frequencies of a squared exponential kernel (Rahimi & Recht, 2007).
        cosine, sine = random.standard_normal((2, *shape)) * (
            np.asarray(error.smooth)[:, None] / np.sqrt(_WAVES)
        )
        frequency = random.standard_normal(shape) / np.asarray(found.length)[:, None]
        angle = frequency[..., None] * np.log(error.levels)
        waves = cosine[..., None] * np.cos(angle) + sine[..., None] * np.sin(angle)
        at_levels = waves.sum(axis=1)
        mean = at_levels.mean(axis=1)
        shift += (at_levels - mean[:, None]) @ np.asarray(error.absorbed)
        errors[name] = jax.tree.map(
            lambda x: np.concatenate([0 * x[:1], x]), Waves(cosine, sine, frequency, mean)
        )
    rows = np.concatenate([np.zeros((1, shift.shape[1])), shift]).T
    estimate = jax.tree.map(lambda x: np.full(count + 1, x), law)
    absorbed = type(law)(*rows, about=law.about)
    return BentLaw(point_and_draws(law, draws), estimate, absorbed, errors)


def scatter(
    found: Discrepancy,
    models: Sequence[Sequence[Hashable]],
    count: int,
    random: np.random.Generator,
) -> Float[np.ndarray, "draws n"]:
    """Draws [1 + draws, n] of what single models and rows add to the errors of a law.

    Args:
      found: Errors of the form, with their scatter.
      models: For each role, the model of each row; rows of one model share its error.
      count: Number of rows, n.
      random: Source of the draws.
    """
    shape = len(found.noise), count
    total = np.asarray(found.noise)[:, None] * random.standard_normal(shape)
    for of_role in models:
        names = list(dict.fromkeys(of_role))
        each = random.standard_normal((shape[0], len(names))) * np.asarray(found.model)[:, None]
        total += each[:, [names.index(name) for name in of_role]]
    return np.concatenate([np.zeros((1, count)), total])


def gradients(law: Any, *point: Any) -> Float[np.ndarray, "n P"]:
    """∂(law)/∂(coefficients) at points [n]: of ln L for a loss, of α for an acceptance."""
    predict = _log_loss if _of_loss(law) else _alpha
    with jax.enable_x64(True):
        point = jax.tree.map(lambda x: jnp.asarray(x, float), point)
        law = jax.tree.map(lambda x: jnp.asarray(x, float), law)
        slopes = jax.jacfwd(lambda at: predict(at, *point))(law)
        return np.stack([np.asarray(x) for x in coefficients(slopes).values()], axis=1)


def _of_loss(law: Any) -> bool:
    return isinstance(law, tuple(LOSS_LAWS.values()))


def _log_loss(law: Any, params: Any, tokens: Any) -> Array:
    return jnp.log(law(params, tokens))


def _alpha(law: Any, draft: ModelPoint, target: ModelPoint) -> Array:
    return law(draft, target)


def _variables(first: Any, second: Any) -> dict[str, Any]:
    """What errors may depend on, by name."""
    if isinstance(first, ModelPoint):
        return {"draft_params": first.params, "target_params": second.params}
    return {"params": first, "tokens": second}
