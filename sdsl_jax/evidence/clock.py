"""On the clock: does the calibrated machine say how fast speculative decoding is, and which draft and lookahead to take?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from sdsl_jax.evidence.clock_cells import Cell, cells
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.theory import tokens_per_round

# How small a draft is by the rule of thumb of arXiv 2603.11053.
_RULE = 200
# Models whose sizes differ by less are of one size.
_SAME_SIZE = 0.2
_BASIS = (
    "measured S: median over repetitions of tokens per second over those of plain decoding in the same repetition; the best "
    "decoder is chosen on every other repetition and judged on the rest, and the other way round"
)


def clock(inputs: Inputs) -> dict[str, Any] | None:
    """Errors of predicted S, regrets of choices, batches and shapes; None where nothing was timed."""
    found = cells(inputs)
    if not found:
        return None
    budget = max(c.draft.train_tokens for c in found)
    single = [c for c in found if c.batch == 1]
    ladder = {m.model_id for m in inputs.models}
    candidates = [c for c in single if c.draft.model_id in ladder and c.draft.train_tokens == budget]
    return {
        "cells": [_describe(c) for c in found],
        "error": _errors(candidates),
        "error_of_costs": _errors(candidates, with_tokens=True),
        "targets": [_choice(_of(candidates, target)) for target in _targets(candidates)],
        "mean_regret": _mean_regret(candidates),
        "batches": _batches(found),
        "batch_error": _errors([c for c in found if c.batch > 1]),
        "shapes": _shapes(single, budget),
        "repetitions": len(found[0].rates),
        "device": inputs.runs[0].device,
        "threads": inputs.runs[0].threads,
        "basis": _BASIS,
    }


def _targets(found: list[Cell]) -> list[str]:
    return list(dict.fromkeys(c.target.model_id for c in found))


def _of(found: list[Cell], target: str) -> list[Cell]:
    return [c for c in found if c.target.model_id == target]


def _describe(c: Cell) -> dict[str, Any]:
    return {
        "draft_id": c.draft.model_id,
        "draft_params": c.draft.params_nonembedding,
        "target_id": c.target.model_id,
        "target_params": c.target.params_nonembedding,
        "lookahead": c.lookahead,
        "batch": c.batch,
        "speedup": c.measured,
        "speedup_low": float(c.rates.min()),
        "speedup_high": float(c.rates.max()),
        "predicted": c.predicted,
        "predicted_with_tokens": c.predicted_with_tokens,
        "tokens_per_round": c.tokens_per_round,
        "acceptance": c.acceptance,
        "round_seconds": c.round_seconds,
        "predicted_round_seconds": c.predicted_round_seconds,
    }


def _errors(found: list[Cell], with_tokens: bool = False) -> dict[str, Any] | None:
    """How far predicted S lies from measured S, and whether it orders the decoders of each target alike."""
    if not found:
        return None
    predicted = np.asarray([c.predicted_with_tokens if with_tokens else c.predicted for c in found])
    ratio = predicted / np.asarray([c.measured for c in found])
    return {
        "n": len(found),
        "median_absolute": float(np.median(np.abs(ratio - 1))),
        "mean": float(ratio.mean() - 1),
        "worst": float(np.abs(ratio - 1).max()),
        "rank_correlation": float(
            np.mean([_rank_correlation(_of(found, t), with_tokens) for t in _targets(found) if len(_of(found, t)) > 2])
        ),
        # What no prediction could do without: medians of half of the repetitions against those of the other.
        "noise": float(np.median([abs(_half(c, 0) / _half(c, 1) - 1) for c in found])),
    }


def _rank_correlation(found: list[Cell], with_tokens: bool) -> float:
    """Spearman's."""
    predicted = [c.predicted_with_tokens if with_tokens else c.predicted for c in found]
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, [c.measured for c in found])]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _half(c: Cell, half: int) -> float:
    return float(np.median(c.rates[half::2]))


def _paper(c: Cell) -> float:
    """S with the paper's c = N/M, from the same predicted acceptance."""
    cost = c.draft.params_nonembedding / c.target.params_nonembedding
    return float(tokens_per_round(c.acceptance, float(c.lookahead))) / (c.lookahead * cost + 1)


def _nearest(found: list[Cell], size: float) -> list[Cell]:
    """The decoders of the draft nearest to a size."""
    nearest = min((c.draft for c in found), key=lambda m: abs(np.log(m.params_nonembedding / size)))
    return [c for c in found if c.draft.model_id == nearest.model_id]


def _policies(found: list[Cell]) -> dict[str, list[Cell]]:
    """The decoder that each way of choosing takes; several where it leaves the choice open."""

    def ours(c: Cell) -> float:
        return c.predicted

    rule = _nearest(found, found[0].target.params_nonembedding / _RULE)
    habit = [c for c in found if c.lookahead == 4]
    drafts = list(dict.fromkeys(c.draft.model_id for c in found))
    return {
        "calibrated": [max(found, key=ours)],
        "paper_cost": [max(found, key=_paper)],
        "rule_of_200": [max(rule, key=_paper)],
        "lookahead_4": [max(habit, key=ours)] if habit else [],
        "random_draft": [max((c for c in found if c.draft.model_id == d), key=ours) for d in drafts],
    }


