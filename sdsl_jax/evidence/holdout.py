"""How published predictions of held-out models came true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sdsl_jax.evidence.common import MeasuredSpeedups, measured_speedups
from sdsl_jax.evidence.law_comparison import largest_left_out, once_seen
from sdsl_jax.evidence.predictions import (
    PAIRS,
    FormError,
    IntervalShares,
    PredictedLoss,
    PredictedOptimum,
    PredictedPair,
    Predictions,
    Rung,
    pair_groups,
)
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.records import ModelRecord, longest_trained
from sdsl_jax.theory import ACCEPTANCE_LAWS, ModelPoint

# Budgets are rounded to whole steps.
_SAME_TOKENS = 0.05


@dataclass(frozen=True)
class JudgedLoss(PredictedLoss):
    """A predicted loss beside its measurement.

    Attributes:
      model_id: the held-out model
      measured: measured loss, nats per token
      relative_error: predicted over measured, minus 1
      inside: whether the measurement lies inside the interval
      extrapolation: size over the largest size that the laws were fitted to
    """

    model_id: str
    measured: float
    relative_error: float
    inside: bool
    extrapolation: float


@dataclass(frozen=True)
class JudgedPair(PredictedPair):
    """A predicted acceptance beside its measurement.

    Attributes:
      draft_id: the draft
      target_id: the target
      measured: measured acceptance
      measured_low: lower end of its interval
      measured_high: upper end of its interval
      error: predicted minus measured
      inside: whether the measurement lies inside the predicted interval
      alpha_true_losses: what the law says given the losses measured later
      extrapolation: size over the largest seen of its role, the larger of the two
      draft_held_out: whether the draft was held out
      target_held_out: whether the target was held out
    """

    draft_id: str
    target_id: str
    measured: float
    measured_low: float
    measured_high: float
    error: float
    inside: bool
    alpha_true_losses: float
    extrapolation: float
    draft_held_out: bool
    target_held_out: bool


@dataclass(frozen=True)
class AlphaErrors:
    """Errors of predicted acceptance under one law.

    Attributes:
      mae: mean absolute error
      bias: mean error
      mae_true_losses: mean absolute error given the losses measured later
      n: pairs
      mae_by_kind: mean absolute error by what was held out
    """

    mae: float
    bias: float
    mae_true_losses: float
    n: int
    mae_by_kind: dict[str, float]


@dataclass(frozen=True)
class Goal:
    """A goal of the predictions.

    Attributes:
      goal: largest value that meets the goal
      reached: value that was reached
      met: whether the goal was met
      at_least: smallest value that meets the goal
    """

    goal: float
    reached: float
    met: bool
    at_least: float = 0.0

    @classmethod
    def of(cls, reached: float, most: float, least: float = 0.0) -> Goal:
        """What was reached, against the ends of what was to be reached."""
        return cls(most, reached, least <= reached <= most, least)

    def __str__(self) -> str:
        """What was to be reached, such as "0.85 to 0.95"."""
        return f"{self.at_least:g} to {self.goal:g}" if self.at_least else f"at most {self.goal:g}"


@dataclass(frozen=True)
class GroupCoverage:
    """How many predictions of a group came true within their intervals.

    Attributes:
      group: what the pairs have in common; "losses" for the losses
      n: predictions
      inside: share inside their intervals
      expected_low: low quantile of this share in joint draws of the forecast
      expected_high: high quantile of it
      mae: mean absolute error, relative for losses
    """

    group: str
    n: int
    inside: float
    expected_low: float
    expected_high: float
    mae: float


@dataclass(frozen=True)
class BudgetError:
    """Error of a loss law at one token budget.

    Attributes:
      tokens: training tokens
      error: predicted over measured loss, minus 1
    """

    tokens: int
    error: float


@dataclass(frozen=True)
class DepthFit:
    """A loss law fitted afterwards to all smaller models of at least some depth.

    Attributes:
      least_layers: fewest layers of the models that it was fitted to
      sizes: sizes that it was fitted to
      models: models that it was fitted to
      rmse: root mean square residual of ln loss
      errors: errors on the largest size
    """

    least_layers: int
    sizes: int
    models: int
    rmse: float
    errors: list[BudgetError]


@dataclass(frozen=True)
class Strategy:
    """What a way of choosing draft and lookahead gives.

    Attributes:
      draft_id: draft that it chooses; none for a mean over drafts
      lookahead: lookahead that it chooses; none for a mean over drafts
      speedup: measured S of the choice, in FLOPs
      regret: share of the best measured S that the choice loses
    """

    draft_id: str | None
    lookahead: int | None
    speedup: float
    regret: float


@dataclass(frozen=True)
class BestMeasured:
    """The best measured draft and lookahead.

    Attributes:
      draft_id: the draft
      lookahead: the lookahead
      speedup: measured S in FLOPs
    """

    draft_id: str
    lookahead: int
    speedup: float


@dataclass(frozen=True)
class NearBest:
    """A draft that comes near the best.

    Attributes:
      draft_id: the draft
      lookaheads: lookaheads at which it is within 3% of the best S
    """

    draft_id: str
    lookaheads: list[int]


@dataclass(frozen=True)
class Choice:
    """What each way of choosing would have given for the largest target.

    Attributes:
      target: the target
      predicted: the published optimum
      best_measured: the best measured draft and lookahead
      predicted_speedup_error: published S* over the best measured S, minus 1; none without a finite
        optimum
      strategies: ways of choosing, by name
      within_3pct: drafts within 3% of the best measured S
    """

    target: str
    predicted: PredictedOptimum
    best_measured: BestMeasured
    predicted_speedup_error: float | None
    strategies: dict[str, Strategy]
    within_3pct: list[NearBest]


@dataclass(frozen=True)
class Holdout:
    """Every published prediction beside its measurement.

    Attributes:
      losses: losses of held-out models
      pairs: acceptance under the best law, pairs with a held-out member
      alpha_by_law: errors of acceptance under every law, of the pairs that count
      best_law: acceptance law that was best before anything was held against it
      choice: what each way of choosing gives for the largest target
      largest_at_longest_budget: relative error of the loss of the largest size at its longest
        budget
      loss_by_depth: loss laws fitted afterwards, by least depth
      goals: what the predictions set out to reach
      loss_coverage: share of losses inside their intervals
      alpha_coverage: share of acceptances inside their intervals, of the pairs that count
      coverage: the same by group of pairs, beside what the forecast itself expected
      confidence: confidence of the intervals
      why: what the errors come from, in sentences
      published: when the predictions were written
      already_measured: held-out models whose records were there by then
      basis: how the numbers were computed
      form_errors: errors of the forms of the loss law and of the best acceptance law
      interval_shares: what the intervals of their predictions are made of
    """

    losses: list[JudgedLoss]
    pairs: list[JudgedPair]
    alpha_by_law: dict[str, AlphaErrors]
    best_law: str
    choice: Choice
    largest_at_longest_budget: float
    loss_by_depth: list[DepthFit]
    goals: dict[str, Goal]
    loss_coverage: float
    alpha_coverage: float
    confidence: float
    why: list[str]
    published: str | None
    already_measured: list[str]
    basis: str
    form_errors: list[FormError] = field(default_factory=list)
    interval_shares: list[IntervalShares] = field(default_factory=list)
    coverage: list[GroupCoverage] = field(default_factory=list)


def holdout(records: StudyRecords) -> Holdout | None:
    """Every published prediction beside its measurement; None where nothing was held out."""
    published = records.document("predictions", Predictions)
    if published is None or not records.config.holdout.any:
        return None
    losses = _losses(records, published)
    pairs = _pairs(records, published)
    choice = _choice(records, published)
    if not losses or not pairs or choice is None:
        return None
    size = max(row.params for row in losses)
    largest = [row for row in losses if row.params == size]
    by_depth = _loss_by_depth(records)
    goals, best = records.config.holdout, [p for p in pairs if p.law == published.best_law]
    groups = pair_groups(
        np.asarray([(p.draft_params, p.target_params) for p in best]),
        np.asarray([(p.draft_held_out, p.target_held_out) for p in best]),
        goals.smaller_drafts,
    )
    if PAIRS not in groups:
        return None
    by_law = {
        name: _alpha_errors([p for p, counts in zip(of_law, groups[PAIRS]) if counts])
        for name in ACCEPTANCE_LAWS
        if (of_law := [p for p in pairs if p.law == name])
    }
    errors = by_law[published.best_law]
    covered = float(np.mean([p.inside for p in best], where=groups[PAIRS]))
    loss_error = float(np.mean([abs(row.relative_error) for row in largest]))
    regret = choice.strategies["predicted N* and γ*"].regret
    return Holdout(
        losses=losses,
        pairs=best,
        alpha_by_law=by_law,
        best_law=published.best_law,
        choice=choice,
        largest_at_longest_budget=max(largest, key=lambda row: row.tokens).relative_error,
        loss_by_depth=by_depth,
        goals={
            "largest_loss": Goal.of(loss_error, goals.largest_loss),
            "alpha_mae": Goal.of(errors.mae, goals.alpha_mae),
            "alpha_coverage": Goal.of(covered, *reversed(goals.alpha_coverage)),
            "regret": Goal.of(regret, goals.regret),
        },
        loss_coverage=float(np.mean([row.inside for row in losses])),
        alpha_coverage=covered,
        coverage=[
            _covered(published, "losses", [(r.inside, r.relative_error) for r in losses]),
            *(
                _covered(published, name, [(p.inside, p.error) for p, x in zip(best, rows) if x])
                for name, rows in groups.items()
            ),
        ],
        confidence=published.confidence,
        why=_why(errors, largest, by_depth),
        published=published.published,
        already_measured=published.already_measured,
        basis="extrapolation: size over the largest size that the laws were fitted to; S: exact expected tokens per round "
        "over the FLOPs of a round; the optimum is taken to the nearest trained draft, and so is the 200× rule",
        form_errors=published.form_errors,
        interval_shares=published.interval_shares,
    )


def _covered(published: Predictions, group: str, rows: list[tuple[bool, float]]) -> GroupCoverage:
    """Coverage of a group from whether each prediction came true, and its error."""
    inside, errors = np.asarray(rows, float).T
    expected = published.expected_inside.get(group, (math.nan, math.nan))
    return GroupCoverage(
        group, len(rows), float(inside.mean()), *expected, float(np.abs(errors).mean())
    )


def _why(errors: AlphaErrors, largest: list[JudgedLoss], depths: list[DepthFit]) -> list[str]:
    """What the errors come from, in sentences: α by the published law, the largest size, and loss laws by depth."""
    error = float(np.mean([row.relative_error for row in largest]))
    sentences = [
        f"the loss law predicts the largest size {abs(error):.1%} too {'low' if error < 0 else 'high'} on average over budgets"
    ]
    if len(depths) > 1:
        means = [float(np.mean([e.error for e in row.errors])) for row in depths]
        best = int(np.argmin(np.abs(means)))
        if best > 0 and abs(means[best]) < abs(means[0]) / 2:
            sentences.append(
                f"fitted afterwards to models of at least {depths[best].least_layers} layers only, its error is "
                f"{means[best]:+.1%} instead of {means[0]:+.1%}: one law of size does not hold across those depths"
            )
    share = errors.mae_true_losses / errors.mae if errors.mae > 0 else 1.0
    cause = "its own form causes" if share > 0.5 else "predicted losses cause"
    sentences.append(
        f"given the true losses, the acceptance law still has a mean absolute error of {errors.mae_true_losses:.4f} out of "
        f"{errors.mae:.4f}: {cause} most of the error"
    )
    return sentences


def _is_of(model: ModelRecord, rung: Rung) -> bool:
    """Whether a model is one of a rung."""
    same_size = (model.role, model.params_nonembedding) == (rung.role, rung.params)
    return same_size and abs(model.train_tokens - rung.tokens) <= _SAME_TOKENS * rung.tokens


def _find(records: StudyRecords, rung: Rung) -> ModelRecord | None:
    """The model of a rung, the smallest seed of several."""
    models = [m for m in records.models if _is_of(m, rung)]
    return min(models, key=lambda m: m.seed, default=None)


def _point(model: ModelRecord, loss: float | None = None) -> ModelPoint:
    return ModelPoint(
        float(model.params_nonembedding),
        model.loss_nats if loss is None else loss,
        float(model.train_tokens),
    )


def _losses(records: StudyRecords, published: Predictions) -> list[JudgedLoss]:
    largest = max(published.largest_seen.values())
    rows = []
    for row in published.losses:
        model = _find(records, row)
        if model is not None:
            rows.append(
                JudgedLoss(
                    **vars(row),
                    model_id=model.model_id,
                    measured=model.loss_nats,
                    relative_error=row.loss / model.loss_nats - 1,
                    inside=row.low <= model.loss_nats <= row.high,
                    extrapolation=row.params / largest,
                )
            )
    return rows


def _loss_by_depth(records: StudyRecords) -> list[DepthFit]:
    """After the fact: errors on the largest size of loss laws fitted to all smaller models of at
    least so many layers.

    L(N, D) takes size for the only thing that a shape does. Where models of one layer and of
    several do not lie on one line, a law fitted to both has the wrong slope, and shows it here.
    """
    rows = []
    for layers in sorted({m.layers for m in once_seen(records)}):
        left_out = largest_left_out(records, 8, 4, least_layers=layers)
        if left_out is not None:
            seen, tokens = left_out.seen, left_out.unseen.tokens
            errors = [BudgetError(int(t), float(e)) for t, e in zip(tokens, left_out.ratio - 1)]
            sizes, models = len(set(seen.params)), len(seen.params)
            rows.append(DepthFit(layers, sizes, models, left_out.rmse, errors))
    return rows


def _pairs(records: StudyRecords, published: Predictions) -> list[JudgedPair]:
    """Predictions of α beside their measurements."""
    measured = records.measured(records.config.fit.estimator)
    rows = []
    for row in published.pairs:
        draft = _find(records, Rung("draft", row.draft_params, row.draft_tokens))
        target = _find(records, Rung("target", row.target_params, row.target_tokens))
        record = measured.get((draft.model_id, target.model_id)) if draft and target else None
        if draft is None or target is None or record is None:
            continue
        rows.append(
            JudgedPair(
                **vars(row),
                draft_id=draft.model_id,
                target_id=target.model_id,
                measured=record.alpha,
                measured_low=record.alpha_low,
                measured_high=record.alpha_high,
                error=row.alpha - record.alpha,
                inside=row.low <= record.alpha <= row.high,
                alpha_true_losses=float(published.law(row.law)(_point(draft), _point(target))),
                extrapolation=max(
                    row.draft_params / published.largest_seen["draft"],
                    row.target_params / published.largest_seen["target"],
                ),
                draft_held_out=draft.model_id not in published.seen_models,
                target_held_out=target.model_id not in published.seen_models,
            )
        )
    return rows


def _alpha_errors(rows: list[JudgedPair]) -> AlphaErrors:
    errors = np.asarray([row.error for row in rows])
    true_losses = np.asarray([row.alpha_true_losses - row.measured for row in rows])
    held = np.asarray([(r.draft_held_out, r.target_held_out) for r in rows])
    kinds = {
        "held-out draft, seen target": (True, False),
        "seen draft, held-out target": (False, True),
        "both held out": (True, True),
    }
    chosen = {name: (held == kind).all(axis=1) for name, kind in kinds.items()}
    return AlphaErrors(
        mae=float(np.abs(errors).mean()),
        bias=float(errors.mean()),
        mae_true_losses=float(np.abs(true_losses).mean()),
        n=len(rows),
        mae_by_kind={k: float(np.abs(errors[v]).mean()) for k, v in chosen.items() if v.any()},
    )


def _choice(records: StudyRecords, published: Predictions) -> Choice | None:
    """What each way of choosing would have given for the largest target, in measured S (FLOPs)."""
    optimum, target = published.optimum, _find(records, published.largest_target)
    if target is None:
        return None
    measured = measured_speedups(longest_trained(records.models, "draft"), records.expected, target)
    if measured is None:
        return None
    alpha = np.asarray([_predicted_alpha(published, m, target) for m in measured.drafts])
    # A law whose acceptance reaches 1 asks for drafts without end: its lookahead is infinite.
    endless = not math.isfinite(optimum.lookahead)
    lookahead = int(measured.lookaheads[-1]) if endless else max(1, round(optimum.lookahead))
    nearest = _nearest(measured, optimum.draft_params)
    ratio = _nearest(measured, target.params_nonembedding / 200)
    best = np.unravel_index(np.argmax(measured.speedup), measured.speedup.shape)

    def own_lookahead(draft: int) -> int:
        """The lookahead that the predicted α of this draft asks for."""
        alone = measured._replace(
            drafts=[measured.drafts[draft]],
            cost=measured.cost[[draft]],
            speedup=measured.speedup[[draft]],
        )
        return max(1, alone.choice(alpha[[draft]])[1])

    def taken(draft: int, lookahead: int) -> Strategy:
        return Strategy(
            measured.drafts[draft].model_id,
            lookahead,
            measured.at(draft, lookahead),
            measured.regret(draft, lookahead),
        )

    def at_random(lookaheads: Sequence[int]) -> Strategy:
        """The mean over drafts that are equally likely."""
        choices = list(enumerate(lookaheads))
        return Strategy(
            None,
            None,
            float(np.mean([measured.at(*choice) for choice in choices])),
            float(np.mean([measured.regret(*choice) for choice in choices])),
        )

    drafts = range(len(measured.drafts))
    near = measured.speedup >= 0.97 * measured.best
    return Choice(
        target=target.model_id,
        predicted=optimum,
        best_measured=BestMeasured(
            measured.drafts[best[0]].model_id, int(measured.lookaheads[best[1]]), measured.best
        ),
        predicted_speedup_error=None if endless else optimum.speedup / measured.best - 1,
        strategies={
            "predicted N* and γ*": taken(nearest, lookahead),
            "best of the ladder by predicted α": taken(*measured.choice(alpha)),
            "200× rule, its own predicted γ": taken(ratio, own_lookahead(ratio)),
            "predicted N*, γ = 4": taken(nearest, 4),
            "200× rule, γ = 4": taken(ratio, 4),
            "random draft, its own predicted γ": at_random([own_lookahead(i) for i in drafts]),
            "random draft, γ = 4": at_random([4 for _ in drafts]),
        },
        within_3pct=[
            NearBest(m.model_id, [int(g) for g in measured.lookaheads[row]])
            for m, row in zip(measured.drafts, near)
            if row.any()
        ],
    )


def _predicted_alpha(published: Predictions, *pair: ModelRecord) -> float:
    """α by the published law, with the published loss of whatever was held out."""

    def loss(model: ModelRecord) -> float | None:
        return next((row.loss for row in published.losses if _is_of(model, row)), None)

    return float(published.law(published.best_law)(*(_point(m, loss(m)) for m in pair)))


def _nearest(measured: MeasuredSpeedups, params: float) -> int:
    """The draft nearest in size."""
    distances = [abs(math.log(m.params_nonembedding / params)) for m in measured.drafts]
    return int(np.argmin(distances))
