"""Which acceptance law predicts what it has not seen: left-out drafts, the largest target, another domain; in α and in S."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.evidence.speedups import Measured, measured_speedups
from sdsl_jax.fitting.acceptance import PairTable, fit_law, pair_table
from sdsl_jax.records import LossRecord, ModelRecord, longest_trained
from sdsl_jax.theory import ACCEPTANCE_LAWS, ModelPoint, speedup

_RESAMPLES = 1000
_ON_TEXT = "teacher_forced_text"
# Regrets that differ by less are the same choice but for rounding.
_SAME_REGRET = 1e-6


def acceptance_laws(inputs: Inputs) -> dict[str, Any] | None:
    """Every law under every test: errors of α with intervals, and the regret in S of acting on it."""
    estimator = inputs.config.fit.estimator
    if not inputs.has_pairs:
        return None
    table = pair_table(inputs.models, inputs.acceptance, estimator)
    rows: list[dict[str, Any]] = []
    largest = _largest_target(table, inputs)
    domains = _domain_tables(inputs)
    for name in ACCEPTANCE_LAWS:
        row: dict[str, Any] = {"law": name}
        alpha = left_out_predictions(name, table, table.draft_sizes, inputs)
        row["left_out_drafts"] = _errors(alpha - table.alpha, table.draft_sizes, inputs) | {
            "regret": _regret(table, alpha, inputs)
        }
        row["left_out_largest_target"] = largest and largest[name]
        row["left_out_domains"] = (
            _left_out_domains(name, domains, inputs) if len(domains) > 1 else None
        )
        rows.append(row)
    rows.sort(key=lambda row: row["left_out_drafts"]["rmse"])
    tests = [
        t
        for t in ("left_out_drafts", "left_out_largest_target", "left_out_domains")
        if rows[0][t] is not None
    ]

    def least_regret(test: str) -> list[str]:
        least = min(row[test]["regret"] for row in rows)
        return [row["law"] for row in rows if row[test]["regret"] <= least + _SAME_REGRET]

    found = {test: _indistinguishable(rows, test, inputs) for test in tests}
    for row in rows:
        for test in tests:
            del row[test]["squares_drawn"]
    return {
        "laws": rows,
        "winners": found,
        "winners_in_regret": {
            t: least_regret(t) for t in tests if rows[0][t].get("regret") is not None
        },
        "domains": sorted(domains),
        "n": len(table.alpha),
        "basis": "left-out drafts: all budgets and seeds of a size at once; largest target: laws fitted to the smaller targets "
        "only; domains: α on text, laws fitted to all other domains, with losses of the predicted domain. Intervals: bootstrap "
        "over draft sizes. Regret: share of the best measured S (FLOPs) lost by the draft and lookahead that the predicted α ask "
        "for, mean over targets, drafts of the largest budget; in other domains S follows from α by the geometric formula",
    }


def _indistinguishable(rows: list[dict[str, Any]], test: str, inputs: Inputs) -> list[str]:
    """The law of least error, and those whose squared error exceeds its by no more than resampling draft sizes does."""
    best = min(rows, key=lambda row: row[test]["rmse"])[test]
    tail = (1 - inputs.config.fit.confidence) / 2

    def lower_end(row: dict[str, Any]) -> float:
        excess = np.asarray(row[test]["squares_drawn"]) - np.asarray(best["squares_drawn"])
        return float(np.quantile(excess, tail))

    return [row["law"] for row in rows if row[test] is best or lower_end(row) <= 0]


def left_out_predictions(
    name: str, table: PairTable, groups: np.ndarray, inputs: Inputs
) -> np.ndarray:
    """The α of every row by a law that was fitted to the rows of all other groups."""
    found = np.full(len(table.alpha), np.nan)
    for group in np.unique(groups):
        out = groups == group
        law = fit_law(name, table, inputs.config.fit.acceptance_huber_delta, ~out)
        found[out] = predicted(law, table.rows(out))
    return found


def predicted(law: Any, table: PairTable) -> np.ndarray:
    """α of every row by a law; rows without tokens are given one token each, as in the fit."""
    tokens = np.where(np.isfinite(table.draft.tokens), table.draft.tokens, 1.0)
    return np.asarray(law(table.draft._replace(tokens=tokens), table.target), float)


def _errors(errors: np.ndarray, groups: np.ndarray, inputs: Inputs) -> dict[str, Any]:
    """Root mean square and mean absolute error, with an interval from resampling the groups."""
    names, of = np.unique(groups, return_inverse=True)
    square = np.bincount(of, np.square(errors))
    count = np.bincount(of)
    random = np.random.default_rng(inputs.config.seed)
    weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    squares = (weights @ square) / (weights @ count)
    drawn = np.sqrt(squares)
    tail = (1 - inputs.config.fit.confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return {
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "rmse_low": float(low),
        "rmse_high": float(high),
        "mae": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "n": len(errors),
        "squares_drawn": squares.tolist(),
    }


def _regret(
    table: PairTable, alpha: np.ndarray, inputs: Inputs, targets: list[int] | None = None
) -> float | None:
    """Mean over targets of the regret of acting on predicted α."""
    candidates = longest_trained(inputs.models, "draft")
    regrets = []
    for target in np.unique(table.target_model) if targets is None else targets:
        found = measured_speedups(candidates, inputs.expected, inputs.models[target])
        if found is None:
            continue
        rows = {
            inputs.models[d].model_id: a
            for d, t, a in zip(table.draft_model, table.target_model, alpha)
            if t == target
        }
        if all(m.model_id in rows for m in found.drafts):
            regrets.append(
                found.regret(*found.choice(np.asarray([rows[m.model_id] for m in found.drafts])))
            )
    return float(np.mean(regrets)) if regrets else None


def _largest_target(table: PairTable, inputs: Inputs) -> dict[str, dict[str, Any]] | None:
    """Errors and regret on the largest target of laws that were fitted to the smaller ones; None with fewer than 3 targets."""
    sizes = table.target_sizes
    if len(np.unique(sizes)) < 3:
        return None
    out = sizes == sizes.max()
    found = {}
    for name in ACCEPTANCE_LAWS:
        law = fit_law(name, table, inputs.config.fit.acceptance_huber_delta, ~out)
        alpha = predicted(law, table.rows(out))
        errors = _errors(alpha - table.alpha[out], table.draft_sizes[out], inputs)
        targets = sorted({int(t) for t in table.target_model[out]})
        found[name] = errors | {"regret": _regret(table.rows(out), alpha, inputs, targets)}
    return found


def _domain_tables(inputs: Inputs) -> dict[str, PairTable]:
    """For every domain at the study's temperature the pairs of its own drafts, with losses of that
    very domain.

    α on the text itself, so that loss and acceptance share their contexts.
    """
    found = {}
    for domain in dict.fromkeys(r.domain for r in inputs.conditions):
        rows = [
            r
            for r in inputs.conditions
            if r.domain == domain and r.temperature == inputs.config.measure.temperature
        ]
        models = with_losses(inputs.models, inputs.losses, domain)
        measured = {r.draft_id for r in rows if r.estimator == _ON_TEXT} & {
            m.model_id for m in models
        }
        if len(models) == len(inputs.models) and len(measured) >= 4:
            found[domain] = pair_table(models, rows, _ON_TEXT)
    return found


def with_losses(
    models: list[ModelRecord], losses: list[LossRecord], domain: str
) -> list[ModelRecord]:
    """The models that were measured in a domain, with the losses of that domain."""
    by_id = {r.model_id: r for r in losses if r.domain == domain}
    return [
        dataclasses.replace(
            m, loss_nats=by_id[m.model_id].loss_nats, bits_per_byte=by_id[m.model_id].bits_per_byte
        )
        for m in models
        if m.model_id in by_id
    ]


def joined(tables: list[PairTable]) -> PairTable:
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


def _left_out_domains(name: str, domains: dict[str, PairTable], inputs: Inputs) -> dict[str, Any]:
    """Each domain predicted by the law of all others."""
    table = joined(list(domains.values()))
    of = np.repeat(np.arange(len(domains)), [len(t.alpha) for t in domains.values()])
    error = left_out_predictions(name, table, of, inputs) - table.alpha
    by_domain = {d: float(np.sqrt(np.square(error[of == i]).mean())) for i, d in enumerate(domains)}
    regret = _independent_regret(table, table.alpha + error, of, inputs)
    return _errors(error, table.draft_sizes, inputs) | {"by_domain": by_domain, "regret": regret}


def _independent_regret(
    table: PairTable, alpha: np.ndarray, of: np.ndarray, inputs: Inputs
) -> float | None:
    """Mean over domains and targets of the regret of acting on predicted α, S by the geometric
    formula at the measured α.

    In other domains tokens per round were not measured, only α.
    """
    lookaheads = np.arange(1, inputs.config.measure.expected_lookahead + 1)
    candidates = {m.model_id for m in longest_trained(inputs.models, "draft")}
    # Tables of domains number the models that were measured there, which are all of the study's.
    names = [m.model_id for m in inputs.models]
    regrets = []
    for domain in np.unique(of):
        for target in np.unique(table.target_model[of == domain]):
            chosen = (of == domain) & (table.target_model == target)
            chosen &= np.asarray([names[d] in candidates for d in table.draft_model])
            drafts = [inputs.models[d] for d in table.draft_model[chosen]]
            cost = (
                np.asarray([m.flops_per_token for m in drafts])
                / inputs.models[target].flops_per_token
            )
            if not np.isfinite(cost).all() or not len(cost):
                return None
            true = np.asarray(
                speedup(table.alpha[chosen][:, None], lookaheads[None].astype(float), cost[:, None])
            )
            found = Measured(drafts, cost, lookaheads, true)
            regrets.append(found.regret(*found.choice(alpha[chosen])))
    return float(np.mean(regrets)) if regrets else None
