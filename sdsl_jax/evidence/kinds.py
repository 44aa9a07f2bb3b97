"""Which kind of draft is best for a target: models of their own, heads, early exits, pruned and nested drafts."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from sdsl_jax.config import HEAD_KINDS
from sdsl_jax.evidence.common import Estimate, training_run
from sdsl_jax.evidence.size_lines import best_sizes, least_squares, with_ones
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.records import AcceptanceRecord, ModelRecord, RunRecord
from sdsl_jax.statistics import mean_interval, quantile_interval, resampled

INDEPENDENT = "independent"
_DRAWS = 1000
# Training runs below which a bootstrap of them says nothing.
_FEWEST_RUNS = 4
# The draft of a round beside the first whose acceptance is shown.
_LATER = 4


@dataclass(frozen=True)
class KindResult:
    """Drafts of one kind, objective, size and token budget, over their seeds.

    Attributes:
      kind: kind of draft
      objective: what they were trained for; text for cross-entropy from random weights; with the ids of
        a truncated readout
      draft_params: non-embedding parameters
      layers: Transformer blocks
      train_tokens: tokens trained on since the parent
      seeds: seeds
      alpha: mean acceptance of the first draft of a round
      later_alpha: that of the fourth draft; the first one's where it does not depend on the number,
        and not a number for a head that gives fewer
      cost: FLOPs of a draft step over those of a target step; of a head one that reads features
      lookahead: lookahead of the best speed-up in FLOPs, of the first seed
      tokens_per_round: mean tokens per round at each seed's best lookahead
      speedup: mean of the best speed-up of any lookahead, in FLOPs
      clock_lookahead: lookahead of the best speed-up on the clock; 0 if none was timed
      clock_speedup: speed-up on the clock, of one seed, over repetitions that did not choose the lookahead
      train_flops: FLOPs of training: its own, the teacher's passes and those of its parents
      domain_alpha: `alpha` after prompts of each domain that the study adds to its own text, by name; of
        one seed with the interval of its prompts
    """

    kind: str
    objective: str
    draft_params: int
    layers: int
    train_tokens: int
    seeds: int
    alpha: Estimate
    later_alpha: Estimate
    cost: float
    lookahead: int
    tokens_per_round: Estimate
    speedup: Estimate
    clock_lookahead: int
    clock_speedup: Estimate
    train_flops: float
    domain_alpha: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class KindBest:
    """The best size of one kind and objective.

    Attributes:
      kind: kind of draft
      objective: what the drafts were trained for
      measured: the best of the drafts that were trained, in FLOPs
      draft_params: N*, the size that a line of logit α in ln N asks for; not a number without a law,
        and without an interval where fewer than four training runs are behind it
      speedup: speed-up there at the best lookahead
      inside: share of the draws whose N* lies among the sizes that were trained
      why_no_law: why there is none; empty where there is one
    """

    kind: str
    objective: str
    measured: KindResult
    draft_params: Estimate
    speedup: Estimate
    inside: float
    why_no_law: str


@dataclass(frozen=True)
class Kinds:
    """Kinds of draft side by side.

    Attributes:
      target_id: target that they draft for
      target_params: its non-embedding parameters
      results: every kind, objective and size, at the largest token budget
      best: the best of every kind and objective, the best first
      confidence: confidence of the intervals
      basis: how the numbers were computed
    """

    target_id: str
    target_params: int
    results: list[KindResult]
    best: list[KindBest]
    confidence: float
    basis: str

    @property
    def domains(self) -> list[str]:
        """Domains that some draft was measured in, beside the study's own text."""
        return list(dict.fromkeys(name for r in self.results for name in r.domain_alpha))


