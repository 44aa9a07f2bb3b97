"""Is acceptance independent from position to position, and does it matter for τ, for γ* and for the speed-up?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.common import (
    BY_DRAFTS,
    Mean,
    Sparse,
    answer_of,
    clustered_mean,
    holm,
    standard_error,
    student_p_value,
    training_run,
)
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting import DependenceFit, fit_dependence
from sdsl_jax.records import ExpectedRecord
from sdsl_jax.theory import tokens_per_round

# γ = 1 knows the dependence of neighbours alone, γ = 4 that of runs; see `fitting.dependence` for
# why no larger one.
_FITTED = (1, 4)
_LEVEL = 0.05
# What a loss of speed-up must stay below for the geometric formula to count as good enough: 1%.
_REGRET_MARGIN = 0.01
_MODELS = ("geometric", "geometric_at_1", "geometric_fitted", "beta", "persistent")


@dataclass(frozen=True)
class PairChange:
    """How α̂ changes from γ = 1 to the largest lookahead, for one pair.

    Attributes:
      draft_id: the draft
      target_id: the target
      change: change of α̂
      z: the change in standard errors
      low: lower end of its interval
      high: upper end of its interval
      p: two-sided p-value of no change
      rejected: whether no change is rejected, after Holm's correction
    """

    draft_id: str
    target_id: str
    change: float
    z: float
    low: float
    high: float
    p: float
    rejected: bool


@dataclass(frozen=True)
class Constancy:
    """Whether α̂ is the same at every lookahead.

    Attributes:
      lookahead: largest lookahead, at which α̂ is compared with that at γ = 1
      level: chance of any false rejection
      rejected: pairs in which no change is rejected
      n: pairs that were tested
      mean_change: change of α̂, mean over pairs
      pairs: pairs that were tested
      basis: how the numbers were computed
    """

    lookahead: int
    level: float
    rejected: int
    n: int
    mean_change: Mean | None
    pairs: list[PairChange]
    basis: str


@dataclass(frozen=True)
class LookaheadErrors:
    """Errors of the models at one lookahead.

    Attributes:
      lookahead: γ
      judged: whether no model was fitted to it
      error: by model: τ of the model over measured τ, minus 1
      standard_error: relative standard error of τ, mean over pairs
    """

    lookahead: int
    judged: bool
    error: dict[str, Mean]
    standard_error: float


@dataclass(frozen=True)
class DependenceModel(Sparse):
    """A model of the tokens per round, judged at lookaheads that it was not fitted to.

    A model without a free number has no parameter.

    Attributes:
      mean_error: relative error of τ, mean over lookaheads and pairs
      mean_absolute_error: absolute relative error of τ
      largest_absolute_error: largest of them
      more_than_geometric: absolute error minus that of the geometric formula
      lookahead_off_by: distance of its γ* from the measured one, tokens
      lookahead_exact: pairs in which its γ* is the measured one
      regret: share of the best measured S lost by acting on its γ*
      largest_regret: largest of them
      parameter: its free number, mean over pairs
      median_parameter: its free number, median over pairs; for the Beta distribution, whose
        concentration has no mean where some pairs show no spread at all
    """

    mean_error: Mean
    mean_absolute_error: Mean
    largest_absolute_error: float
    more_than_geometric: Mean
    lookahead_off_by: Mean
    lookahead_exact: int
    regret: Mean
    largest_regret: float
    parameter: Mean | None = None
    median_parameter: float | None = None


@dataclass(frozen=True)
class DependencePair:
    """What the models say of one pair.

    Attributes:
      draft_id: the draft
      target_id: the target
      alpha: exact α on the target's samples
      cost: FLOPs per token, draft over target
      persistence: ρ of the persistent chain
      concentration: concentration of the Beta distribution
      lookahead_measured: γ* by measured τ
      lookahead: γ* by model
      regret: share of the best measured S lost, by model
    """

    draft_id: str
    target_id: str
    alpha: float
    cost: float
    persistence: float
    concentration: float
    lookahead_measured: int
    lookahead: dict[str, int]
    regret: dict[str, float]


@dataclass(frozen=True)
class SurvivalRatio:
    """S_k of the live decoder over α^k.

    Attributes:
      lookahead: γ
      position: k
      ratio: S_k/α^k, mean over pairs
    """

    lookahead: int
    position: int
    ratio: Mean


@dataclass(frozen=True)
class DependenceVerdict:
    """Whether dependence matters.

    Attributes:
      least_error: model of least mean absolute error
      better_than_geometric: whether its advantage exceeds its interval
      geometric_good_enough: yes, no or undecided: for choosing γ
      margin: mean regret that is good enough
      basis: how the verdict was reached
    """

    least_error: str
    better_than_geometric: bool
    geometric_good_enough: str
    margin: float
    basis: str


@dataclass(frozen=True)
class Dependence:
    """Whether acceptance is independent from position to position, and whether it matters.

    Attributes:
      constancy: whether α̂ is the same at every lookahead
      fitted_lookaheads: lookaheads that models were fitted to
      by_lookahead: errors by lookahead
      models: models of the tokens per round, by name
      measured_lookahead_at_largest: pairs whose measured γ* is the largest lookahead
      pairs: what the models say of each pair
      survival: survival at block starts, by lookahead and position
      verdict: whether dependence matters
      n: pairs
      drafts: training runs of drafts
      basis: how the numbers were computed
    """

    constancy: Constancy
    fitted_lookaheads: list[int]
    by_lookahead: list[LookaheadErrors]
    models: dict[str, DependenceModel]
    measured_lookahead_at_largest: int
    pairs: list[DependencePair]
    survival: list[SurvivalRatio]
    verdict: DependenceVerdict
    n: int
    drafts: int
    basis: str


class _Table(NamedTuple):
    """Everything by pair; P pairs, G lookaheads common to all of them."""

    pairs: list[tuple[str, str]]
    clusters: list[str]
    lookaheads: tuple[int, ...]
    rows: list[list[ExpectedRecord]]
    alpha: Float[np.ndarray, " P"]
    tau: Float[np.ndarray, "P G"]
    cost: Float[np.ndarray, " P"]


def dependence(records: StudyRecords) -> Dependence | None:
    """Constancy of α̂(γ), three models of dependence judged on lookaheads they were not fitted to,
    and what γ* costs.

    Returns None without expected rounds at γ = 1 and at two more lookaheads of any pair whose α on
    samples is known.
    """
    table = _table(records)
    if table is None:
        return None
    fitted = _fitted(table.lookaheads)
    judged = np.asarray([gamma not in fitted for gamma in table.lookaheads])
    columns = [table.lookaheads.index(gamma) for gamma in fitted]
    fits = fit_dependence(table.alpha, table.tau[:, columns], fitted, table.lookaheads)
    predicted = _predictions(table, fits)
    error = {name: tau / table.tau - 1 for name, tau in predicted.items()}
    confidence = records.config.measure.confidence
    best = {name: _best_lookahead(tau, table) for name, tau in predicted.items()}
    measured = _best_lookahead(table.tau, table)
    regret = {name: _regret(chosen, measured, table) for name, chosen in best.items()}

    def mean(values: np.ndarray) -> Mean:
        return clustered_mean(values, table.clusters, confidence)

    def model(name: str) -> DependenceModel:
        absolute = np.abs(error[name])[:, judged]
        more = absolute - np.abs(error["geometric"])[:, judged]
        free = fits[name].parameter if name in fits else None
        return DependenceModel(
            mean_error=mean(error[name][:, judged].mean(axis=1)),
            mean_absolute_error=mean(absolute.mean(axis=1)),
            largest_absolute_error=float(absolute.max()),
            more_than_geometric=mean(more.mean(axis=1)),
            lookahead_off_by=mean(np.abs(best[name] - measured)),
            lookahead_exact=int((best[name] == measured).sum()),
            regret=mean(regret[name]),
            largest_regret=float(regret[name].max()),
            parameter=None if free is None or name == "beta" else mean(free),
            median_parameter=None if free is None or name != "beta" else float(np.median(free)),
        )

    models = {name: model(name) for name in _MODELS}
    return Dependence(
        constancy=_constancy(table, confidence),
        fitted_lookaheads=list(fitted),
        by_lookahead=[
            LookaheadErrors(
                gamma,
                bool(judged[g]),
                {name: mean(error[name][:, g]) for name in _MODELS},
                _noise(table, g),
            )
            for g, gamma in enumerate(table.lookaheads)
        ],
        models=models,
        measured_lookahead_at_largest=int((measured == table.lookaheads[-1]).sum()),
        pairs=[
            DependencePair(
                *pair,
                alpha=float(table.alpha[i]),
                cost=float(table.cost[i]),
                persistence=float(fits["persistent"].parameter[i]),
                concentration=float(fits["beta"].parameter[i]),
                lookahead_measured=int(measured[i]),
                lookahead={name: int(best[name][i]) for name in _MODELS},
                regret={name: float(regret[name][i]) for name in _MODELS},
            )
            for i, pair in enumerate(table.pairs)
        ],
        survival=_survival(records, confidence),
        verdict=_verdict(models, len(table.pairs)),
        n=len(table.pairs),
        drafts=len(set(table.clusters)),
        basis="τ of every lookahead is expected, not decoded, from samples of the target; α is exact on the same "
        f"samples; errors are relative, model over measured τ minus 1, at lookaheads other than {fitted[0]} and "
        f"{fitted[1]}, to which beta, persistent and geometric_fitted were fitted with one free number for each pair. "
        "γ* maximises τ(γ)/(γ·d + 1) over whole γ from 0 (no speculation) to the largest measured, d the ratio of "
        "FLOPs per token; regret is the share of the measured best S that is lost by acting on the model's γ*. "
        f"Intervals: {BY_DRAFTS}. All pairs of a target share its samples; their noise is not in these intervals, its "
        "size is the standard error beside each lookahead",
    )


def _table(records: StudyRecords) -> _Table | None:
    m = records.config.measure
    models = records.models_by_id
    exact = records.measured("teacher_forced_samples")
    rows: dict[tuple[str, str], dict[int, ExpectedRecord]] = {}
    for row in records.expected:
        pair = row.draft_id, row.target_id
        known = pair in exact and row.draft_id in models and row.target_id in models
        if (
            known
            and row.temperature == m.temperature
            and 0 < exact[pair].alpha < 1
            and row.tokens_per_round > 1
        ):
            rows.setdefault(pair, {})[row.lookahead] = row
    if not rows:
        return None
    lookaheads = sorted(set.intersection(*(set(by_lookahead) for by_lookahead in rows.values())))
    if len(lookaheads) < 3 or lookaheads[0] != 1:
        return None
    pairs = list(rows)
    flops = {name: model.flops_per_token for name, model in models.items()}
    return _Table(
        pairs=pairs,
        clusters=[training_run(models[draft]) for draft, _ in pairs],
        lookaheads=tuple(lookaheads),
        rows=[[rows[pair][gamma] for gamma in lookaheads] for pair in pairs],
        alpha=np.asarray([exact[pair].alpha for pair in pairs]),
        tau=np.asarray(
            [[rows[pair][gamma].tokens_per_round for gamma in lookaheads] for pair in pairs]
        ),
        # Records of other makers may lack FLOPs: then the paper's ratio of sizes.
        cost=np.asarray(
            [
                ratio
                if math.isfinite(ratio := flops[draft] / flops[target])
                else models[draft].params_nonembedding / models[target].params_nonembedding
                for draft, target in pairs
            ]
        ),
    )


def _fitted(lookaheads: tuple[int, ...]) -> tuple[int, int]:
    """1, and of the others the one nearest to 4."""
    return 1, min(lookaheads[1:], key=lambda gamma: (abs(gamma - _FITTED[1]), gamma))


def _predictions(
    table: _Table, fits: dict[str, DependenceFit]
) -> dict[str, Float[np.ndarray, "P G"]]:
    gamma = np.asarray(table.lookaheads, float)[None]
    at_1 = table.tau[:, 0] - 1  # at γ = 1 the geometric formula is 1 + α
    with jax.enable_x64(True):
        geometric = {
            name: np.asarray(tokens_per_round(alpha[:, None], gamma))
            for name, alpha in (("geometric", table.alpha), ("geometric_at_1", at_1))
        }
    return geometric | {name: fit.tokens_per_round for name, fit in fits.items()}


def _speedups(tau: Float[np.ndarray, "P G"], table: _Table) -> Float[np.ndarray, "P G+1"]:
    """S at γ = 0 and at every lookahead."""
    speedup = tau / (np.asarray(table.lookaheads) * table.cost[:, None] + 1)
    return np.concatenate([np.ones((len(tau), 1)), speedup], axis=1)


def _best_lookahead(tau: Float[np.ndarray, "P G"], table: _Table) -> np.ndarray:
    return np.asarray((0, *table.lookaheads))[_speedups(tau, table).argmax(axis=1)]


def _regret(chosen: np.ndarray, best: np.ndarray, table: _Table) -> Float[np.ndarray, " P"]:
    speedups = _speedups(table.tau, table)
    column = {gamma: i for i, gamma in enumerate((0, *table.lookaheads))}

    def at(lookaheads: np.ndarray) -> np.ndarray:
        return speedups[np.arange(len(speedups)), [column[int(g)] for g in lookaheads]]

    return 1 - at(chosen) / at(best)


def _noise(table: _Table, g: int) -> float:
    """Mean over pairs of the relative standard error of τ."""
    errors = [
        standard_error(r.tokens_per_round_low, r.tokens_per_round_high, r.confidence, r.samples)
        / r.tokens_per_round
        for r in (rows[g] for rows in table.rows)
        if r.samples > 1
    ]
    return float(np.mean(errors)) if errors else math.nan


def _constancy(table: _Table, confidence: float) -> Constancy:
    """The change of α̂ from γ = 1 to the largest lookahead, pair by pair, and how many pairs it is not noise in."""
    pairs, clusters = [], []
    for pair, rows, cluster in zip(table.pairs, table.rows, table.clusters):
        row = rows[-1]
        low, high = row.alpha_change_low, row.alpha_change_high
        if row.samples < 2 or not math.isfinite(high - low):
            continue
        error = standard_error(low, high, row.confidence, row.samples)
        z = row.alpha_change / error if error > 0 else 0.0
        p = student_p_value(z, row.samples - 1)
        clusters.append(cluster)
        pairs.append(PairChange(*pair, row.alpha_change, z, low, high, p, rejected=False))
    rejected = holm([each.p for each in pairs], _LEVEL) if pairs else np.zeros(0, bool)
    changes = [each.change for each in pairs]
    return Constancy(
        lookahead=table.lookaheads[-1],
        level=_LEVEL,
        rejected=int(rejected.sum()),
        n=len(pairs),
        mean_change=clustered_mean(changes, clusters, confidence) if pairs else None,
        pairs=[replace(each, rejected=bool(r)) for each, r in zip(pairs, rejected)],
        basis="α̂(γ) inverts the geometric formula; its change since γ = 1 has a t interval over samples, and the "
        f"tests of all pairs together have a chance of {_LEVEL:.0%} of any false rejection (Holm), whatever pairs share",
    )


def _survival(records: StudyRecords, confidence: float) -> list[SurvivalRatio]:
    """S_k of the live decoder at its block starts over α^k, by lookahead and position."""
    models = records.models_by_id
    exact = records.measured("teacher_forced_samples")
    groups: dict[tuple[int, int], list[tuple[str, float]]] = {}
    for row in records.survival:
        pair = row.draft_id, row.target_id
        if pair in exact and row.draft_id in models:
            ratio = row.survival / exact[pair].alpha ** row.position
            groups.setdefault((row.lookahead, row.position), []).append(
                (training_run(models[row.draft_id]), ratio)
            )
    return [
        SurvivalRatio(
            gamma, k, clustered_mean([r for _, r in ratios], [of for of, _ in ratios], confidence)
        )
        for (gamma, k), ratios in sorted(groups.items())
    ]


def _verdict(models: dict[str, DependenceModel], pairs: int) -> DependenceVerdict:
    least = min(_MODELS, key=lambda name: models[name].mean_absolute_error.estimate)
    regret = models["geometric"].regret
    return DependenceVerdict(
        least_error=least,
        better_than_geometric=bool(models[least].more_than_geometric.high < 0),
        geometric_good_enough=answer_of(regret.high < _REGRET_MARGIN, regret.low > _REGRET_MARGIN),
        margin=_REGRET_MARGIN,
        basis=f"least mean absolute error of τ over {pairs} pairs; the geometric formula is good enough for choosing "
        f"γ if the upper end of its mean regret lies below {_REGRET_MARGIN:.0%}, and is not if the lower end lies above",
    )
