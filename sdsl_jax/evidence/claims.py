"""Which conclusions of the paper (arXiv 2603.11053) hold on this ladder, each with an interval; and what moves N*."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.compiler_options import quick_jit
from sdsl_jax.evidence.common import Setting, answer_of, flop_problem
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting import FittedLaws
from sdsl_jax.fitting.acceptance import FEW_TARGETS
from sdsl_jax.fitting.forms import form_of
from sdsl_jax.fitting.law_files import LawRecord
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import quantile_interval
from sdsl_jax.theory import (
    AcceptanceLaw,
    LogitPlane,
    LossLaw,
    coefficients,
    point_and_draws,
)

# Draws that optima and their elasticities are computed for: enough for a 90% interval.
_DRAWS = 200
# The paper's ratio; and what "barely" is taken to mean, as a change of ln N* with ln D.
RATIO, _BARELY = 200.0, 0.1
# Share of draws whose optimum must lie inside the bounds of N for a claim about it to be answered.
_INTERIOR = 0.9
# Coefficients by which the loss laws depend on training tokens.
_OF_DATA = ("b", "alpha_D", "D_c")


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper, and whether it holds on this ladder.

    Attributes:
      claim: the conclusion
      quantity: what was estimated, and what counts as a yes
      estimate: its estimate
      low: lower end of its interval
      high: upper end of its interval
      answer: yes, no or undecided
    """

    claim: str
    quantity: str
    estimate: float
    low: float
    high: float
    answer: str


@dataclass(frozen=True)
class Claims:
    """The paper's conclusions with the answers of one ladder.

    Attributes:
      claims: the conclusions
      acceptance_law: acceptance law that the optima were computed with
      targets: targets that the optima are for, the smallest first
      basis: how the numbers were computed
    """

    claims: list[Claim]
    acceptance_law: str
    targets: list[str]
    basis: str


@dataclass(frozen=True)
class Effects:
    """Changes of the optimum.

    Attributes:
      log_draft_params: change of ln N*
      lookahead: change of γ*
      log_speedup: change of ln S*
    """

    log_draft_params: float
    lookahead: float
    log_speedup: float


@dataclass(frozen=True)
class CoefficientEffects(Effects):
    """What one standard error of a coefficient is worth.

    Attributes:
      law: loss or acceptance
      coefficient: its name; ln in front where its logarithm was moved
      standard_error: standard deviation of its bootstrap draws
    """

    law: str
    coefficient: str
    standard_error: float


@dataclass(frozen=True)
class Sensitivity:
    """What moves the optimum of the largest target.

    Attributes:
      target: target that the optimum is for
      acceptance_law: acceptance law that it was computed with
      rows: coefficients, those that move N* most first
      joint: standard deviations over joint draws of all coefficients
      basis: how the numbers were computed
    """

    target: str
    acceptance_law: str
    rows: list[CoefficientEffects]
    joint: Effects
    basis: str


class _Answer(NamedTuple):
    """N*, γ* and S* of one target, whether N* lies inside its bounds, and how ln N* moves with ln M, ln D and ln D′."""

    params: jax.Array
    interior: jax.Array
    lookahead: jax.Array
    speedup: jax.Array
    slopes: jax.Array


@quick_jit
def _answers(loss: LossLaw, acceptance: AcceptanceLaw, at: Setting) -> _Answer:
    """The answer for every draw of the laws."""

    def one(loss: LossLaw, acceptance: AcceptanceLaw) -> _Answer:
        def log_size(logs: jax.Array) -> tuple[jax.Array, Any]:
            m, d, d_target = jnp.exp(logs)
            moved = at._replace(target_params=m, draft_tokens=d, target_tokens=d_target)
            best = flop_problem(loss, acceptance, moved).optimum()
            return jnp.log(best.params), (best.params, best.interior, best.lookahead, best.speedup)

        logs = jnp.log(jnp.stack([at.target_params, at.draft_tokens, at.target_tokens]))
        slopes, (params, interior, lookahead, speedup) = jax.grad(log_size, has_aux=True)(logs)
        return _Answer(params, interior, lookahead, speedup, slopes)

    return jax.vmap(one)(loss, acceptance)


