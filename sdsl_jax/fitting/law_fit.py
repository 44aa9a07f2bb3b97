"""One law fitted to one table, and how uncertain it is: covariance, profile intervals, bootstrap draws."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.fitting.forms import EXPONENT_BOUNDS, Form
from sdsl_jax.fitting.law_files import LawRecord, PredictionError
from sdsl_jax.fitting.solver import Fit, Hold, Solution, constrained, fit, refit
from sdsl_jax.notebook import table_of
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.statistics import quantile_interval, root_mean_square, student_quantile
from sdsl_jax.theory import coefficients

# Where a profile is looked at, in standard errors from the estimate; an interval that has not ended
# there is open.
_PROFILE_STEPS = np.concatenate([np.arange(1, 17) / 4, np.geomspace(5, 64, 8)])
# Past this condition number of the scaled Jacobian, some combination of coefficients moves without
# the fit noticing.
_ILL_CONDITIONED = 100.0
# Share of bootstrap fits that may be cut off without a warning. On the ladder that ships 29% are, and
# descending to the end moves no end of an interval by more than 4%.
_MOST_CUT_OFF = 0.5
# An exponent within this share of a bound of the form rests on it.
_ON_BOUND = 0.01


class FitWarning(NamedTuple):
    """What a fit cannot tell.

    Attributes:
      code: "unidentified", "trade_off", "unconverged", "design", "bootstrap", or "table".
      text: A sentence for the user.
      coefficient: The coefficient that it is about, if it is about one.
    """

    code: str
    text: str
    coefficient: str = ""


@dataclass(frozen=True)
class LawFit:
    """A fitted law.

    Attributes:
      law: The estimates.
      draws: The same law, each coefficient an array [draws] of bootstrap values.
      residuals: Predicted − measured, in `record.residual_unit`, [rows].
      record: Everything as JSON holds it: errors, intervals, quality.
      warnings: What this fit cannot tell.
    """

    law: Any
    draws: Any
    residuals: np.ndarray
    record: LawRecord
    warnings: tuple[FitWarning, ...] = ()

    @property
    def rmse(self) -> float:
        """Root mean square residual."""
        return root_mean_square(self.residuals)

    def with_warnings(self, *warnings: FitWarning, **changes: Any) -> LawFit:
        """The same fit with these warnings, and with changes to its record."""
        record = dataclasses.replace(
            self.record,
            warnings=[warning.text for warning in warnings],
            unidentified=[w.coefficient for w in warnings if w.code == "unidentified"],
            **changes,
        )
        return dataclasses.replace(self, record=record, warnings=warnings)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `sdsl fit --json` prints; `load_law` reads it back."""
        return self.record.to_json()

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v:.4g}" for k, v in self.record.coefficients.items())
        return f"LawFit({self.record.law}: {values}; {self.record.n} rows, {len(self.warnings)} warnings)"

    def _repr_html_(self) -> str:
        """A table of coefficients, for notebooks."""
        record = self.record
        rows = {"accuracy": " ".join(record.accuracy())}
        for name, value in record.coefficients.items():
            low, high = record.interval[name]
            rows[name] = f"{value:.5g} ± {record.standard_error[name]:.2g}, {low:.4g} – {high:.4g}"
        rows |= {f"warning {i}": w.text for i, w in enumerate(self.warnings, 1)}
        kind = f"estimate ± robust standard error, {100 * record.confidence:g}% interval"
        return table_of(f"{record.law}, {record.n} rows: {kind}", rows)


class Spread(NamedTuple):
    """The noise of a table about its law, as a Huber fit sees it.

    Attributes:
      score: Σψ²/(n − P), the variance of the score ψ = clip(r, −δ, δ).
      slope: mean of ψ′, the share of residuals within δ.
    """

    score: float
    slope: float


def spread(residuals: np.ndarray, parameters: int, delta: float) -> Spread:
    """The two moments that every standard error of a Huber fit rests on.

    Where δ is far below the noise too few residuals lie within it to be counted: the share within a
    wider band is counted instead and scaled down, the estimate of a density at 0 that quantile
    regression uses (Powell, 1991). As many residuals as there are parameters are close to 0 by the
    fit itself, and do not count.
    """
    n = len(residuals)
    psi = np.clip(residuals, -delta, delta)
    scale = np.median(np.abs(residuals)) / 0.6745
    band = max(delta, 1.06 * scale * n**-0.2)
    within = max((np.abs(residuals) <= band).sum() - parameters, 1) / max(n - parameters, 1)
    return Spread(
        float(np.square(psi).sum() / max(n - parameters, 1)), float(within * delta / band)
    )


