"""Does perplexity alone predict acceptance? Drafts trained on other text against the study's own at equal loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdsl_jax.evidence.common import trunk
from sdsl_jax.evidence.conditions import base_domain, by_both, exact_rows, losses
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.fitting import local_acceptance
from sdsl_jax.statistics import bootstrap_weights

# Differences in α smaller than this are of no consequence.
_MARGIN = 0.01
# Standard deviation of the local weights, as a share of the range of losses of the study's own
# drafts.
_BANDWIDTH = 0.3
# Fewer runs than this do not hold a curve.
_FEWEST_RUNS = 4


def same_data(inputs: Inputs) -> dict[str, Any] | None:
    """α of every other-text draft minus that of a same-data draft of equal loss, against the same
    targets and on the same text.

    First on the text that the losses are of. Returns None without other-text drafts whose loss and
    α on the study's own text are known, or with too few own drafts.
    """
    return by_both(_same_data, inputs, "teacher_forced_text")


def _same_data(inputs: Inputs, estimator: str) -> dict[str, Any] | None:
    base, m = base_domain(inputs), inputs.config.measure
    loss = losses(inputs, base)
    own = {model.model_id: model for model in inputs.models if model.role == "draft"}
    others = {model.model_id: model for model in inputs.other_models if model.model_id not in own}
    alpha: dict[str, dict[str, dict[str, float]]] = {}
    for row in exact_rows(inputs, own.keys() | others.keys(), estimator):
        here = row.domain == base and row.temperature == m.temperature
        if here and row.draft_id in loss and row.target_id in loss:
            alpha.setdefault(row.target_id, {}).setdefault(
                "own" if row.draft_id in own else "others", {}
            )[row.draft_id] = row.alpha
    usable = {
        target: found
        for target, found in alpha.items()
        if found.get("others")
        and len({trunk(own[d]) for d in found.get("own", {})}) >= _FEWEST_RUNS
    }
    if not usable:
        return None
    draws = inputs.config.fit.bootstrap
    own_runs = sorted({trunk(model) for model in own.values()})
    other_runs = sorted({trunk(others[d]) for found in usable.values() for d in found["others"]})
    # The fit to all rows comes first, the resamples after it.
    own_weight, other_weight = (
        np.concatenate(
            [np.ones((1, len(runs))), bootstrap_weights(len(runs), draws, inputs.config.seed + i)]
        )
        for i, runs in enumerate((own_runs, other_runs))
    )
    rows, differences, weights = [], [], []
    for target, found in usable.items():
        names, wanted = list(found["own"]), list(found["others"])
        gap = np.asarray([loss[d] - loss[target] for d in names])
        at = np.asarray([loss[d] - loss[target] for d in wanted])
        drawn = own_weight[:, [own_runs.index(trunk(own[d])) for d in names]]
        same = local_acceptance(
            gap,
            np.asarray([found["own"][d] for d in names]),
            at,
            drawn,
            _BANDWIDTH * float(np.ptp(gap)),
            inputs.config.fit.acceptance_huber_delta,
        )
        difference = np.asarray([found["others"][d] for d in wanted]) - same
        differences.append(difference)
        weights.append(other_weight[:, [other_runs.index(trunk(others[d])) for d in wanted]])
        tails = _tails(m.confidence)
        for i, draft in enumerate(wanted):
            low, high = np.quantile(difference[1:, i], tails)
            rows.append(
                {
                    "draft_id": draft,
                    "target_id": target,
                    "loss": loss[draft],
                    "alpha": found["others"][draft],
                }
                | {"alpha_same_data": float(same[0, i]), "difference": float(difference[0, i])}
                | {"low": float(low), "high": float(high)}
                | {"extrapolated": not bool(gap.min() <= at[i] <= gap.max())}
            )
    joined, weight = np.concatenate(differences, axis=1), np.concatenate(weights, axis=1)
    outside = np.asarray([row["extrapolated"] for row in rows])
    everything = _mean(joined, weight, m.confidence)
    inside = (
        _mean(joined[:, ~outside], weight[:, ~outside], m.confidence) if not outside.all() else None
    )
    return {
        "difference": everything,
        "difference_inside": inside,
        "answer": "undecided" if inside is None else _answer(inside),
        "margin": _MARGIN,
        "estimator": estimator,
        "pairs": rows,
        "own": [
            {"draft_id": draft, "target_id": target, "loss": loss[draft], "alpha": value}
            for target, found in usable.items()
            for draft, value in found["own"].items()
        ],
        "n": len(rows),
        "other_drafts": len(other_runs),
        "own_drafts": len(own_runs),
        "warnings": [
            f"{outside.sum()} of {len(rows)} pairs have a loss outside the range of the study's own drafts: there the "
            "curve is extended"
        ]
        if outside.any()
        else [],
        "basis": "α of a draft trained on other text minus α of a draft of the study's own data at the same loss on "
        "the study's own text, against the same target (on samples: α there, and loss still on the text); the latter "
        "from a logit law in the loss gap with weights that fall off with the distance in loss (standard deviation "
        f"{_BANDWIDTH:.0%} of the range). Answer: yes (loss alone predicts α) if the interval of the mean difference "
        f"within the range of own losses lies within ±{_MARGIN:g}, no if it does not and excludes 0, else undecided. "
        f"Intervals: {draws} bootstrap draws that resample runs of other drafts and runs of own drafts at once",
    }


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _mean(differences: np.ndarray, weights: np.ndarray, confidence: float) -> dict[str, float]:
    """Mean over pairs with its bootstrap interval; the first row is the data, the others resamples [1 + draws, pairs]."""
    total = weights.sum(axis=1)
    drawn = total > 0
    means = (weights[drawn] * differences[drawn]).sum(axis=1) / total[drawn]
    low, high = np.quantile(means[1:], _tails(confidence))
    return {
        "estimate": float(means[0]),
        "low": float(low),
        "high": float(high),
        "n": differences.shape[1],
    }


def _answer(interval: dict[str, float]) -> str:
    if interval["low"] > -_MARGIN and interval["high"] < _MARGIN:
        return "yes"
    return "no" if interval["low"] > 0 or interval["high"] < 0 else "undecided"
