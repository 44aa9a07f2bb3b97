"""Which conclusions of the paper (arXiv 2603.11053) hold on this ladder, each with an interval; and what moves N*."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.fitting import FittedLaws, read_laws
from sdsl_jax.fitting.acceptance import FEW_TARGETS
from sdsl_jax.fitting.forms import form_of
from sdsl_jax.records import ModelRecord, longest_trained
from sdsl_jax.theory import (
    AcceptanceLaw,
    DraftProblem,
    FlopCost,
    LogitPlane,
    LossLaw,
    ModelPoint,
    ShapeRule,
    coefficients,
)

# Draws that optima and their elasticities are computed for: enough for a 90% interval.
_DRAWS = 200
# The paper's ratio; and what "barely" is taken to mean, as a change of ln N* with ln D.
_RATIO, _BARELY = 200.0, 0.1
# Share of draws whose optimum must lie inside the bounds of N for a claim about it to be answered.
_INTERIOR = 0.9


class _Answer(NamedTuple):
    """N*, γ* and S* of one target, whether N* lies inside its bounds, and how ln N* moves with ln M, ln D and ln D′."""

    params: jax.Array
    interior: jax.Array
    lookahead: jax.Array
    speedup: jax.Array
    slopes: jax.Array


class _Place(NamedTuple):
    """Where the laws are asked: target size, draft tokens, target tokens, the family's rule and the bounds of N."""

    target_params: Any
    draft_tokens: Any
    target_tokens: Any
    rule: ShapeRule
    bounds: tuple[Any, Any]


def _problem(loss: LossLaw, acceptance: AcceptanceLaw, place: _Place) -> DraftProblem:
    """In FLOPs, with the target's loss from the law, so that it moves with its size."""
    m = place.target_params
    target = ModelPoint(m, loss(m, place.target_tokens), place.target_tokens)
    return DraftProblem(
        loss, place.draft_tokens, target, acceptance, FlopCost(place.rule, m), place.bounds
    )


@jax.jit
def _answers(loss: LossLaw, acceptance: AcceptanceLaw, place: _Place) -> _Answer:
    """For every draw of the laws."""

    def one(loss: LossLaw, acceptance: AcceptanceLaw) -> _Answer:
        def log_size(logs: jax.Array) -> tuple[jax.Array, Any]:
            m, d, d_target = jnp.exp(logs)
            moved = place._replace(target_params=m, draft_tokens=d, target_tokens=d_target)
            best = _problem(loss, acceptance, moved).optimum()
            return jnp.log(best.params), (best.params, best.interior, best.lookahead, best.speedup)

        at = jnp.log(jnp.stack([place.target_params, place.draft_tokens, place.target_tokens]))
        slopes, (params, interior, lookahead, speedup) = jax.grad(log_size, has_aux=True)(at)
        return _Answer(params, interior, lookahead, speedup, slopes)

    return jax.vmap(one)(loss, acceptance)


@jax.jit
def _sensitivities(loss: LossLaw, acceptance: AcceptanceLaw, place: _Place) -> tuple[Any, Any]:
    """∂(ln N*, γ*, ln S*) with respect to the coefficients of both laws."""

    def answer(loss: LossLaw, acceptance: AcceptanceLaw) -> jax.Array:
        best = _problem(loss, acceptance, place).optimum()
        return jnp.stack([jnp.log(best.params), best.lookahead, jnp.log(best.speedup)])

    return jax.jacrev(answer, argnums=(0, 1))(loss, acceptance)


def _place(inputs: Inputs, laws: FittedLaws, target: ModelRecord) -> _Place:
    drafts = [m for m in inputs.models if m.role == "draft"]
    tokens = float(max(m.train_tokens for m in drafts))
    bounds = min(m.params_nonembedding for m in drafts) / 3, float(target.params_nonembedding)
    place = _Place(
        float(target.params_nonembedding), tokens, float(target.train_tokens), laws.rule, bounds
    )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), place)