def covariance(form: Form, best: Fit, data: Any, delta: float) -> Float[np.ndarray, "P P"]:
    """Covariance of the coefficients: (E ψ² / (E ψ′)²)·(JᵀJ)⁻¹ of the solver's vector, carried over
    by the delta method.

    It is infinite or meaningless along directions that the data do not see; those are given a
    variance of infinity.
    """
    jacobian = np.asarray(best.jacobian)
    moments = spread(np.asarray(best.residuals), jacobian.shape[1], delta)
    with np.errstate(all="ignore"):
        inverse = np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-14, hermitian=True)
        slopes = np.asarray(_slopes(form, best.parameters, data))
        found = slopes @ (inverse * moments.score / moments.slope**2) @ slopes.T
    unseen = (slopes != 0) @ (np.linalg.norm(jacobian, axis=0) < 1e-9 * np.linalg.norm(jacobian))
    found[unseen, unseen] = np.inf
    return found


@functools.partial(jax.jit, static_argnames="form")
def _slopes(form: Form, x: Array, data: Any) -> Array:
    """∂coefficients/∂x."""
    return jax.jacfwd(lambda at: jnp.stack(list(coefficients(form.to_law(at, data)).values())))(x)


class Profile(NamedTuple):
    """Profile intervals by coefficient, and the coefficients whose ends rest on unconverged fits."""

    ends: dict[str, tuple[float, float]]
    unconverged: tuple[str, ...]


def profile_intervals(
    form: Form, best: Fit, data: Any, delta: float, errors: np.ndarray, confidence: float
) -> Profile:
    """Values of a coefficient at which the best of all other coefficients is not significantly
    worse.

    The criterion is 2·(ρ(profile) − ρ(best))·E ψ′/E ψ² ≤ t². It is asymptotically χ² with one
    degree of freedom for a Huber fit (Ronchetti, 1982), and the F criterion of nonlinear least
    squares where δ is large. Coefficients that the form keeps positive are followed in their
    logarithms. A floor that rests on its bound, near 0, is followed up to the smallest loss
    instead. An end that is not found within 64 standard errors is open: infinite, or 0 for a
    positive coefficient.

    Args:
      form: The law.
      best: The fit.
      data: The table that it was made from.
      delta: Residual at which the Huber loss turns from square to linear.
      errors: Standard errors of the coefficients, [P], which set the step.
      confidence: Probability that an interval is to cover.
    """
    names = form.names()
    law = coefficients(form.to_law(best.parameters, data))
    values = np.asarray([float(law[name]) for name in names])
    moments = spread(np.asarray(best.residuals), len(best.parameters), delta)
    level = student_quantile(0.5 + confidence / 2, len(best.residuals) - len(names))
    positive = np.asarray([name in form.positive for name in names])
    # A floor on its bound has no standard error to set the pace, and is too near 0 for its
    # logarithm to lead anywhere.
    smallest = float(np.exp(np.min(data.log_loss))) if form.floor else np.inf
    no_floor = np.asarray([name == form.floor for name in names]) & (values < 1e-4 * smallest)
    logarithmic = positive & ~no_floor
    with np.errstate(all="ignore"):
        paces = np.where(logarithmic, errors / values, errors)
    paces = np.where(
        np.isfinite(paces) & (paces > 0), np.minimum(paces, np.where(logarithmic, 2.0, np.inf)), 0.1
    )
    paces[no_floor] = smallest / _PROFILE_STEPS[-1]
    sides = np.asarray([-1.0, 1.0])
    # [side, coefficient, step]
    steps = sides[:, None, None] * paces[None, :, None] * _PROFILE_STEPS
    with np.errstate(over="ignore"):
        at = np.where(
            logarithmic[:, None], values[:, None] * np.exp(steps), values[:, None] + steps
        )
    at = np.where(no_floor[:, None], np.maximum(at, values[:, None]), at)
    which = np.tile(np.arange(len(names)), 2)
    fits = constrained(
        form.residuals,
        hold_coefficient(form),
        starting_points(form, best),
        which,
        at.reshape(len(which), -1),
        data,
        np.ones(len(best.residuals)),
        delta,
    )
    objective, status = (np.asarray(x).reshape(steps.shape) for x in (fits.objective, fits.status))
    lowest = min(float(best.objective), float(np.nanmin(objective)))
    root = np.sqrt(np.maximum(2 * (objective - lowest) * moments.slope / moments.score, 0))
    ends, unconverged = {}, []
    for k, name in enumerate(names):
        crossings = [_crossing(at[s, k], root[s, k], values[k], level) for s in range(2)]
        low, high = (None if c is None else c.value for c in crossings)
        open_low = 0.0 if positive[k] else -np.inf
        ends[name] = (open_low if low is None else low, np.inf if high is None else high)
        if any(
            c and status[s, k, c.step] == SolverStatus.ITERATION_CAP
            for s, c in enumerate(crossings)
        ):
            unconverged.append(name)
    return Profile(ends, tuple(unconverged))


