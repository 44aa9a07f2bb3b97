"""What temperature and domain do to acceptance, and what a law must know of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.common import BY_DRAFTS, clustered_mean, trunk
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.fitting import fit_gap_laws
from sdsl_jax.records import AcceptanceRecord
from sdsl_jax.statistics import bootstrap_weights

EXACT = ("teacher_forced_text", "teacher_forced_samples")
# What the summary by the second estimator leaves out.
_DETAILS = ("pairs", "own", "basis")


class Grid(NamedTuple):
    """α of the pairs that were measured under every one of some conditions; P pairs, K conditions.

    Attributes:
      conditions: temperatures or names of domains.
      pairs: draft and target.
      alpha: by pair and condition.
    """

    conditions: list[Any]
    pairs: list[tuple[str, str]]
    alpha: Float[np.ndarray, "P K"]


def base_domain(inputs: Inputs) -> str:
    """The text that the study itself was measured on."""
    return inputs.acceptance[0].domain if inputs.acceptance else ""


def exact_rows(inputs: Inputs, drafts: set[str], estimator: str) -> list[AcceptanceRecord]:
    """Rows of some drafts by one exact estimator, those at base conditions included; none if no condition was measured by it."""
    targets = {model.model_id for model in inputs.models if model.role == "target"}
    rows = [row for row in inputs.conditions if row.draft_id in drafts and row.target_id in targets]
    rows = [row for row in rows if row.estimator == estimator]
    # The conditions come last: their own rows at base conditions, if any, are of the same windows
    # as the others.
    known = [
        row for row in inputs.acceptance if row.draft_id in drafts and row.estimator == estimator
    ]
    return [*known, *rows] if rows else []


def by_both(
    ask: Callable[[Inputs, str], dict[str, Any] | None], inputs: Inputs, first: str
) -> dict[str, Any] | None:
    """The answer by one exact estimator and, as `also`, the summary of that by the other one.

    Args:
      ask: gives the answer by one estimator, or None.
      inputs: of the evidence.
      first: the estimator that the question is about; where it was not measured the other one takes
        its place.
    """
    answers = [ask(inputs, name) for name in (first, *(name for name in EXACT if name != first))]
    found = [answer for answer in answers if answer is not None]
    if not found:
        return None
    also = [
        {key: value for key, value in answer.items() if key not in _DETAILS} for answer in found[1:]
    ]
    return found[0] | {"also": also}


def losses(inputs: Inputs, domain_name: str) -> dict[str, float]:
    """Loss of every model on a text, nats per token; on the study's own text those of the model table where no other is."""
    known = (
        {m.model_id: m.loss_nats for m in inputs.models}
        if domain_name == base_domain(inputs)
        else {}
    )
    return known | {
        row.model_id: row.loss_nats for row in inputs.losses if row.domain == domain_name
    }


def _grid(values: dict[Any, dict[tuple[str, str], float]], conditions: list[Any]) -> Grid:
    pairs = [
        pair for pair in values[conditions[0]] if all(pair in values[each] for each in conditions)
    ]
    return Grid(
        conditions,
        pairs,
        np.asarray([[values[each][pair] for each in conditions] for pair in pairs]),
    )


def _drafts(inputs: Inputs) -> dict[str, Any]:
    return {model.model_id: model for model in inputs.models if model.role == "draft"}


def _by_condition(
    grid: Grid, reference: int, clusters: list[str], confidence: float, name: str
) -> list[dict[str, Any]]:
    """Mean α under every condition, and its change against the reference within pairs."""
    return [
        {name: condition}
        | {"alpha": clustered_mean(grid.alpha[:, k], clusters, confidence)}
        | {
            "change": clustered_mean(
                grid.alpha[:, k] - grid.alpha[:, reference], clusters, confidence
            )
        }
        for k, condition in enumerate(grid.conditions)
    ]


def _pairs(grid: Grid, gap: np.ndarray) -> list[dict[str, Any]]:
    """What figures draw: loss gap and α of every pair by condition."""
    return [
        {
            "draft_id": draft,
            "target_id": target,
            "gap": np.asarray(gap[i]).tolist(),
            "alpha": grid.alpha[i].tolist(),
        }
        for i, (draft, target) in enumerate(grid.pairs)
    ]


def temperature(inputs: Inputs) -> dict[str, Any] | None:
    """α by temperature, and whether the law in the loss gap needs a level and slope for each.

    First on the target's own samples, which are what a decoder visits at that temperature. Returns
    None where fewer than two temperatures, or drafts of fewer than two sizes, were measured.
    """
    return by_both(_temperature, inputs, "teacher_forced_samples")