@quick_jit
def _sensitivities(loss: LossLaw, acceptance: AcceptanceLaw, at: Setting) -> tuple[Any, Any]:
    """∂(ln N*, γ*, ln S*) with respect to the coefficients of both laws."""

    def answer(loss: LossLaw, acceptance: AcceptanceLaw) -> jax.Array:
        best = flop_problem(loss, acceptance, at).optimum()
        return jnp.stack([jnp.log(best.params), best.lookahead, jnp.log(best.speedup)])

    return jax.jacrev(answer, argnums=(0, 1))(loss, acceptance)


def _targets(records: StudyRecords) -> list[ModelRecord]:
    """The targets whose loss moves with their size and data by the law; no published ones."""
    return [target for target in records.targets if target.training_is_known]


def _setting(records: StudyRecords, laws: FittedLaws, target: ModelRecord) -> Setting:
    drafts = records.of_role("draft")
    return Setting(
        target.params_nonembedding,
        max(m.train_tokens for m in drafts),
        target.train_tokens,
        laws.rule,
        (min(m.params_nonembedding for m in drafts) / 3, target.params_nonembedding),
    ).in_double_precision()


def _optima(
    records: StudyRecords, laws: FittedLaws, targets: list[ModelRecord]
) -> tuple[list[_Answer], list[_Answer]]:
    """The answer of the fitted laws for each target, arrays of one, and those of their joint draws."""
    name = next(iter(laws.acceptance))
    with jax.enable_x64(True):
        both = (
            point_and_draws(laws.loss, laws.loss_draws, _DRAWS),
            point_and_draws(laws.acceptance[name], laws.acceptance_draws[name], _DRAWS),
        )
        answers = [
            jax.tree.map(np.asarray, _answers(*both, _setting(records, laws, target)))
            for target in targets
        ]
    first, rest = (
        [jax.tree.map(lambda x, part=part: x[part], answer) for answer in answers]
        for part in (slice(1), slice(1, None))
    )
    return first, rest


def sensitivity(records: StudyRecords) -> Sensitivity | None:
    """What one standard error of each coefficient is worth in ln N*, γ* and ln S* for the largest target, in FLOPs.
    None without fits, or without a target whose loss a law describes."""
    targets = _targets(records) if records.has_fits else []
    if not targets:
        return None
    laws = records.laws
    name, acceptance = next(iter(laws.acceptance.items()))
    target = targets[-1]
    with jax.enable_x64(True):
        floats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (laws.loss, acceptance))
        derivatives = _sensitivities(*floats, _setting(records, laws, target))
    rows = []
    for law, slopes, fitted, draws in zip(
        ("loss", "acceptance"),
        derivatives,
        (laws.loss, acceptance),
        (laws.loss_draws, laws.acceptance_draws[name]),
    ):
        for coefficient, values in coefficients(slopes).items():
            drawn = np.asarray(coefficients(draws)[coefficient], float)
            at = float(coefficients(fitted)[coefficient])
            # A scale or an exponent that is known to a factor only is moved by its logarithm, where
            # the map is nearly linear.
            logarithmic = coefficient in form_of(fitted).factors() and bool((drawn > 0).all())
            error = float(np.log(drawn).std() if logarithmic else drawn.std())
            worth = np.asarray(values, float) * error * (at if logarithmic else 1.0)
            if np.isfinite(worth).all():
                label = f"ln {coefficient}" if logarithmic else coefficient
                size, lookahead, speedup = map(float, worth)
                rows.append(CoefficientEffects(size, lookahead, speedup, law, label, error))
    rows.sort(key=lambda row: -abs(row.log_draft_params))
    _, (joint,) = _optima(records, laws, [target])
    with np.errstate(all="ignore"):
        joint_values = np.log(joint.params), joint.lookahead, np.log(joint.speedup)
        spread = [float(np.nanstd(values)) for values in joint_values]
    return Sensitivity(
        target=target.model_id,
        acceptance_law=name,
        rows=rows,
        joint=Effects(*spread),
        basis="derivatives of the optimum by the implicit function theorem, times the bootstrap standard deviation of each "
        "coefficient alone (of its logarithm for A, B and exponents). Coefficients of one law are correlated, so their "
        "effects partly cancel; the last line is the standard deviation over joint draws. An effect beyond about 1 only "
        "says that the table leaves the coefficient open",
    )


