"""The best draft size for targets of several sizes, on the clock and in FLOPs: do the paper's claims hold on the clock?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sdsl_jax.compiler_options import quick_jit
from sdsl_jax.evidence.claims import RATIO, Claim, claim_of, near_one, not_one
from sdsl_jax.evidence.common import Estimate, answer_of
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.records import ExpectedRecord, ModelRecord, RunRecord
from sdsl_jax.statistics import quantile_interval, student_quantile
from sdsl_jax.theory import (
    AcceptanceLaw,
    LossLaw,
    ModelPoint,
    point_and_draws,
    tokens_per_round,
)

# Joint draws of laws and timings; sizes that N* is looked for among.
_DRAWS, _GRID = 200, 193
# Drafts that a line of S over N needs.
_FEWEST_DRAFTS = 4


@dataclass(frozen=True)
class BestRound:
    """The best lookahead of one draft under one cost.

    Attributes:
      lookahead: γ
      speedup: S = τ(γ)/C(γ), with the interval of τ and, on the clock, of the timings
    """

    lookahead: int
    speedup: Estimate


@dataclass(frozen=True)
class MeasuredDraft:
    """A draft that was timed with a target.

    Attributes:
      draft_id: the draft
      draft_params: its non-embedding parameters
      trained_for: what it was trained for; text for models of their own
      clock: the best of the timed lookaheads and those between them, on the clock
      flops: the best of all lookaheads, in FLOPs
    """

    draft_id: str
    draft_params: int
    trained_for: str
    clock: BestRound
    flops: BestRound


@dataclass(frozen=True)
class BestSize:
    """The best draft for one target under one cost.

    Attributes:
      draft_params: N*
      ratio: M/N*
      lookahead: γ*
      speedup: S* at N* and γ*; below 1 where no draft pays
      pays: whether S* exceeds 1: yes, no or undecided
      inside: share of draws whose N* lies inside the sizes of the drafts; 0 or 1 without a law
      within_1pct: draft sizes that lose at most 1% of S*
      within_5pct: draft sizes that lose at most 5% of S*
      sizes: draft sizes of the line that the laws give; empty without a law
      speedups: S at the best lookahead of each of them
      cost_error: median relative error of the costs behind the line at the drafts; not a number
        without a law
      on_edges: shares of draws whose N* is the smallest and the largest draft; an interval of N* that
        ends there is open
    """

    draft_params: Estimate
    ratio: Estimate
    lookahead: Estimate
    speedup: Estimate
    pays: str
    inside: float
    within_1pct: tuple[float, float]
    within_5pct: tuple[float, float]
    sizes: list[float]
    speedups: list[float]
    cost_error: float
    on_edges: tuple[float, float] = (0.0, 0.0)

    def open_ends(self, confidence: float) -> tuple[bool, bool]:
        """Whether the interval of N* is open at its lower and at its upper end."""
        tail = (1 - confidence) / 2
        return self.on_edges[0] >= tail, self.on_edges[1] >= tail


@dataclass(frozen=True)
class TargetSizes:
    """Drafts for one target, and the best of them.

    Attributes:
      target_id: the target
      target_params: its non-embedding parameters, M
      source: laws, or the best measured draft where no law describes the drafts
      drafts: all that were timed with it, the smallest first
      clock: the best one on the clock
      flops: the best one in FLOPs
    """

    target_id: str
    target_params: int
    source: Literal["laws", "measured"]
    drafts: list[MeasuredDraft]
    clock: BestSize
    flops: BestSize


@dataclass(frozen=True)
class ClockSizes:
    """The paper's claims about the size of the best draft, on the clock and in FLOPs.

    Attributes:
      targets: targets, the smallest first
      claims: conclusions of the paper under both costs
      pays_from: size of the target from which S* on the clock exceeds 1, between the targets; none
        where all of them pay, or the largest does not
      confidence: confidence of the intervals
      repetitions: repetitions of every decoder
      device: device that was timed
      threads: threads of a computation on a CPU
      basis: how the numbers were computed
    """

    targets: list[TargetSizes]
    claims: list[Claim]
    pays_from: Estimate | None
    confidence: float
    repetitions: int
    device: str
    threads: int
    basis: str


class _Drawn(NamedTuple):
    """Optima of the laws, the estimate first and its draws after it, each [1 + draws].

    Attributes:
      params: N*.
      lookahead: γ*.
      speedup: Speed-up of the estimate's N* and γ*. The largest of a noisy curve, chosen anew in every
        draw, would be too high.
      edge: −1 where N* is the smallest size, 1 where it is the largest, else 0.
    """

    params: Float[np.ndarray, " draws"]
    lookahead: Float[np.ndarray, " draws"]
    speedup: Float[np.ndarray, " draws"]
    edge: Int[np.ndarray, " draws"]


class _Timed(NamedTuple):
    """A draft with one target: tokens per round and costs of a round at each lookahead from 1.

    Attributes:
      draft: The draft.
      tokens: τ, [1 + draws, lookaheads].
      clock: Cost of a round in steps of plain decoding, up to the largest timed lookahead,
        [1 + draws, timed].
      flops: The same in FLOPs, [1, lookaheads].
    """

    draft: ModelRecord
    tokens: Float[np.ndarray, "draws G"]
    clock: Float[np.ndarray, "draws T"]
    flops: Float[np.ndarray, "1 G"]


class _Line(NamedTuple):
    """Drafts that laws describe, and α between them.

    Attributes:
      drafts: The drafts, the smallest first.
      sizes: Sizes between the first and the last, [n].
      alpha: α of each size, the estimate first and the draws after it, [1 + draws, n].
    """

    drafts: list[_Timed]
    sizes: Float[np.ndarray, " n"]
    alpha: Float[np.ndarray, "draws n"]


def clock_sizes(records: StudyRecords) -> ClockSizes | None:
    """The best draft of every target that was timed, on the clock and in FLOPs. None where nothing was
    timed whose tokens per round are known."""
    models = {m.model_id: m for m in records.trained}
    runs = [r for r in records.timed_runs if r.batch == 1 and r.target_id in models]
    timed = {
        target: drafts
        for target in sorted(
            {r.target_id for r in runs}, key=lambda t: models[t].params_nonembedding
        )
        if (drafts := _timed(records, models, target, runs))
    }
    if not timed:
        return None
    confidence = records.config.measure.confidence
    answers, drawn = [], {}
    for target_id, drafts in timed.items():
        target = models[target_id]
        measured = [_measured(t, confidence) for t in drafts]
        line = _line(records, target, drafts)
        best: dict[str, BestSize] = {}
        for cost in ("clock", "flops"):
            if line:
                best[cost], draws = _by_laws(line, target, cost, records.config.seed, confidence)
                drawn[cost, target_id] = draws
            else:
                best[cost] = _by_measurement(target, measured, cost)
        source: Literal["laws", "measured"] = "laws" if line else "measured"
        answers.append(TargetSizes(target_id, target.params_nonembedding, source, measured, **best))
    first = next(r for r in runs if r.target_id in timed)
    return ClockSizes(
        targets=answers,
        claims=[
            claim
            for cost in ("clock", "flops")
            for claim in _claims(
                cost,
                [t for t in answers if t.source == "laws"],
                [drawn[cost, t.target_id] for t in answers if t.source == "laws"],
                confidence,
            )
        ],
        pays_from=_pays_from(
            [t.target_params for t in answers if t.source == "laws"],
            [drawn["clock", t.target_id] for t in answers if t.source == "laws"],
            confidence,
        ),
        confidence=confidence,
        repetitions=1 + max(r.repetition for r in runs),
        device=first.device,
        threads=first.threads,
        basis="a round costs its seconds over those of plain decoding in the same repetition (medians over repetitions), or its "
        "FLOPs with a verify pass as one step; between timed lookaheads costs lie on straight lines. Points: exact tokens per "
        "round on the target's own samples. Lines and optima: the best acceptance law, with the losses of the loss law and the "
        "measured loss of the target, and costs of rounds that are fitted to those of the drafts, v(γ) + γ·(b₁·√N + b₂·N) with "
        f"b₁ and b₂ not negative; intervals from {_DRAWS} joint draws of both laws, of the repetitions and of the weights of the "
        "drafts in that fit. The interval of S* is that of the estimate's N* and γ*. "
        "The scatter of the target's own loss between training runs is not in them",
    )


def _timed(
    records: StudyRecords, models: dict[str, ModelRecord], target: str, runs: Sequence[RunRecord]
) -> list[_Timed]:
    """The drafts with known tokens per round that were timed with a target, the smallest first."""
    rows: dict[str, list[ExpectedRecord]] = defaultdict(list)
    for r in records.measured_rounds:
        own = r.target_id == target and r.temperature == records.config.measure.temperature
        if own and r.round_cost > 0:
            rows[r.draft_id].append(r)
    costs = _round_costs([r for r in runs if r.target_id == target])
    drafts = []
    for number, name in enumerate(sorted(rows.keys() & costs.keys() & models.keys())):
        expected = sorted(rows[name], key=lambda r: r.lookahead)
        lookaheads, ratios = costs[name]
        if [r.lookahead for r in expected] != list(range(1, len(expected) + 1)):
            continue
        random = np.random.default_rng([records.config.seed, number])
        tau, error = np.asarray([(r.tokens_per_round, _error(r)) for r in expected]).T
        # All lookaheads are expectations on the same samples, and err together.
        wave = np.concatenate([[0.0], random.normal(size=_DRAWS)])[:, None]
        repetitions = random.integers(len(ratios), size=(_DRAWS, len(ratios)))
        every = np.concatenate([[np.arange(len(ratios))], repetitions])
        most = min(int(lookaheads.max()), len(expected))
        between = _straight(np.arange(1, most + 1.0), lookaheads.astype(float))
        drafts.append(
            _Timed(
                models[name],
                tau + wave * error,
                np.median(ratios[every], axis=1) @ between.T,
                np.asarray([[r.round_cost for r in expected]]),
            )
        )
    return sorted(drafts, key=lambda t: t.draft.params_nonembedding)


def _error(row: ExpectedRecord) -> float:
    """Standard error of the tokens per round; 0 where it is not on record."""
    width = row.tokens_per_round_high - row.tokens_per_round_low
    if not math.isfinite(width) or row.samples < 2:
        return 0.0
    return width / 2 / student_quantile(0.5 + row.confidence / 2, row.samples - 1)


def _round_costs(
    runs: Sequence[RunRecord],
) -> dict[str, tuple[Int[np.ndarray, " L"], Float[np.ndarray, "R L"]]]:
    """By draft: the timed lookaheads, and what a round took in each repetition, in steps of plain
    decoding in the same repetition and block. Of several blocks the first counts."""
    seconds: dict[tuple[int, str, int], dict[int, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    blocks: dict[str, int] = {}
    for r in runs:
        seconds[r.block, r.draft_id, r.lookahead][r.repetition].append(r.seconds / r.rounds)
        if r.draft_id:
            blocks[r.draft_id] = min(r.block, blocks.get(r.draft_id, r.block))

    def medians(block: int, draft: str, lookahead: int) -> Float[np.ndarray, " R"]:
        by_repetition = seconds[block, draft, lookahead]
        return np.asarray([np.median(by_repetition[i]) for i in sorted(by_repetition)])

    found = {}
    for draft, block in blocks.items():
        timed = sorted(g for b, d, g in seconds if (b, d) == (block, draft))
        columns = [medians(block, draft, g) / medians(block, "", 0) for g in timed]
        found[draft] = np.asarray(timed), np.stack(columns, axis=1)
    return found


def _straight(
    at: Float[np.ndarray, " n"], knots: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "n k"]:
    """Weights that interpolate between rising knots on straight lines, and beyond them continue the
    nearest one."""
    if len(knots) == 1:
        return np.ones((len(at), 1))
    right = np.clip(np.searchsorted(knots, at), 1, len(knots) - 1)
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    weights = np.zeros((len(at), len(knots)))
    rows = np.arange(len(at))
    weights[rows, right - 1], weights[rows, right] = 1 - share, share
    return weights


def _measured(timed: _Timed, confidence: float) -> MeasuredDraft:
    def best(cost: Float[np.ndarray, "draws G"]) -> BestRound:
        speedups = timed.tokens[:, : cost.shape[1]] / cost
        chosen = int(speedups[0].argmax())
        return BestRound(chosen + 1, _estimate(speedups[:, chosen], confidence))

    m = timed.draft
    return MeasuredDraft(
        m.model_id, m.params_nonembedding, m.trained_for, best(timed.clock), best(timed.flops)
    )


def _estimate(values: Float[np.ndarray, " draws"], confidence: float) -> Estimate:
    return Estimate(float(values[0]), *quantile_interval(values[1:], confidence))


def _line(records: StudyRecords, target: ModelRecord, drafts: Sequence[_Timed]) -> _Line | None:
    """The timed drafts that laws describe, of the longest training and smaller than their target;
    None where they are too few for a line."""
    known = {m.model_id for m in records.models} if records.has_fits else set()
    told = [t for t in drafts if t.draft.model_id in known]
    longest = max((t.draft.train_tokens for t in told), default=0)
    # One of each size.
    by_size = {
        t.draft.params_nonembedding: t
        for t in told
        if t.draft.train_tokens == longest
        and t.draft.params_nonembedding < target.params_nonembedding
    }
    if len(by_size) < _FEWEST_DRAFTS:
        return None
    sizes = np.geomspace(min(by_size), max(by_size), _GRID)
    laws = records.laws
    name = next(iter(laws.acceptance))
    with jax.enable_x64(True):
        alpha = _acceptance(
            point_and_draws(laws.loss, laws.loss_draws, _DRAWS),
            point_and_draws(laws.acceptance[name], laws.acceptance_draws[name], _DRAWS),
            jnp.asarray(sizes),
            float(longest),
            ModelPoint(
                float(target.params_nonembedding), target.loss_nats, float(target.train_tokens)
            ),
        )
    return _Line([by_size[n] for n in sorted(by_size)], sizes, np.asarray(alpha))


@quick_jit
def _acceptance(
    loss: LossLaw, acceptance: AcceptanceLaw, sizes: jax.Array, tokens: Any, target: ModelPoint
) -> jax.Array:
    """α of drafts of each size under each draw of the laws, [draws, sizes]."""
    return jax.vmap(
        lambda of_loss, law: law(ModelPoint(sizes, of_loss(sizes, tokens), tokens), target)
    )(loss, acceptance)


def _by_laws(
    line: _Line, target: ModelRecord, cost: str, seed: int, confidence: float
) -> tuple[BestSize, _Drawn]:
    """The best size on a grid between the smallest and the largest draft."""
    trained = np.asarray([float(t.draft.params_nonembedding) for t in line.drafts])
    sizes, alpha = line.sizes, line.alpha
    costs = [getattr(t, cost) for t in line.drafts]
    most = min(c.shape[1] for c in costs)
    of_drafts = np.stack(np.broadcast_arrays(*(c[:, :most] for c in costs)), axis=1)
    random = np.random.default_rng([seed, target.params_nonembedding])
    of_rounds, misfit = _costs_of_sizes(of_drafts, trained, sizes, random)
    lookaheads = np.arange(1, most + 1)
    # Not every study has as many draws of its laws.
    count = min(len(alpha), 1 + _DRAWS)
    alpha, of_rounds = alpha[:count], of_rounds[:count]
    speedups = np.asarray(tokens_per_round(alpha[..., None], lookaheads.astype(float))) / of_rounds
    curves = speedups.max(axis=2)
    at = curves.argmax(axis=1)
    draws = np.arange(len(at))
    drawn = _Drawn(
        sizes[at],
        lookaheads[speedups.argmax(axis=2)[draws, at]].astype(float),
        speedups[:, at[0], speedups[0, at[0]].argmax()],
        (at == _GRID - 1).astype(int) - (at == 0),
    )

    def within(share: float) -> tuple[float, float]:
        """Ends of the sizes around N* that lose no more."""
        good = curves[0] >= (1 - share) * curves[0].max()
        below = np.flatnonzero(~good[: at[0]])
        above = np.flatnonzero(~good[at[0] :])
        low = below[-1] + 1 if len(below) else 0
        high = at[0] + above[0] - 1 if len(above) else _GRID - 1
        return float(sizes[low]), float(sizes[high])

    speedup = _estimate(drawn.speedup, confidence)
    best = BestSize(
        draft_params=_estimate(drawn.params, confidence),
        ratio=_estimate(target.params_nonembedding / drawn.params, confidence),
        lookahead=_estimate(drawn.lookahead, confidence),
        speedup=speedup,
        pays=answer_of(speedup.low > 1, speedup.high < 1),
        inside=float((drawn.edge == 0).mean()),
        on_edges=(float((drawn.edge[1:] < 0).mean()), float((drawn.edge[1:] > 0).mean())),
        within_1pct=within(0.01),
        within_5pct=within(0.05),
        sizes=[float(n) for n in sizes],
        speedups=[float(s) for s in curves[0]],
        cost_error=misfit,
    )
    return best, drawn


def _costs_of_sizes(
    costs: Float[np.ndarray, "draws k G"],
    trained: Float[np.ndarray, " k"],
    sizes: Float[np.ndarray, " n"],
    random: np.random.Generator,
) -> tuple[Float[np.ndarray, "draws n G"], float]:
    """Costs of rounds with drafts of any size, and the median relative error at the drafts.

    C(N, γ) = v(γ) + γ·(b₁·√N + b₂·N): at one depth the products of a step grow as N, and its
    embedding, readout and attention as the width, so as √N. The fixed time of a draft step is in v.
    b₁ and b₂ are not negative: no draft is faster for being larger. Squares of relative errors are
    least. Draws weigh the drafts at random, by exponential numbers (the Bayesian bootstrap): some
    shapes are faster than their size says.
    """
    draws, _, most = costs.shape
    lookaheads = np.arange(1, most + 1.0)

    def columns(of: Float[np.ndarray, " k"]) -> Float[np.ndarray, "k G c"]:
        levels = np.broadcast_to(np.eye(most), (len(of), most, most))
        relative = of / trained.max()
        slopes = np.stack([np.sqrt(relative), relative], axis=-1)
        return np.concatenate([levels, lookaheads[:, None] * slopes[:, None]], axis=2)

    weights = np.concatenate(
        [np.ones((1, len(trained))), random.exponential(size=(_DRAWS, len(trained)))]
    )
    of_drafts = columns(trained)
    if draws == 1:
        costs = np.broadcast_to(costs, (len(weights), *costs.shape[1:]))
    # In relative terms: the columns over the costs are to add up to 1.
    x = (of_drafts / costs[..., None]).reshape(len(weights), -1, of_drafts.shape[2])
    weighted = np.repeat(weights, most, axis=1)[..., None] * x
    candidates, errors = [], []
    # The least squares under both bounds are those of one of the sets of slopes that are not 0.
    for slopes in ((0, 1), (0,), (1,), ()):
        kept = [*range(most), *(most + slope for slope in slopes)]
        normal = weighted[..., kept].swapaxes(1, 2) @ x[..., kept]
        found = np.zeros((len(weights), of_drafts.shape[2]))
        found[:, kept] = np.linalg.solve(normal, weighted[..., kept].sum(axis=1)[..., None])[..., 0]
        off = np.einsum("dnc,dc->dn", x, found) - 1
        error = (np.repeat(weights, most, axis=1) * np.square(off)).sum(axis=1)
        candidates.append(found)
        errors.append(np.where((found[:, most:] >= 0).all(axis=1), error, np.inf))
    solved = np.asarray(candidates)[np.argmin(errors, axis=0), np.arange(len(weights))]
    error = np.abs(of_drafts @ solved[0] / costs[0] - 1)
    return np.einsum("ngc,dc->dng", columns(sizes), solved), float(np.median(error))


def _by_measurement(target: ModelRecord, drafts: Sequence[MeasuredDraft], cost: str) -> BestSize:
    """The best draft that was measured, where no law tells what lies between them."""

    def of(draft: MeasuredDraft) -> BestRound:
        return getattr(draft, cost)

    best = max(drafts, key=lambda d: of(d).speedup.estimate)
    found, size = of(best), best.draft_params

    def exactly(value: float) -> Estimate:
        return Estimate(value, math.nan, math.nan)

    def within(share: float) -> tuple[float, float]:
        enough = (1 - share) * found.speedup.estimate
        good = [float(d.draft_params) for d in drafts if of(d).speedup.estimate >= enough]
        return min(good), max(good)

    others = [d.draft_params for d in drafts]
    return BestSize(
        draft_params=exactly(float(size)),
        ratio=exactly(target.params_nonembedding / size),
        lookahead=exactly(float(found.lookahead)),
        speedup=found.speedup,
        pays=answer_of(found.speedup.low > 1, found.speedup.high < 1),
        inside=float(min(others) < size < max(others)),
        on_edges=(float(size == min(others)), float(size == max(others))),
        within_1pct=within(0.01),
        within_5pct=within(0.05),
        sizes=[],
        speedups=[],
        cost_error=math.nan,
    )


def _claims(
    cost: str, targets: Sequence[TargetSizes], drawn: Sequence[_Drawn], confidence: float
) -> list[Claim]:
    """The paper's ratio and proportionality, from the targets whose N* and its interval lie inside the sizes
    of their drafts."""
    kept = [
        (t, d)
        for t, d in zip(targets, drawn)
        if d.edge[0] == 0 and not any(getattr(t, cost).open_ends(confidence))
    ]
    if not kept:
        return []
    where = {"clock": "on the clock", "flops": "in FLOPs"}[cost]
    count = min(len(d.params) for _, d in kept)
    log_m = np.log([t.target_params for t, _ in kept])
    log_n = np.log([d.params[:count] for _, d in kept])
    among = f"of the {len(kept)} targets from {kept[0][0].target_params:,} to {kept[-1][0].target_params:,} parameters"
    ratio = np.exp((log_m[:, None] - log_n).mean(axis=0))
    rows = [
        claim_of(
            f"the best draft is about 200 times smaller than its target, {where}",
            f"geometric mean of M/N* {among}; about: within a factor of 2",
            float(ratio[0]),
            ratio[1:],
            confidence,
            holds=lambda low, high: low >= RATIO / 2 and high <= 2 * RATIO,
            fails=lambda low, high: high < RATIO / 2 or low > 2 * RATIO,
        )
    ]
    if len(kept) > 1:
        centred = log_m - log_m.mean()
        slope = centred @ log_n / (centred @ centred)
        rows.append(
            claim_of(
                f"the best draft's size is proportional to its target's, {where}",
                f"slope of ln N* in ln M {among}; 1 if so",
                float(slope[0]),
                slope[1:],
                confidence,
                holds=near_one,
                fails=not_one,
            )
        )
    return rows


def _pays_from(sizes: Sequence[int], drawn: Sequence[_Drawn], confidence: float) -> Estimate | None:
    """The target size at which S* crosses 1 for good, on straight lines of ln S* in ln M.

    Draws that cross nowhere count as the smallest or the largest target.
    """
    if len(sizes) < 2:
        return None
    log_m = np.log(np.asarray(sizes, float))
    count = min(len(d.speedup) for d in drawn)
    log_s = np.log([d.speedup[:count] for d in drawn])
    crossings = []
    for values in log_s.T:
        losing = np.flatnonzero(values <= 0)
        last = int(losing[-1]) if len(losing) else -1
        if last < 0 or last == len(values) - 1:
            crossings.append(log_m[0] if last < 0 else log_m[-1])
            continue
        share = -values[last] / (values[last + 1] - values[last])
        crossings.append(log_m[last] + share * (log_m[last + 1] - log_m[last]))
    if crossings[0] in (log_m[0], log_m[-1]):
        return None
    return _estimate(np.exp(crossings), confidence)
