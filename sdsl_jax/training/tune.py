"""Tuning at the small end: sweeps a setting of the recipe over several sizes and fits its law of
size to the best values.

Every trial is an ordinary rung, so a sweep resumes and can be shared between processes like any
ladder. The optimum of a size is the lowest point of a parabola through the best trial and its
neighbours, in the logarithm of the factor. The law is a straight line through the optima in
log-log. The lowest point of a parabola through equally noisy losses has a standard error in inverse
proportion to its curvature, so each optimum is weighted by the square of its curvature.

The value of a trial is what its rung was really trained with: warm-up never exceeds a quarter of
the budget, and batches are whole sequences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdsl_jax.config import StudyConfig, TrainingConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import Diverged, SdslError, require
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records.documents import to_json
from sdsl_jax.training.ladder import train_rungs
from sdsl_jax.training.rungs import Plan, compact, plan_rungs, select

Setting = Literal["learning_rate", "batch_size", "warmup_tokens"]
# The exponent that belongs to each setting, and its sign in the law.
_EXPONENTS: dict[str, tuple[str, int]] = {
    "learning_rate": ("learning_rate_exponent", -1),
    "batch_size": ("batch_size_exponent", 1),
    "warmup_tokens": ("warmup_exponent", 1),
}
_INDIFFERENT = 0.01
# A trial whose value is further from its nominal one than this share says nothing of halving or
# doubling.
_SAME_VALUE = 0.15


@dataclass(frozen=True)
class SizeResult:
    """What a sweep found at one size.

    Attributes:
      params: Non-embedding parameters.
      present: Value that the present law gives.
      factors: Factors of the trials, ascending.
      values: Values that they were trained with; about the present one times the factor.
      losses: Validation loss at each factor in nats per token, averaged over seeds; infinite where
        a trial diverged.
      best: Optimal value.
      best_loss: Loss at the optimum, by the parabola.
      within_1pct: Values between which the parabola stays within 1% of the best loss.
      curvature: Curvature of the parabola, nats per squared natural logarithm.
      at_border: Whether the best trial was the first or the last, so that the optimum lies there or
        beyond.
      gain_halved: Relative gain in loss from halving the present value; negative for a loss, NaN if
        not tried.
      gain_doubled: The same for doubling it.
    """

    params: int
    present: float
    factors: tuple[float, ...]
    values: tuple[float, ...]
    losses: tuple[float, ...]
    best: float
    best_loss: float
    within_1pct: tuple[float, float]
    curvature: float
    at_border: bool
    gain_halved: float
    gain_doubled: float


@dataclass(frozen=True)
class Law:
    """value = at_reference · (N / reference)^slope.

    Attributes:
      at_reference: Value at the reference size.
      slope: Slope of its logarithm in log N.
      log_at_reference_error: Standard error of the logarithm of `at_reference`; NaN for fewer than
        three sizes.
      slope_error: Standard error of the slope.
      reference: Non-embedding parameters of the reference size.
    """

    at_reference: float
    slope: float
    log_at_reference_error: float
    slope_error: float
    reference: int


@dataclass(frozen=True)
class Tuning:
    """A sweep and what follows from it.

    Attributes:
      setting: The setting that was swept.
      law: Its law of size; None if the sweep gives none.
      sizes: The optimum of each size.
      warnings: What a reader should know, one sentence each.
      study: The study with the law in place of its present one; None without a law.
    """

    setting: Setting
    law: Law | None
    sizes: list[SizeResult]
    warnings: list[str]
    study: StudyConfig | None

    def to_json(self) -> dict[str, Any]:
        """The sweep and its law as plain values."""
        names = ("setting", "law", "sizes", "warnings")
        return {name: to_json(getattr(self, name)) for name in names}


def find_optimum(
    params: int,
    present: float,
    factors: Sequence[float],
    losses: Sequence[float],
    values: Sequence[float] | None = None,
) -> SizeResult:
    """The optimum of one size from its trials.

    Args:
      params: Non-embedding parameters.
      present: Value of the setting at factor 1.
      factors: Factors of the trials: at least three, all positive and different.
      losses: Losses of the trials; those that are not finite have diverged.
      values: Values they were trained with; `present` times the factors if omitted. Of equal values
        the first counts.

    Raises:
      SdslError: There are fewer than three trials, or all diverged.
    """
    require(
        len(factors) >= 3,
        f"a sweep of {len(factors)} factors has no optimum; it must have at least 3.",
    )
    order = np.argsort(factors)
    nominal = np.asarray(factors, float)[order]
    trained = present * nominal if values is None else np.asarray(values, float)[order]
    observed = np.asarray(losses, float)[order]
    observed = np.where(np.isfinite(observed), observed, np.inf)
    require(
        np.isfinite(observed).any(),
        f"every trial of the size {params} diverged; sweep lower values.",
    )
    distinct, first = np.unique(trained, return_index=True)
    x, y = np.log(distinct), observed[first]
    i = int(np.argmin(y))
    at_border = i in (0, len(x) - 1)
    best, best_loss, curvature = x[i], y[i], math.nan
    inner = slice(i - 1, i + 2)
    if not at_border and np.isfinite(y[inner]).all():
        a, b, c = np.polyfit(x[inner] - x[i], y[inner], 2)
        best, best_loss, curvature = x[i] - b / (2 * a), c - b * b / (4 * a), 2 * a
    reach = math.sqrt(2 * _INDIFFERENT * best_loss / curvature) if curvature > 0 else math.nan

    def gain(factor: float) -> float:
        at = {
            f: loss
            for f, value, loss in zip(nominal, trained, observed)
            if abs(value / (present * f) - 1) < _SAME_VALUE
        }
        return float(1 - at[factor] / at[1.0]) if factor in at and 1.0 in at else math.nan

    return SizeResult(
        params=params,
        present=present,
        factors=tuple(nominal.tolist()),
        values=tuple(trained.tolist()),
        losses=tuple(observed.tolist()),
        best=math.exp(best),
        best_loss=float(best_loss),
        within_1pct=(math.exp(best - reach), math.exp(best + reach)),
        curvature=float(curvature),
        at_border=at_border,
        gain_halved=gain(0.5),
        gain_doubled=gain(2.0),
    )


def fit_law(sizes: Sequence[SizeResult], reference: int) -> Law:
    """The weighted straight line through the logarithms of the optima.

    Each optimum is weighted by the square of its curvature. Sizes whose optimum lies at the border,
    or has no curvature, are left out.

    Raises:
      SdslError: Fewer than two sizes have an optimum.
    """
    sizes = [s for s in sizes if s.curvature > 0 and not s.at_border]
    require(
        len(sizes) >= 2,
        f"a law of size needs at least 2 sizes with an optimum between the values tried; there are {len(sizes)}.",
    )
    weights = np.square([s.curvature for s in sizes])
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
      config: Study whose recipe is tuned. Each trial is trained with each of `ladder.seeds`.
      folder: Folder of the trials, which stay for the next start.
      sizes: Non-embedding parameters, at least two sizes.
      tokens: Token budget of every trial.
      factors: Factors of the present value, at least three.
      setting: Setting to sweep.
      progress: Reports progress after every step.

    Raises:
      SdslError: There are too few sizes or factors, a size cannot be built, or every trial of a
        size diverged.
    """
    require(
        len({*sizes}) >= 2, f"the sizes are {list(sizes)}; a law of size needs at least 2 of them."
    )
    require(
        len({*factors}) >= 3 and all(0 < factor < math.inf for factor in factors),
        f"the factors are {list(factors)}; a sweep needs at least 3, all positive, finite and different.",
    )
    require(tokens >= 1, f"the budget of a trial is {tokens} tokens; it must be positive.")
    progress = progress or Silent()
    dataset = load_dataset(config.data, note=progress.note)
    sizes, factors = tuple(sorted({*sizes})), sorted({*factors})
    trials = {factor: _trial(config, sizes, tokens, setting, factor) for factor in {*factors, 1.0}}
    planned = {
        factor: select(plan_rungs(trial, dataset, folder), ["draft-*"])
        for factor, trial in sorted(trials.items())
    }
    sizes_made = {plan.counts.nonembedding for plan in planned[1.0]}
    require(
        len(sizes_made) >= 2,
        f"the family makes the same model of all sizes {list(sizes)}; choose others.",
    )
    for size in sizes_made:
        distinct = {
            _value(plan, setting)
            for f in factors
            for plan in planned[f]
            if plan.counts.nonembedding == size
        }
        require(
            len(distinct) >= 3,
            f"the factors make {sorted(distinct)} the only values of {setting} at {compact(size)}; choose others.",
        )
    losses: dict[tuple[int, float], list[float]] = {}
    for factor in factors:
        for plan in planned[factor]:
            name = f"{plan.rung.name}  {setting} × {factor:g}"
            try:
                (record,) = train_rungs(
                    trials[factor], dataset, folder, [plan], _Named(progress, name)
                ).records
                loss = record.validation_loss_nats
            except Diverged as error:
                progress.note(f"{name}: {error}")
                loss = math.inf
            losses.setdefault((plan.rung.params, factor), []).append(loss)
    results = []
    for size in sizes:
        plan_of = {
            factor: next(plan for plan in planned[factor] if plan.rung.params == size)
            for factor in planned
        }
        values = [_value(plan_of[factor], setting) for factor in factors]
        means = [float(np.mean(losses[size, factor])) for factor in factors]
        results.append(
            find_optimum(
                plan_of[1.0].counts.nonembedding,
                _value(plan_of[1.0], setting),
                factors,
                means,
                values,
            )
        )
    warnings = [warning for result in results for warning in _warnings(result, setting)]
    law, tuned = None, None
    try:
        law = fit_law(results, config.training.reference_params)
        if not math.isfinite(law.slope_error):
            warnings.append("two sizes fix a line whatever they are; standard errors need three.")
        tuned = dataclasses.replace(config, training=_with_law(config.training, setting, law))
    except SdslError as error:
        warnings.append(f"no law follows: {error}")
    return Tuning(setting, law, results, warnings, tuned)


