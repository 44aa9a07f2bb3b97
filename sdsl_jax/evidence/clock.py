"""On the clock: does the calibrated machine say how fast speculative decoding is, and which draft and lookahead to take?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.common import Design
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting import FittedLaws
from sdsl_jax.fitting.hardware import record_shape
from sdsl_jax.hardware import HardwareFile
from sdsl_jax.records import ModelRecord, RunRecord
from sdsl_jax.theory import DraftProblem, HardwareCost, ModelPoint, tokens_per_round
from sdsl_jax.theory.hardware import Load, pass_time, round_time

# How small a draft is by the rule of thumb of arXiv 2603.11053.
_RULE = 200
# Models whose sizes differ by less are of one size.
_SAME_SIZE = 0.2
_BASIS = (
    "measured S: median over repetitions of tokens per second over those of plain decoding in the same repetition; the best "
    "decoder is chosen on every other repetition and judged on the rest, and the other way round, which makes regrets a little "
    "small and may make them negative; chosen and judged on all repetitions they are a little large. A draft 200 times smaller "
    "takes the lookahead that c = N/M asks for; γ = 4 and a random draft leave the rest of their choice to the calibrated machine"
)


@dataclass(frozen=True)
class TimedDecoder:
    """One speculative decoder: what it did on the clock, and what was predicted of it.

    Attributes:
      draft_id: its draft
      draft_params: non-embedding parameters of the draft
      target_id: its target
      target_params: non-embedding parameters of the target
      lookahead: γ
      batch: rows
      speedup: measured S: median over repetitions
      speedup_low: smallest S of a repetition
      speedup_high: largest S of a repetition
      predicted: S predicted by laws and device
      predicted_with_tokens: S by the device, given the measured tokens per round
      tokens_per_round: measured, of a row
      acceptance: predicted by the laws
      round_seconds: measured seconds of a round
      predicted_round_seconds: by the device
    """

    draft_id: str
    draft_params: int
    target_id: str
    target_params: int
    lookahead: int
    batch: int
    speedup: float
    speedup_low: float
    speedup_high: float
    predicted: float
    predicted_with_tokens: float
    tokens_per_round: float
    acceptance: float
    round_seconds: float
    predicted_round_seconds: float


@dataclass(frozen=True)
class ShapedDecoder(TimedDecoder):
    """A decoder whose draft is one of several shapes of a size.

    Attributes:
      layers: layers of the draft
      width: width of the draft
      loss_nats: test loss of the draft, nats per token
    """

    layers: int
    width: int
    loss_nats: float


@dataclass(frozen=True)
class SpeedupErrors:
    """How far predicted S lies from measured S.

    Attributes:
      n: decoders
      median_absolute: median absolute relative error
      mean: mean relative error
      worst: largest absolute relative error
      rank_correlation: Spearman's, mean over targets
      noise: median absolute relative error of a measured median
    """

    n: int
    median_absolute: float
    mean: float
    worst: float
    rank_correlation: float
    noise: float


@dataclass(frozen=True)
class ClockChoice:
    """For one target: the predicted choice, the best one measured, and what each way of choosing loses.

    Attributes:
      target_id: the target
      target_params: its non-embedding parameters
      optimum: the predicted optimum over sizes and lookaheads
      chosen: the decoder of largest predicted S
      best: the decoder of largest measured S
      pays_predicted: whether the chosen decoder is predicted to beat plain decoding
      pays_measured: whether the best decoder beats plain decoding
      pays_in_repetitions: share of repetitions in which the best decoder does
      rank_correlation: Spearman's between predicted and measured S
      regret: by way of choosing: share of the best measured S lost
      regret_with_plain: the same where plain decoding may be chosen
      regret_in_sample: the same, chosen and judged on all repetitions
    """

    target_id: str
    target_params: int
    optimum: Design
    chosen: TimedDecoder
    best: TimedDecoder
    pays_predicted: bool
    pays_measured: bool
    pays_in_repetitions: float
    rank_correlation: float
    regret: dict[str, float]
    regret_with_plain: dict[str, float]
    regret_in_sample: dict[str, float]


@dataclass(frozen=True)
class BatchPoint:
    """The best of the same few decoders at one batch.

    Attributes:
      batch: rows
      measured: S of the decoder that is measured to be the best
      predicted: S of the decoder that is predicted to be the best
      measured_at_predicted: measured S of that decoder
    """

    batch: int
    measured: float
    predicted: float
    measured_at_predicted: float


@dataclass(frozen=True)
class BatchCurve:
    """Up to which batch speculation pays for one target.

    Attributes:
      target_id: the target
      target_params: its non-embedding parameters
      points: batches, the smallest first
      pays_up_to_measured: batch at which measured S falls to 1; all or none
      pays_up_to_predicted: the same of predicted S
    """

    target_id: str
    target_params: int
    points: list[BatchPoint]
    pays_up_to_measured: float | str
    pays_up_to_predicted: float | str


@dataclass(frozen=True)
class ShapeComparison:
    """Drafts of one size and budget, and different depth, with one target and lookahead.

    Attributes:
      target_id: the target
      lookahead: γ
      draft_params: non-embedding parameters of the drafts
      drafts: decoders, the fewest layers first
      fastest_predicted: layers of the draft with the shortest predicted round
      fastest_measured: layers of the draft with the shortest measured round
      best_predicted: layers of the draft with the largest predicted S
      best_measured: layers of the draft with the largest measured S
    """

    target_id: str
    lookahead: int
    draft_params: int
    drafts: list[ShapedDecoder]
    fastest_predicted: int
    fastest_measured: int
    best_predicted: int
    best_measured: int


@dataclass(frozen=True)
class Clock:
    """Predicted against measured speed-ups on the clock.

    Attributes:
      cells: every decoder that was timed
      error: errors over drafts of the ladder, in single rows
      error_of_costs: the same, given the measured tokens per round
      error_of_unseen_targets: errors over targets that no law was fitted to
      targets: choices for every target
      mean_regret: regret by way of choosing, mean over targets
      mean_regret_with_plain: the same where plain decoding may be chosen
      mean_regret_in_sample: the same, chosen and judged on all repetitions
      batches: targets that were decoded in batches
      batch_error: errors over decoders in batches
      shapes: drafts of one size and different depth
      repetitions: repetitions of every decoder
      device: device that was timed
      threads: threads of a computation on a CPU
      basis: how the numbers were computed
    """

    cells: list[TimedDecoder]
    error: SpeedupErrors | None
    error_of_costs: SpeedupErrors | None
    error_of_unseen_targets: SpeedupErrors | None
    targets: list[ClockChoice]
    mean_regret: dict[str, float]
    mean_regret_with_plain: dict[str, float]
    mean_regret_in_sample: dict[str, float]
    batches: list[BatchCurve]
    batch_error: SpeedupErrors | None
    shapes: list[ShapeComparison]
    repetitions: int
    device: str
    threads: int
    basis: str


class Cell(NamedTuple):
    """A timed decoder with what judging it takes."""

    draft: ModelRecord
    target: ModelRecord
    rates: Float[np.ndarray, " R"]
    decoder: TimedDecoder


def clock(records: StudyRecords) -> Clock | None:
    """Errors of predicted S, regrets of choices, batches and shapes; None where nothing was timed."""
    timed = cells(records)
    if not timed:
        return None
    budget = max(c.draft.train_tokens for c in timed)
    single = [c for c in timed if c.decoder.batch == 1]
    ladder = {m.model_id for m in records.models}
    candidates = [
        c for c in single if c.draft.model_id in ladder and c.draft.train_tokens == budget
    ]
    choices = [
        _choice(here, _optimum(records, here[0].target, budget)) for here in _by_target(candidates)
    ]
    # Laws were fitted to the other targets, and to these drafts with them.
    unseen = [c for c in candidates if c.target.model_id not in ladder]
    return Clock(
        cells=[c.decoder for c in timed],
        error=_errors(candidates),
        error_of_costs=_errors(candidates, lambda c: c.decoder.predicted_with_tokens),
        error_of_unseen_targets=_errors(unseen),
        targets=choices,
        mean_regret=_mean([row.regret for row in choices]),
        mean_regret_with_plain=_mean([row.regret_with_plain for row in choices]),
        mean_regret_in_sample=_mean([row.regret_in_sample for row in choices]),
        batches=_batches(timed),
        batch_error=_errors([c for c in timed if c.decoder.batch > 1]),
        shapes=_shapes(single, budget),
        repetitions=len(timed[0].rates),
        device=records.runs[0].device,
        threads=records.runs[0].threads,
        basis=_BASIS,
    )


def cells(records: StudyRecords) -> list[Cell]:
    """Every speculative decoder of `runs.csv`, in its order."""
    if not records.runs or records.hardware is None:
        return []
    laws = records.laws
    models = {m.model_id: m for m in [*records.models, *records.timed_models]}
    grouped: dict[tuple[int, str, str, int, int], list[RunRecord]] = {}
    for run in records.runs:
        key = run.block, run.draft_id, run.target_id, run.lookahead, run.batch
        grouped.setdefault(key, []).append(run)
    plain = {block: runs for (block, draft, *_), runs in grouped.items() if not draft}
    return [
        _cell(laws, records.hardware, models[draft], models[target], runs, plain[block])
        for (block, draft, target, *_), runs in grouped.items()
        if draft
    ]


def _cell(
    laws: FittedLaws,
    machine: HardwareFile,
    draft: ModelRecord,
    target: ModelRecord,
    runs: list[RunRecord],
    plain: list[RunRecord],
) -> Cell:
    """One decoder: its runs, and those of plain decoding in the same block."""
    hardware, precision = machine.hardware, machine.precision
    batch, lookahead = runs[0].batch, runs[0].lookahead
    of_draft, of_target = (record_shape(model, laws.rule) for model in (draft, target))
    rates = _by_repetition(runs) / _by_repetition(plain)
    tau = sum(r.tokens for r in runs) / sum(r.rounds for r in runs) / batch
    alpha = _predicted_acceptance(laws, draft, target)
    load = float(lookahead), float(batch), float(runs[0].context)
    took = round_time(hardware, of_draft, of_target, *load, precision, precision)
    seconds = float(took.seconds)
    # Plain decoding has a cache of its own, without room for drafts.
    plain_load = Load(1.0, float(batch), float(plain[0].context))
    step = float(pass_time(hardware, of_target, precision, plain_load))
    decoder = TimedDecoder(
        draft_id=draft.model_id,
        draft_params=draft.params_nonembedding,
        target_id=target.model_id,
        target_params=target.params_nonembedding,
        lookahead=lookahead,
        batch=batch,
        speedup=float(np.median(rates)),
        speedup_low=float(rates.min()),
        speedup_high=float(rates.max()),
        predicted=float(tokens_per_round(alpha, float(lookahead))) * step / seconds,
        predicted_with_tokens=tau * step / seconds,
        tokens_per_round=tau,
        acceptance=alpha,
        round_seconds=float(np.median([r.seconds / r.rounds for r in runs])),
        predicted_round_seconds=seconds,
    )
    return Cell(draft, target, rates, decoder)


def _predicted_acceptance(laws: FittedLaws, draft: ModelRecord, target: ModelRecord) -> float:
    """α by the best law. The draft might not have been trained yet, so its loss is that of the loss law."""
    size, tokens = float(draft.params_nonembedding), float(draft.train_tokens)
    law = next(iter(laws.acceptance.values()))
    of_target = ModelPoint(float(target.params_nonembedding), target.loss_nats)
    return float(law(ModelPoint(size, laws.loss(size, tokens), tokens), of_target))


def _optimum(records: StudyRecords, target: ModelRecord, draft_tokens: int) -> Design:
    """The optimum for a target on the calibrated device, in single rows, over the sizes of the study's drafts."""
    assert records.hardware is not None
    laws = records.laws
    sizes = [float(m.params_nonembedding) for m in records.of_role("draft")]
    context = next(
        float(r.context) for r in records.runs if r.target_id == target.model_id and not r.draft_id
    )
    with jax.enable_x64(True):
        best = DraftProblem(
            loss_law=laws.loss,
            draft_tokens=float(draft_tokens),
            target=ModelPoint(float(target.params_nonembedding), target.loss_nats),
            acceptance_law=next(iter(laws.acceptance.values())),
            cost=HardwareCost(
                records.hardware.hardware,
                laws.rule,
                record_shape(target, laws.rule),
                records.hardware.precision,
                1.0,
                context,
            ),
            bounds=(min(sizes), max(sizes)),
        ).optimum()
    return Design.of(best)