def kinds(records: StudyRecords) -> Kinds | None:
    """Every kind of draft and readout that a study measured with one target. None where all of them
    are models of their own of all ids, or no single target was measured with them."""
    trained = records.trained
    apart = [m for m in trained if m.kind or m.readout]
    teachers = {m.teacher_digest for m in apart} - {""}
    targets = [
        m
        for m in trained
        if m.role == "target" and apart and (m.params_digest in teachers or not teachers)
    ]
    if len(targets) != 1:
        return None
    (target,), confidence = targets, records.config.measure.confidence
    alpha = _alpha(records, target)
    groups: dict[tuple[str, str, int, int], list[ModelRecord]] = defaultdict(list)
    for m in trained:
        if m.role == "draft" and m.model_id in alpha and _is_for(m, target):
            groups[m.kind, _objective(m), m.params_nonembedding, m.layers].append(m)
    longest = [_longest(group) for group in groups.values()]
    results = [_result(records, group, target, alpha, confidence) for group in longest]
    together = [(r, g) for r, g in zip(results, longest) if r is not None]
    if not together:
        return None
    together.sort(key=lambda both: (both[0].kind, both[0].objective, both[0].draft_params))
    by_kind: dict[tuple[str, str], list[tuple[KindResult, list[ModelRecord]]]] = defaultdict(list)
    for r, group in together:
        by_kind[r.kind, r.objective].append((r, group))
    best = [_best(both, alpha, target, confidence) for both in by_kind.values()]
    return Kinds(
        target_id=target.model_id,
        target_params=target.params_nonembedding,
        results=[r for r, _ in together],
        best=sorted(best, key=lambda b: -b.measured.speedup.estimate),
        confidence=confidence,
        basis="α and tokens per round are exact, on the same samples of the target for all; t intervals over seeds, in which the "
        "noise of these samples is not; each seed at its own best γ. S in FLOPs is tokens per round over the FLOPs of a round in "
        "steps of the target; a verify pass counts as one step, so blocks that an early exit shares save nothing there. On the "
        "clock: one seed; half of the repetitions choose γ and the others are shown. N*: a line of logit α in ln N through the "
        f"drafts of a kind, c between theirs, {_DRAWS} bootstrap draws of whole training runs (the slices of a nested draft are "
        "one run), of which an interval needs four. Training FLOPs hold the teacher's passes and what the parents took",
    )


def _is_for(draft: ModelRecord, target: ModelRecord) -> bool:
    """Whether a draft was trained for this target, or on the text alone as a model of its own."""
    if draft.of_text:
        return True
    return draft.teacher_digest == target.params_digest


def _objective(m: ModelRecord) -> str:
    return m.trained_for.removeprefix(f"{m.kind} ")


def _longest(group: list[ModelRecord]) -> list[ModelRecord]:
    most = max(m.train_tokens for m in group)
    return sorted((m for m in group if m.train_tokens == most), key=lambda m: m.seed)


def _alpha(records: StudyRecords, target: ModelRecord) -> dict[str, dict[int, float]]:
    """α by draft, and then by its number in a round; 0 where it does not depend on it."""
    alpha: dict[str, dict[int, float]] = defaultdict(dict)
    for r in records.measured_acceptance:
        same = (
            r.target_id == target.model_id and r.temperature == records.config.measure.temperature
        )
        if same and r.estimator in ("teacher_forced_samples", "by_draft_samples"):
            alpha[r.draft_id][r.lookahead] = r.alpha
    return dict(alpha)


def _result(
    records: StudyRecords,
    group: list[ModelRecord],
    target: ModelRecord,
    alpha: dict[str, dict[int, float]],
    confidence: float,
) -> KindResult | None:
    names = {m.model_id: m for m in group}
    rows = defaultdict(list)
    for r in records.measured_rounds:
        if r.draft_id in names and r.target_id == target.model_id and r.round_cost > 0:
            rows[r.draft_id].append(r)
    if len(rows) < len(group):
        return None
    best = [max(rows[n], key=lambda r: r.tokens_per_round / r.round_cost) for n in names]

    def over_seeds(values: list[float]) -> Estimate:
        return Estimate(*mean_interval(np.asarray(values), confidence))

    first = group[0]
    # A model of its own has one α for all drafts of a round.
    one = first.kind not in HEAD_KINDS
    later = {n: alpha[n][0] if one else math.nan for n in names}
    clock_lookahead, clock_speedup = _on_the_clock(
        [r for r in records.timed_runs if r.target_id == target.model_id], {*names}, confidence
    )
    return KindResult(
        kind=first.kind or INDEPENDENT,
        objective=_objective(first),
        draft_params=first.params_nonembedding,
        layers=first.layers,
        train_tokens=first.train_tokens,
        seeds=len(group),
        alpha=over_seeds([alpha[n][0] for n in names]),
        domain_alpha=_domain_alpha(records, {*names}, target, confidence),
        later_alpha=over_seeds([alpha[n].get(_LATER, same) for n, same in later.items()]),
        cost=first.flops_per_token / target.flops_per_token,
        lookahead=best[0].lookahead,
        tokens_per_round=over_seeds([r.tokens_per_round for r in best]),
        speedup=over_seeds([r.tokens_per_round / r.round_cost for r in best]),
        clock_lookahead=clock_lookahead,
        clock_speedup=clock_speedup,
        train_flops=first.training_flops
        + (target.flops_per_token * first.train_tokens if first.teacher_digest else 0.0),
    )