def sensitivity(inputs: Inputs) -> dict[str, Any] | None:
    """What one standard error of each coefficient is worth in ln N*, γ* and ln S* for the largest target, in FLOPs."""
    if "loss_law" not in inputs.fits:
        return None
    laws = read_laws(inputs.fits)
    name, acceptance = next(iter(laws.acceptance.items()))
    target = longest_trained(inputs.models, "target")[-1]
    with jax.enable_x64(True):
        floats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (laws.loss, acceptance))
        found = _sensitivities(*floats, _place(inputs, laws, target))
    rows = []
    for law, slopes, draws in zip(
        ("loss", "acceptance"), found, (laws.loss_draws, laws.acceptance_draws[name])
    ):
        for coefficient, values in coefficients(slopes).items():
            drawn = np.asarray(coefficients(draws)[coefficient], float)
            fitted = laws.loss if law == "loss" else acceptance
            at = float(coefficients(fitted)[coefficient])
            # A scale or an exponent that is known to a factor only is moved by its logarithm, where
            # the map is nearly linear.
            logarithmic = coefficient in form_of(fitted).factors() and bool((drawn > 0).all())
            error = float(np.log(drawn).std() if logarithmic else drawn.std())
            worth = np.asarray(values, float) * error * (at if logarithmic else 1.0)
            if np.isfinite(worth).all():
                rows.append(
                    {
                        "law": law,
                        "coefficient": f"ln {coefficient}" if logarithmic else coefficient,
                        "standard_error": error,
                        "log_draft_params": float(worth[0]),
                        "lookahead": float(worth[1]),
                        "log_speedup": float(worth[2]),
                    }
                )
    rows.sort(key=lambda row: -abs(float(row["log_draft_params"])))  # type: ignore[arg-type]
    with jax.enable_x64(True):
        _, (joint,) = _optima(laws, name, inputs, [target])
    with np.errstate(all="ignore"):
        together = [
            np.nanstd(np.log(joint.params)),
            np.nanstd(joint.lookahead),
            np.nanstd(np.log(joint.speedup)),
        ]
    return {
        "target": target.model_id,
        "acceptance_law": name,
        "rows": rows,
        "joint": dict(zip(("log_draft_params", "lookahead", "log_speedup"), map(float, together))),
        "basis": "derivatives of the optimum by the implicit function theorem, times the bootstrap's standard deviation of each "
        "coefficient alone, of its logarithm for A, B and exponents; coefficients of one law are correlated, so that their "
        "effects partly cancel: the last line is the standard deviation over joint draws. Beyond about 1 a derivative says "
        "no more than that the table leaves the coefficient open",
    }


def claims(inputs: Inputs) -> dict[str, Any] | None:
    """The paper's conclusions with the answer of this ladder: estimate, interval, and yes, no or undecided."""
    if "loss_law" not in inputs.fits:
        return None
    laws = read_laws(inputs.fits)
    name = next(iter(laws.acceptance))
    targets = longest_trained(inputs.models, "target")
    with jax.enable_x64(True):
        point, drawn = _optima(laws, name, inputs, targets)
    largest = targets[-1]
    ratio = np.stack([m.params_nonembedding / a.params for m, a in zip(targets, drawn)]).mean(
        axis=0
    )
    ratio_now = float(
        np.mean([m.params_nonembedding / a.params[0] for m, a in zip(targets, point)])
    )
    at = f"at the largest target, {largest.params_nonembedding:,} parameters"
    rows = [
        _row(
            inputs,
            "the best draft is about 200 times smaller than its target",
            "mean of M/N* over the targets; about: within a factor of 2",
            ratio_now,
            ratio,
            holds=lambda low, high: low >= _RATIO / 2 and high <= 2 * _RATIO,
            fails=lambda low, high: high < _RATIO / 2 or low > 2 * _RATIO,
        ),
        _row(
            inputs,
            "the best draft's size is proportional to its target's",
            f"d ln N*/d ln M {at}; 1 if so",
            float(point[-1].slopes[0, 0]),
            np.asarray(drawn[-1].slopes)[:, 0],
            holds=_near_one,
            fails=lambda low, high: low > 1 or high < 1,
        ),
    ]
    if len(targets) > 1:
        rows.append(
            _row(
                inputs,
                "the best draft's size is linear in its target's",
                "dN*/dM at the largest target over dN*/dM at the smallest; 1 if so",
                float(_slope_ratio(point, targets)[0]),
                _slope_ratio(drawn, targets),
                holds=_near_one,
                fails=lambda low, high: low > 1 or high < 1,
            )
        )
    rows += [
        _barely(
            inputs,
            "the draft's training tokens barely matter for its best size",
            f"d ln N*/d ln D {at}",
            point,
            drawn,
            1,
        ),
        _barely(
            inputs,
            "the target's training tokens barely matter for the best draft's size",
            f"d ln N*/d ln D′ {at}",
            point,
            drawn,
            2,
        ),
    ]
    # An optimum on a bound does not move with anything: that says nothing about what is beyond it.
    inside = all(bool(a.interior[0]) for a in point) and all(
        a.interior.mean() > _INTERIOR for a in drawn
    )
    if not inside:
        for row in rows:
            row |= {
                "answer": "undecided",
                "quantity": row["quantity"] + "; the optimum lies on the bounds of N",
            }
    rows += _perplexity(inputs, laws)
    return {
        "claims": rows,
        "acceptance_law": name,
        "targets": [m.model_id for m in targets],
        "basis": "optima in FLOPs under the best acceptance law, with every loss from the loss law; intervals from "
        f"{_DRAWS} joint bootstrap draws of both laws",
    }


def _near_one(low: float, high: float) -> bool:
    return low <= 1 <= high and low >= 1 - _BARELY and high <= 1 + _BARELY