def _trial(
    config: StudyConfig, sizes: tuple[int, ...], tokens: int, setting: Setting, factor: float
) -> StudyConfig:
    """The study whose drafts are the trials of one factor."""
    value = getattr(config.training, setting) * factor
    ladder = dataclasses.replace(
        config.ladder,
        draft_params=sizes,
        draft_tokens=(tokens,),
        target_params=sizes[-1:],
        target_tokens=(tokens,),
        replicate_seeds=(),
        weights="",
    )
    recipe = dataclasses.replace(config.training, **{setting: _as_setting(setting, value)})
    return dataclasses.replace(config, ladder=ladder, training=recipe)


def _as_setting(setting: Setting, value: float) -> Any:
    """A value in the type of a setting; a batch holds at least one sequence."""
    return value if setting == "learning_rate" else max(int(setting == "batch_size"), round(value))


def _value(plan: Plan, setting: Setting) -> float:
    """The value that a rung is trained with."""
    schedule = plan.schedule
    return {
        "learning_rate": schedule.peak,
        "batch_size": float(plan.batch),
        "warmup_tokens": float(
            max(1, schedule.warmup) * plan.tokens_per_step
        ),  # none is the same as one step
    }[setting]


def _with_law(training: TrainingConfig, setting: Setting, law: Law) -> TrainingConfig:
    exponent, sign = _EXPONENTS[setting]
    return dataclasses.replace(
        training, **{setting: _as_setting(setting, law.at_reference), exponent: sign * law.slope}
    )


def _warnings(result: SizeResult, setting: Setting) -> list[str]:
    if result.at_border:
        lowest = result.best <= min(result.values) * (1 + 1e-9)
        end = "smallest" if lowest else "largest"
        return [
            f"the best {setting} at {compact(result.params)} is the {end} tried; widen the factors."
        ]
    if not result.curvature > 0:
        return [
            f"a trial beside the best {setting} at {compact(result.params)} diverged: its optimum is not interpolated."
        ]
    return []


class _Named:
    """Progress of one trial, under its own name and without a note for each model."""

    def __init__(self, inner: Progress, name: str):
        self._inner, self._name = inner, name
        self.advance, self.finish = inner.advance, inner.finish

    def start(self, task: str, total: float) -> None:
        self._inner.start(self._name, total)

    def note(self, text: str) -> None:
        pass
