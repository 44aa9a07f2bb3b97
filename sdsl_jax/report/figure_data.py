"""What the figures of a study show, computed from its records once for pictures and for interactive charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.counts import short_count
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.evidence.objectives import Objectives
from sdsl_jax.fitting.law_files import LawRecord
from sdsl_jax.records import AcceptanceRecord, LatencyRecord, ModelRecord, longest_trained
from sdsl_jax.records.codesign import CodesignEntry, CodesignLandscape, TrainedDraft
from sdsl_jax.report.style import target_label
from sdsl_jax.theory import ModelPoint

# Models of the tokens per round that are shown beside each other.
DEPENDENCE_MODELS = ("geometric", "beta", "persistent")
_MOST_DRAFTS = 7
Pair = tuple[ModelRecord, ModelRecord, AcceptanceRecord]


def pairs(records: StudyRecords, estimator: str, lookahead: int | None = None) -> list[Pair]:
    """Draft, target and row of every pair of the study's models.

    Args:
      records: Records of the study.
      estimator: How α was measured.
      lookahead: Draft tokens per round; None for all.
    """
    by_id = records.models_by_id
    return [
        (by_id[r.draft_id], by_id[r.target_id], r)
        for r in records.acceptance
        if r.estimator == estimator
        and lookahead in (None, r.lookahead)
        and {r.draft_id, r.target_id} <= by_id.keys()
    ]


def of_target(shown: Sequence[Pair], target: ModelRecord) -> list[Pair]:
    """Those whose target has the size of this one."""
    return [p for p in shown if p[1].params_nonembedding == target.params_nonembedding]


def drafts_shown(records: StudyRecords, ids: set[str]) -> list[ModelRecord]:
    """One draft of each size, at its largest budget, the smallest first; no more than a figure can show apart.

    Args:
      records: Records of the study.
      ids: Drafts to choose from.
    """
    ordered = longest_trained((m for m in records.models if m.model_id in ids), "draft")
    if len(ordered) <= _MOST_DRAFTS:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, _MOST_DRAFTS).round().astype(int)]


def loss_gaps(shown: Sequence[Pair]) -> np.ndarray:
    """Loss of the draft minus that of the target, in nats, of each pair."""
    return np.asarray([np.log(d.perplexity) - np.log(t.perplexity) for d, t, _ in shown])


def _points(models: Sequence[ModelRecord]) -> ModelPoint:
    """Models as laws look at them, all in one."""
    columns = ("params_nonembedding", "loss_nats", "train_tokens")
    return ModelPoint(*(np.asarray([getattr(m, c) for m in models], float) for c in columns))


def _at(loss: Any) -> ModelPoint:
    """A point for the laws drawn against losses, which do not look at sizes."""
    return ModelPoint(1.0, loss)


def target_names(records: StudyRecords) -> dict[int, str]:
    """What charts call the targets, by their sizes, all of them different."""
    sizes = [t.params_nonembedding for t in records.targets]
    return dict(zip(sizes, distinct([target_label(n) for n in sizes], sizes)))


def distinct(names: Sequence[str], values: Sequence[Any]) -> list[str]:
    """Names that tell things apart: with the exact count where two short ones are the same."""
    return [
        f"{name} ({value:,})" if list(names).count(name) > 1 else name
        for name, value in zip(names, values)
    ]


class LossPanel(NamedTuple):
    """Losses against one of size and tokens, with the fitted law at each value of the other.

    Attributes:
      x: Column of `ModelRecord` on the x axis.
      by: Column that curves are told apart by.
      label: Label of the x axis.
      title: Title of the panel.
      values: Values of `by`; a curve for each.
      names: What legends call them.
      grid: Values of `x` that the law is drawn at.
      curves: Loss by the law, [values, grid].
      models: The measured models.
    """

    x: str
    by: str
    label: str
    title: str
    values: list[int]
    names: list[str]
    grid: np.ndarray
    curves: list[np.ndarray]
    models: list[ModelRecord]


def loss_panels(records: StudyRecords) -> list[LossPanel]:
    """Loss against size, and against training tokens."""
    law, models = records.laws.loss, [m for m in records.models if m.training_is_known]
    size, tokens = "params_nonembedding", "train_tokens"
    panels = []
    for x, by, unit, label, title in (
        (size, tokens, "tokens", "non-embedding parameters N", "Loss falls with size"),
        (tokens, size, "parameters", "training tokens D", "Loss falls with data"),
    ):
        at, values = [getattr(m, x) for m in models], sorted({getattr(m, by) for m in models})
        grid = np.geomspace(min(at) / 1.3, max(at) * 1.3, 80)
        curves = [
            np.asarray(law(grid, float(v)) if x == size else law(float(v), grid)) for v in values
        ]
        names = [f"{short_count(v)} {unit}" for v in values]
        title += " (hollow: targets)"
        panels.append(LossPanel(x, by, label, title, values, names, grid, curves, models))
    return panels


class AcceptanceShown(NamedTuple):
    """Acceptance against perplexities and losses, with two fitted laws.

    Attributes:
      estimator: How α was measured.
      pairs: The measured pairs.
      x: Draft perplexities that the plane is drawn at.
      y: Target perplexities that the plane is drawn at.
      plane: α by the affine plane, [y, x].
      sections: α by the plane along `x`, for each target.
      gap_grid: Loss gaps that the law in the gap is drawn at.
      gap_curve: α by that law.
    """

    estimator: str
    pairs: list[Pair]
    x: np.ndarray
    y: np.ndarray
    plane: np.ndarray
    sections: list[np.ndarray]
    gap_grid: np.ndarray
    gap_curve: np.ndarray


def acceptance_shown(records: StudyRecords, resolution: int = 60) -> AcceptanceShown:
    """The affine plane, its section at each target, and the law in the loss gap.

    Args:
      records: Records of the study.
      resolution: Points of the plane along each axis.
    """
    laws, estimator = records.laws.acceptance, records.fits.acceptance_laws[0].estimator or ""
    shown = pairs(records, estimator)
    x = np.asarray([draft.perplexity for draft, _, _ in shown])
    y = np.asarray([target.perplexity for _, target, _ in shown])
    pad_x, pad_y = 0.08 * np.ptp(x), max(0.35 * np.ptp(y), 0.05)
    fine_x = np.linspace(x.min() - pad_x, x.max() + pad_x, resolution)
    fine_y = np.linspace(y.min() - pad_y, y.max() + pad_y, resolution)
    plane = laws["affine_plane"]
    gaps = loss_gaps(shown)
    gap_grid = np.linspace(min(0.0, gaps.min()) - 0.03, gaps.max() + 0.05, 80)
    return AcceptanceShown(
        estimator,
        shown,
        fine_x,
        fine_y,
        np.asarray(plane(_at(np.log(fine_x)[None]), _at(np.log(fine_y)[:, None]))),
        [np.asarray(plane(_at(np.log(fine_x)), _at(t.loss_nats))) for t in records.targets],
        gap_grid,
        np.asarray(laws["logit_gap"](_at(gap_grid), _at(0.0))),
    )


class PredictedPanel(NamedTuple):
    """Acceptance measured and predicted by one law.

    Attributes:
      fit: The fitted law.
      exact: Pairs by the estimator that it was fitted to, each with its prediction.
      decoded: The same by the live decoder at the largest lookahead.
    """

    fit: LawRecord
    exact: list[tuple[Pair, float]]
    decoded: list[tuple[Pair, float]]


def largest_survival_lookahead(records: StudyRecords) -> int:
    """The largest lookahead of the live decoder; 0 if it did not run."""
    return max((r.lookahead for r in records.survival), default=0)


def predicted_panels(records: StudyRecords) -> list[PredictedPanel]:
    """Measured against predicted acceptance, for every fitted law."""
    largest = largest_survival_lookahead(records)
    decoded = pairs(records, "decoded_per_test", largest) if largest else []

    def predicted(law: str, shown: list[Pair]) -> list[tuple[Pair, float]]:
        if not shown:
            return []
        drafts, targets = _points([d for d, *_ in shown]), _points([t for _, t, _ in shown])
        values = np.asarray(records.laws.acceptance[law](drafts, targets), float)
        return list(zip(shown, values.tolist()))

    return [
        PredictedPanel(
            fit,
            predicted(fit.law, pairs(records, fit.estimator or "")),
            predicted(fit.law, decoded),
        )
        for fit in records.fits.acceptance_laws
    ]


def cost_models(records: StudyRecords) -> list[str]:
    """The cost models of the optima."""
    return list(dict.fromkeys(entry.cost_model for entry in records.codesign))


def drawn_laws(records: StudyRecords) -> list[str]:
    """The acceptance laws of the optima, the best first."""
    return list(dict.fromkeys(entry.acceptance_law for entry in records.codesign))


def solved(
    records: StudyRecords, target: ModelRecord, cost_model: str, law: str
) -> tuple[CodesignEntry, CodesignLandscape] | None:
    """Entry and landscape of one target, cost model and acceptance law."""
    name = target.model_id, cost_model, law
    return next(
        (
            (e, landscape)
            for e, landscape in zip(records.codesign, records.landscapes)
            if (e.target_id, e.cost_model, e.acceptance_law) == name
        ),
        None,
    )


def best_measured(entry: CodesignEntry) -> list[TrainedDraft]:
    """For each size of the drafts with the most tokens, the fastest of its measured lookaheads."""
    most = max((row.train_tokens for row in entry.trained), default=0)
    best: dict[int, TrainedDraft] = {}
    for row in entry.trained:
        rival = best.get(row.draft_params)
        if row.train_tokens == most and (rival is None or row.speedup > rival.speedup):
            best[row.draft_params] = row
    return list(best.values())


class SurvivalCurve(NamedTuple):
    """Survival of one pair, with that of independent acceptance.

    Attributes:
      draft: The draft.
      target: The target.
      positions: Positions k in the round.
      survival: Measured share of rounds whose first k drafts were accepted.
      low: Lower ends of the intervals.
      high: Upper ends of the intervals.
      geometric: α^k, with α from the same rounds.
      tokens_per_round: τ.
    """

    draft: ModelRecord
    target: ModelRecord
    positions: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray
    geometric: np.ndarray
    tokens_per_round: float


def survival_curves(records: StudyRecords) -> list[SurvivalCurve]:
    """Survival at the largest lookahead: of every target, with the longest-trained draft of each size."""
    largest = largest_survival_lookahead(records)
    rows = [r for r in records.survival if r.lookahead == largest]
    decoded = {r.draft_id for r in rows}
    drafts = longest_trained((m for m in records.models if m.model_id in decoded), "draft")
    tar = records.measured("decoded_tar", largest)
    curves = []
    for target in records.targets:
        for draft in drafts:
            pair = draft.model_id, target.model_id
            own = [r for r in rows if (r.draft_id, r.target_id) == pair]
            k = np.asarray([r.position for r in own])
            curves.append(
                SurvivalCurve(
                    draft,
                    target,
                    k,
                    np.asarray([r.survival for r in own]),
                    np.asarray([r.survival_low for r in own]),
                    np.asarray([r.survival_high for r in own]),
                    tar[pair].alpha ** k,
                    own[0].tokens_per_round,
                )
            )
    return curves


class TimedStep(NamedTuple):
    """A timed step, and what the fitted device takes for it.

    Attributes:
      model: The model.
      row: The measurement.
      predicted_seconds: Seconds by the fitted device.
    """

    model: ModelRecord
    row: LatencyRecord
    predicted_seconds: float


def timed_steps(records: StudyRecords) -> tuple[list[TimedStep], list[TimedStep]]:
    """One-token decoding steps by size, and passes of the targets by width."""
    by_id = records.models_by_id
    predicted = {(r.model_id, r.width): r.predicted_seconds for r in records.fits.hardware.rows}
    steps = [
        TimedStep(by_id[r.model_id], r, predicted[r.model_id, r.width])
        for r in records.latency
        if (r.model_id, r.width) in predicted
    ]
    targets = {m.model_id for m in records.targets}
    decode = sorted(
        (s for s in steps if s.row.operation == "decode"),
        key=lambda s: float(s.model.params_nonembedding),
    )
    passes = sorted((s for s in steps if s.model.model_id in targets), key=lambda s: s.row.width)
    return decode, passes


class ObjectivesShown(NamedTuple):
    """Which drafts the figure of objectives compares.

    Attributes:
      objectives: What they were trained for, in the order of the legend.
      last_budget: The largest budget of tokens.
      middle_size: The trained size nearest to that at which levels are given.
    """

    objectives: list[str]
    last_budget: int
    middle_size: int


def objectives_shown(answer: Objectives) -> ObjectivesShown:
    """The objectives, the largest budget and the middle size."""
    names = [law.objective for law in answer.laws] or sorted({r.objective for r in answer.results})
    sizes = sorted({r.draft_params for r in answer.results})
    middle = min(sizes, key=lambda n: abs(np.log(n / answer.middle_params)))
    return ObjectivesShown(names, max(r.train_tokens for r in answer.results), middle)
