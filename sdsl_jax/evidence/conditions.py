"""What temperature and domain do to acceptance, and what a law must know about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.common import BY_DRAFTS, Estimate, Mean, clustered_mean, training_run
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting import fit_gap_laws
from sdsl_jax.records import AcceptanceRecord, ModelRecord
from sdsl_jax.statistics import bootstrap_weights, quantile_interval, root_mean_square

EXACT = ("teacher_forced_text", "teacher_forced_samples")
Condition = TypeVar("Condition", float, str)
Answer = TypeVar("Answer")
Summary = TypeVar("Summary")


@dataclass(frozen=True)
class TemperatureRow:
    """Acceptance at one temperature, and the law there.

    Attributes:
      temperature: sampling temperature
      alpha: α, mean over pairs
      change: change of α against the reference, within pairs
      level: level of the logit law in the loss gap
      slope: its slope, per nat
    """

    temperature: float
    alpha: Mean
    change: Mean
    level: Estimate
    slope: Estimate


@dataclass(frozen=True)
class GapLaw:
    """A law in the loss gap that knows more or less of the temperature.

    Attributes:
      law: ignored, level, level_and_slope or line
      coefficients: how many coefficients it has
      left_out_rmse: root mean square error on left-out draft sizes
      squared_error_change: squared error minus that of ignoring the temperature
    """

    law: str
    coefficients: int
    left_out_rmse: float
    squared_error_change: Mean


@dataclass(frozen=True)
class TemperatureVerdict:
    """Whether a law must know the temperature.

    Attributes:
      best_law: law of least error on left-out draft sizes
      temperature_needed: whether it beats ignoring the temperature clearly
    """

    best_law: str
    temperature_needed: bool


@dataclass(frozen=True)
class ConditionPair:
    """What figures draw: a pair under every condition.

    Attributes:
      draft_id: the draft
      target_id: the target
      gap: loss of draft minus loss of target, by domain if several
      alpha: α by condition
    """

    draft_id: str
    target_id: str
    gap: float | list[float]
    alpha: list[float]


@dataclass(frozen=True)
class TemperatureSummary:
    """Acceptance by temperature under one estimator.

    Attributes:
      reference: temperature that changes are against
      estimator: estimator of α
      by_temperature: temperatures, the lowest first
      laws: laws that know more or less of the temperature
      verdict: whether a law must know the temperature
      n: pairs measured at every temperature
      drafts: training runs of drafts
    """

    reference: float
    estimator: str
    by_temperature: list[TemperatureRow]
    laws: list[GapLaw]
    verdict: TemperatureVerdict
    n: int
    drafts: int


@dataclass(frozen=True)
class Temperature(TemperatureSummary):
    """Acceptance by temperature.

    Attributes:
      pairs: pairs at every temperature
      basis: how the numbers were computed
      also: the same by another estimator
    """

    pairs: list[ConditionPair]
    basis: str
    also: list[TemperatureSummary] = field(default_factory=list)


@dataclass(frozen=True)
class DomainRow:
    """Acceptance in one domain.

    Attributes:
      domain: name of the domain
      alpha: α, mean over pairs
      change: change of α against the study's own text, within pairs
      mean_gap: mean loss gap in the domain, nats
    """

    domain: str
    alpha: Mean
    change: Mean
    mean_gap: float


@dataclass(frozen=True)
class DomainErrors:
    """Errors of the law of all other domains, given one kind of losses.

    Attributes:
      rmse: root mean square error of α
      bias: predicted minus measured α
    """

    rmse: float
    bias: Mean


@dataclass(frozen=True)
class LeftOutDomain:
    """A domain predicted from all others.

    Attributes:
      domain: name of the domain
      base: from losses on the study's own text
      own: from losses in the domain itself
      squared_error_change: squared error, own minus base
    """

    domain: str
    base: DomainErrors
    own: DomainErrors
    squared_error_change: Mean


@dataclass(frozen=True)
class DomainVerdict:
    """Which losses carry the law over to a new domain.

    Attributes:
      better_loss: own, base or undecided
    """

    better_loss: str


@dataclass(frozen=True)
class DomainSummary:
    """Acceptance by domain under one estimator.

    Attributes:
      base: the study's own text
      estimator: estimator of α
      by_domain: domains, the study's own text first
      left_out: each domain predicted from all others
      squared_error_change: squared error over all domains, own minus base
      verdict: which losses carry the law over
      n: pairs measured in every domain
      drafts: training runs of drafts
    """

    base: str
    estimator: str
    by_domain: list[DomainRow]
    left_out: list[LeftOutDomain]
    squared_error_change: Mean
    verdict: DomainVerdict
    n: int
    drafts: int


@dataclass(frozen=True)
class Domain(DomainSummary):
    """Acceptance by domain.

    Attributes:
      pairs: pairs in every domain
      basis: how the numbers were computed
      also: the same by another estimator
    """

    pairs: list[ConditionPair]
    basis: str
    also: list[DomainSummary] = field(default_factory=list)


class Grid(NamedTuple, Generic[Condition]):
    """α of the pairs that were measured under every one of some conditions; P pairs, K conditions.

    Attributes:
      conditions: Temperatures, or names of domains.
      pairs: Draft and target.
      alpha: α by pair and condition.
    """

    conditions: list[Condition]
    pairs: list[tuple[str, str]]
    alpha: Float[np.ndarray, "P K"]

    def kept(self, chosen: Sequence[bool]) -> Grid[Condition]:
        """Some of the pairs."""
        pairs = [pair for pair, keep in zip(self.pairs, chosen) if keep]
        return Grid(self.conditions, pairs, self.alpha[np.asarray(chosen, bool)])


def base_domain(records: StudyRecords) -> str:
    """The text that the study itself was measured on."""
    return records.acceptance[0].domain if records.acceptance else ""


def exact_rows(records: StudyRecords, drafts: set[str], estimator: str) -> list[AcceptanceRecord]:
    """Rows of some drafts by one exact estimator, those at base conditions included; none if no condition was measured by it."""
    targets = {model.model_id for model in records.of_role("target")}

    def chosen(row: AcceptanceRecord) -> bool:
        return row.draft_id in drafts and row.estimator == estimator

    rows = [row for row in records.conditions if chosen(row) and row.target_id in targets]
    # The conditions come last: their own rows at base conditions, if any, are of the same windows
    # as the others.
    return [*filter(chosen, records.acceptance), *rows] if rows else []


def by_both(
    ask: Callable[[StudyRecords, str], Answer | None],
    summary: type[Summary],
    records: StudyRecords,
    first: str,
) -> Answer | None:
    """The answer by one exact estimator and, as `also`, the summary of that by the other one.

    Args:
      ask: Gives the answer by one estimator, or None.
      summary: The fields of an answer that a summary repeats.
      records: Records of the study.
      first: The estimator that the question is about. Where it was not measured, the other one
        takes its place.
    """
    asked = (ask(records, name) for name in (first, *(name for name in EXACT if name != first)))
    answers = [answer for answer in asked if answer is not None]
    if not answers:
        return None
    also = [
        summary(**{f.name: getattr(answer, f.name) for f in fields(summary)})  # type: ignore[arg-type]
        for answer in answers[1:]
    ]
    return replace(answers[0], also=also)  # type: ignore[type-var]


def losses(records: StudyRecords, domain_name: str) -> dict[str, float]:
    """Loss of every model on a text, nats per token; on the study's own text, those of the model table where no other is."""
    own = domain_name == base_domain(records)
    return {m.model_id: m.loss_nats for m in records.models if own} | {
        row.model_id: row.loss_nats for row in records.losses if row.domain == domain_name
    }