def _by_repetition(runs: list[RunRecord]) -> Float[np.ndarray, " R"]:
    """Tokens per second in each repetition; the median where a decoder ran more than once in it."""
    rates: dict[int, list[float]] = {}
    for run in runs:
        rates.setdefault(run.repetition, []).append(run.tokens / run.seconds)
    return np.asarray([np.median(rates[repetition]) for repetition in sorted(rates)])


def _by_target(timed: Sequence[Cell]) -> list[list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for c in timed:
        groups.setdefault(c.target.model_id, []).append(c)
    return list(groups.values())


def _predicted(c: Cell) -> float:
    return c.decoder.predicted


def _measured(c: Cell) -> float:
    return c.decoder.speedup


def _errors(
    timed: list[Cell], predict: Callable[[Cell], float] = _predicted
) -> SpeedupErrors | None:
    """How far predicted S lies from measured S, and whether it orders the decoders of each target alike."""
    if not timed:
        return None
    ratio = np.asarray(list(map(predict, timed))) / np.asarray(list(map(_measured, timed)))
    correlations = [_rank_correlation(here, predict) for here in _by_target(timed) if len(here) > 2]
    return SpeedupErrors(
        n=len(timed),
        median_absolute=float(np.median(np.abs(ratio - 1))),
        mean=float(ratio.mean() - 1),
        worst=float(np.abs(ratio - 1).max()),
        rank_correlation=float(np.mean(correlations)),
        # Of the measured medians. The medians of two halves differ by twice the error of the whole.
        noise=float(np.median([abs(_half(c, 0) / _half(c, 1) - 1) for c in timed]) / 2),
    )


def _rank_correlation(timed: list[Cell], predict: Callable[[Cell], float] = _predicted) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(list(map(value, timed)))) for value in (predict, _measured)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _half(c: Cell, half: int) -> float:
    """Median S of every other repetition."""
    return float(np.median(c.rates[half::2]))


