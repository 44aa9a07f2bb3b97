"""Which law predicts what it has not seen, and which sizes and losses it should look at."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.evidence.common import MeasuredSpeedups, measured_speedups
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.fitting.acceptance import PairTable, fit_law, pair_table
from sdsl_jax.fitting.loss import LossTable, fit_loss_law, loss_table
from sdsl_jax.records import ModelRecord, longest_trained
from sdsl_jax.statistics import bootstrap_weights, quantile_interval, root_mean_square
from sdsl_jax.theory import ACCEPTANCE_LAWS, ModelPoint, speedup

_RESAMPLES = 1000
_ON_TEXT = "teacher_forced_text"
# Regrets that differ by less are the same choice but for rounding.
_SAME_REGRET = 1e-6
_TESTS = ("left_out_drafts", "left_out_largest_target", "left_out_domains")
_COUNTS = {
    "non-embedding parameters": "params_nonembedding",
    "total parameters": "params_total",
    "FLOPs per token": "flops_per_token",
}
# Perplexities of the plane: exp of nats per token, or 2 to the bits per byte; on the test split or
# the validation split.
_LOSSES = {
    "nats per token, test": "loss_nats",
    "bits per byte, test": "bits_per_byte",
    "nats per token, validation": "validation_loss_nats",
}


@dataclass(frozen=True)
class LeftOutErrors:
    """Errors of a law on rows that it had not seen.

    Attributes:
      rmse: root mean square error of α
      rmse_low: lower end of its interval
      rmse_high: upper end of its interval
      mae: mean absolute error of α
      bias: mean error of α, predicted minus measured
      n: rows
      regret: share of the best measured S lost by acting on the predictions; none if not measured
    """

    rmse: float
    rmse_low: float
    rmse_high: float
    mae: float
    bias: float
    n: int
    regret: float | None


@dataclass(frozen=True)
class LeftOutDomainErrors(LeftOutErrors):
    """Errors of a law on domains that it had not seen.

    Attributes:
      by_domain: root mean square error in each domain
    """

    by_domain: dict[str, float]


@dataclass(frozen=True)
class LawTests:
    """One law under every test; none where the records do not allow a test.

    Attributes:
      law: acceptance law
      left_out_drafts: draft sizes left out in turn
      left_out_largest_target: fitted to the smaller targets
      left_out_domains: domains left out in turn
    """

    law: str
    left_out_drafts: LeftOutErrors
    left_out_largest_target: LeftOutErrors | None
    left_out_domains: LeftOutDomainErrors | None


@dataclass(frozen=True)
class LawComparison:
    """Every acceptance law under every test.

    Attributes:
      laws: laws, the least error on left-out drafts first
      winners: by test: the law of least error and those that resampling cannot tell from it
      winners_in_regret: by test: laws of least regret
      domains: domains that were left out in turn
      n: pairs
      basis: how the numbers were computed
    """

    laws: list[LawTests]
    winners: dict[str, list[str]]
    winners_in_regret: dict[str, list[str]]
    domains: list[str]
    n: int
    basis: str


@dataclass(frozen=True)
class CountErrors:
    """Errors of laws given one count of size.

    Attributes:
      input: what counts as size
      power_law: root mean square error of α on left-out draft sizes
      log_linear_length: the same of the log-linear acceptance length
      loss_law_largest_size: root mean square error of ln loss on the largest size; none with too
        few smaller sizes
    """

    input: str
    power_law: float
    log_linear_length: float
    loss_law_largest_size: float | None


@dataclass(frozen=True)
class LossErrors:
    """Errors of laws given one measure of loss: root mean squares of α on left-out draft sizes.

    Attributes:
      input: what counts as loss
      affine_plane: error of the affine plane
      logit_plane: error of the logit plane
      logit_gap: error of the logit in the loss gap
    """

    input: str
    affine_plane: float
    logit_plane: float
    logit_gap: float


@dataclass(frozen=True)
class LawInputs:
    """Errors of the same laws given other counts of size and other losses.

    Attributes:
      by_count: by what counts as size
      by_loss: by what counts as loss
      best_count: count of least error, by law
      best_loss: loss of least error, by law
      basis: how the numbers were computed
    """

    by_count: list[CountErrors]
    by_loss: list[LossErrors]
    best_count: dict[str, str]
    best_loss: dict[str, str]
    basis: str


def acceptance_laws(records: StudyRecords) -> LawComparison | None:
    """Every law under every test: errors of α with intervals, and the regret in S of acting on it."""
    if not records.has_pairs:
        return None
    table = pair_table(records.models, records.acceptance, records.config.fit.estimator)
    domains = _domain_tables(records)
    # By law, and then by test: errors, and mean squares in every resample of the draft sizes.
    results: dict[str, dict[str, tuple[LeftOutErrors, np.ndarray]]] = {}
    for name in ACCEPTANCE_LAWS:
        alpha = left_out_predictions(name, table, table.draft_sizes, records)
        results[name] = {
            "left_out_drafts": _errors(
                alpha - table.alpha, table.draft_sizes, records, _regret(table, alpha, records)
            )
        }
        if len(np.unique(table.target_sizes)) >= 3:
            results[name]["left_out_largest_target"] = _largest_target(name, table, records)
        if len(domains) > 1:
            results[name]["left_out_domains"] = _left_out_domains(name, domains, records)
    ranked = sorted(results, key=lambda name: results[name]["left_out_drafts"][0].rmse)
    tests = [test for test in _TESTS if test in results[ranked[0]]]

    def least_regret(test: str) -> list[str]:
        regret = {name: r for name in ranked if (r := results[name][test][0].regret) is not None}
        return [name for name, r in regret.items() if r <= min(regret.values()) + _SAME_REGRET]

    def indistinguishable(test: str) -> list[str]:
        """The law of least error, and those whose squared error exceeds its by no more than resampling draft sizes does."""
        best = min(ranked, key=lambda name: results[name][test][0].rmse)
        confidence = records.config.fit.confidence
        excess = {name: results[name][test][1] - results[best][test][1] for name in ranked}
        return [n for n in ranked if n == best or quantile_interval(excess[n], confidence)[0] <= 0]

    def tested(name: str, test: str) -> Any:
        return results[name][test][0] if test in tests else None

    return LawComparison(
        laws=[
            LawTests(name, results[name][_TESTS[0]][0], *(tested(name, t) for t in _TESTS[1:]))
            for name in ranked
        ],
        winners={test: indistinguishable(test) for test in tests},
        winners_in_regret={test: laws for test in tests if (laws := least_regret(test))},
        domains=sorted(domains),
        n=len(table.alpha),
        basis="left-out drafts: all budgets and seeds of a size at once; largest target: laws fitted to the smaller targets "
        "only; domains: α on text, laws fitted to all other domains, with losses of the predicted domain. Intervals: bootstrap "
        "over draft sizes. Regret: share of the best measured S (FLOPs) lost by the draft and lookahead that the predicted α ask "
        "for, mean over targets, drafts of the largest budget; in other domains S follows from α by the geometric formula",
    )


def left_out_predictions(
    name: str, table: PairTable, groups: np.ndarray, records: StudyRecords
) -> np.ndarray:
    """The α of every row by a law that was fitted to the rows of all other groups."""
    alpha = np.full(len(table.alpha), np.nan)
    for group in np.unique(groups):
        out = groups == group
        law = fit_law(name, table, records.config.fit.acceptance_huber_delta, ~out)
        alpha[out] = predicted(law, table.rows(out))
    return alpha


def predicted(law: Any, table: PairTable) -> np.ndarray:
    """α of every row by a law; rows without tokens are given one token each, as in the fit."""
    tokens = np.where(np.isfinite(table.draft.tokens), table.draft.tokens, 1.0)
    return np.asarray(law(table.draft._replace(tokens=tokens), table.target), float)


def _errors(
    errors: np.ndarray,
    groups: np.ndarray,
    records: StudyRecords,
    regret: float | None,
) -> tuple[LeftOutErrors, np.ndarray]:
    """Errors with an interval from resampling the groups, and the mean square of every resample."""
    names, of = np.unique(groups, return_inverse=True)
    square = np.bincount(of, np.square(errors))
    count = np.bincount(of)
    weights = bootstrap_weights(len(names), _RESAMPLES, records.config.seed)
    squares = (weights @ square) / (weights @ count)
    return LeftOutErrors(
        root_mean_square(errors),
        *quantile_interval(np.sqrt(squares), records.config.fit.confidence),
        float(np.abs(errors).mean()),
        float(errors.mean()),
        len(errors),
        regret,
    ), squares


def _mean(regrets: list[float]) -> float | None:
    return float(np.mean(regrets)) if regrets else None


def _regret(
    table: PairTable, alpha: np.ndarray, records: StudyRecords, targets: Sequence[int] | None = None
) -> float | None:
    """Mean over targets of the regret of acting on predicted α."""
    candidates = longest_trained(records.models, "draft")
    regrets = []
    for target in np.unique(table.target_model) if targets is None else targets:
        measured = measured_speedups(candidates, records.expected, records.models[target])
        if measured is None:
            continue
        by_draft = {
            records.models[d].model_id: a
            for d, t, a in zip(table.draft_model, table.target_model, alpha)
            if t == target
        }
        if all(m.model_id in by_draft for m in measured.drafts):
            predicted_alpha = np.asarray([by_draft[m.model_id] for m in measured.drafts])
            regrets.append(measured.regret(*measured.choice(predicted_alpha)))
    return _mean(regrets)


def _largest_target(
    name: str, table: PairTable, records: StudyRecords
) -> tuple[LeftOutErrors, np.ndarray]:
    """Errors and regret on the largest target of a law that was fitted to the smaller ones."""
    out = table.target_sizes == table.target_sizes.max()
    law = fit_law(name, table, records.config.fit.acceptance_huber_delta, ~out)
    rows = table.rows(out)
    alpha = predicted(law, rows)
    targets = sorted({int(t) for t in table.target_model[out]})
    regret = _regret(rows, alpha, records, targets)
    return _errors(alpha - table.alpha[out], table.draft_sizes[out], records, regret)


def _domain_tables(records: StudyRecords) -> dict[str, PairTable]:
    """For every domain, the pairs of the study's drafts at its temperature, with losses in that domain.

    α is on the text itself, so that loss and acceptance share their contexts.
    """
    tables = {}
    for domain in dict.fromkeys(r.domain for r in records.conditions):
        rows = [
            r
            for r in records.conditions
            if r.domain == domain and r.temperature == records.config.measure.temperature
        ]
        losses = {r.model_id: r for r in records.losses if r.domain == domain}
        models = [
            dataclasses.replace(
                m,
                loss_nats=losses[m.model_id].loss_nats,
                bits_per_byte=losses[m.model_id].bits_per_byte,
            )
            for m in records.models
            if m.model_id in losses
        ]
        measured = {r.draft_id for r in rows if r.estimator == _ON_TEXT} & set(losses)
        if len(models) == len(records.models) and len(measured) >= 4:
            tables[domain] = pair_table(models, rows, _ON_TEXT)
    return tables


def _joined(tables: Sequence[PairTable]) -> PairTable:
    """Several tables as one."""
    points = [
        ModelPoint(
            *(
                np.concatenate([np.asarray(getattr(getattr(t, role), f)) for t in tables])
                for f in ModelPoint._fields
            )
        )
        for role in ("draft", "target")
    ]
    rest = (np.concatenate([getattr(t, f) for t in tables]) for f in PairTable._fields[2:])
    return PairTable(points[0], points[1], *rest)


def _left_out_domains(
    name: str, domains: dict[str, PairTable], records: StudyRecords
) -> tuple[LeftOutDomainErrors, np.ndarray]:
    """Each domain predicted by the law of all others."""
    table = _joined(list(domains.values()))
    of = np.repeat(np.arange(len(domains)), [len(t.alpha) for t in domains.values()])
    error = left_out_predictions(name, table, of, records) - table.alpha
    by_domain = {d: root_mean_square(error[of == i]) for i, d in enumerate(domains)}
    regret = _independent_regret(table, table.alpha + error, of, records)
    errors, squares = _errors(error, table.draft_sizes, records, regret)
    return LeftOutDomainErrors(**vars(errors), by_domain=by_domain), squares


def _independent_regret(
    table: PairTable, alpha: np.ndarray, of: np.ndarray, records: StudyRecords
) -> float | None:
    """Mean over domains and targets of the regret of acting on predicted α, S by the geometric
    formula at the measured α.

    In other domains tokens per round were not measured, only α.
    """
    lookaheads = np.arange(1, records.config.measure.expected_lookahead + 1)
    candidates = {m.model_id for m in longest_trained(records.models, "draft")}
    # Tables of domains number the models that were measured there, which are all of the study's.
    models = records.models
    longest = np.asarray([models[d].model_id in candidates for d in table.draft_model])
    regrets = []
    for domain in np.unique(of):
        for target in np.unique(table.target_model[of == domain]):
            chosen = (of == domain) & (table.target_model == target) & longest
            drafts = [models[d] for d in table.draft_model[chosen]]
            flops = np.asarray([m.flops_per_token for m in drafts])
            cost = flops / models[target].flops_per_token
            if not np.isfinite(cost).all() or not len(cost):
                return None
            true = np.asarray(
                speedup(table.alpha[chosen][:, None], lookaheads[None].astype(float), cost[:, None])
            )
            measured = MeasuredSpeedups(drafts, cost, lookaheads, true)
            regrets.append(measured.regret(*measured.choice(alpha[chosen])))
    return _mean(regrets)


def law_inputs(records: StudyRecords) -> LawInputs | None:
    """Held-out errors of the same laws given other counts and other losses.

    Counts are judged by laws that look at sizes (the power law, the log-linear length, and the loss
    law on its largest size), losses by laws that look at losses (the planes and the gap). Left out
    are draft sizes, all budgets and seeds at once.
    """
    if not records.has_pairs:
        return None
    by_count = [
        CountErrors(
            name,
            _left_out_drafts(records, "power_law", records.models, column),
            _left_out_drafts(records, "log_linear_length", records.models, column),
            _error_on_largest(records, column),
        )
        for name, column in _COUNTS.items()
        if all(getattr(m, column) > 0 for m in records.models)
    ]
    by_loss = []
    for name, column in _LOSSES.items():
        if all(np.isfinite(getattr(m, column)) for m in records.models):
            # 2^bits is exp of bits·ln 2: the plane exponentiates what it is given.
            scale = np.log(2) if column == "bits_per_byte" else 1.0
            models = [
                dataclasses.replace(m, loss_nats=scale * getattr(m, column)) for m in records.models
            ]
            laws = ("affine_plane", "logit_plane", "logit_gap")
            errors = (_left_out_drafts(records, law, models, "params_nonembedding") for law in laws)
            by_loss.append(LossErrors(name, *errors))
    if not by_count and not by_loss:
        return None

    def best(rows: Sequence[CountErrors | LossErrors]) -> dict[str, str]:
        """The input of least error, by law."""
        return {
            law: min(rows, key=operator.attrgetter(law)).input
            for law, error in (vars(rows[0]) if rows else {}).items()
            if law != "input" and error is not None
        }

    return LawInputs(
        by_count=by_count,
        by_loss=by_loss,
        best_count=best(by_count),
        best_loss=best(by_loss),
        basis="root mean square error of α on left-out draft sizes; of ln loss on the largest size, from a loss law fitted to "
        "all smaller models. With one tokenizer bits per byte are nats per token times a constant: only the plane in "
        "perplexities can tell them apart",
    )


def _left_out_drafts(
    records: StudyRecords, law: str, models: list[ModelRecord], params: str
) -> float:
    estimator = records.config.fit.estimator
    table = pair_table(models, records.acceptance, estimator, params)
    errors = left_out_predictions(law, table, table.draft_sizes, records) - table.alpha
    return root_mean_square(errors)


def _error_on_largest(records: StudyRecords, column: str) -> float | None:
    """Error of ln loss on the largest size, by a law fitted to all others."""
    left_out = largest_left_out(records, 7, 3, column=column)
    return None if left_out is None else root_mean_square(np.log(left_out.ratio))


class LargestLeftOut(NamedTuple):
    """A loss law fitted to all smaller models, and how far it is off on the largest size.

    Attributes:
      rmse: Root mean square residual of ln loss of the fit.
      seen: What it was fitted to.
      unseen: Models of the largest size.
      ratio: Predicted over measured loss of the latter.
    """

    rmse: float
    seen: LossTable
    unseen: LossTable
    ratio: np.ndarray


def once_seen(records: StudyRecords) -> list[ModelRecord]:
    """The models that loss laws are fitted to: those whose training is known and did not repeat its
    text too often."""
    worn = records.config.fit.max_epochs
    return [m for m in records.models if m.training_is_known and not m.epochs > worn]


def largest_left_out(
    records: StudyRecords,
    fewest_models: int,
    fewest_sizes: int,
    *,
    column: str = "params_nonembedding",
    least_layers: int = 0,
) -> LargestLeftOut | None:
    """Fits the loss law to all models but the largest; None if there are too few smaller ones.

    Args:
      records: Records of the study.
      fewest_models: Smaller models that a fit needs.
      fewest_sizes: Sizes that a fit needs.
      column: Column that counts as size.
      least_layers: Fewest layers of the smaller models.
    """
    models, config = once_seen(records), dataclasses.replace(records.config.fit, bootstrap=20)
    largest = max(m.params_nonembedding for m in models)
    rest = [m for m in models if m.layers >= least_layers and m.params_nonembedding < largest]
    seen = loss_table(rest, column)
    if (
        len(rest) < fewest_models
        or len(set(seen.params)) < fewest_sizes
        or len(set(seen.tokens)) < 2
    ):
        return None
    weights = np.ones((1, len(rest)))
    fit = fit_loss_law(seen, config, weights, records.config.seed, config.loss_law)
    unseen = loss_table([m for m in models if m.params_nonembedding == largest], column)
    predicted_loss = np.asarray(fit.law(unseen.params, unseen.tokens), float)
    return LargestLeftOut(fit.rmse, seen, unseen, predicted_loss / unseen.loss)