def _temperature(inputs: Inputs, estimator: str) -> dict[str, Any] | None:
    drafts, base, m = _drafts(inputs), base_domain(inputs), inputs.config.measure
    values: dict[float, dict[tuple[str, str], float]] = {}
    for row in exact_rows(inputs, set(drafts), estimator):
        if row.domain == base:
            values.setdefault(row.temperature, {})[row.draft_id, row.target_id] = row.alpha
    if len(values) < 2:
        return None
    grid = _grid(values, sorted(values))
    sizes = np.asarray([drafts[draft].params_nonembedding for draft, _ in grid.pairs])
    if len(set(sizes)) < 2:
        return None
    reference = grid.conditions.index(1.0 if 1.0 in grid.conditions else m.temperature)
    clusters = [trunk(drafts[draft]) for draft, _ in grid.pairs]
    loss = losses(inputs, base)
    gap = np.asarray([loss[draft] - loss[target] for draft, target in grid.pairs])
    laws, by_temperature = _temperature_laws(inputs, grid, reference, gap, sizes, clusters)
    best = min(laws, key=lambda law: law["left_out_rmse"])
    return {
        "reference": grid.conditions[reference],
        "estimator": estimator,
        "by_temperature": [
            row | coefficients
            for row, coefficients in zip(
                _by_condition(grid, reference, clusters, m.confidence, "temperature"),
                by_temperature,
            )
        ],
        "laws": laws,
        "pairs": _pairs(grid, gap),
        "verdict": {
            "best_law": best["law"],
            "temperature_needed": bool(best["squared_error_change"]["high"] < 0),
        },
        "n": len(grid.pairs),
        "drafts": len(set(clusters)),
        "basis": "pairs measured at every temperature; changes within pairs. Temperature sharpens both models before "
        "they are compared, and on the target's own samples it changes the contexts too; at 0, α is the share of "
        "positions with the same most probable token. Laws: logit α = level − slope · (loss of draft − loss of "
        "target), losses at temperature 1; level and slope common (ignored), a level for each temperature (level), "
        "both for each (level_and_slope), or both on a line in the temperature (line). left_out_rmse: pairs of one "
        f"draft size at all temperatures are predicted from the other sizes. Intervals: {BY_DRAFTS}; of levels and "
        "slopes bootstrap over drafts",
    }