def _best_of_half(timed: list[Cell], half: int) -> float:
    """S on the other half of the repetitions of the decoder that is best on this one."""
    return _half(max(timed, key=lambda c: _half(c, half)), 1 - half)


def _paper(c: Cell) -> float:
    """S with the paper's c = N/M, from the same predicted acceptance."""
    cost = c.decoder.draft_params / c.decoder.target_params
    lookahead = c.decoder.lookahead
    return float(tokens_per_round(c.decoder.acceptance, float(lookahead))) / (lookahead * cost + 1)


def _nearest(timed: list[Cell], size: float) -> list[Cell]:
    """The decoders of the draft nearest to a size."""
    nearest = min((c.draft for c in timed), key=lambda m: abs(np.log(m.params_nonembedding / size)))
    return [c for c in timed if c.draft.model_id == nearest.model_id]


def _policies(timed: list[Cell], optimum: Design) -> dict[str, list[Cell]]:
    """The decoder that each way of choosing takes; several where it leaves the choice open."""
    habit = [c for c in timed if c.decoder.lookahead == 4]
    near = _nearest(timed, optimum.draft_params)
    # 0 stands for plain decoding: a decoder that must draft drafts once.
    lookahead = max(1.0, optimum.lookahead)
    drafts = dict.fromkeys(c.draft.model_id for c in timed)
    policies = {
        "calibrated": [max(timed, key=_predicted)],
        "optimum": [min(near, key=lambda c: abs(np.log(c.decoder.lookahead / lookahead)))],
        "paper_cost": [max(timed, key=_paper)],
        "rule_of_200": [max(_nearest(timed, timed[0].decoder.target_params / _RULE), key=_paper)],
        "lookahead_4": [max(habit, key=_predicted)] if habit else [],
        "random_draft": [
            max((c for c in timed if c.draft.model_id == d), key=_predicted) for d in drafts
        ],
    }
    return {name: chosen for name, chosen in policies.items() if chosen}


