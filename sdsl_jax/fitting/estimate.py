"""From records to the coefficients of `theory`'s laws, with joint bootstrap draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.config import FitConfig
from sdsl_jax.errors import require
from sdsl_jax.fitting.solver import fit, refit
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord, column
from sdsl_jax.theory import AffinePlane, ChinchillaLaw, LogitGap, ModelPoint, ShapeRule, StepTimeLaw, coefficients

# Past this condition number of the scaled Jacobian, some combination of coefficients moves without the fit noticing.
_ILL_CONDITIONED = 100.0


class LawFit(NamedTuple):
    """A fitted law.

    Attributes:
      name: of the law.
      law: the coefficients.
      draws: the same law, each coefficient an array [draws] of bootstrap values.
      objective: Huber objective at the optimum.
      rows: observations.
      starts: descents.
      starts_agreeing: share of them that reached the best objective.
      condition_number: of the scaled Jacobian.
      rmse: root mean square residual, in the units of `residual_unit`.
      left_out_rmse: the same where the rows of each draft size are predicted by a fit that did not see them; NaN if not computed.
      residual_unit: what a residual is.
      warnings: what this fit cannot tell.
    """

    name: str
    law: Any
    draws: Any
    objective: float
    rows: int
    starts: int
    starts_agreeing: float
    condition_number: float
    rmse: float
    left_out_rmse: float
    residual_unit: str
    warnings: list[str]


class _LossData(NamedTuple):
    log_params: Array  # centred
    log_tokens: Array  # centred
    log_loss: Array


# Exponents of published laws lie between .05 (Kaplan) and .6; wider bounds only keep a fit from running off to infinity
# where the data do not hold it.
_EXPONENTS = (0.02, 2.0)
# Smallest E as a share of the smallest loss; an E that ends here is one that the data do not show.
_SMALLEST_E = 1e-6


def _loss_terms(x: Array, largest_e: Array | float) -> tuple[Array, Array, Array, Array, Array]:
    """(ln E, ln A′, ln B′, a, b) from unbounded parameters: E below the smallest loss, and exponents within bounds.

    A′ and B′ are the two terms at the mean of ln N and ln D.
    """
    low, high = _EXPONENTS
    exponents = low * (high / low) ** jax.nn.sigmoid(x[3:])
    log_e = jnp.log(largest_e * (_SMALLEST_E + (1 - _SMALLEST_E) * jax.nn.sigmoid(x[0])))
    return log_e, x[1], x[2], exponents[0], exponents[1]


def _log_loss_residuals(x: Array, data: _LossData) -> Array:
    """ln L̂ − ln L with L̂ = Σ exp of (ln E, ln A′ − a·ln N, ln B′ − b·ln D), on centred logs so that they hardly correlate."""
    log_e, log_a, log_b, a, b = _loss_terms(x, jnp.exp(data.log_loss.min()))
    flat = jnp.broadcast_to(log_e, data.log_params.shape)
    terms = jnp.stack([flat, log_a - a * data.log_params, log_b - b * data.log_tokens])
    return jax.nn.logsumexp(terms, axis=0) - data.log_loss


def bootstrap_weights(groups: int, draws: int, seed: int) -> Float[np.ndarray, "draws groups"]:
    """How often each group is drawn in each bootstrap resample."""
    random = np.random.default_rng(seed)
    return random.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(float)


def fit_loss(
    models: list[ModelRecord], config: FitConfig, weights: Float[np.ndarray, "draws models"], seed: int
) -> LawFit:
    """Fits L(N, D) = E + A/N^a + B/D^b to test losses; N counts non-embedding parameters.

    Args:
      models: at least 6 rows, with at least 2 sizes and 2 token budgets.
      config: of the fit.
      weights: bootstrap weights of the models.
      seed: of the starts.

    Raises:
      SdslError: the rows cannot determine the law.
    """
    n, d = (np.asarray(column(models, name), float) for name in ("params_nonembedding", "train_tokens"))
    require(
        len(models) >= 6 and len(set(n)) >= 2 and len(set(d)) >= 2,
        f"the loss law has 5 coefficients, and there are {len(models)} models of {len(set(n))} sizes and {len(set(d))} token "
        "budgets; it needs at least 6 models, 2 sizes and 2 budgets.",
    )
    loss = np.asarray(column(models, "loss_nats"), float)
    centre_n, centre_d = np.log(n).mean(), np.log(d).mean()
    random = np.random.default_rng(seed)
    share = random.dirichlet(np.ones(3), config.starts)  # how the mean loss is divided among the three terms
    level = np.log(share[:, 0] / (1 - share[:, 0]))
    scales = np.log(share[:, 1:] * loss.mean())
    starts = np.concatenate([level[:, None], scales, random.normal(0, 1, (config.starts, 2))], axis=1)
    with jax.enable_x64(True):
        data = _LossData(
            jnp.asarray(np.log(n) - centre_n), jnp.asarray(np.log(d) - centre_d), jnp.asarray(np.log(loss))
        )
        best = fit(_log_loss_residuals, jnp.asarray(starts), data, jnp.ones(len(models)), config.huber_delta)
        # Each resample starts from the optimum, and from the optimum with E at a fifth, half and 80 % of the smallest loss.
        levels = jnp.log(jnp.array([0.25, 1.0, 4.0]))
        around = jnp.concatenate([best.parameters[None], jnp.tile(best.parameters, (3, 1)).at[:, 0].set(levels)])
        draws = refit(_log_loss_residuals, around, data, jnp.asarray(weights), config.huber_delta)

        def law(x: Array) -> ChinchillaLaw:
            e, log_a, log_b, a, b = (np.asarray(v) for v in _loss_terms(x.T, loss.min()))
            return ChinchillaLaw(np.exp(e), np.exp(log_a + a * centre_n), np.exp(log_b + b * centre_d), a, b)

        made = LawFit(
            name="chinchilla",
            law=law(best.parameters),
            draws=law(draws),
            objective=float(best.objective),
            rows=len(models),
            starts=config.starts,
            starts_agreeing=float(best.starts_agreeing),
            condition_number=float(best.condition_number),
            rmse=float(np.sqrt(np.square(best.residuals).mean())),
            left_out_rmse=float("nan"),
            residual_unit="log of nats per token",
            warnings=[],
        )
    per_parameter = np.log(d / n)
    warnings = _unidentified(made, config) + _design_warnings(per_parameter, len(models))
    if loss.min() * 1e-3 > made.law.E:
        warnings = [w for w in warnings if not w.startswith("E ")]
        warnings.insert(
            0, "E is not identified at this scale: the best fit has none, so losses far beyond the ladder are too low"
        )
    return made._replace(warnings=warnings)


def _design_warnings(log_tokens_per_parameter: np.ndarray, rows: int) -> list[str]:
    warnings = []
    if np.ptp(log_tokens_per_parameter) < np.log(1.5):
        warnings.append("every model has about the same tokens per parameter: a and b cannot be told apart")
    if rows < 15:
        warnings.append(
            f"{rows} models for 5 coefficients: use the law between the sizes that were trained, not beyond them"
        )
    return warnings


def _unidentified(made: LawFit, config: FitConfig) -> list[str]:
    """Which coefficients the data leave open, by their intervals and by the condition number."""
    warnings = []
    tail = (1 - config.confidence) / 2
    for name, value, drawn in zip(
        coefficients(made.law), coefficients(made.law).values(), coefficients(made.draws).values()
    ):
        low, high = np.quantile(drawn, [tail, 1 - tail])
        if low <= 0 <= high or max(abs(value / low), abs(high / value)) > 2:
            warnings.append(
                f"{name} is not identified at this scale: {config.confidence:.0%} interval [{low:.3g}, {high:.3g}]"
            )
    if made.condition_number > _ILL_CONDITIONED:
        warnings.append(
            f"the coefficients trade off against one another (condition number {made.condition_number:.0f})"
        )
    return warnings


class _PairData(NamedTuple):
    draft: ModelPoint
    target: ModelPoint
    alpha: Array


def _affine_residuals(x: Array, data: _PairData) -> Array:
    return AffinePlane(*x)(data.draft, data.target) - data.alpha


def _logit_residuals(x: Array, data: _PairData) -> Array:
    return LogitGap(*x)(data.draft, data.target) - data.alpha


# For each law its residuals and a start; both problems are convex enough that jittered starts end in one place.
_ACCEPTANCE_FITS = {
    "logit_gap": (LogitGap, _logit_residuals, np.array([1.5, 2.0])),
    "affine_plane": (AffinePlane, _affine_residuals, np.array([-0.1, 0.1, 0.7])),
}


def fit_acceptance(
    models: list[ModelRecord],
    acceptance: list[AcceptanceRecord],
    config: FitConfig,
    weights: Float[np.ndarray, "draws models"],
    seed: int,
) -> list[LawFit]:
    """Fits every acceptance law to the α of the configured estimator, the best by left-out drafts first.

    Args:
      models: rows that give the losses of drafts and targets.
      acceptance: rows of any estimator; those of `config.estimator` are used.
      config: of the fit.
      weights: bootstrap weights of the models; a pair weighs as often as its draft was drawn, so that a resample of
        the ladder is the same one here as in `fit_loss`.
      seed: of the starts.

    Raises:
      SdslError: there are too few pairs.
    """
    by_id = {model.model_id: i for i, model in enumerate(models)}
    rows = [r for r in acceptance if r.estimator == config.estimator and r.draft_id in by_id and r.target_id in by_id]
    require(
        len({r.draft_id for r in rows}) >= 4,
        f"the acceptance laws need pairs of at least 4 drafts measured by {config.estimator}; the records hold "
        f"{len({r.draft_id for r in rows})}.",
    )
    draft = np.asarray([by_id[r.draft_id] for r in rows])
    target = np.asarray([by_id[r.target_id] for r in rows])
    loss, alpha = np.asarray(column(models, "loss_nats"), float), np.asarray(column(rows, "alpha"), float)
    # A draft is left out with all its budgets: they share a trunk, and one would give the others away.
    params = np.asarray(column(models, "params_nonembedding"), float)
    sizes = params[draft]
    left_out = np.stack([sizes != size for size in np.unique(sizes)]).astype(float)
    fits = []
    for name, (law, residuals, start) in _ACCEPTANCE_FITS.items():
        starts = start * np.random.default_rng(seed).uniform(0.3, 2.0, (config.starts, len(start)))
        with jax.enable_x64(True):
            points = [ModelPoint(jnp.asarray(params[of]), jnp.asarray(loss[of])) for of in (draft, target)]
            data = _PairData(points[0], points[1], jnp.asarray(alpha))
            delta = config.acceptance_huber_delta
            best = fit(residuals, jnp.asarray(starts), data, jnp.ones(len(rows)), delta)
            draws = refit(residuals, best.parameters[None], data, jnp.asarray(weights[:, draft]), delta)
            without = refit(residuals, best.parameters[None], data, jnp.asarray(left_out), delta)
            errors = np.asarray(jax.vmap(lambda x, data=data, residuals=residuals: residuals(x, data))(without))
        made = LawFit(
            name=name,
            law=law(*np.asarray(best.parameters)),
            draws=law(*np.asarray(draws).T),
            objective=float(best.objective),
            rows=len(rows),
            starts=config.starts,
            starts_agreeing=float(best.starts_agreeing),
            condition_number=float(best.condition_number),
            rmse=float(np.sqrt(np.square(best.residuals).mean())),
            left_out_rmse=float(np.sqrt(np.square(errors[left_out == 0]).mean())),
            residual_unit="acceptance probability",
            warnings=[],
        )
        warnings = _unidentified(made, config)
        targets = len(np.unique(target))
        if targets < 3:
            warnings.append(
                f"fitted on {targets} target{'s' if targets > 1 else ''}: how α depends on the target is a guess"
            )
        fits.append(made._replace(warnings=warnings))
    return sorted(fits, key=lambda made: made.left_out_rmse)


class _TimeData(NamedTuple):
    params: Array
    log_seconds: Array
    rule: ShapeRule


def _step_time_residuals(x: Array, data: _TimeData) -> Array:
    return jnp.log(StepTimeLaw(*jnp.exp(x))(data.params, data.rule)) - data.log_seconds


def fit_step_time(
    models: list[ModelRecord], latency: list[LatencyRecord], rule: ShapeRule, starts: int, seed: int
) -> LawFit:
    """Fits seconds per one-token step = overhead + share per layer + share per FLOP, all three positive.

    Raises:
      SdslError: fewer than 4 sizes were timed.
    """
    by_id = {model.model_id: model for model in models}
    rows = [r for r in latency if r.operation == "decode" and r.model_id in by_id]
    sizes = np.asarray([by_id[r.model_id].params_nonembedding for r in rows], float)
    require(
        len(set(sizes)) >= 4, f"the step-time law needs decode steps of at least 4 sizes; {len(set(sizes))} were timed."
    )
    seconds = np.asarray(column(rows, "seconds"), float)
    guess = np.log([seconds.min() / 2, seconds.min() / 4, seconds.max() / 2 / (2 * sizes.max())])
    random = np.random.default_rng(seed)
    with jax.enable_x64(True):
        data = _TimeData(jnp.asarray(sizes), jnp.asarray(np.log(seconds)), rule)
        begin = jnp.asarray(guess + random.normal(0, 1, (starts, 3)))
        best = fit(_step_time_residuals, begin, data, jnp.ones(len(rows)), 0.1)
        law = StepTimeLaw(*np.exp(np.asarray(best.parameters)))
    return LawFit(
        name="step_time",
        law=law,
        draws=law,
        objective=float(best.objective),
        rows=len(rows),
        starts=starts,
        starts_agreeing=float(best.starts_agreeing),
        condition_number=float(best.condition_number),
        rmse=float(np.sqrt(np.square(best.residuals).mean())),
        left_out_rmse=float("nan"),
        residual_unit="log of seconds",
        warnings=[],
    )