def _domain_alpha(
    records: StudyRecords, names: set[str], target: ModelRecord, confidence: float
) -> dict[str, Estimate]:
    """α on the target's own samples in each domain that was measured with all of some drafts."""
    m = records.config.measure
    rows: dict[str, list[AcceptanceRecord]] = defaultdict(list)
    for r in records.conditions:
        same = (r.target_id, r.temperature) == (target.model_id, m.temperature)
        if same and r.draft_id in names and r.estimator == "teacher_forced_samples":
            rows[r.domain].append(r)
    own = {r.domain for r in records.measured_acceptance}
    values = {}
    for name, each in rows.items():
        if name in own or len(each) < len(names):
            continue
        if len(each) == 1:
            values[name] = Estimate(each[0].alpha, each[0].alpha_low, each[0].alpha_high)
        else:
            alpha = np.asarray([r.alpha for r in each])
            values[name] = Estimate(*mean_interval(alpha, confidence))
    return values


def _on_the_clock(
    runs: list[RunRecord], names: set[str], confidence: float
) -> tuple[int, Estimate]:
    """The lookahead that half of the repetitions prefer, and the speed-up in the others."""
    blocks = {r.block for r in runs if r.draft_id in names and r.batch == 1}
    plain: dict[tuple[int, int], list[float]] = defaultdict(list)
    for r in runs:
        if r.block in blocks and not r.draft_id:
            plain[r.block, r.repetition].append(r.tokens / r.seconds)
    ratios: dict[int, dict[int, float]] = defaultdict(dict)
    for r in runs:
        if r.draft_id in names and r.batch == 1:
            base = float(np.mean(plain[r.block, r.repetition]))
            ratios[r.lookahead][r.repetition] = r.tokens / r.seconds / base
    if not ratios:
        return 0, Estimate(math.nan, math.nan, math.nan)

    def half(lookahead: int, odd: int) -> Float[np.ndarray, " repetitions"]:
        return np.asarray([x for i, x in sorted(ratios[lookahead].items()) if i % 2 == odd])

    chosen = max(ratios, key=lambda lookahead: half(lookahead, 0).mean())
    return chosen, Estimate(*mean_interval(half(chosen, 1), confidence))


def _best(
    both: list[tuple[KindResult, list[ModelRecord]]],
    alpha: dict[str, dict[int, float]],
    target: ModelRecord,
    confidence: float,
) -> KindBest:
    results = [r for r, _ in both]
    nothing = Estimate(math.nan, math.nan, math.nan)
    kind, objective = results[0].kind, results[0].objective
    measured = max(results, key=lambda r: r.speedup.estimate)
    sizes = sorted({r.draft_params for r in results})
    why = ""
    if kind in HEAD_KINDS:
        why = "the acceptance of a head depends on the number of the draft, which no law describes"
    elif len(sizes) < 3:
        why = f"{len(sizes)} size{'s' * (len(sizes) > 1)} {'were' if len(sizes) > 1 else 'was'} trained; a line needs 3"
    elif len({r.layers for r in results}) > 1:
        why = "the sizes differ in depth, and drafts of different depths do not lie on one line"
    if why:
        return KindBest(kind, objective, measured, nothing, nothing, math.nan, why)
    models = [m for _, group in both for m in group]
    size = np.asarray([m.params_nonembedding for m in models], float)
    value = np.asarray([alpha[m.model_id][0] for m in models])
    middle = float(np.exp(np.log(np.asarray(sizes)).mean()))
    runs = np.unique([training_run(m) for m in models], return_inverse=True)[1]
    weights = np.concatenate([np.ones((1, len(models))), resampled(runs, _DRAWS, seed=0)])
    x = with_ones(np.log(size / middle)[:, None])
    lines = least_squares(x, np.log(value / (1 - value)), weights)
    known = np.log(sorted({(r.draft_params, r.cost) for r in results}))

    def cost(n: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Straight in logarithms between neighbours, and beyond the last as between the last two."""
        at = np.clip(np.searchsorted(known[:, 0], np.log(n)), 1, len(known) - 1)
        (x0, y0), (x1, y1) = known[at - 1].T, known[at].T
        return np.exp(y0 + (np.log(n) - x0) * (y1 - y0) / (x1 - x0))

    found, speedups = best_sizes(lines, middle, (size.min(), size.max()), cost)

    # A draw of one size determines no line.
    drawn = np.asarray([len(np.unique(size[w > 0])) > 1 for w in weights[1:]])
    enough = runs.max() + 1 >= _FEWEST_RUNS

    def estimate(values: Float[np.ndarray, " draws"]) -> Estimate:
        low_high = quantile_interval(values[1:][drawn], confidence) if enough else (math.nan,) * 2
        return Estimate(float(values[0]), *low_high)

    within = (found >= size.min()) & (found <= size.max())
    inside = float(within[1:][drawn].mean() if enough else within[0])
    return KindBest(kind, objective, measured, estimate(found), estimate(speedups), inside, "")