class _Crossing(NamedTuple):
    value: float
    step: int


def _crossing(at: np.ndarray, root: np.ndarray, value: float, level: float) -> _Crossing | None:
    """Where the root of the profile, which is nearly a line, first crosses the level."""
    # Past a bound of the form the root is infinite.
    beyond = np.nonzero((root >= level) & np.isfinite(root))[0]
    if not len(beyond):
        return None
    i = beyond[0]
    before, here = (value, at[i]) if i == 0 else (at[i - 1], at[i])
    low, high = (0.0, root[0]) if i == 0 else (root[i - 1], root[i])
    return _Crossing(
        float(before + (here - before) * (level - low) / max(high - low, 1e-12)), int(i)
    )


def starting_points(form: Form, best: Fit) -> Float[np.ndarray, "S P"]:
    """Where a descent on other weights, or with a coefficient held, begins.

    At the optimum, and for a law with a floor also at half of the largest floor: where the optimum
    rests on a bound, the gradient vanishes there.
    """
    here = np.asarray(best.parameters)
    return np.stack([here, np.r_[0.0, here[1:]]] if form.floor else [here])


@functools.cache
def hold_coefficient(form: Form) -> Hold:
    """(x, k, value, data) -> x with coefficient k of the law at a value; one function for each
    form, so that it compiles once.

    Only component k of x moves: an exponent turns the law about the middle of the table and leaves
    its size there as it is. With A held instead, the size term of every model of the table would
    jump by orders of magnitude, and the descent start far off.
    """

    def hold(x: Array, k: Array, value: Array, data: Any) -> Array:
        current = jnp.stack(list(coefficients(form.to_law(x, data)).values()))
        chosen = jnp.arange(len(current)) == k
        return jnp.where(
            chosen, form.to_vector(form.law_type(*jnp.where(chosen, value, current)), data), x
        )

    return hold


@functools.partial(jax.jit, static_argnames="form")
def law_of(form: Form, x: Array, data: Any) -> Any:
    """The law of one vector."""
    return form.to_law(x, data)


@functools.partial(jax.jit, static_argnames="form")
def _laws_of(form: Form, x: Array, data: Any) -> Any:
    return jax.vmap(lambda each: form.to_law(each, data))(x)


@functools.partial(jax.jit, static_argnames="form")
def _residuals_of(form: Form, x: Array, data: Any) -> Array:
    return jax.vmap(lambda each: form.residuals(each, data))(x)


def best_fit(
    form: Form, data: Any, weights: np.ndarray, delta: float, starts: int, seed: int
) -> Fit:
    """The best of many random starts. Call within `jax.enable_x64`.

    Args:
      form: The law.
      data: The table.
      weights: Weights of the rows; 0 leaves one out.
      delta: Residual at which the Huber loss turns from square to linear.
      starts: Number of descents.
      seed: Seed of the starts.
    """
    begin = jnp.asarray(form.starts(data, starts, np.random.default_rng(seed)))
    return fit(form.residuals, begin, data, weights, delta, hold_coefficient(form))


