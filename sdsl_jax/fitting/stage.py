"""The fitting stage of a study: records in, `fits.json` out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from sdsl_jax.config import FitConfig, StudyConfig, TrainingConfig, load_study
from sdsl_jax.errors import require
from sdsl_jax.fitting.acceptance import PairTable, fit_acceptance_laws, pair_table
from sdsl_jax.fitting.discrepancy import (
    Discrepancy,
    Variable,
    fit_discrepancy,
    gradients,
)
from sdsl_jax.fitting.forms import form_of
from sdsl_jax.fitting.hardware import fit_hardware, predicted_seconds, timed_context, timings_of
from sdsl_jax.fitting.law_files import DeviceRecord, Fits, LawRecord, TimedStep
from sdsl_jax.fitting.loss import LossTable, fit_loss_law, loss_table
from sdsl_jax.fitting.tables import span
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord, column
from sdsl_jax.records.documents import document
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.statistics import resampled, root_mean_square, stream
from sdsl_jax.theory import AcceptanceLaw, LossLaw, Precision, ShapeRule

# Everything is timed in float32.
TIMED_PRECISION = Precision(4.0, 4.0)


def fit_all(
    config: StudyConfig,
    models: list[ModelRecord],
    acceptance: list[AcceptanceRecord],
    latency: list[LatencyRecord],
) -> Fits:
    """Fits every law of a study: what `fits.json` holds.

    Raises:
      SdslError: There are too few models for the laws, or they were trained for different things.
    """
    weights = joint_weights(config.fit, models, config.seed)
    rule = fitted_rule(config)
    ranges = {
        f"{role}_{name}": span(column([m for m in models if m.role == role], column_name))
        for role in ("draft", "target")
        for name, column_name in (("params", "params_nonembedding"), ("loss", "loss_nats"))
    }
    device = describe_hardware(models, latency, rule, config.fit.starts, config.seed)
    # One law describes one recipe, and none a training that nothing is known of.
    recipe = _recipe(config)
    alike = [
        i
        for i, model in enumerate(models)
        if model.training_is_known and (recipe is None or _of_recipe(recipe, model))
    ]
    # Records without the column count as new text.
    fresh = [i for i in alike if not models[i].epochs > config.fit.max_epochs]
    once = [models[i] for i in fresh]
    require(
        len(once) >= 5,
        f"only {len(once)} of {len(models)} models are of one recipe and saw their text at most fit.max_epochs = "
        f"{config.fit.max_epochs:g} times; the loss law needs 5.",
    )
    losses = loss_table(once)
    loss_fit = fit_loss_law(losses, config.fit, weights[:, fresh], config.seed, config.fit.loss_law)
    pairs = pair_table(models, acceptance, config.fit.estimator)
    if config.holdout.smaller_drafts:
        pairs = pairs.rows(pairs.draft_sizes < pairs.target_sizes)
    drawn = weights[:, pairs.draft_model] * weights[:, pairs.target_model]
    basis = f"{loss_fit.record.interval_basis}, shared by all laws; a pair weighs its draft's weight times its target's"
    acceptance_fits = fit_acceptance_laws(pairs, config.fit, drawn, config.seed, basis)
    return Fits(
        loss_law=_with_discrepancy(
            loss_fit.record,
            loss_discrepancy(loss_fit.law, losses, config.fit.bootstrap, config.seed),
            params_count="non-embedding",
            split="test",
            excluded_for_epochs=len(alike) - len(once),
            excluded_for_recipe=len(models) - len(alike),
            valid={
                "params": span(column(once, "params_nonembedding")),
                "tokens": span(column(once, "train_tokens")),
            },
            residuals={m.model_id: float(r) for m, r in zip(once, loss_fit.residuals)},
        ),
        acceptance_laws=[
            _with_discrepancy(
                fitted.record,
                acceptance_discrepancy(fitted.law, pairs, config.fit.bootstrap, config.seed),
                estimator=config.fit.estimator,
                valid=ranges,
            )
            for fitted in acceptance_fits
        ],
        hardware=device,
        shape_rule={k: float(v) for k, v in rule._asdict().items()},
    )


def _with_discrepancy(record: LawRecord, found: Discrepancy, **changes: Any) -> LawRecord:
    """A fitted law with what its form misses, and with what cannot be relied on of that."""
    warnings = [*(record.warnings or []), *found.warnings]
    return dataclasses.replace(record, discrepancy=found, warnings=warnings, **changes)


def loss_discrepancy(law: LossLaw, table: LossTable, draws: int, seed: int) -> Discrepancy:
    """What the form of a fitted loss law misses in size and in tokens; models of one run share an
    error."""
    return fit_discrepancy(
        gradients(law, table.params, table.tokens),
        np.log(np.asarray(law(table.params, table.tokens)) / table.loss),
        {"params": Variable(table.params, table.rungs), "tokens": Variable(table.tokens)},
        unit="log of the loss",
        draws=draws,
        random=stream(seed, "discrepancy", form_of(law).name),
    )


def acceptance_discrepancy(
    law: AcceptanceLaw, table: PairTable, draws: int, seed: int
) -> Discrepancy:
    """What the form of a fitted acceptance law misses in the sizes of draft and target; pairs of one
    run share an error, and pairs of one model another."""
    tokens = np.where(np.isfinite(table.draft.tokens), table.draft.tokens, 1.0)
    points = table.draft._replace(tokens=tokens), table.target
    return fit_discrepancy(
        gradients(law, *points),
        np.asarray(law(*points)) - table.alpha,
        {
            "draft_params": Variable(table.draft_sizes, table.draft_run, table.draft_model),
            "target_params": Variable(table.target_sizes, table.target_run, table.target_model),
        },
        unit="acceptance probability",
        draws=draws,
        random=stream(seed, "discrepancy", form_of(law).name),
    )


def _recipe(config: StudyConfig) -> TrainingConfig | None:
    """The recipe of the models that laws are fitted to: that of the ladder that drafts start from,
    where there is one; None if it is not known."""
    if not config.distil.init_from:
        return config.training
    given = Path(config.distil.init_from) / "config.toml"
    return load_study(given).training if given.exists() else None


def _of_recipe(recipe: TrainingConfig, model: ModelRecord) -> bool:
    """Whether a model was trained by a recipe, as far as its record shows: records of older studies
    and of other programs lack the columns, and count as alike."""
    size, known = model.params_nonembedding, not math.isnan(model.learning_rate)
    return not known or (
        math.isclose(model.learning_rate, recipe.peak_learning_rate(size), rel_tol=1e-6)
        and model.batch_size == recipe.batch(size)
    )


def describe_hardware(
    models: list[ModelRecord], latency: list[LatencyRecord], rule: ShapeRule, starts: int, seed: int
) -> DeviceRecord:
    """The device that the steps were timed on, as `fits.json` holds it, with the timed steps
    themselves.

    Raises:
      SdslError: Too few steps, or steps of too few sizes, were timed.
    """
    names = {model.model_id for model in models}
    rows = [r for r in latency if r.model_id in names]
    timings = timings_of(models, rows, rule)
    fitted = fit_hardware(timings, TIMED_PRECISION, starts, seed)
    predicted = predicted_seconds(fitted.hardware, timings, TIMED_PRECISION)
    verify: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.operation == "verify":
            verify.setdefault(row.model_id, {})[str(row.width - 1)] = row.seconds
    return DeviceRecord(
        # JSON has no infinity: a coefficient that nothing is known of is left out, and keeps its
        # default when it is read.
        coefficients={k: float(v) for k, v in fitted.hardware._asdict().items() if np.isfinite(v)},
        precision={k: float(v) for k, v in TIMED_PRECISION._asdict().items()},
        batch=float(rows[0].batch),
        context=timed_context(rows[0]),
        rmse_log=root_mean_square(fitted.residuals),
        median_absolute_error=float(np.median(np.abs(fitted.residuals))),
        starts_agreeing=fitted.starts_agreeing,
        condition_number=fitted.condition_number,
        warnings=[]
        if fitted.status is SolverStatus.CONVERGED
        else [f"the fit of the device {fitted.status.message}"],
        rows=[
            document(TimedStep, row, predicted_seconds=float(seconds), residual_log=float(residual))
            for row, seconds, residual in zip(rows, predicted, fitted.residuals)
        ],
        decode_seconds={r.model_id: r.seconds for r in rows if r.operation == "decode"},
        verify_seconds_by_lookahead=verify,
    )


def fitted_rule(config: StudyConfig) -> ShapeRule:
    """The smooth shape rule of the study's family."""
    # Flax loads with the models, in a fifth of a second that laws alone need not take.
    from sdsl_jax.models import shape_rule

    return shape_rule(config.family, config.data.vocab_size, config.data.sequence_length)


def joint_weights(config: FitConfig, models: list[ModelRecord], seed: int) -> np.ndarray:
    """Bootstrap weights of all models, one ladder a draw: draw i of one law then belongs to draw i
    of another.

    Drafts and targets are drawn apart, so that every draw has both.
    """
    labels = np.arange(len(models)) if config.resample == "rows" else loss_table(models).rungs
    roles = np.asarray(column(models, "role"))
    weights = np.zeros((config.bootstrap, len(models)))
    for number, role in enumerate(np.unique(roles)):
        weights[:, roles == role] = resampled(
            labels[roles == role], config.bootstrap, seed + number
        )
    return weights