def _slope_ratio(answers: list[_Answer], targets: list[ModelRecord]) -> np.ndarray:
    """dN*/dM at the largest target over that at the smallest; not a number where N* rests on a bound."""
    slopes = [
        np.asarray(answer.slopes)[:, 0] * np.asarray(answer.params) / target.params_nonembedding
        for answer, target in zip(answers, targets)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return slopes[-1] / slopes[0]


def _barely(
    inputs: Inputs, claim: str, what: str, point: list[_Answer], drawn: list[_Answer], which: int
) -> dict[str, Any]:
    """A claim that an elasticity is about 0; undecided where the loss law does not know what data do."""
    unknown = any(
        w.startswith(("b ", "alpha_D ", "D_c ")) for w in inputs.fits["loss_law"]["warnings"]
    )
    return _row(
        inputs,
        claim,
        f"{what}; barely: within ±{_BARELY:g}"
        + "; the exponent of the data is not identified" * unknown,
        float(point[-1].slopes[0, which]),
        np.asarray(drawn[-1].slopes)[:, which],
        holds=lambda low, high: not unknown and max(abs(low), abs(high)) <= _BARELY,
        fails=lambda low, high: not unknown and (low > _BARELY or high < -_BARELY),
    )


def _optima(
    laws: FittedLaws, name: str, inputs: Inputs, targets: list[ModelRecord]
) -> tuple[list[_Answer], list[_Answer]]:
    """The answer of the fitted laws for each target, arrays of one, and those of their joint draws."""

    def with_draws(law: Any, draws: Any) -> Any:
        return jax.tree.map(
            lambda x, many: jnp.concatenate([jnp.asarray([x]), many[:_DRAWS]]), law, draws
        )

    both = (
        with_draws(laws.loss, laws.loss_draws),
        with_draws(laws.acceptance[name], laws.acceptance_draws[name]),
    )
    found = [jax.tree.map(np.asarray, _answers(*both, _place(inputs, laws, t))) for t in targets]
    return [jax.tree.map(lambda x: x[:1], a) for a in found], [
        jax.tree.map(lambda x: x[1:], a) for a in found
    ]


def _perplexity(inputs: Inputs, laws: FittedLaws) -> list[dict[str, Any]]:
    """Whether α follows the draft's perplexity rather than the target's: over the ladder's range, and per nat."""
    plane, draws = laws.acceptance.get("logit_plane"), laws.acceptance_draws.get("logit_plane")
    if (
        not isinstance(plane, LogitPlane)
        or not isinstance(draws, LogitPlane)
        or len({m.params_nonembedding for m in inputs.models if m.role == "target"}) < 2
    ):
        return []
    span = {
        role: float(np.ptp([m.loss_nats for m in inputs.models if m.role == role]))
        for role in ("draft", "target")
    }
    ratio = span["target"] / span["draft"]

    runs = len({(m.params_nonembedding, m.seed) for m in inputs.models if m.role == "target"})
    few = f"; only {runs} training runs of targets" * (runs < FEW_TARGETS)

    def row(claim: str, what: str, scale: float, enough: bool) -> dict[str, Any]:
        return _row(
            inputs,
            claim,
            what,
            scale * abs(float(plane.target_slope) / float(plane.draft_slope)),
            scale * np.abs(np.asarray(draws.target_slope) / np.asarray(draws.draft_slope)),
            holds=lambda low, high: enough and high < 1,
            fails=lambda low, high: enough and low > 1,
        )

    return [
        row(
            "the draft's perplexity dominates acceptance, over the range of this ladder",
            f"effect on logit α of the targets' range of loss ({span['target']:.2f} nats) over that of the drafts' "
            f"({span['draft']:.2f}); dominated: below 1",
            ratio,
            True,
        ),
        row(
            "the draft's perplexity dominates acceptance, nat for nat",
            "slope of logit α in the target's loss over the slope in the draft's; dominated: below 1"
            + few,
            1.0,
            runs >= FEW_TARGETS,
        ),
    ]


def _row(
    inputs: Inputs,
    claim: str,
    what: str,
    estimate: float,
    drawn: np.ndarray,
    holds: Any,
    fails: Any,
) -> dict[str, Any]:
    tail = (1 - inputs.config.fit.confidence) / 2
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < len(drawn) / 2 or not math.isfinite(estimate):
        low, high, answer = math.nan, math.nan, "undecided"
    else:
        low, high = (float(x) for x in np.quantile(finite, [tail, 1 - tail]))
        # Where the bootstrap is so biased that its interval does not hold the estimate, it decides
        # nothing.
        decisive = low <= estimate <= high
        answer = (
            "undecided"
            if not decisive
            else "yes"
            if holds(low, high)
            else "no"
            if fails(low, high)
            else "undecided"
        )
    return {
        "claim": claim,
        "quantity": what,
        "estimate": estimate,
        "low": low,
        "high": high,
        "answer": answer,
    }