def _grid(
    rows: list[AcceptanceRecord],
    condition: Callable[[AcceptanceRecord], Condition],
    first: Condition | None = None,
) -> Grid[Condition] | None:
    """Pairs under every condition; None where there are fewer than two conditions, or the first is missing."""
    values: dict[Condition, dict[tuple[str, str], float]] = {}
    for row in rows:
        values.setdefault(condition(row), {})[row.draft_id, row.target_id] = row.alpha
    if len(values) < 2 or (first is not None and first not in values):
        return None
    conditions = sorted(values, key=lambda each: (each != first, each))
    pairs = [p for p in values[conditions[0]] if all(p in values[each] for each in conditions)]
    alpha = [[values[each][pair] for each in conditions] for pair in pairs]
    return Grid(conditions, pairs, np.asarray(alpha))


def _sizes(drafts: dict[str, ModelRecord], grid: Grid) -> np.ndarray:
    return np.asarray([drafts[draft].params_nonembedding for draft, _ in grid.pairs])


def _changes(
    grid: Grid, reference: int, clusters: list[str], confidence: float
) -> list[tuple[Mean, Mean]]:
    """Mean α under every condition, and its change against the reference within pairs."""
    change = grid.alpha - grid.alpha[:, [reference]]
    return [
        (
            clustered_mean(grid.alpha[:, k], clusters, confidence),
            clustered_mean(change[:, k], clusters, confidence),
        )
        for k in range(len(grid.conditions))
    ]


