"""Tuning at the small end: a setting of the recipe swept over several sizes, and its law of size fitted to the best values.

Every trial is an ordinary rung, so that a sweep resumes and is shared between processes like any ladder. The optimum of a size is
the lowest point of a parabola through the best trial and its neighbours, in the logarithm of the factor; the law is a straight
line through the optima in log-log, each weighted by how sharply its loss turns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import Diverged, require
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.training.ladder import train_rungs
from sdsl_jax.training.rungs import compact, plan_rungs, select

Setting = Literal["learning_rate", "batch_size", "warmup_tokens"]
# The exponent that belongs to each setting, and its sign in the law.
_EXPONENTS: dict[str, tuple[str, int]] = {
    "learning_rate": ("learning_rate_exponent", -1),
    "batch_size": ("batch_size_exponent", 1),
    "warmup_tokens": ("warmup_exponent", 1),
}
_INDIFFERENT = 0.01


class SizeResult(NamedTuple):
    """What a sweep found at one size.

    Attributes:
      params: non-embedding parameters.
      present: the value that the present law gives.
      factors: of the present value, ascending.
      losses: validation loss in nats per token at each factor, the mean over seeds; infinite where a trial diverged.
      best: optimal value.
      best_loss: at it, by the parabola.
      within_1pct: values between which the parabola stays within 1 % of the best loss.
      curvature: of the parabola, nats per squared natural logarithm.
      at_border: whether the best trial was the first or the last: the optimum lies there or beyond.
      gain_halved: relative gain in loss if the present value is halved; negative for a loss, NaN if not tried.
      gain_doubled: the same if it is doubled.
    """

    params: int
    present: float
    factors: tuple[float, ...]
    losses: tuple[float, ...]
    best: float
    best_loss: float
    within_1pct: tuple[float, float]
    curvature: float
    at_border: bool
    gain_halved: float
    gain_doubled: float


class Law(NamedTuple):
    """value = at_reference · (N / reference)^slope.

    Attributes:
      at_reference: the value at the reference size.
      slope: of its logarithm in log N.
      log_at_reference_error: standard error of the logarithm of the first; NaN for fewer than three sizes.
      slope_error: standard error of the slope.
      reference: non-embedding parameters.
    """

    at_reference: float
    slope: float
    log_at_reference_error: float
    slope_error: float
    reference: int


class Tuning(NamedTuple):
    """A sweep, the law that follows from it, and the study with that law in place of the present one."""

    setting: Setting
    sizes: list[SizeResult]
    law: Law
    study: StudyConfig
    warnings: list[str]


def find_optimum(params: int, present: float, factors: Sequence[float], losses: Sequence[float]) -> SizeResult:
    """The optimum of one size from its trials.

    Args:
      params: non-embedding parameters.
      present: the value of the setting at factor 1.
      factors: of the trials, at least three, all positive and different.
      losses: of the trials; what is not finite has diverged.

    Raises:
      SdslError: there are fewer than three trials, or all diverged.
    """
    require(len(factors) >= 3, f"a sweep of {len(factors)} factors has no optimum; it must have at least 3.")
    order = np.argsort(factors)
    x, y = np.log(np.asarray(factors, float)[order]), np.asarray(losses, float)[order]
    y = np.where(np.isfinite(y), y, np.inf)
    require(bool(np.isfinite(y).any()), f"every trial of the size {params} diverged; sweep lower values.")
    i = int(np.argmin(y))
    at_border = i in (0, len(x) - 1)
    best, best_loss, curvature = x[i], y[i], math.nan
    inner = slice(i - 1, i + 2)
    if not at_border and np.isfinite(y[inner]).all():
        a, b, c = np.polyfit(x[inner] - x[i], y[inner], 2)
        best, best_loss, curvature = x[i] - b / (2 * a), c - b * b / (4 * a), 2 * a
    reach = math.sqrt(2 * _INDIFFERENT * best_loss / curvature) if curvature > 0 else math.nan
    at = {round(float(math.exp(v)), 9): float(loss) for v, loss in zip(x, y)}

    def gain(factor: float) -> float:
        return 1 - at[factor] / at[1.0] if factor in at and 1.0 in at else math.nan

    return SizeResult(
        params=params,
        present=present,
        factors=tuple(np.exp(x).tolist()),
        losses=tuple(y.tolist()),
        best=present * math.exp(best),
        best_loss=float(best_loss),
        within_1pct=(present * math.exp(best - reach), present * math.exp(best + reach)),
        curvature=float(curvature),
        at_border=at_border,
        gain_halved=gain(0.5),
        gain_doubled=gain(2.0),
    )


def fit_law(sizes: Sequence[SizeResult], reference: int) -> Law:
    """The weighted straight line through the logarithms of the optima.

    Sizes whose optimum lies at the border or has no curvature weigh as little as the flattest of the others.

    Raises:
      SdslError: there are fewer than two sizes.
    """
    require(len(sizes) >= 2, f"a law of size needs at least 2 sizes; there are {len(sizes)}.")
    known = [s.curvature for s in sizes if s.curvature > 0 and not s.at_border]
    least = min(known, default=1.0)
    weights = np.array([s.curvature if s.curvature > 0 and not s.at_border else least for s in sizes])
    x, y = np.log([s.params / reference for s in sizes]), np.log([s.best for s in sizes])
    design = np.stack([np.ones_like(x), x], axis=1)
    normal = design.T @ (weights[:, None] * design)
    level, slope = np.linalg.solve(normal, design.T @ (weights * y))
    errors = np.full(2, math.nan)
    if len(sizes) > 2:
        residual = y - design @ [level, slope]
        scale = float((weights * residual**2).sum() / (len(sizes) - 2))
        errors = np.sqrt(scale * np.diag(np.linalg.inv(normal)))
    return Law(math.exp(level), float(slope), float(errors[0]), float(errors[1]), reference)


def tune(
    config: StudyConfig,
    folder: Path,
    sizes: Sequence[int],
    tokens: int,
    factors: Sequence[float],
    setting: Setting = "learning_rate",
    progress: Progress | None = None,
) -> Tuning:
    """Sweeps a setting around its present law.

    Args:
      config: the study whose recipe is tuned; each trial is trained with each of `ladder.seeds`.
      folder: of the trials, which stay for the next start.
      sizes: non-embedding parameters, at least two.
      tokens: budget of every trial.
      factors: of the present value, at least three.
      setting: what is swept.
      progress: told what happens.

    Raises:
      SdslError: too few sizes or factors, a size that cannot be made, or every trial of a size diverged.
    """
    require(len({*sizes}) >= 2, f"the sizes are {list(sizes)}; a law of size needs at least 2 of them.")
    require(
        len({*factors}) >= 3 and min(factors) > 0,
        f"the factors are {list(factors)}; a sweep needs at least 3, all positive and different.",
    )
    require(tokens >= 1, f"the budget of a trial is {tokens} tokens; it must be positive.")
    dataset, training, progress = load_dataset(config.data), config.training, progress or Silent()
    exponent, sign = _EXPONENTS[setting]
    sizes = tuple(sorted({*sizes}))
    losses: dict[tuple[int, float], list[float]] = {}
    present: dict[int, tuple[int, float]] = {}
    for factor in sorted({*factors}):
        value = getattr(training, setting) * factor
        recipe = dataclasses.replace(training, **{setting: type(getattr(training, setting))(value)})
        ladder = dataclasses.replace(
            config.ladder,
            draft_params=sizes,
            draft_tokens=(tokens,),
            target_params=sizes[-1:],
            target_tokens=(tokens,),
            replicate_seeds=(),
            weights="",
        )
        trial = dataclasses.replace(config, ladder=ladder, training=recipe)
        plans = select(plan_rungs(trial, dataset, folder), ["draft-*"])
        for plan in plans:
            n = plan.counts.nonembedding
            present[plan.rung.params] = n, _value(training, setting, n)
            name = f"{plan.rung.name}  {setting} × {factor:g}"
            try:
                (record,) = train_rungs(trial, dataset, folder, [plan], _Named(progress, name)).records
                loss = record.validation_loss_nats
            except Diverged as error:
                progress.note(f"{name}: {error}")
                loss = math.inf
            losses.setdefault((plan.rung.params, factor), []).append(loss)
    results = []
    for size in sizes:
        tried = [factor for factor in sorted({*factors}) if (size, factor) in losses]
        found = [float(np.mean(losses[size, factor])) for factor in tried]
        results.append(find_optimum(*present[size], tried, found))
    law = fit_law(results, training.reference_params)
    at_reference = type(getattr(training, setting))(max(law.at_reference, 1e-12))
    tuned = dataclasses.replace(training, **{setting: at_reference, exponent: sign * law.slope})
    warnings = [
        f"the best {setting} at {compact(r.params)} is the {'smallest' if r.best <= r.present else 'largest'} tried; "
        "widen the factors."
        for r in results
        if r.at_border
    ]
    if len(results) < 3:
        warnings.append("two sizes fix a line whatever they are; standard errors need three.")
    return Tuning(setting, results, law, dataclasses.replace(config, training=tuned), warnings)


def _value(training: Any, setting: Setting, params: int) -> float:
    laws = {"learning_rate": "peak_learning_rate", "batch_size": "batch", "warmup_tokens": "warmup"}
    return float(getattr(training, laws[setting])(params))


class _Named:
    """Progress of one trial, under its own name and without a note for each model."""

    def __init__(self, inner: Progress, name: str):
        self._inner, self._name = inner, name
        self.advance, self.finish = inner.advance, inner.finish

    def start(self, task: str, total: float) -> None:
        self._inner.start(self._name, total)

    def note(self, text: str) -> None:
        pass