def bootstrap(
    form: Form, best: Fit, data: Any, weights: Float[np.ndarray, "draws n"], delta: float
) -> tuple[Any, Solution]:
    """The laws of many resamples, coefficients arrays [draws], and the fits that they come from.

    Args:
      form: The law.
      best: The fit to the whole table.
      data: The table.
      weights: How often each row counts in each resample.
      delta: Residual at which the Huber loss turns from square to linear.
    """
    found = refit(
        form.residuals, starting_points(form, best), data, weights, delta, hold_coefficient(form)
    )
    return jax.tree.map(np.asarray, _laws_of(form, found.parameters, data)), found


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
    groups: np.ndarray | None = None,
    beyond: Any = None,
) -> LawFit:
    """Fits a law to a table: the best of many starts, bootstrap draws, covariance and profiles.

    Call within `jax.enable_x64`.

    Args:
      form: The law.
      data: The table.
      weights: How often each row counts in each bootstrap resample.
      delta: Residual at which the Huber loss turns from square to linear.
      starts: Number of descents.
      confidence: Probability that an interval is to cover.
      seed: Seed of the starts.
      residual_unit: What a residual is.
      basis: What the resamples are.
      groups: Labels of rows that are left out in turn to see the error on them; None: no group is.
      beyond: A table of one row, far from the others, to see how sure the law is there.
    """
    rows = weights.shape[1]
    best = best_fit(form, data, np.ones(rows), delta, starts, seed)
    law = jax.tree.map(np.asarray, law_of(form, best.parameters, data))
    draws, resamples = bootstrap(form, best, data, weights, delta)
    matrix = covariance(form, best, data, delta)
    errors = np.sqrt(np.maximum(np.diag(matrix), 0))
    profile = profile_intervals(form, best, data, delta, errors, confidence)
    residuals = np.asarray(best.residuals)
    values = {k: float(v) for k, v in coefficients(law).items()}
    drawn = {k: np.asarray(v, float) for k, v in coefficients(draws).items()}
    left_out = np.nan
    if groups is not None:
        errors = _left_out_residuals(form, data, best.parameters, groups, delta)
        left_out = root_mean_square(errors)

    def half_widths(table: Any) -> np.ndarray:
        predicted = np.asarray(_residuals_of(form, resamples.parameters, table))
        tail = (1 - confidence) / 2
        low, high = np.quantile(predicted, [tail, 1 - tail], axis=0)
        return (high - low) / 2

    inside = half_widths(data)[:rows]
    record = LawRecord(
        law=form.name,
        coefficients=values,
        standard_error={
            k: robust_error(v, drawn[k], confidence, k in form.factors()) for k, v in values.items()
        },
        confidence=confidence,
        interval={k: quantile_interval(v, confidence) for k, v in drawn.items()},
        interval_basis=basis,
        profile_interval=profile.ends,
        covariance=matrix.tolist(),
        objective=float(best.objective),
        n=rows,
        huber_delta=delta,
        starts=starts,
        starts_agreeing=float(best.starts_agreeing),
        draws_cut_off=resamples.unconverged(),
        condition_number=float(best.condition_number),
        rmse=root_mean_square(residuals),
        left_out_rmse=left_out,
        residual_unit=residual_unit,
        draws={k: [float(f"{x:.8g}") for x in v] for k, v in drawn.items()},
        prediction_error=PredictionError(
            inside=float(np.median(inside)),
            inside_worst=float(inside.max()),
            extrapolated_10x=None if beyond is None else float(half_widths(beyond)[0]),
        ),
    )
    # A scale is the term of a model of one parameter, far outside any table: what identifies it is
    # its term in the middle of the table, whose logarithm is its component of x.
    names = form.names()
    terms = {
        name: np.exp(np.asarray(resamples.parameters[:, k] - best.parameters[k]))
        for k, name in enumerate(names)
        if name in form.scales
    }
    warnings = [
        *_unconverged(best.status, record.draws_cut_off, profile),
        *_unidentified(form, record, terms),
    ]
    return LawFit(law, draws, residuals, record).with_warnings(*warnings)


