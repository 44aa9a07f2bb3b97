"""Does perplexity alone predict acceptance? Drafts trained on other text against the study's own at equal loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sdsl_jax.evidence.common import Estimate, answer_of, training_run
from sdsl_jax.evidence.conditions import base_domain, by_both, exact_rows, losses
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting import local_acceptance
from sdsl_jax.statistics import bootstrap_weights, quantile_interval

# Differences in α smaller than this are of no consequence.
_MARGIN = 0.01
# Standard deviation of the local weights, as a share of the range of losses of the study's own
# drafts.
_BANDWIDTH = 0.3
# Fewer runs than this do not hold a curve.
_FEWEST_RUNS = 4


@dataclass(frozen=True)
class MeanDifference(Estimate):
    """A mean over pairs, with its bootstrap interval.

    Attributes:
      n: pairs
    """

    n: int


@dataclass(frozen=True)
class OwnPair:
    """A pair of the study's own data.

    Attributes:
      draft_id: the draft
      target_id: the target
      loss: loss of the draft on the study's own text, nats per token
      alpha: its acceptance
    """

    draft_id: str
    target_id: str
    loss: float
    alpha: float


@dataclass(frozen=True)
class OtherPair(OwnPair):
    """A draft trained on other text beside a same-data draft of equal loss.

    Attributes:
      alpha_same_data: acceptance of a same-data draft of equal loss
      difference: acceptance of this draft minus that
      low: lower end of the interval of the difference
      high: upper end of the interval of the difference
      extrapolated: whether the loss lies outside the range of the own drafts
    """

    alpha_same_data: float
    difference: float
    low: float
    high: float
    extrapolated: bool


@dataclass(frozen=True)
class SameDataSummary:
    """Whether loss alone predicts acceptance, under one estimator.

    Attributes:
      difference: mean difference over all pairs
      difference_inside: mean difference over pairs within the range of the own drafts' losses
      answer: yes if loss alone predicts acceptance, no, or undecided
      margin: difference of α that is of no consequence
      estimator: estimator of α
      n: pairs of other drafts
      other_drafts: training runs of other drafts
      own_drafts: training runs of own drafts
      warnings: what to know before relying on the answer
    """

    difference: MeanDifference
    difference_inside: MeanDifference | None
    answer: str
    margin: float
    estimator: str
    n: int
    other_drafts: int
    own_drafts: int
    warnings: list[str]


@dataclass(frozen=True)
class SameData(SameDataSummary):
    """Whether loss alone predicts acceptance.

    Attributes:
      pairs: pairs of drafts trained on other text
      own: pairs of the study's own drafts
      basis: how the numbers were computed
      also: the same by another estimator
    """

    pairs: list[OtherPair]
    own: list[OwnPair]
    basis: str
    also: list[SameDataSummary] = field(default_factory=list)


def same_data(records: StudyRecords) -> SameData | None:
    """α of every other-text draft minus that of a same-data draft of equal loss, against the same
    targets and on the same text.

    First on the text that the losses are of. Returns None without other-text drafts whose loss and
    α on the study's own text are known, or with too few own drafts.
    """
    return by_both(_same_data, SameDataSummary, records, "teacher_forced_text")


def _same_data(records: StudyRecords, estimator: str) -> SameData | None:
    base, m = base_domain(records), records.config.measure
    loss = losses(records, base)
    runs = {model.model_id: training_run(model) for model in records.of_role("draft")}
    own_drafts = set(runs)
    runs = {model.model_id: training_run(model) for model in records.other_models} | runs
    # By target: α of own drafts, and of others.
    alpha: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for row in exact_rows(records, set(runs), estimator):
        here = row.domain == base and row.temperature == m.temperature
        if here and row.draft_id in loss and row.target_id in loss:
            kinds = alpha.setdefault(row.target_id, ({}, {}))
            kinds[row.draft_id not in own_drafts][row.draft_id] = row.alpha
    usable = {
        target: kinds
        for target, kinds in alpha.items()
        if kinds[1] and len({runs[d] for d in kinds[0]}) >= _FEWEST_RUNS
    }
    if not usable:
        return None
    fit = records.config.fit
    own_runs = sorted({runs[d] for d in own_drafts})
    other_runs = sorted({runs[d] for _, others in usable.values() for d in others})
    # The fit to all rows comes first, the resamples after it.
    own_weight, other_weight = (
        np.concatenate(
            [
                np.ones((1, len(names))),
                bootstrap_weights(len(names), fit.bootstrap, records.config.seed + i),
            ]
        )
        for i, names in enumerate((own_runs, other_runs))
    )
    rows, differences, weights = [], [], []
    for target, (own, others) in usable.items():
        gap, at = (np.asarray([loss[d] - loss[target] for d in kind]) for kind in (own, others))
        same = local_acceptance(
            gap,
            np.asarray(list(own.values())),
            at,
            own_weight[:, [own_runs.index(runs[d]) for d in own]],
            _BANDWIDTH * float(np.ptp(gap)),
            fit.acceptance_huber_delta,
        )
        difference = np.asarray(list(others.values())) - same
        differences.append(difference)
        weights.append(other_weight[:, [other_runs.index(runs[d]) for d in others]])
        rows += [
            OtherPair(
                draft,
                target,
                loss[draft],
                value,
                float(same[0, i]),
                float(difference[0, i]),
                *quantile_interval(difference[1:, i], m.confidence),
                not bool(gap.min() <= at[i] <= gap.max()),
            )
            for i, (draft, value) in enumerate(others.items())
        ]
    joined, weight = np.concatenate(differences, axis=1), np.concatenate(weights, axis=1)
    outside = np.asarray([row.extrapolated for row in rows])
    inside = None
    if not outside.all():
        inside = _mean(joined[:, ~outside], weight[:, ~outside], m.confidence)
    return SameData(
        difference=_mean(joined, weight, m.confidence),
        difference_inside=inside,
        answer="undecided" if inside is None else _answer(inside),
        margin=_MARGIN,
        estimator=estimator,
        pairs=rows,
        own=[
            OwnPair(draft, target, loss[draft], value)
            for target, (own, _) in usable.items()
            for draft, value in own.items()
        ],
        n=len(rows),
        other_drafts=len(other_runs),
        own_drafts=len(own_runs),
        warnings=[
            f"{outside.sum()} of {len(rows)} pairs have a loss outside the range of the study's own drafts, where the "
            "curve is extrapolated"
        ]
        if outside.any()
        else [],
        basis="α of a draft trained on other text minus α of a draft of the study's own data at the same loss on "
        "the study's own text, against the same target (on samples: α there, and loss still on the text); the latter "
        "from a logit law in the loss gap with weights that fall off with the distance in loss (standard deviation "
        f"{_BANDWIDTH:.0%} of the range). Answer: yes (loss alone predicts α) if the interval of the mean difference "
        f"within the range of own losses lies within ±{_MARGIN:g}, no if it does not and excludes 0, else undecided. "
        f"Intervals: {fit.bootstrap} bootstrap draws that resample runs of other drafts and runs of own drafts at once",
    )


def _mean(differences: np.ndarray, weights: np.ndarray, confidence: float) -> MeanDifference:
    """Mean over pairs with its bootstrap interval; the first row is the data, the others resamples [1 + draws, pairs]."""
    total = weights.sum(axis=1)
    drawn = total > 0
    means = (weights[drawn] * differences[drawn]).sum(axis=1) / total[drawn]
    interval = quantile_interval(means[1:], confidence)
    return MeanDifference(float(means[0]), *interval, differences.shape[1])


def _answer(interval: Estimate) -> str:
    return answer_of(
        interval.low > -_MARGIN and interval.high < _MARGIN, interval.low > 0 or interval.high < 0
    )