def _pairs(grid: Grid, gap: np.ndarray) -> list[ConditionPair]:
    return [
        ConditionPair(*pair, np.asarray(gap[i]).tolist(), grid.alpha[i].tolist())
        for i, pair in enumerate(grid.pairs)
    ]


def temperature(records: StudyRecords) -> Temperature | None:
    """α by temperature, and whether the law in the loss gap needs a level and slope for each.

    First on the target's own samples, which are what a decoder visits at that temperature. Returns
    None where fewer than two temperatures, or drafts of fewer than two sizes, were measured.
    """
    return by_both(_temperature, TemperatureSummary, records, "teacher_forced_samples")


def _temperature(records: StudyRecords, estimator: str) -> Temperature | None:
    drafts = {model.model_id: model for model in records.of_role("draft")}
    base, m = base_domain(records), records.config.measure
    rows = [r for r in exact_rows(records, set(drafts), estimator) if r.domain == base]
    grid = _grid(rows, lambda row: row.temperature)
    if grid is None or len(set(sizes := _sizes(drafts, grid))) < 2:
        return None
    reference = grid.conditions.index(1.0 if 1.0 in grid.conditions else m.temperature)
    clusters = [training_run(drafts[draft]) for draft, _ in grid.pairs]
    loss = losses(records, base)
    gap = np.asarray([loss[draft] - loss[target] for draft, target in grid.pairs])
    laws = _temperature_laws(records, grid, reference, gap, sizes, clusters)
    best = min(laws, key=lambda law: law.left_out_rmse)
    return Temperature(
        reference=grid.conditions[reference],
        estimator=estimator,
        by_temperature=[
            TemperatureRow(condition, *change, *law)
            for condition, change, law in zip(
                grid.conditions,
                _changes(grid, reference, clusters, m.confidence),
                _levels_and_slopes(records, grid, gap, clusters),
            )
        ],
        laws=laws,
        pairs=_pairs(grid, gap),
        verdict=TemperatureVerdict(best.law, bool(best.squared_error_change.high < 0)),
        n=len(grid.pairs),
        drafts=len(set(clusters)),
        basis="pairs measured at every temperature; changes within pairs. Temperature sharpens both models before "
        "they are compared, and on the target's own samples it changes the contexts too; at 0, α is the share of "
        "positions with the same most probable token. Laws: logit α = level − slope · (loss of draft − loss of "
        "target), losses at temperature 1; level and slope common (ignored), a level for each temperature (level), "
        "both for each (level_and_slope), or both on a line in the temperature (line). left_out_rmse: pairs of one "
        f"draft size at all temperatures are predicted from the other sizes. Intervals: {BY_DRAFTS}; of levels and "
        "slopes bootstrap over drafts",
    )


def _temperature_laws(
    records: StudyRecords,
    grid: Grid[float],
    reference: int,
    gap: np.ndarray,
    sizes: np.ndarray,
    clusters: list[str],
) -> list[GapLaw]:
    """The error of each law on left-out draft sizes."""
    pairs, number = grid.alpha.shape
    ones = np.ones((pairs * number, 1))
    each = np.tile(np.eye(number), (pairs, 1))
    t = np.tile(np.asarray(grid.conditions) - grid.conditions[reference], pairs)
    line = np.stack([np.ones_like(t), t], axis=1)
    alphas, of_size = grid.alpha.reshape(-1), np.repeat(sizes, number)
    of_cluster = list(np.repeat(np.asarray(clusters), number))
    unseen = np.stack([of_size == size for size in np.unique(sizes)])
    designs = {
        "ignored": (ones, ones),
        "level": (each, ones),
        "level_and_slope": (each, each),
        "line": (line, line),
    }
    delta = records.config.fit.acceptance_huber_delta
    squares = {}
    for name, design in designs.items():
        fits = fit_gap_laws(np.repeat(gap, number), alphas, *design, 1.0 - unseen, delta)
        squares[name] = np.square(np.where(unseen, fits.predicted - alphas, 0)).sum(axis=0)
    confidence = records.config.measure.confidence
    return [
        GapLaw(
            name,
            levels.shape[1] + slopes.shape[1],
            float(np.sqrt(squares[name].mean())),
            clustered_mean(squares[name] - squares["ignored"], of_cluster, confidence),
        )
        for name, (levels, slopes) in designs.items()
    ]