def _temperature_laws(
    inputs: Inputs,
    grid: Grid,
    reference: int,
    gap: np.ndarray,
    sizes: np.ndarray,
    clusters: list[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each law's error on left-out draft sizes; and level and slope at every temperature with their intervals."""
    pairs, count = grid.alpha.shape
    confidence, delta = inputs.config.measure.confidence, inputs.config.fit.acceptance_huber_delta
    ones = np.ones((pairs * count, 1))
    each = np.tile(np.eye(count), (pairs, 1))
    t = np.tile(np.asarray(grid.conditions) - grid.conditions[reference], pairs)
    line = np.stack([np.ones_like(t), t], axis=1)
    gaps, alphas, of_size = np.repeat(gap, count), grid.alpha.reshape(-1), np.repeat(sizes, count)
    of_cluster = np.repeat(np.asarray(clusters), count)
    kept = np.stack([of_size != size for size in np.unique(sizes)]).astype(float)
    laws: list[dict[str, Any]] = []
    ignored = None
    for name, levels, slopes in (
        ("ignored", ones, ones),
        ("level", each, ones),
        ("level_and_slope", each, each),
        ("line", line, line),
    ):
        fits = fit_gap_laws(gaps, alphas, levels, slopes, kept, delta)
        square = np.square(np.where(kept == 0, fits.predicted - alphas, 0)).sum(axis=0)
        ignored = square if ignored is None else ignored
        laws.append(
            {"law": name, "coefficients": levels.shape[1] + slopes.shape[1]}
            | {"left_out_rmse": float(np.sqrt(square.mean()))}
            | {
                "squared_error_change": clustered_mean(
                    square - ignored, list(of_cluster), confidence
                )
            }
        )
    labels, index = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = bootstrap_weights(len(labels), inputs.config.fit.bootstrap, inputs.config.seed)[
        :, index
    ]
    weights, one = np.concatenate([np.ones((1, pairs)), drawn]), np.ones((pairs, 1))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    by_temperature = []
    # Both free for each temperature, the joint fit falls apart into one for each.
    for k in range(count):
        fits = fit_gap_laws(gap, grid.alpha[:, k], one, one, weights, delta)
        found = {}
        for name, x in (("level", fits.levels[:, 0]), ("slope", fits.slopes[:, 0])):
            low, high = np.quantile(x[1:], tails)
            found[name] = {"estimate": float(x[0]), "low": float(low), "high": float(high)}
        by_temperature.append(found)
    return laws, by_temperature


def domain(inputs: Inputs) -> dict[str, Any] | None:
    """α by domain, and which loss carries the law over to a new one: that of the study's own text,
    or that of the very domain.

    First on the text itself, where losses and α are those of the same contexts: the target's
    samples soon leave the domain that their prompts come from. Returns None where fewer than two
    domains were measured with their losses.
    """
    return by_both(_domain, inputs, "teacher_forced_text")


def _domain(inputs: Inputs, estimator: str) -> dict[str, Any] | None:
    drafts, base, m = _drafts(inputs), base_domain(inputs), inputs.config.measure
    values: dict[str, dict[tuple[str, str], float]] = {}
    for row in exact_rows(inputs, set(drafts), estimator):
        if row.temperature == m.temperature:
            values.setdefault(row.domain, {})[row.draft_id, row.target_id] = row.alpha
    names = [base, *sorted(set(values) - {base})]
    own = {name: losses(inputs, name) for name in names}
    if len(names) < 2 or base not in values:
        return None
    grid = _grid(values, names)
    known = [all(model in own[name] for name in names for model in pair) for pair in grid.pairs]
    grid = Grid(
        names, [p for p, k in zip(grid.pairs, known) if k], grid.alpha[np.asarray(known, bool)]
    )
    if len({drafts[draft].params_nonembedding for draft, _ in grid.pairs}) < 2:
        return None
    clusters = [trunk(drafts[draft]) for draft, _ in grid.pairs]
    gaps = np.asarray(
        [[own[name][draft] - own[name][target] for name in names] for draft, target in grid.pairs]
    )
    left_out, change = _carried_over(inputs, grid, gaps, clusters)
    return {
        "base": base,
        "estimator": estimator,
        "by_domain": [
            row | {"mean_gap": float(gaps[:, k].mean())}
            for k, row in enumerate(_by_condition(grid, 0, clusters, m.confidence, "domain"))
        ],
        "left_out": left_out,
        "pairs": _pairs(grid, gaps),
        "squared_error_change": change,
        "verdict": {
            "better_loss": "own"
            if change["high"] < 0
            else "base"
            if change["low"] > 0
            else "undecided",
        },
        "n": len(grid.pairs),
        "drafts": len(set(clusters)),
        "basis": "pairs measured in every domain; changes within pairs. On samples, a domain gives the prompts only. A "
        "domain is left out, the logit law in the loss gap is fitted to all others, and predicts its α: once from "
        "losses on the study's own text (base), once from losses on the very domain (own). bias is predicted minus "
        "measured; squared_error_change is own minus base, negative where the domain's own loss predicts better. "
        f"Intervals: {BY_DRAFTS}; they hold for these domains, not for any domain",
    }


def _carried_over(
    inputs: Inputs, grid: Grid, gaps: np.ndarray, clusters: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Errors in every left-out domain by either loss, and the mean change of the squared error, own minus base."""
    pairs, count = grid.alpha.shape
    ones, of_domain = np.ones((pairs * count, 1)), np.tile(np.arange(count), pairs)
    kept = (of_domain != np.arange(count)[:, None]).astype(float)
    error = {}
    for name, gap in (("base", np.repeat(gaps[:, :1], count, axis=1)), ("own", gaps)):
        delta = inputs.config.fit.acceptance_huber_delta
        fits = fit_gap_laws(gap.reshape(-1), grid.alpha.reshape(-1), ones, ones, kept, delta)
        predicted = fits.predicted.reshape(count, pairs, count)
        error[name] = np.stack([predicted[k, :, k] for k in range(count)], axis=1) - grid.alpha
    confidence = inputs.config.measure.confidence
    change = np.square(error["own"]) - np.square(error["base"])
    left_out = [
        {"domain": condition}
        | {
            name: {
                "rmse": float(np.sqrt(np.square(e[:, k]).mean())),
                "bias": clustered_mean(e[:, k], clusters, confidence),
            }
            for name, e in error.items()
        }
        | {"squared_error_change": clustered_mean(change[:, k], clusters, confidence)}
        for k, condition in enumerate(grid.conditions)
    ]
    return left_out, clustered_mean(
        change.reshape(-1), list(np.repeat(clusters, count)), confidence
    )
