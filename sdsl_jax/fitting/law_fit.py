"""One law fitted to one table, with everything that is uncertain about it, and as what `fits.json` holds."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.fitting.forms import Form
from sdsl_jax.fitting.inference import covariance, pin_of, profile_intervals, starting_points
from sdsl_jax.fitting.law_files import LawRecord
from sdsl_jax.fitting.solver import Fit, fit, refit
from sdsl_jax.theory import coefficients

# Past this condition number of the scaled Jacobian, some combination of coefficients moves without
# the fit noticing.
_ILL_CONDITIONED = 100.0


class LawFit(NamedTuple):
    """A fitted law.

    Attributes:
      name: of the law.
      law: the coefficients.
      draws: the same law, each coefficient an array [draws] of bootstrap values.
      covariance: of the coefficients at the optimum, in their order, [P, P].
      profile: for every coefficient the two ends of its profile interval.
      confidence: of the intervals.
      objective: Huber objective at the optimum.
      residuals: predicted − measured, in `residual_unit`, [rows].
      starts: descents.
      starts_agreeing: share of them that reached the best objective.
      condition_number: of the scaled Jacobian.
      huber_delta: where the loss turns from square to linear.
      left_out_rmse: root mean square residual where the rows of each size (of drafts, for an
        acceptance law) are predicted by a fit that did not see them; NaN where there are too few
        sizes.
      residual_unit: what a residual is.
      basis: what the draws are.
      warnings: what this fit cannot tell.
      r_squared: share of the variance of what was measured that the law explains; NaN where that is
        not what it was fitted in.
    """

    name: str
    law: Any
    draws: Any
    covariance: np.ndarray
    profile: dict[str, tuple[float, float]]
    confidence: float
    objective: float
    residuals: np.ndarray
    starts: int
    starts_agreeing: float
    condition_number: float
    huber_delta: float
    left_out_rmse: float
    residual_unit: str
    basis: str
    warnings: list[str]
    r_squared: float = float("nan")

    @property
    def rmse(self) -> float:
        """Root mean square residual."""
        return float(np.sqrt(np.square(self.residuals).mean()))

    def record(self) -> LawRecord:
        """Plain values, as `fits.json` and `sdsl fit --json` hold them."""
        tail = (1 - self.confidence) / 2
        draws = {k: np.asarray(v, float) for k, v in coefficients(self.draws).items()}
        with np.errstate(over="ignore"):  # a scale that nothing holds may take any value
            errors = {k: float(v.std(ddof=1)) for k, v in draws.items()}
        ends = {k: np.quantile(v, [tail, 1 - tail]) for k, v in draws.items()}
        return LawRecord(
            law=self.name,
            coefficients={k: float(v) for k, v in coefficients(self.law).items()},
            standard_error=errors,
            confidence=self.confidence,
            interval={k: (float(low), float(high)) for k, (low, high) in ends.items()},
            interval_basis=self.basis,
            profile_interval=self.profile,
            covariance=self.covariance.tolist(),
            objective=self.objective,
            n=len(self.residuals),
            huber_delta=self.huber_delta,
            starts=self.starts,
            starts_agreeing=self.starts_agreeing,
            condition_number=self.condition_number,
            rmse=self.rmse,
            r_squared=self.r_squared if np.isfinite(self.r_squared) else None,
            left_out_rmse=self.left_out_rmse,
            residual_unit=self.residual_unit,
            warnings=self.warnings,
            draws={k: [float(f"{x:.8g}") for x in v] for k, v in draws.items()},
        )


@functools.partial(jax.jit, static_argnames="form")
def law_of(form: Form, x: Array, data: Any) -> Any:
    """The law of one vector."""
    return form.to_law(x, data)


@functools.partial(jax.jit, static_argnames="form")
def laws_of(form: Form, x: Array, data: Any) -> Any:
    """The law whose coefficients are arrays, from as many vectors."""
    return jax.vmap(lambda each: form.to_law(each, data))(x)


def fit_form(
    form: Form,
    data: Any,
    weights: Float[np.ndarray, "draws n"],
    *,
    delta: float,
    starts: int,
    confidence: float,
    seed: int,
    residual_unit: str,
    basis: str,
) -> tuple[LawFit, Fit]:
    """Fits a law to a table: the best of many starts, bootstrap draws, covariance and profiles.
    Call within `jax.enable_x64`.

    Args:
      form: the law.
      data: the table.
      weights: how often each row counts in each bootstrap resample.
      delta: of the Huber loss.
      starts: descents.
      confidence: of the intervals.
      seed: of the starts.
      residual_unit: what a residual is.
      basis: what the resamples are.
    """
    begin = jnp.asarray(form.starts(data, starts, np.random.default_rng(seed)))
    best = fit(form.residuals, begin, data, np.ones(weights.shape[1]), delta, pin_of(form))
    drawn = refit(form.residuals, starting_points(form, best), data, weights, delta, pin_of(form))
    matrix = covariance(form, best, data, delta)
    errors = np.sqrt(np.maximum(np.diag(matrix), 0))
    made = LawFit(
        name=form.name,
        law=jax.tree.map(np.asarray, law_of(form, best.parameters, data)),
        draws=jax.tree.map(np.asarray, laws_of(form, drawn, data)),
        covariance=matrix,
        profile=profile_intervals(form, best, data, delta, errors, confidence),
        confidence=confidence,
        objective=float(best.objective),
        residuals=np.asarray(best.residuals),
        starts=starts,
        starts_agreeing=float(best.starts_agreeing),
        condition_number=float(best.condition_number),
        huber_delta=delta,
        left_out_rmse=float("nan"),
        residual_unit=residual_unit,
        basis=basis,
        warnings=[],
    )
    return made, best


def left_out_residuals(
    form: Form, data: Any, optimum: Array, groups: np.ndarray, delta: float
) -> Float[np.ndarray, " n"]:
    """Residuals of every row under a fit to the rows of all other groups."""
    labels = np.unique(groups)
    kept = np.stack([groups != label for label in labels]).astype(float)
    without = refit(form.residuals, optimum[None], data, kept, delta, pin_of(form))
    found = np.asarray(_residuals_of(form, without, data))[:, : len(groups)]
    return found[np.searchsorted(labels, groups), np.arange(len(groups))]


@functools.partial(jax.jit, static_argnames="form")
def _residuals_of(form: Form, x: Array, data: Any) -> Array:
    return jax.vmap(lambda each: form.residuals(each, data))(x)


def unidentified(made: LawFit) -> list[str]:
    """Which coefficients the data leave open, by their intervals and by the condition number."""
    warnings = []
    tail = (1 - made.confidence) / 2
    for name, value in coefficients(made.law).items():
        low, high = np.quantile(coefficients(made.draws)[name], [tail, 1 - tail])
        if low == high and made.profile[name] == (-np.inf, np.inf):
            warnings.append(
                f"nothing in this table tells {name}: what it multiplies is the same in every row; it is left at 0"
            )
        elif not low <= value <= high:
            warnings.append(
                f"{name} is not identified at this scale: its {100 * made.confidence:g}% interval [{low:.3g}, {high:.3g}] "
                f"does not hold the estimate, {value:.3g}"
            )
        elif low <= 0 <= high or max(abs(value / low), abs(high / value)) > 2:
            # A floor of less than 10⁻⁵ of the estimate rests on its bound, which stands for none.
            shown = 0.0 if 0 < low < 1e-5 * value else low
            warnings.append(
                f"{name} is not identified at this scale: {100 * made.confidence:g}% interval [{shown:.3g}, {high:.3g}]"
            )
    if not made.condition_number <= _ILL_CONDITIONED:
        warnings.append(
            f"the coefficients trade off against one another (condition number {made.condition_number:.3g})"
        )
    return warnings