def _levels_and_slopes(
    records: StudyRecords, grid: Grid[float], gap: np.ndarray, clusters: list[str]
) -> list[tuple[Estimate, Estimate]]:
    """Level and slope at every temperature, with bootstrap intervals over training runs."""
    fit = records.config.fit
    labels, index = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = bootstrap_weights(len(labels), fit.bootstrap, records.config.seed)[:, index]
    one = np.ones((len(gap), 1))
    weights = np.concatenate([one.T, drawn])

    def estimate(x: np.ndarray) -> Estimate:
        interval = quantile_interval(x[1:], records.config.measure.confidence)
        return Estimate(float(x[0]), *interval)

    by_temperature = []
    # Both free for each temperature, the joint fit falls apart into one for each.
    for alpha in grid.alpha.T:
        laws = fit_gap_laws(gap, alpha, one, one, weights, fit.acceptance_huber_delta)
        by_temperature.append((estimate(laws.levels[:, 0]), estimate(laws.slopes[:, 0])))
    return by_temperature


def domain(records: StudyRecords) -> Domain | None:
    """α by domain, and which loss carries the law over to a new one: that of the study's own text,
    or that of the very domain.

    First on the text itself, where losses and α are those of the same contexts: the target's
    samples soon leave the domain that their prompts come from. Returns None where fewer than two
    domains were measured with their losses.
    """
    return by_both(_domain, DomainSummary, records, "teacher_forced_text")


def _domain(records: StudyRecords, estimator: str) -> Domain | None:
    drafts = {model.model_id: model for model in records.of_role("draft")}
    base, m = base_domain(records), records.config.measure
    rows = exact_rows(records, set(drafts), estimator)
    grid = _grid([r for r in rows if r.temperature == m.temperature], lambda row: row.domain, base)
    if grid is None:
        return None
    loss = [losses(records, name) for name in grid.conditions]
    grid = grid.kept([all(m in each for each in loss for m in pair) for pair in grid.pairs])
    if len(set(_sizes(drafts, grid))) < 2:
        return None
    clusters = [training_run(drafts[draft]) for draft, _ in grid.pairs]
    gaps = np.asarray([[each[a] - each[b] for each in loss] for a, b in grid.pairs])
    left_out, change = _carried_over(records, grid, gaps, clusters)
    better = "own" if change.high < 0 else "base" if change.low > 0 else "undecided"
    changes = _changes(grid, 0, clusters, m.confidence)
    return Domain(
        base=base,
        estimator=estimator,
        by_domain=[
            DomainRow(name, *changes[k], float(gaps[:, k].mean()))
            for k, name in enumerate(grid.conditions)
        ],
        left_out=left_out,
        pairs=_pairs(grid, gaps),
        squared_error_change=change,
        verdict=DomainVerdict(better),
        n=len(grid.pairs),
        drafts=len(set(clusters)),
        basis="pairs measured in every domain; changes within pairs. On samples, a domain gives the prompts only. A "
        "domain is left out, the logit law in the loss gap is fitted to all others, and predicts its α: once from "
        "losses on the study's own text (base), once from losses in the domain itself (own). bias is predicted minus "
        "measured; squared_error_change is own minus base, negative where the domain's own loss predicts better. "
        f"Intervals: {BY_DRAFTS}; they hold for these domains, not for any domain",
    )


def _carried_over(
    records: StudyRecords, grid: Grid[str], gaps: np.ndarray, clusters: list[str]
) -> tuple[list[LeftOutDomain], Mean]:
    """Errors in every left-out domain by either loss, and the mean change of the squared error, own minus base."""
    pairs, number = grid.alpha.shape
    ones, of_domain = np.ones((pairs * number, 1)), np.tile(np.arange(number), pairs)
    others = (of_domain != np.arange(number)[:, None]).astype(float)
    delta = records.config.fit.acceptance_huber_delta

    def mean(values: np.ndarray) -> Mean:
        of = list(np.repeat(clusters, values.size // pairs))
        return clustered_mean(values.reshape(-1), of, records.config.measure.confidence)

    def errors(gap: np.ndarray) -> np.ndarray:
        laws = fit_gap_laws(gap.reshape(-1), grid.alpha.reshape(-1), ones, ones, others, delta)
        predicted = laws.predicted.reshape(number, pairs, number)
        return np.stack([predicted[k, :, k] for k in range(number)], axis=1) - grid.alpha

    base, own = errors(np.repeat(gaps[:, :1], number, axis=1)), errors(gaps)
    change = np.square(own) - np.square(base)

    def summary(e: np.ndarray) -> DomainErrors:
        return DomainErrors(root_mean_square(e), mean(e))

    left_out = [
        LeftOutDomain(
            name,
            base=summary(base[:, k]),
            own=summary(own[:, k]),
            squared_error_change=mean(change[:, k]),
        )
        for k, name in enumerate(grid.conditions)
    ]
    return left_out, mean(change)