def claims(records: StudyRecords) -> Claims | None:
    """The paper's conclusions with the answer of this ladder: estimate, interval, and yes, no or undecided.
    None without fits, or without a target whose loss a law describes."""
    targets = _targets(records) if records.has_fits else []
    if not targets:
        return None
    laws = records.laws
    point, drawn = _optima(records, laws, targets)
    confidence = records.config.fit.confidence

    def ratio(answers: list[_Answer]) -> np.ndarray:
        ratios = [m.params_nonembedding / a.params for m, a in zip(targets, answers)]
        return np.stack(ratios).mean(axis=0)

    def elasticity(of: int) -> tuple[float, np.ndarray]:
        """Of N* at the largest target: estimate and draws."""
        return float(point[-1].slopes[0, of]), np.asarray(drawn[-1].slopes)[:, of]

    at = f"at the largest target, {targets[-1].params_nonembedding:,} parameters"
    rows = [
        claim_of(
            "the best draft is about 200 times smaller than its target",
            "mean of M/N* over the targets; about: within a factor of 2",
            float(ratio(point)[0]),
            ratio(drawn),
            confidence,
            holds=lambda low, high: low >= RATIO / 2 and high <= 2 * RATIO,
            fails=lambda low, high: high < RATIO / 2 or low > 2 * RATIO,
        ),
        claim_of(
            "the best draft's size is proportional to its target's",
            f"d ln N*/d ln M {at}; 1 if so",
            *elasticity(0),
            confidence,
            holds=near_one,
            fails=not_one,
        ),
    ]
    if len(targets) > 1:
        rows.append(
            claim_of(
                "the best draft's size is linear in its target's",
                "dN*/dM at the largest target over dN*/dM at the smallest; 1 if so",
                float(_slope_ratio(point, targets)[0]),
                _slope_ratio(drawn, targets),
                confidence,
                holds=near_one,
                fails=not_one,
            )
        )
    identified = data_identified(records.fits.loss_law)
    for claim, symbol, which in (
        ("the draft's training tokens barely matter for its best size", "D", 1),
        ("the target's training tokens barely matter for the best draft's size", "D′", 2),
    ):
        rows.append(
            claim_of(
                claim,
                f"d ln N*/d ln {symbol} {at}; barely: within ±{_BARELY:g}"
                + "; the exponent of the data is not identified" * (not identified),
                *elasticity(which),
                confidence,
                holds=lambda low, high: identified and max(abs(low), abs(high)) <= _BARELY,
                fails=lambda low, high: identified and (low > _BARELY or high < -_BARELY),
            )
        )
    # An optimum on a bound does not move with anything: that says nothing about what is beyond it.
    inside = all(bool(a.interior[0]) for a in point) and all(
        a.interior.mean() > _INTERIOR for a in drawn
    )
    if not inside:
        on_bounds = "; the optimum lies on the bounds of N"
        rows = [replace(r, answer="undecided", quantity=r.quantity + on_bounds) for r in rows]
    return Claims(
        claims=rows + _perplexity(records, laws),
        acceptance_law=next(iter(laws.acceptance)),
        targets=[m.model_id for m in targets],
        basis="optima in FLOPs under the best acceptance law, with every loss from the loss law; intervals from "
        f"{_DRAWS} joint bootstrap draws of both laws",
    )