def _regret(
    timed: list[Cell], chosen: list[Cell], plain: float = 0.0, decline: bool = False
) -> float:
    """Mean over the chosen and over both halves of 1 − S(chosen)/S(best), the best one chosen on
    the other half.

    Args:
      timed: Decoders to choose from.
      chosen: Decoders that a policy chooses.
      plain: S of the alternative: 1 for plain decoding, 0 for none.
      decline: Whether the policy takes the alternative in place of a decoder that it predicts to be
        slower.
    """

    def judged(chooses: int, judges: int) -> float:
        best = max(plain, _best_of_half(timed, chooses))
        taken = [plain if decline and _predicted(c) < plain else _half(c, judges) for c in chosen]
        return float(np.mean([1 - s / best for s in taken]))

    return (judged(0, 1) + judged(1, 0)) / 2


def _choice(timed: list[Cell], optimum: Design) -> ClockChoice:
    """For one target: the predicted choice, the best one measured, whether speculation pays, and the regrets."""
    policies = _policies(timed, optimum)
    chosen, best = policies["calibrated"][0], max(timed, key=_measured)
    return ClockChoice(
        target_id=best.decoder.target_id,
        target_params=best.decoder.target_params,
        optimum=optimum,
        chosen=chosen.decoder,
        best=best.decoder,
        pays_predicted=chosen.decoder.predicted > 1,
        pays_measured=best.decoder.speedup > 1,
        pays_in_repetitions=float((best.rates > 1).mean()),
        rank_correlation=_rank_correlation(timed),
        regret={name: _regret(timed, taken) for name, taken in policies.items()},
        # Only the calibrated machine ever says not to speculate.
        regret_with_plain={
            name: _regret(timed, taken, 1.0, decline=name in ("calibrated", "optimum"))
            for name, taken in policies.items()
        },
        regret_in_sample={
            name: float(np.mean([1 - _measured(c) / _measured(best) for c in taken]))
            for name, taken in policies.items()
        },
    )


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: float(np.mean([row[name] for row in rows]))
        for name in (rows[0] if rows else {})
        if all(name in row for row in rows)
    }


