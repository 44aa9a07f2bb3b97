"""What the fits leave over, and whether their intervals cover what they claim to."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from sdsl_jax.config import FitConfig
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.evidence.law_comparison import predicted
from sdsl_jax.fitting.acceptance import pair_table
from sdsl_jax.fitting.forms import LOSS_FORMS, loss_data
from sdsl_jax.fitting.law_fit import best_fit, bootstrap
from sdsl_jax.fitting.loss import LossTable, loss_table
from sdsl_jax.fitting.stage import joint_weights
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import mean_interval
from sdsl_jax.theory import ACCEPTANCE_LAWS, LOSS_LAWS, coefficients


def _fitted(inputs: Inputs) -> list[ModelRecord]:
    """The models that the loss law was fitted to."""
    return [m for m in inputs.models if m.model_id in inputs.fits["loss_law"]["residuals"]]


def residuals(inputs: Inputs) -> dict[str, Any] | None:
    """Residuals of the loss law by size and of the best acceptance law by draft and target, with what they share."""
    if "loss_law" not in inputs.fits:
        return None
    models = _fitted(inputs)
    found = inputs.fits["loss_law"]["residuals"]
    # Predicted − measured, so that the sign is turned: positive where the model is worse than the
    # law.
    loss = -np.asarray([found[m.model_id] for m in models])
    sizes = np.asarray([m.params_nonembedding for m in models])
    fit = inputs.fits["acceptance_laws"][0]
    table = pair_table(inputs.models, inputs.acceptance, inputs.config.fit.estimator)
    alpha = table.alpha - predicted(ACCEPTANCE_LAWS[fit["law"]](**fit["coefficients"]), table)
    confidence = inputs.config.fit.confidence

    def by(values: np.ndarray, groups: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "size": int(size),
                "mean": float(values[groups == size].mean()),
                "n": int((groups == size).sum()),
            }
            for size in np.unique(groups)
        ]

    seeds = _seed_scatter(models)
    return {
        "loss_by_size": by(loss, sizes),
        "loss_points": [
            {
                "model_id": m.model_id,
                "residual": float(r),
                "params": m.params_nonembedding,
                "tokens": m.train_tokens,
            }
            for m, r in zip(models, loss)
        ],
        "loss_rmse": float(np.sqrt(np.square(loss).mean())),
        "loss_share_between_sizes": _share_between(loss, sizes),
        "seed_deviation": seeds,
        "alpha_law": fit["law"],
        "alpha_by_draft": by(alpha, table.draft_sizes),
        "alpha_by_target": by(alpha, table.target_sizes),
        "alpha_points": [
            {
                "residual": float(r),
                "draft_params": int(n),
                "target_params": int(m),
                "predicted": float(a - r),
            }
            for r, n, m, a in zip(alpha, table.draft_sizes, table.target_sizes, table.alpha)
        ],
        "alpha_rmse": float(np.sqrt(np.square(alpha).mean())),
        "alpha_share_between_drafts": _share_between(alpha, table.draft_sizes),
        "alpha_share_between_targets": _share_between(alpha, table.target_sizes),
        "alpha_mean": mean_interval(alpha, confidence)._asdict(),
        "basis": "measured − predicted, ln of the loss and α; share between sizes: of the residual sum of squares, what the "
        "means of the sizes explain, with the share that chance alone would give subtracted (adjusted R²)",
    }


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


def coverage(inputs: Inputs) -> dict[str, Any] | None:
    """How often the intervals of the loss law hold the truth, on this very design.

    Tables are simulated from the fitted law with scatter of the size that the fit left, a part of
    it shared by each rung as the residuals say, and refitted with the same bootstrap. None unless
    `fit.coverage` asks for simulations.
    """
    count = inputs.config.fit.coverage
    if count == 0 or "loss_law" not in inputs.fits:
        return None
    law = inputs.fits["loss_law"]
    truth = LOSS_LAWS[law["law"]](**law["coefficients"])
    models = _fitted(inputs)
    table = loss_table(models)
    exact = np.asarray(truth(table.params, table.tokens), float)
    shared = max(
        0.0,
        _share_between(np.asarray([law["residuals"][m.model_id] for m in models]), table.rungs)
        or 0,
    )
    random = np.random.default_rng(inputs.config.seed)
    config = dataclasses.replace(inputs.config.fit, starts=8, bootstrap=100)
    inside: dict[str, list[bool]] = {name: [] for name in law["coefficients"]}
    for number in range(count):
        rung = random.standard_normal(table.rungs.max() + 1)[table.rungs]
        noise = np.sqrt(shared) * rung + np.sqrt(1 - shared) * random.standard_normal(len(exact))
        drawn = table._replace(loss=exact * np.exp(law["rmse"] * noise))
        weights = joint_weights(config, models, number)
        for name, (low, high) in _intervals(drawn, law["law"], config, weights, number).items():
            inside[name].append(low <= law["coefficients"][name] <= high)
    return {
        "simulations": count,
        "confidence": config.confidence,
        "resample": config.resample,
        "shared_by_rung": shared,
        "coverage": {name: _binomial(np.asarray(values)) for name, values in inside.items()},
        "basis": f"{count} tables simulated from the fitted law on the same design, residual scatter {law['rmse']:.3g}, of which "
        f"{shared:.0%} is shared by the models of a rung; each refitted with {config.bootstrap} resamples of {config.resample}; "
        "in brackets the 99% binomial interval (Wilson)",
    }


def _intervals(
    table: LossTable, law: str, config: FitConfig, weights: np.ndarray, seed: int
) -> dict[str, tuple[float, float]]:
    """The bootstrap intervals of a study's loss law, and nothing else of its fit."""
    form, delta = LOSS_FORMS[law], config.huber_delta
    tail = (1 - config.confidence) / 2
    with jax.enable_x64(True):
        data = loss_data(table.params, table.tokens, table.loss)
        best = best_fit(form, data, np.ones(len(table.loss)), delta, config.starts, seed)
        draws = coefficients(bootstrap(form, best, data, weights, delta)[0])
    return {k: tuple(np.quantile(np.asarray(v), [tail, 1 - tail])) for k, v in draws.items()}


def _binomial(inside: np.ndarray) -> dict[str, float]:
    """Share of successes with Wilson's 99% interval."""
    z, n = 2.5758, len(inside)
    p = inside.mean()
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return {"share": float(p), "low": float(middle - half), "high": float(middle + half)}
