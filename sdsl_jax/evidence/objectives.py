"""What training for acceptance changes: against the same drafts trained as long on the text alone."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.common import Estimate, measured_speedups, training_run
from sdsl_jax.evidence.size_lines import BEYOND, best_sizes, least_squares, with_ones
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting.stage import fitted_rule
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import mean_interval, quantile_interval, resampled, root_mean_square
from sdsl_jax.theory import ShapeRule, flops_per_token

CONTROL = "ce"
_DRAWS = 1000
# Nested forms of the change of logit α, by the columns that each has beside its level.
_FORMS = {
    "level": (),
    "level and slope in N": (0,),
    "level and slopes in N and D": (0, 1),
}


@dataclass(frozen=True)
class ObjectiveResult:
    """Drafts of one size and token budget, trained for one objective, over their seeds.

    Attributes:
      objective: what they were trained for
      draft_params: non-embedding parameters
      train_tokens: tokens trained on since the parent
      seeds: seeds
      alpha: mean acceptance by their teacher
      gain: mean difference of α from the control of the same seed
      loss_nats: mean loss on the test text, nats per token
      loss_change: mean difference of that loss from the control's
      speedup: mean of the best speed-up of any lookahead, in FLOPs
      speedup_gain: mean difference from the control's
    """

    objective: str
    draft_params: int
    train_tokens: int
    seeds: int
    alpha: Estimate
    gain: Estimate
    loss_nats: float
    loss_change: Estimate
    speedup: Estimate
    speedup_gain: Estimate


@dataclass(frozen=True)
class ObjectiveLaw:
    """How an objective moves the law of α, and the best draft.

    Attributes:
      objective: what the drafts were trained for
      level: change of logit α at the middle of sizes and budgets
      size_slope: change of d(logit α)/d(ln N)
      tokens_slope: change of d(logit α)/d(ln D), D counted since the parent
      left_out_rmse: error of the change of logit α at sizes that the form did not see, by form
      form: form with the least such error
      gap_level: change of logit α at equal loss gap, at the middle of the control's gaps
      gap_slope: change of the slope of logit α in the loss gap, per nat
      draft_params: N*, the best size in FLOPs at the largest budget
      speedup: speed-up at N* and its best lookahead
      inside: share of the draws whose N* lies between the sizes that were trained
    """

    objective: str
    level: Estimate
    size_slope: Estimate
    tokens_slope: Estimate
    left_out_rmse: dict[str, float]
    form: str
    gap_level: Estimate
    gap_slope: Estimate
    draft_params: Estimate
    speedup: Estimate
    inside: float


@dataclass(frozen=True)
class Objectives:
    """What training for acceptance changes.

    Attributes:
      teacher_id: target that the drafts were trained for and measured with
      estimator: estimator of α
      middle_params: size at which levels are given
      middle_tokens: budget at which levels are given
      results: every objective, size and budget
      laws: every objective, the control's own first
      confidence: confidence of the intervals
      runs: training runs of the control
      basis: how the numbers were computed
    """

    teacher_id: str
    estimator: str
    middle_params: float
    middle_tokens: float
    results: list[ObjectiveResult]
    laws: list[ObjectiveLaw]
    confidence: float
    runs: int
    basis: str


class _Cell(NamedTuple):
    """What makes a draft comparable with its control."""

    params: int
    tokens: int
    seed: int


class _Draft(NamedTuple):
    record: ModelRecord
    alpha: float
    speedup: float

    @property
    def logit(self) -> float:
        return math.log(self.alpha / (1 - self.alpha))


def objectives(records: StudyRecords) -> Objectives | None:
    """Gains and laws of every objective of a study against cross-entropy from the same parents.

    Returns None where no drafts were trained for a teacher among the targets, or none of the same
    parents on the text.
    """
    told = [m for m in records.trained if m.objective and not m.kind]
    # Of truncated readouts the widest: laws do not mix them.
    widest = max((m.readout or math.inf for m in told), default=0)
    told = [m for m in told if (m.readout or math.inf) == widest]
    teachers = {m.teacher_digest for m in told} - {""}
    targets = [m for m in records.of_role("target") if m.params_digest in teachers]
    if len(targets) != 1:
        return None
    (target,), estimator = targets, records.config.fit.estimator
    by_objective = _measured(records, told, target, estimator)
    control = by_objective.pop(CONTROL, {})
    pairs = {
        name: {cell: (draft, control[cell]) for cell, draft in drafts.items() if cell in control}
        for name, drafts in by_objective.items()
    }
    pairs = {name: both for name, both in sorted(pairs.items()) if both}
    if not pairs:
        return None
    itself = {cell: (draft, draft) for cell, draft in control.items()}
    confidence = records.config.measure.confidence
    results = [
        _result(name, size, tokens, both, confidence)
        for name, both in (pairs | {CONTROL: itself}).items()
        for size, tokens in sorted({(c.params, c.tokens) for c in both})
    ]
    rule = fitted_rule(records.config)
    middle = tuple(
        float(np.exp(np.mean(np.log(sorted({getattr(c, axis) for c in control})))))
        for axis in ("params", "tokens")
    )
    laws = [
        law
        for name, both in ({CONTROL: itself} | pairs).items()
        if (law := _law(name, both, target, rule, middle, confidence)) is not None
    ]
    return Objectives(
        teacher_id=target.model_id,
        estimator=estimator,
        middle_params=middle[0],
        middle_tokens=middle[1],
        results=results,
        laws=laws,
        confidence=confidence,
        runs=len({training_run(d.record) for d in control.values()}),
        basis=f"every draft is compared with the {CONTROL} draft of its size, seed, parent and budget, which took the same "
        "steps on the same text; results: t intervals over seeds. Laws: least squares on the change of logit α in ln N and "
        f"ln D; {_DRAWS} bootstrap draws of whole training runs (size and seed), a run with its control. N* maximises "
        "max over γ of (1 − α^(γ+1))/(1 − α)/(1 + γc), c in FLOPs, with logit α a line in ln N at the largest budget; it is "
        f"looked for from 1/{BEYOND:g} of the smallest size to {BEYOND:g} times the largest. All drafts are measured on "
        "the same samples of the teacher, whose noise no interval holds",
    )


def _measured(
    records: StudyRecords, told: list[ModelRecord], target: ModelRecord, estimator: str
) -> dict[str, dict[_Cell, _Draft]]:
    """Drafts measured with the teacher, by objective and then by what they share with the control."""
    temperature = records.config.measure.temperature
    alpha = {
        r.draft_id: r.alpha
        for r in records.measured_acceptance
        if r.target_id == target.model_id
        and r.estimator == estimator
        and r.temperature == temperature
        and 0 < r.alpha < 1
    }
    drafts = [m for m in told if m.role == "draft" and m.model_id in alpha]
    measured = measured_speedups(drafts, records.measured_rounds, target)
    best = (
        {m.model_id: float(s.max()) for m, s in zip(measured.drafts, measured.speedup)}
        if measured
        else {}
    )
    by_objective: dict[str, dict[_Cell, _Draft]] = defaultdict(dict)
    for m in drafts:
        # The control need not know the teacher.
        if m.objective == CONTROL or m.teacher_digest == target.params_digest:
            cell = _Cell(m.params_nonembedding, m.train_tokens, m.seed)
            draft = _Draft(m, alpha[m.model_id], best.get(m.model_id, math.nan))
            by_objective[m.objective][cell] = draft
    return dict(by_objective)


_Pairs = dict[_Cell, tuple[_Draft, _Draft]]


def _result(name: str, size: int, tokens: int, both: _Pairs, confidence: float) -> ObjectiveResult:
    rows = [pair for cell, pair in both.items() if (cell.params, cell.tokens) == (size, tokens)]

    def over_seeds(values: list[float]) -> Estimate:
        return Estimate(*mean_interval(np.asarray(values), confidence))

    return ObjectiveResult(
        objective=name,
        draft_params=size,
        train_tokens=tokens,
        seeds=len(rows),
        alpha=over_seeds([d.alpha for d, _ in rows]),
        gain=over_seeds([d.alpha - c.alpha for d, c in rows]),
        loss_nats=float(np.mean([d.record.loss_nats for d, _ in rows])),
        loss_change=over_seeds([d.record.loss_nats - c.record.loss_nats for d, c in rows]),
        speedup=over_seeds([d.speedup for d, _ in rows]),
        speedup_gain=over_seeds([d.speedup - c.speedup for d, c in rows]),
    )


def _law(
    name: str,
    both: _Pairs,
    target: ModelRecord,
    rule: ShapeRule,
    middle: tuple[float, ...],
    confidence: float,
) -> ObjectiveLaw | None:
    """The law of one objective; None with fewer than three sizes or two budgets."""
    cells = [*both]
    size, tokens = (
        np.asarray([getattr(c, axis) for c in cells], float) for axis in _Cell._fields[:2]
    )
    if len(np.unique(size)) < 3 or len(np.unique(tokens)) < 2:
        return None
    drafts, controls = ([pair[i] for pair in both.values()] for i in (0, 1))
    logit, logit_control = (np.asarray([d.logit for d in some]) for some in (drafts, controls))
    gap, gap_control = (
        np.asarray([d.record.loss_nats for d in some]) - target.loss_nats
        for some in (drafts, controls)
    )
    axes = np.log(np.stack([size / middle[0], tokens / middle[1]], axis=1))
    runs = np.unique([f"{c.params} {c.seed}" for c in cells], return_inverse=True)[1]
    # The point, and then the draws.
    weights = np.concatenate([np.ones((1, len(cells))), resampled(runs, _DRAWS, seed=0)])
    change = logit - logit_control
    planes = least_squares(_columns(axes, (0, 1)), change, weights)
    of_gap = least_squares(_columns((gap - gap_control.mean())[:, None], (0,)), logit, weights)
    of_gap_control = least_squares(
        _columns((gap_control - gap_control.mean())[:, None], (0,)), logit_control, weights
    )
    errors = {form: _left_out(axes, columns, change, size) for form, columns in _FORMS.items()}
    last = tokens == tokens.max()
    lines = least_squares(_columns(axes[last], (0,)), logit[last], weights[:, last])
    sizes, speedups = best_sizes(
        lines,
        middle[0],
        (size.min(), size.max()),
        lambda n: np.asarray(flops_per_token(n, rule), float) / target.flops_per_token,
    )

    def estimate(values: Float[np.ndarray, " draws"]) -> Estimate:
        draws = values[1:][np.isfinite(values[1:])]
        return Estimate(float(values[0]), *quantile_interval(draws, confidence))

    return ObjectiveLaw(
        objective=name,
        level=estimate(planes[:, 0]),
        size_slope=estimate(planes[:, 1]),
        tokens_slope=estimate(planes[:, 2]),
        left_out_rmse=errors,
        form=min(errors, key=lambda form: errors[form]),
        gap_level=estimate(of_gap[:, 0] - of_gap_control[:, 0]),
        gap_slope=estimate(of_gap[:, 1] - of_gap_control[:, 1]),
        draft_params=estimate(sizes),
        speedup=estimate(speedups),
        inside=float(np.mean((sizes[1:] >= size.min()) & (sizes[1:] <= size.max()))),
    )


def _columns(
    axes: Float[np.ndarray, "n axes"], chosen: tuple[int, ...]
) -> Float[np.ndarray, "n k"]:
    return with_ones(axes[:, list(chosen)])


def _left_out(
    axes: Float[np.ndarray, "n axes"],
    columns: tuple[int, ...],
    change: Float[np.ndarray, " n"],
    size: Float[np.ndarray, " n"],
) -> float:
    """Root mean square error at each size of a form that is fitted to the others."""
    x, errors = _columns(axes, columns), []
    for left in np.unique(size):
        out = size == left
        fitted = least_squares(x, change, (~out).astype(float)[None])[0]
        errors.append(change[out] - x[out] @ fitted)
    return root_mean_square(np.concatenate(errors))