def data_identified(law: LawRecord) -> bool:
    """Whether the table shows how the loss depends on training tokens.

    Fits of earlier versions do not list what they leave open. A coefficient of theirs is open where
    its interval misses the estimate, holds 0, or reaches beyond half or twice the estimate.
    """
    if law.unidentified is not None:
        return not {*_OF_DATA} & {*law.unidentified}

    def identified(value: float, low: float, high: float) -> bool:
        return low <= value <= high and low > 0 and value / low <= 2 and high / value <= 2

    return all(
        identified(law.coefficients[name], *law.interval[name])
        for name in _OF_DATA
        if name in law.coefficients
    )


def near_one(low: float, high: float) -> bool:
    """Whether an interval holds 1 and stays near it."""
    return 1 - _BARELY <= low <= 1 <= high <= 1 + _BARELY


def not_one(low: float, high: float) -> bool:
    """Whether an interval excludes 1."""
    return low > 1 or high < 1


def _slope_ratio(answers: list[_Answer], targets: list[ModelRecord]) -> np.ndarray:
    """dN*/dM at the largest target over that at the smallest; not a number where N* rests on a bound."""
    slopes = [
        np.asarray(answer.slopes)[:, 0] * np.asarray(answer.params) / target.params_nonembedding
        for answer, target in zip(answers, targets)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return slopes[-1] / slopes[0]


def _perplexity(records: StudyRecords, laws: FittedLaws) -> list[Claim]:
    """Whether α follows the draft's perplexity rather than the target's: over the ladder's range, and per nat."""
    plane, draws = laws.acceptance.get("logit_plane"), laws.acceptance_draws.get("logit_plane")
    targets = {(m.params_nonembedding, m.seed) for m in records.of_role("target")}
    if (
        not isinstance(plane, LogitPlane)
        or not isinstance(draws, LogitPlane)
        or len({size for size, _ in targets}) < 2
    ):
        return []
    span = {
        role: float(np.ptp([m.loss_nats for m in records.of_role(role)]))
        for role in ("draft", "target")
    }
    enough = len(targets) >= FEW_TARGETS
    few = f"; only {len(targets)} training runs of targets" * (not enough)

    def claim(scope: str, what: str, scale: float, decisive: bool) -> Claim:
        return claim_of(
            f"the draft's perplexity dominates acceptance, {scope}",
            what,
            scale * abs(float(plane.target_slope) / float(plane.draft_slope)),
            scale * np.abs(np.asarray(draws.target_slope) / np.asarray(draws.draft_slope)),
            records.config.fit.confidence,
            holds=lambda low, high: decisive and high < 1,
            fails=lambda low, high: decisive and low > 1,
        )

    return [
        claim(
            "over the range of this ladder",
            f"effect on logit α of the targets' range of loss ({span['target']:.2f} nats) over that of the drafts' "
            f"({span['draft']:.2f}); dominated: below 1",
            span["target"] / span["draft"],
            True,
        ),
        claim(
            "nat for nat",
            "slope of logit α in the target's loss over the slope in the draft's; dominated: below 1"
            + few,
            1.0,
            enough,
        ),
    ]


def claim_of(
    claim: str,
    quantity: str,
    estimate: float,
    draws: np.ndarray,
    confidence: float,
    holds: Callable[[float, float], bool],
    fails: Callable[[float, float], bool],
) -> Claim:
    """A conclusion with its interval over draws, and the answer.

    Args:
      claim: The conclusion.
      quantity: What was estimated, and what counts as a yes.
      estimate: Its estimate.
      draws: Draws of it; those that are not finite are left out, and decide nothing if they are more
        than half.
      confidence: Confidence of the interval.
      holds: Whether an interval (low, high) says yes.
      fails: Whether it says no.
    """
    finite = draws[np.isfinite(draws)]
    if len(finite) < len(draws) / 2 or not math.isfinite(estimate):
        return Claim(claim, quantity, estimate, math.nan, math.nan, "undecided")
    low, high = quantile_interval(finite, confidence)
    # Where the bootstrap is so biased that its interval does not hold the estimate, it decides
    # nothing.
    unbiased = low <= estimate <= high
    answer = answer_of(unbiased and holds(low, high), unbiased and fails(low, high))
    return Claim(claim, quantity, estimate, low, high, answer)
