"""The fitting stage: records in, `fits.json` out, and back into laws."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.errors import SdslError, require
from sdsl_jax.fitting.estimate import LawFit, bootstrap_weights, fit_acceptance, fit_loss, fit_step_time
from sdsl_jax.models import shape_rule
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord, column
from sdsl_jax.theory import ACCEPTANCE_LAWS, AcceptanceLaw, ChinchillaLaw, ShapeRule, StepTimeLaw, coefficients


def fit_all(
    config: StudyConfig,
    models: list[ModelRecord],
    acceptance: list[AcceptanceRecord],
    latency: list[LatencyRecord],
) -> dict[str, Any]:
    """Fits every law of a study and returns what `fits.json` holds."""
    weights = bootstrap_weights(len(models), config.fit.bootstrap, config.seed)
    rule = fitted_rule(config)
    ranges = {
        f"{role}_{name}": _span([m for m in models if m.role == role], column_name)
        for role in ("draft", "target")
        for name, column_name in (("params", "params_nonembedding"), ("loss", "loss_nats"))
    }
    verify: dict[str, dict[str, float]] = {}
    for row in latency:
        if row.operation == "verify":
            verify.setdefault(row.model_id, {})[str(row.width - 1)] = row.seconds
    step_time = fit_step_time(models, latency, rule, config.fit.starts, config.seed)
    # Records without the column count as new text.
    fresh = [i for i, model in enumerate(models) if not model.epochs > config.fit.max_epochs]
    once = [models[i] for i in fresh]
    require(
        len(once) >= 5,
        f"only {len(once)} models saw their text at most fit.max_epochs = {config.fit.max_epochs:g} times; the loss law needs 5.",
    )
    loss_fit = fit_loss(once, config.fit, weights[:, fresh], config.seed)
    return {
        "loss_law": _describe(loss_fit, config, config.fit.huber_delta)
        | {"params_count": "non-embedding", "split": "test", "excluded_for_epochs": len(models) - len(once)}
        | {"valid": {"params": _span(once, "params_nonembedding"), "tokens": _span(once, "train_tokens")}},
        "acceptance_laws": [
            _describe(made, config, config.fit.acceptance_huber_delta)
            | {"estimator": config.fit.estimator, "valid": ranges}
            for made in fit_acceptance(models, acceptance, config.fit, weights, config.seed)
        ],
        "step_time": {
            "coefficients": {k: float(v) for k, v in step_time.law._asdict().items()},
            "rmse_log": step_time.rmse,
            "rows": step_time.rows,
            "decode_seconds": {r.model_id: r.seconds for r in latency if r.operation == "decode"},
            "verify_seconds_by_lookahead": verify,
        },
        "shape_rule": {k: float(v) for k, v in rule._asdict().items()},
    }


def fitted_rule(config: StudyConfig) -> ShapeRule:
    """The smooth shape rule of the study's family."""
    return shape_rule(config.family, config.data.vocab_size, config.data.sequence_length)


def _span(models: list[ModelRecord], name: str) -> list[float]:
    """The smallest and largest value of a column: where a law was fitted."""
    values = column(models, name)
    return [float(min(values)), float(max(values))]


def _describe(made: LawFit, config: StudyConfig, delta: float) -> dict[str, Any]:
    tail = (1 - config.fit.confidence) / 2
    draws = {k: np.asarray(v, float) for k, v in coefficients(made.draws).items()}
    return {
        "law": made.name,
        "coefficients": {k: float(v) for k, v in coefficients(made.law).items()},
        "standard_error": {k: float(v.std(ddof=1)) for k, v in draws.items()},
        f"interval_{round(100 * config.fit.confidence)}": {
            k: [float(x) for x in np.quantile(v, [tail, 1 - tail])] for k, v in draws.items()
        },
        "interval_basis": f"bootstrap over models, as if the budgets of one run were independent; {config.fit.bootstrap} draws "
        "shared by all laws",
        "objective": made.objective,
        "n": made.rows,
        "huber_delta": delta,
        "starts": made.starts,
        "starts_agreeing": made.starts_agreeing,
        "condition_number": made.condition_number,
        "rmse": made.rmse,
        "leave_one_draft_out_rmse": made.left_out_rmse,
        "residual_unit": made.residual_unit,
        "warnings": made.warnings,
        "draws": {k: [float(f"{x:.8g}") for x in v] for k, v in draws.items()},
    }


class FittedLaws(NamedTuple):
    """The laws of a `fits.json`, with bootstrap draws that belong together: draw i of one law goes with draw i of another."""

    loss: ChinchillaLaw
    loss_draws: ChinchillaLaw
    acceptance: dict[str, AcceptanceLaw]
    acceptance_draws: dict[str, AcceptanceLaw]
    step_time: StepTimeLaw
    verify_seconds: dict[str, dict[int, float]]
    decode_seconds: dict[str, float]
    rule: ShapeRule


def read_laws(fits: dict[str, Any]) -> FittedLaws:
    """Laws from the contents of `fits.json`; acceptance laws in their order there, the best first.

    Raises:
      SdslError: something is missing.
    """
    try:
        loss_draws: dict[str, Any] = {k: np.asarray(v) for k, v in fits["loss_law"]["draws"].items()}
        draws = {f["law"]: {k: np.asarray(v) for k, v in f["draws"].items()} for f in fits["acceptance_laws"]}
        laws = {f["law"]: f["coefficients"] for f in fits["acceptance_laws"]}
        return FittedLaws(
            loss=ChinchillaLaw(**fits["loss_law"]["coefficients"]),
            loss_draws=ChinchillaLaw(**loss_draws),
            acceptance={name: ACCEPTANCE_LAWS[name](**c) for name, c in laws.items()},
            acceptance_draws={name: ACCEPTANCE_LAWS[name](**c) for name, c in draws.items()},
            step_time=StepTimeLaw(**fits["step_time"]["coefficients"]),
            verify_seconds={
                target: {int(g): s for g, s in widths.items()}
                for target, widths in fits["step_time"]["verify_seconds_by_lookahead"].items()
            },
            decode_seconds=fits["step_time"]["decode_seconds"],
            rule=ShapeRule(**fits["shape_rule"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SdslError(f"the fitted laws (fits.json) are damaged: {error} is missing or of the wrong kind.") from None