def _regret(found: list[Cell], chosen: list[Cell]) -> float:
    """Mean over the chosen and over both halves of 1 − S(chosen)/S(best), the best one chosen on the other half."""

    def judged(choose: Callable[[Cell], float], judge: Callable[[Cell], float]) -> float:
        best = judge(max(found, key=choose))
        return float(np.mean([1 - judge(c) / best for c in chosen]))

    halves = [lambda c: _half(c, 0), lambda c: _half(c, 1)]
    return (judged(halves[0], halves[1]) + judged(halves[1], halves[0])) / 2


def _choice(found: list[Cell]) -> dict[str, Any]:
    """Of one target: the predicted choice, the best one measured, whether speculation pays, and the regrets."""
    policies = _policies(found)
    chosen, best = policies["calibrated"][0], max(found, key=lambda c: c.measured)
    return {
        "target_id": found[0].target.model_id,
        "target_params": found[0].target.params_nonembedding,
        "chosen": _describe(chosen),
        "best": _describe(best),
        "pays_predicted": chosen.predicted > 1,
        "pays_measured": best.measured > 1,
        "pays_in_repetitions": float((best.rates > 1).mean()),
        "rank_correlation": _rank_correlation(found, False),
        "regret": {name: _regret(found, taken) if taken else None for name, taken in policies.items()},
    }


def _mean_regret(found: list[Cell]) -> dict[str, float | None]:
    rows = [_choice(_of(found, target))["regret"] for target in _targets(found)]
    return {
        name: float(np.mean([row[name] for row in rows])) if all(row[name] is not None for row in rows) else None
        for name in rows[0]
    }


def _batches(found: list[Cell]) -> list[dict[str, Any]]:
    """For every target that was decoded in batches: the best of the same few decoders at each batch, and whether it pays."""
    rows = []
    for target in _targets([c for c in found if c.batch > 1]):
        here = _of(found, target)
        few = {(c.draft.model_id, c.lookahead) for c in here if c.batch > 1}
        alike = [c for c in here if (c.draft.model_id, c.lookahead) in few]
        points = []
        for batch in sorted({c.batch for c in alike}):
            of_batch = [c for c in alike if c.batch == batch]
            best, predicted = (
                max(of_batch, key=lambda c: c.measured),
                max(of_batch, key=lambda c: c.predicted),
            )
            points.append({"batch": batch, "measured": best.measured, "predicted": predicted.predicted})
        rows.append(
            {
                "target_id": target,
                "target_params": here[0].target.params_nonembedding,
                "points": points,
                "pays_up_to_measured": _crossing(points, "measured"),
                "pays_up_to_predicted": _crossing(points, "predicted"),
            }
        )
    return rows


def _crossing(points: list[dict[str, float]], key: str) -> float | None:
    """The batch at which S falls to 1, by interpolation in its logarithm; None where it does not within the batches timed."""
    for left, right in itertools.pairwise(points):
        if left[key] > 1 >= right[key]:
            share = (left[key] - 1) / (left[key] - right[key])
            return float(np.exp(np.log(left["batch"]) + share * np.log(right["batch"] / left["batch"])))
    return None


def _shapes(single: list[Cell], budget: int) -> list[dict[str, Any]]:
    """Drafts of one size and budget, and different depth: which is predicted and which is measured to be the fastest."""
    groups: dict[tuple[str, int, int], list[Cell]] = {}
    sizes: list[int] = []
    for c in single:
        if c.draft.train_tokens == budget:
            continue
        size = c.draft.params_nonembedding
        alike = next((other for other in sizes if abs(other / size - 1) < _SAME_SIZE), None)
        if alike is None:
            sizes.append(alike := size)
        groups.setdefault((c.target.model_id, alike, c.lookahead), []).append(c)
    rows = []
    for (target, _, lookahead), members in sorted(groups.items()):
        if len({c.draft.layers for c in members}) < 2:
            continue
        ordered = sorted(members, key=lambda c: c.draft.layers)
        rows.append(
            {
                "target_id": target,
                "lookahead": lookahead,
                "draft_params": ordered[0].draft.params_nonembedding,
                "drafts": [
                    {
                        **_describe(c),
                        "layers": c.draft.layers,
                        "width": c.draft.width,
                        "loss_nats": c.draft.loss_nats,
                    }
                    for c in ordered
                ],
                "fastest_predicted": min(ordered, key=lambda c: c.predicted_round_seconds).draft.layers,
                "fastest_measured": min(ordered, key=lambda c: c.round_seconds).draft.layers,
                "best_predicted": max(ordered, key=lambda c: c.predicted).draft.layers,
                "best_measured": max(ordered, key=lambda c: c.measured).draft.layers,
            }
        )
    return rows