def robust_error(
    value: float, draws: np.ndarray, confidence: float, logarithmic: bool = False
) -> float:
    """A standard error from the middle of the draws: half the width of their interval over the
    normal quantile.

    For normal draws it is their standard deviation. A few resamples that hardly hold a coefficient
    may lie orders of magnitude away; they decide the standard deviation and not this.

    Args:
      value: The estimate.
      draws: Bootstrap draws.
      confidence: Share of the draws inside the interval.
      logarithmic: Take the width of the logarithm, times the estimate (delta method). The error of
        a positive coefficient, such as A and an exponent, is a factor.
    """
    low, high = quantile_interval(np.log(draws) if logarithmic else draws, confidence)
    scale = value if logarithmic else 1.0
    return float(scale * (high - low) / 2 / NormalDist().inv_cdf(0.5 + confidence / 2))


def _left_out_residuals(
    form: Form, data: Any, optimum: Array, groups: np.ndarray, delta: float
) -> Float[np.ndarray, " n"]:
    """Residuals of every row under a fit to the rows of all other groups."""
    labels = np.unique(groups)
    kept = np.stack([groups != label for label in labels]).astype(float)
    without = refit(form.residuals, optimum[None], data, kept, delta, hold_coefficient(form))
    errors = np.asarray(_residuals_of(form, without.parameters, data))[:, : len(groups)]
    return errors[np.searchsorted(labels, groups), np.arange(len(groups))]


def _unconverged(status: SolverStatus, cut_off: float, profile: Profile) -> list[FitWarning]:
    texts = []
    if status is not SolverStatus.CONVERGED:
        texts.append(f"the fit {status.message}: do not rely on its coefficients")
    if cut_off > _MOST_CUT_OFF:
        texts.append(
            f"{cut_off:.0%} of the bootstrap fits stopped before they converged: their intervals are rough"
        )
    if profile.unconverged:
        texts.append(
            f"fits along the profile of {', '.join(profile.unconverged)} stopped before they converged: "
            "its profile interval may be too short"
        )
    return [FitWarning("unconverged", text) for text in texts]


def _unidentified(form: Form, record: LawRecord, terms: dict[str, np.ndarray]) -> list[FitWarning]:
    """Which coefficients the data leave open, by their intervals and by the condition number.

    Args:
      form: The law; an exponent that rests on a bound of it has an interval that is too short.
      record: The fit.
      terms: For scales, draws of their term in the middle of the table over its estimate.
    """
    warnings = []
    percent = f"{100 * record.confidence:g}%"
    for name, value in record.coefficients.items():
        low, high = record.interval[name]
        # A floor of less than 10⁻⁵ of the estimate rests on its bound, which stands for none.
        shown = 0.0 if 0 < low < 1e-5 * value else low
        bounds = EXPONENT_BOUNDS if name in form.exponents else ()
        reached = [
            bound
            for bound in bounds
            if min(abs(np.log(x / bound)) for x in (value, low, high)) < _ON_BOUND
        ]
        text = ""
        if low == high and record.profile_interval[name] == (-np.inf, np.inf):
            text = f"this table says nothing about {name}: what it multiplies is the same in every row, so it stays at 0"
        elif reached:
            text = (
                f"{name} is not identified at this scale: its {percent} interval [{shown:.3g}, {high:.3g}] "
                f"reaches {reached[0]:g}, a bound of the fit"
            )
        elif name in terms:
            lowest, highest = quantile_interval(terms[name], record.confidence)
            if not 0.5 <= lowest <= 1 <= highest <= 2:
                text = (
                    f"{name} is not identified at this scale: its term in the middle of the table is "
                    f"{lowest:.3g} to {highest:.3g} times the estimate ({percent} interval)"
                )
        elif not low <= value <= high:
            text = (
                f"{name} is not identified at this scale: its {percent} interval [{shown:.3g}, {high:.3g}] "
                f"does not hold the estimate, {value:.3g}"
            )
        elif low <= 0 <= high or max(abs(value / low), abs(high / value)) > 2:
            text = f"{name} is not identified at this scale: {percent} interval [{shown:.3g}, {high:.3g}]"
        if text:
            warnings.append(FitWarning("unidentified", text, name))
    if not record.condition_number <= _ILL_CONDITIONED:
        warnings.append(
            FitWarning(
                "trade_off",
                f"the coefficients trade off against one another (condition number {record.condition_number:.3g})",
            )
        )
    return warnings
