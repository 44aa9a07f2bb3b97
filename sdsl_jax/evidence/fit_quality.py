"""What the fits leave over, and whether their intervals cover what they claim to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np

from sdsl_jax.config import FitConfig
from sdsl_jax.evidence.common import Estimate
from sdsl_jax.evidence.law_comparison import predicted
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting.acceptance import pair_table
from sdsl_jax.fitting.forms import LOSS_FORMS, loss_data
from sdsl_jax.fitting.law_fit import best_fit, bootstrap
from sdsl_jax.fitting.loss import LossTable, loss_table
from sdsl_jax.fitting.stage import joint_weights
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import mean_interval, quantile_interval, root_mean_square
from sdsl_jax.theory import coefficients


@dataclass(frozen=True)
class SizeMean:
    """Mean residual of the rows of one size.

    Attributes:
      size: non-embedding parameters
      mean: mean residual
      n: rows
    """

    size: int
    mean: float
    n: int


@dataclass(frozen=True)
class LossResidual:
    """Residual of one model.

    Attributes:
      model_id: the model
      residual: ln of measured over predicted loss
      params: non-embedding parameters
      tokens: training tokens
    """

    model_id: str
    residual: float
    params: int
    tokens: int


@dataclass(frozen=True)
class AlphaResidual:
    """Residual of one pair.

    Attributes:
      residual: measured minus predicted α
      draft_params: non-embedding parameters of the draft
      target_params: non-embedding parameters of the target
      predicted: predicted α
    """

    residual: float
    draft_params: int
    target_params: int
    predicted: float


@dataclass(frozen=True)
class Residuals:
    """What the laws do not explain.

    Attributes:
      loss_by_size: residuals of the loss law by size
      loss_points: residuals of the loss law
      loss_rmse: root mean square residual of ln loss
      loss_share_between_sizes: adjusted R² of the means of the sizes
      seed_deviation: standard deviation of ln loss between seeds of a rung
      alpha_law: the best acceptance law
      alpha_by_draft: residuals of α by draft size
      alpha_by_target: residuals of α by target size
      alpha_points: residuals of α
      alpha_rmse: root mean square residual of α
      alpha_share_between_drafts: adjusted R² of the means of draft sizes
      alpha_share_between_targets: adjusted R² of the means of target sizes
      alpha_mean: mean residual of α
      basis: how the numbers were computed
    """

    loss_by_size: list[SizeMean]
    loss_points: list[LossResidual]
    loss_rmse: float
    loss_share_between_sizes: float | None
    seed_deviation: float | None
    alpha_law: str
    alpha_by_draft: list[SizeMean]
    alpha_by_target: list[SizeMean]
    alpha_points: list[AlphaResidual]
    alpha_rmse: float
    alpha_share_between_drafts: float | None
    alpha_share_between_targets: float | None
    alpha_mean: Estimate
    basis: str


@dataclass(frozen=True)
class Share:
    """A share of simulations, with its binomial interval.

    Attributes:
      share: share
      low: lower end of its interval
      high: upper end of its interval
    """

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Coverage:
    """How often the intervals of the loss law hold the truth.

    Attributes:
      simulations: simulated tables
      confidence: confidence of the intervals
      resample: what the bootstrap resamples
      shared_by_rung: share of the scatter that models of a rung have in common
      coverage: share of intervals that hold the truth, by coefficient
      basis: how the numbers were computed
    """

    simulations: int
    confidence: float
    resample: str
    shared_by_rung: float
    coverage: dict[str, Share]
    basis: str


def _fitted(records: StudyRecords, residuals: dict[str, float]) -> list[ModelRecord]:
    """The models that the loss law was fitted to."""
    return [m for m in records.models if m.model_id in residuals]


def residuals(records: StudyRecords) -> Residuals | None:
    """Residuals of the loss law by size and of the best acceptance law by draft and target, with what they share."""
    if not records.has_fits:
        return None
    predicted_minus_measured = records.fits.loss_law.residuals or {}
    models = _fitted(records, predicted_minus_measured)
    # Turned around: positive where the model is worse than the law.
    loss = -np.asarray([predicted_minus_measured[m.model_id] for m in models])
    sizes = np.asarray([m.params_nonembedding for m in models])
    name, law = next(iter(records.laws.acceptance.items()))
    table = pair_table(records.models, records.acceptance, records.config.fit.estimator)
    alpha = table.alpha - predicted(law, table)

    def by(values: np.ndarray, groups: np.ndarray) -> list[SizeMean]:
        chosen = {int(size): values[groups == size] for size in np.unique(groups)}
        return [SizeMean(size, float(rows.mean()), len(rows)) for size, rows in chosen.items()]

    return Residuals(
        loss_by_size=by(loss, sizes),
        loss_points=[
            LossResidual(m.model_id, float(r), m.params_nonembedding, m.train_tokens)
            for m, r in zip(models, loss)
        ],
        loss_rmse=root_mean_square(loss),
        loss_share_between_sizes=_share_between(loss, sizes),
        seed_deviation=_seed_scatter(models),
        alpha_law=name,
        alpha_by_draft=by(alpha, table.draft_sizes),
        alpha_by_target=by(alpha, table.target_sizes),
        alpha_points=[
            AlphaResidual(float(r), int(n), int(m), float(a - r))
            for r, n, m, a in zip(alpha, table.draft_sizes, table.target_sizes, table.alpha)
        ],
        alpha_rmse=root_mean_square(alpha),
        alpha_share_between_drafts=_share_between(alpha, table.draft_sizes),
        alpha_share_between_targets=_share_between(alpha, table.target_sizes),
        alpha_mean=Estimate(*mean_interval(alpha, records.config.fit.confidence)),
        basis="measured − predicted, ln of the loss and α; share between sizes: of the residual sum of squares, what the "
        "means of the sizes explain, with the share that chance alone would give subtracted (adjusted R²)",
    )


def _share_between(values: np.ndarray, groups: np.ndarray) -> float | None:
    """Adjusted R² of group means: 0 if the residuals of a group have nothing in common, 1 if they are equal."""
    names, of = np.unique(groups, return_inverse=True)
    if len(values) <= len(names) or len(names) < 2:
        return None
    means = np.bincount(of, values) / np.bincount(of)
    within = np.square(values - means[of]).sum() / (len(values) - len(names))
    total = np.square(values - values.mean()).sum() / (len(values) - 1)
    return float(1 - within / total) if total > 0 else None


def _seed_scatter(models: list[ModelRecord]) -> float | None:
    """Pooled standard deviation of ln loss between seeds of one rung and budget: what no law of size and data can explain."""
    groups: dict[tuple[str, int, int], list[float]] = {}
    for m in models:
        groups.setdefault((m.role, m.params_nonembedding, m.train_tokens), []).append(
            float(np.log(m.loss_nats))
        )
    squares = [
        (np.square(np.asarray(v) - np.mean(v)).sum(), len(v) - 1)
        for v in groups.values()
        if len(v) > 1
    ]
    return (
        float(np.sqrt(sum(s for s, _ in squares) / sum(n for _, n in squares))) if squares else None
    )


def coverage(records: StudyRecords) -> Coverage | None:
    """How often the intervals of the loss law hold the truth, on this very design.

    Tables are simulated from the fitted law with scatter of the size that the fit left, a part of
    it shared by each rung as the residuals say, and refitted with the same bootstrap. None unless
    `fit.coverage` asks for simulations.
    """
    number = records.config.fit.coverage
    if number == 0 or not records.has_fits:
        return None
    law, residuals = records.fits.loss_law, records.fits.loss_law.residuals or {}
    models = _fitted(records, residuals)
    table = loss_table(models)
    exact = np.asarray(records.laws.loss(table.params, table.tokens), float)
    of_models = np.asarray([residuals[m.model_id] for m in models])
    shared = max(0.0, _share_between(of_models, table.rungs) or 0)
    random = np.random.default_rng(records.config.seed)
    config = dataclasses.replace(records.config.fit, starts=8, bootstrap=100)
    scatter = law.rmse or 0.0
    inside: dict[str, list[bool]] = {name: [] for name in law.coefficients}
    for seed in range(number):
        rung = random.standard_normal(table.rungs.max() + 1)[table.rungs]
        noise = np.sqrt(shared) * rung + np.sqrt(1 - shared) * random.standard_normal(len(exact))
        drawn = table._replace(loss=exact * np.exp(scatter * noise))
        weights = joint_weights(config, models, seed)
        for name, (low, high) in _intervals(drawn, law.law, config, weights, seed).items():
            inside[name].append(low <= law.coefficients[name] <= high)
    return Coverage(
        simulations=number,
        confidence=config.confidence,
        resample=config.resample,
        shared_by_rung=shared,
        coverage={name: _binomial(np.asarray(values)) for name, values in inside.items()},
        basis=f"{number} tables simulated from the fitted law on the same design, residual scatter {scatter:.3g}, of which "
        f"{shared:.0%} is shared by the models of a rung; each refitted with {config.bootstrap} resamples of {config.resample}; "
        "in brackets the 99% binomial interval (Wilson)",
    )


def _intervals(
    table: LossTable, law: str, config: FitConfig, weights: np.ndarray, seed: int
) -> dict[str, tuple[float, float]]:
    """The bootstrap intervals of a study's loss law, and nothing else of its fit."""
    form, delta = LOSS_FORMS[law], config.huber_delta
    with jax.enable_x64(True):
        data = loss_data(table.params, table.tokens, table.loss)
        best = best_fit(form, data, np.ones(len(table.loss)), delta, config.starts, seed)
        draws = coefficients(bootstrap(form, best, data, weights, delta)[0])
    return {k: quantile_interval(np.asarray(v), config.confidence) for k, v in draws.items()}


def _binomial(inside: np.ndarray) -> Share:
    """Share of successes with Wilson's 99% interval."""
    z, n = 2.5758, len(inside)
    p = inside.mean()
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Share(float(p), float(middle - half), float(middle + half))
