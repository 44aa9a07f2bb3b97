"""How far the truth lies from a law whose form is wrong, at sizes that the fit has not seen.

A bootstrap of a fit tells how uncertain the coefficients are if the form of the law holds. This
module estimates what the form misses (Kennedy & O'Hagan, 2001): truth = law + δ, with a smooth
error δ in the logarithm of each variable of the table, such as the sizes of draft and target. Each
error is a Gaussian process. What the coefficients can take up of it is no error of the form: the
part of δ that refitting on the same table would absorb is subtracted, so that δ is orthogonal to
the law (Plumlee, 2017) and nothing is counted twice.

The assumption is that the law errs beyond the table as smoothly, and on the same scale, as it does
between the sizes of the table. Nothing in a table can show an error that begins beyond it.

Beside the smooth error every training run has one of its own, and every model and row as well. That
of a run is absorbed like the smooth one: two runs of targets may hide it in a slope, which then
extrapolates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.statistics import root_mean_square
from sdsl_jax.theory import LOSS_LAWS, ModelPoint, coefficients, point_and_draws

# Rounds of importance sampling of the variances until they take up the whole likelihood, and after
# that; draws in each round, and in the last.
_MOST_ROUNDS, _FURTHER_ROUNDS, _PER_ROUND, _LAST_ROUND = 20, 1, 256, 4096
# More models than this take seconds: rows of one size then share their error instead.
_MOST_MODELS = 200
# A round takes up only so much of the likelihood that its draws are worth so many.
_WORTH = 64
# What is known of the logarithms of the variances beforehand: smooth errors are as large as the
# residuals, errors of runs, models and rows smaller. All are known within a factor of e or so, those
# of runs within half of that: coefficients hide most of the errors of a few runs, and errors of any
# size would explain a bend. Errors vary over a factor of 5 in their variable. Mean and standard
# deviation.
_PRIOR_SMOOTH, _PRIOR_RUN, _PRIOR_MODEL = (0.0, 1.0), (-0.7, 0.5), (-1.0, 1.0)
_PRIOR_NOISE = (-0.5, 1.0)
_PRIOR_LENGTH = (float(np.log(1.6)), 0.4)
# Waves that make up one draw of a smooth error.
_WAVES = 32


class Variable(NamedTuple):
    """A variable that the form of a law may be wrong in.

    Attributes:
      values: Its value in each row, positive.
      runs: Label of the training run of each row, whose own error its rows share; None if the
        variable belongs to no run, as tokens do.
      models: Label of the trained model of each row, likewise: one of the models of a run.
    """

    values: Float[np.ndarray, " n"]
    runs: np.ndarray | None = None
    models: np.ndarray | None = None

    @property
    def finest(self) -> np.ndarray:
        """Labels of the models, of the runs where there are none, else the values."""
        finer = self.runs if self.models is None else self.models
        return np.asarray(self.values if finer is None else finer)


@dataclass(frozen=True)
class ErrorInVariable:
    """What a law misses in one variable.

    Attributes:
      smooth: Draws of the standard deviation of the smooth error.
      levels: Value of the variable in each run of the table, or its different values, [levels].
      absorbed: What an error of 1 at each level moves each coefficient by, [levels][coefficients].
      run: Draws of the standard deviation of the error that all rows of a run share; empty where the
        variable belongs to no run.
      model: Draws of the standard deviation of the error that all rows of a model share, likewise; the
        same for all variables, since few models of targets cannot tell theirs from a slope.
    """

    smooth: list[float]
    levels: list[float]
    absorbed: list[list[float]]
    run: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Discrepancy:
    """What the form of a law misses; draw i belongs to draw i of the coefficients.

    Attributes:
      unit: Unit of the errors: log of the loss, or acceptance probability.
      variables: Errors by variable.
      length: Draws of the length over which they vary, in e-folds of the variable.
      noise: Draws of the standard deviation of the error of single rows.
      effective_draws: Independent draws that the weighted draws of the variances are worth.
      power: Power of the likelihood that the draws were weighted by; below 1 they are too wide.
    """

    unit: str
    variables: dict[str, ErrorInVariable]
    length: list[float]
    noise: list[float]
    effective_draws: float
    power: float = 1.0

    @property
    def warnings(self) -> list[str]:
        """What the draws cannot be relied on for, in sentences."""
        text = f"the errors of the form use the residuals to a power of {self.power:.2g} only: their draws are too wide"
        return [text] if self.power < 1 else []


def fit_discrepancy(
    gradient: Float[np.ndarray, "n P"],
    residuals: Float[np.ndarray, " n"],
    variables: dict[str, Variable],
    *,
    unit: str,
    draws: int,
    random: np.random.Generator,
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
      random: Source of the draws.
    """
    scale = np.linalg.norm(gradient, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    left, singular, right = np.linalg.svd(gradient / scale, full_matrices=False)
    seen = singular > 1e-8 * singular.max()
    left = left[:, seen]
    inverse = ((right[seen].T / singular[seen]) @ left.T) / scale[:, None]
    if sum(len(np.unique(v.finest)) for v in variables.values()) > _MOST_MODELS:
        variables = {
            name: Variable(v.values, None if v.runs is None else v.values)
            for name, v in variables.items()
        }
    own = residuals - left @ (left.T @ residuals)
    unit_size = max(root_mean_square(own), 1e-9)
    likelihood = _Likelihood(left, own / unit_size, list(variables.values()))
    sampled = _sample(likelihood, likelihood.priors, draws, random)
    length, *deviations = np.exp(sampled.logs.T)
    noise, *deviations = (unit_size * x for x in deviations)
    found = {}
    for name, of_variable in zip(variables, likelihood.deviations(deviations)):
        values, rows = _labelled(variables[name].values, variables[name].runs)
        absorbed = [_short(column) for column in (inverse @ rows).T]
        smooth, run, model = (_short(x) for x in of_variable)
        found[name] = ErrorInVariable(smooth, values.tolist(), absorbed, run, model)
    return Discrepancy(unit, found, _short(length), _short(noise), sampled.worth, sampled.power)


def scatter_alone(deviation: float, unit: str, draws: int) -> Discrepancy:
    """Rows that scatter independently about a law whose form holds."""
    return Discrepancy(unit, {}, [1.0] * draws, [deviation] * draws, float(draws))


class _Likelihood:
    """The restricted log likelihood of residuals, as a function of log (length, noise, model, …).

    The deviation of models is one for all variables; those of smooth errors and of runs follow,
    variable by variable.
    """

    def __init__(
        self, left: np.ndarray, residuals: np.ndarray, variables: Sequence[Variable]
    ) -> None:
        self.variables = variables
        labelled = [_labelled(v.values, v.finest) for v in variables]
        z = np.concatenate([rows for _, rows in labelled], axis=1)
        outside = z - left @ (left.T @ z)  # the part of an error that no coefficient takes up
        own = residuals - left @ (left.T @ residuals)
        self.gram, self.moment, self.total = outside.T @ outside, outside.T @ own, float(own @ own)
        self.freedom = left.shape[0] - left.shape[1]
        self.logs = [np.log(values) for values, _ in labelled]
        self.centring = [_centring(values) for values, _ in labelled]
        self.same_run = [
            0.0 if v.runs is None else _same_run(rows, _labelled(v.values, v.runs)[1])
            for v, (_, rows) in zip(variables, labelled)
        ]

    @property
    def priors(self) -> Float[np.ndarray, "H 2"]:
        """Mean and standard deviation of the logarithms beforehand."""
        found = [_PRIOR_LENGTH, _PRIOR_NOISE, _PRIOR_MODEL]
        for variable in self.variables:
            found += [_PRIOR_SMOOTH] + [_PRIOR_RUN] * (variable.runs is not None)
        return np.asarray(found)

    def deviations(self, values: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
        """Deviations of smooth error, runs and models of each variable; empty for what it lacks."""
        model, *others = values
        rest, none = iter(others), np.zeros(0)
        return [
            (
                next(rest),
                none if v.runs is None else next(rest),
                none if v.models is None else model,
            )
            for v in self.variables
        ]

    def __call__(self, logs: Float[np.ndarray, "k H"]) -> Float[np.ndarray, " k"]:
        length, noise, *deviations = np.exp(logs.T)
        count, size = len(logs), len(self.moment)
        kernel, start = np.zeros((count, size, size)), 0
        for (smooth, run, model), x, centred, same_run in zip(
            self.deviations(deviations), self.logs, self.centring, self.same_run
        ):
            block = slice(start, start := start + len(x))
            squared = np.square((x[:, None] - x) / length[:, None, None])
            smoothed = np.square(smooth)[:, None, None] * np.exp(-squared / 2)
            kernel[:, block, block] = centred @ smoothed @ centred.T
            for variance, shared in (
                (np.square(run), same_run),
                (np.square(model), np.eye(len(x))),
                (1e-8 * np.square(smooth), np.eye(len(x))),
            ):
                if len(variance):
                    kernel[:, block, block] += variance[:, None, None] * shared
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


def _same_run(models: np.ndarray, runs: np.ndarray) -> Float[np.ndarray, "levels levels"]:
    """1 where two models are of one run; both arguments say which rows are whose, [n, …]."""
    of_run = (models.T @ runs > 0).astype(float)
    return of_run @ of_run.T


class _Sample(NamedTuple):
    logs: np.ndarray
    worth: float
    power: float


def _sample(
    likelihood: Callable[[np.ndarray], np.ndarray],
    priors: np.ndarray,
    draws: int,
    random: np.random.Generator,
) -> _Sample:
    """Draws of the posterior under normal priors, by adaptive importance sampling.

    Each round draws from a t distribution about what the last one found, and raises the likelihood
    to the largest power of which the draws are still worth `_WORTH` (Chopin, 2002). Once that is
    its whole, a large round makes the draws.
    """
    mean, deviation = priors.T
    centre, root = mean, np.diag(deviation)
    freedom, further = 8, 0
    for remaining in reversed(range(_MOST_ROUNDS)):
        last = further > _FURTHER_ROUNDS or remaining == 0
        shape = (_LAST_ROUND if last else _PER_ROUND, len(mean))
        normal = random.standard_normal(shape)
        radius = np.sqrt(freedom / random.chisquare(freedom, (shape[0], 1)))
        unit = normal * radius
        logs = centre + unit @ root.T
        proposal = -0.5 * (freedom + len(mean)) * np.log1p(np.square(unit).sum(axis=1) / freedom)
        prior = -0.5 * np.square((logs - mean) / deviation).sum(axis=1)
        # Beyond six standard deviations of the prior nothing is worth computing.
        inside = np.clip(logs, mean - 6 * deviation, mean + 6 * deviation)
        fit = np.concatenate([likelihood(x) for x in np.split(inside, shape[0] // 128)])
        powers = 0.7 ** np.arange(26)
        each = [_weights(prior + power * fit - proposal) for power in powers]
        worth = np.asarray([1 / np.square(weights).sum() for weights in each])
        chosen = int((worth >= _WORTH).argmax()) if worth.max() >= _WORTH else int(worth.argmax())
        weights, power = each[chosen], float(powers[chosen])
        if last:
            break
        further = further + 1 if power == 1 else 0
        centre = weights @ logs
        spread = (logs - centre).T @ (weights[:, None] * (logs - centre))
        # Few draws know a spread badly: the last one stays in part.
        sure = min(worth[chosen] / _WORTH, 1.0)
        root = np.linalg.cholesky(1.2 * sure * spread + (1 - sure) * root @ root.T)
    # Systematic resampling, in random order so that draw i does not tell its weight.
    places = (np.arange(draws) + random.uniform()) / draws
    rows = np.searchsorted(np.cumsum(weights), places).clip(0, len(weights) - 1)
    return _Sample(logs[random.permutation(rows)], float(worth[chosen]), power)


def _weights(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _short(values: np.ndarray) -> list[float]:
    """Numbers of eight digits, as a file holds draws."""
    return [float(f"{x:.8g}") for x in values]


def _labelled(values: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The value of every label of a variable, or its different values, and whose each row is: [k], [n, k]."""
    values = np.asarray(values, float)
    _, first, of = np.unique(
        values if labels is None else labels, return_index=True, return_inverse=True
    )
    return values[first], np.eye(len(first))[of]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Waves:
    """An error in a variable: a smooth one in its logarithm, Σ (cosine·cos(frequency·ln x) +
    sine·sin(frequency·ln x)) − mean, and that of each run of the table at its own value.

    Arrays [waves], and [draws, waves] of many; `mean`, the mean over the table, has no [waves].

    Attributes:
      cosine: Amplitudes.
      sine: Amplitudes.
      frequency: Frequencies.
      mean: Mean over the values in the table.
      levels: Different values of the runs in the table, [levels].
      run: Error of the first run of each value, [levels].
    """

    cosine: Array | np.ndarray
    sine: Array | np.ndarray
    frequency: Array | np.ndarray
    mean: Array | np.ndarray
    levels: Array | np.ndarray
    run: Array | np.ndarray

    def __call__(self, value: Any) -> Array:
        """The error at positive values of the variable, of any shape."""
        value = jnp.asarray(value)
        angle = jnp.tensordot(jnp.log(value), self.frequency, axes=0)
        smooth = jnp.cos(angle) @ self.cosine + jnp.sin(angle) @ self.sine - self.mean
        levels = jnp.reshape(self.levels, (1,) * value.ndim + (-1,))
        return smooth + (value[..., None] == levels) @ self.run


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


def bent_laws(found: Discrepancy, law: Any, draws: Any, random: np.random.Generator) -> BentLaw:
    """A law and its draws with errors of the form: arrays [1 + draws], the law itself, unbent, first.

    Args:
      found: Errors of the form.
      law: The fitted law.
      draws: The same law, of arrays [draws]; as many as `found` holds.
      random: Source of the errors.
    """
    count = len(found.noise)
    errors, shift = {}, np.zeros((count, len(coefficients(law))))
    for name, error in found.variables.items():
        shape, levels = (count, _WAVES), np.asarray(error.levels)
        # Frequencies of a squared exponential kernel (Rahimi & Recht, 2007).
        cosine, sine = random.standard_normal((2, *shape)) * (
            np.asarray(error.smooth)[:, None] / np.sqrt(_WAVES)
        )
        frequency = random.standard_normal(shape) / np.asarray(found.length)[:, None]
        angle = frequency[..., None] * np.log(levels)
        waves = cosine[..., None] * np.cos(angle) + sine[..., None] * np.sin(angle)
        at_levels = waves.sum(axis=1)
        different, first = np.unique(levels, return_index=True)
        mean = at_levels[:, first].mean(axis=1)
        run = random.standard_normal((count, len(levels)))
        run *= np.asarray(error.run or [0.0] * count)[:, None]
        shift += (at_levels - mean[:, None] + run) @ np.asarray(error.absorbed)
        drawn = Waves(cosine, sine, frequency, mean, np.tile(different, (count, 1)), run[:, first])
        errors[name] = jax.tree.map(lambda x: np.concatenate([0 * x[:1], x]), drawn)
    rows = np.concatenate([np.zeros((1, shift.shape[1])), shift]).T
    estimate = jax.tree.map(lambda x: np.full(count + 1, x), law)
    absorbed = type(law)(*rows, about=law.about)
    return BentLaw(point_and_draws(law, draws), estimate, absorbed, errors)


def scatter(
    found: Discrepancy,
    variables: dict[str, Variable],
    count: int,
    random: np.random.Generator,
) -> Float[np.ndarray, "draws n"]:
    """Draws [1 + draws, n] of what runs, models and rows add to the errors of a law.

    The errors of runs of the table are part of a `BentLaw`; here, runs have them whose value is none
    of the table.

    Args:
      found: Errors of the form, with their scatter.
      variables: By name, whose row each is: rows of one run share its error, and rows of one model.
      count: Number of rows, n.
      random: Source of the draws.
    """
    shape = len(found.noise), count
    total = np.asarray(found.noise)[:, None] * random.standard_normal(shape)
    for name in (n for n in variables if n in found.variables):
        values, runs, models = variables[name]
        error = found.variables[name]
        new = ~np.isin(values, error.levels)
        for labels, deviation, have in ((runs, error.run, new), (models, error.model, True)):
            if labels is not None and deviation:
                different, of = np.unique(labels, return_inverse=True)
                each = random.standard_normal((shape[0], len(different)))
                total += have * (each * np.asarray(deviation)[:, None])[:, of]
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