def _batches(timed: list[Cell]) -> list[BatchCurve]:
    """For every target that was decoded in batches: the best of the same few decoders at each batch, and whether it pays."""
    curves = []
    for here in _by_target(timed):
        few = {(c.draft.model_id, c.decoder.lookahead) for c in here if c.decoder.batch > 1}
        alike = [c for c in here if (c.draft.model_id, c.decoder.lookahead) in few]
        if not alike:
            continue
        points = []
        for batch in sorted({c.decoder.batch for c in alike}):
            of_batch = [c for c in alike if c.decoder.batch == batch]
            predicted = max(of_batch, key=_predicted).decoder
            # The best of several noisy ones looks better than it is: it is chosen on one half and
            # judged on the other.
            best = float(np.mean([_best_of_half(of_batch, half) for half in (0, 1)]))
            points.append(BatchPoint(batch, best, predicted.predicted, predicted.speedup))
        curves.append(
            BatchCurve(
                here[0].decoder.target_id,
                here[0].decoder.target_params,
                points,
                _crossing([(p.batch, p.measured) for p in points]),
                _crossing([(p.batch, p.predicted) for p in points]),
            )
        )
    return curves


def _crossing(points: list[tuple[int, float]]) -> float | str:
    """The batch at which S falls to 1, by interpolation in its logarithm; "all" or "none" of the batches where it never does."""
    for (batch, s), (next_batch, next_s) in itertools.pairwise(points):
        if s > 1 >= next_s:
            share = (s - 1) / (s - next_s)
            return float(np.exp(np.log(batch) + share * np.log(next_batch / batch)))
    return "all" if points[-1][1] > 1 else "none"


def _shapes(single: list[Cell], budget: int) -> list[ShapeComparison]:
    """Drafts of one size and budget, and different depth: which is predicted and which is measured to be the fastest."""
    groups: dict[tuple[str, int, int], list[Cell]] = {}
    sizes: list[int] = []
    for c in single:
        if c.draft.train_tokens == budget:
            continue
        size = c.decoder.draft_params
        alike = next((other for other in sizes if abs(other / size - 1) < _SAME_SIZE), None)
        if alike is None:
            sizes.append(alike := size)
        groups.setdefault((c.decoder.target_id, alike, c.decoder.lookahead), []).append(c)
    rows = []
    for (target, _, lookahead), members in sorted(groups.items()):
        if len({c.draft.layers for c in members}) < 2:
            continue
        drafts = [
            ShapedDecoder(**vars(c.decoder), layers=m.layers, width=m.width, loss_nats=m.loss_nats)
            for c in sorted(members, key=lambda c: c.draft.layers)
            for m in [c.draft]
        ]
        rows.append(
            ShapeComparison(
                target_id=target,
                lookahead=lookahead,
                draft_params=drafts[0].draft_params,
                drafts=drafts,
                fastest_predicted=min(drafts, key=lambda d: d.predicted_round_seconds).layers,
                fastest_measured=min(drafts, key=lambda d: d.round_seconds).layers,
                best_predicted=max(drafts, key=lambda d: d.predicted).layers,
                best_measured=max(drafts, key=lambda d: d.speedup).layers,
            )
        )
    return rows
