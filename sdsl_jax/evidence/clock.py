"""On the clock: does the calibrated machine say how fast speculative decoding is, and which draft and lookahead to take?"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from sdsl_jax.evidence.clock_cells import Cell, PredictedOptimum, cells, predicted_optimum
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.theory import tokens_per_round

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


def clock(inputs: Inputs) -> dict[str, Any] | None:
    """Errors of predicted S, regrets of choices, batches and shapes; None where nothing was timed."""
    found = cells(inputs)
    if not found:
        return None
    budget = max(c.draft.train_tokens for c in found)
    single = [c for c in found if c.batch == 1]
    ladder = {m.model_id for m in inputs.models}
    candidates = [
        c for c in single if c.draft.model_id in ladder and c.draft.train_tokens == budget
    ]
    choices = []
    for name in _targets(candidates):
        of_target = _of(candidates, name)
        choices.append(_choice(of_target, predicted_optimum(inputs, of_target[0].target, budget)))
    return {
        "cells": [_describe(c) for c in found],
        "error": _errors(candidates),
        "error_of_costs": _errors(candidates, with_tokens=True),
        # Laws were fitted to the other targets, and to these drafts with them.
        "error_of_unseen_targets": _errors(
            [c for c in candidates if c.target.model_id not in ladder]
        ),
        "targets": choices,
        "mean_regret": _mean([row["regret"] for row in choices]),
        "mean_regret_with_plain": _mean([row["regret_with_plain"] for row in choices]),
        "mean_regret_in_sample": _mean([row["regret_in_sample"] for row in choices]),
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
            np.mean(
                [
                    _rank_correlation(_of(found, t), with_tokens)
                    for t in _targets(found)
                    if len(_of(found, t)) > 2
                ]
            )
        ),
        # Of the measured medians: those of two halves differ by twice as much as that of all errs.
        "noise": float(np.median([abs(_half(c, 0) / _half(c, 1) - 1) for c in found]) / 2),
    }


def _rank_correlation(found: list[Cell], with_tokens: bool) -> float:
    """Spearman's."""
    predicted = [c.predicted_with_tokens if with_tokens else c.predicted for c in found]
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, [c.measured for c in found])]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _half(c: Cell, half: int) -> float:
    return float(np.median(c.rates[half::2]))


def _best_of_half(found: list[Cell], half: int) -> float:
    """S on the other half of the repetitions of the decoder that is best on this one."""
    return _half(max(found, key=lambda c: _half(c, half)), 1 - half)


def _paper(c: Cell) -> float:
    """S with the paper's c = N/M, from the same predicted acceptance."""
    cost = c.draft.params_nonembedding / c.target.params_nonembedding
    return float(tokens_per_round(c.acceptance, float(c.lookahead))) / (c.lookahead * cost + 1)


def _nearest(found: list[Cell], size: float) -> list[Cell]:
    """The decoders of the draft nearest to a size."""
    nearest = min((c.draft for c in found), key=lambda m: abs(np.log(m.params_nonembedding / size)))
    return [c for c in found if c.draft.model_id == nearest.model_id]


def _policies(found: list[Cell], optimum: PredictedOptimum) -> dict[str, list[Cell]]:
    """The decoder that each way of choosing takes; several where it leaves the choice open."""

    def ours(c: Cell) -> float:
        return c.predicted

    rule = _nearest(found, found[0].target.params_nonembedding / _RULE)
    habit = [c for c in found if c.lookahead == 4]
    drafts = list(dict.fromkeys(c.draft.model_id for c in found))
    near = _nearest(found, optimum.draft_params)
    # 0 stands for plain decoding: a decoder that must draft drafts once.
    lookahead = max(1.0, optimum.lookahead)
    return {
        "calibrated": [max(found, key=ours)],
        "optimum": [min(near, key=lambda c: abs(np.log(c.lookahead / lookahead)))],
        "paper_cost": [max(found, key=_paper)],
        "rule_of_200": [max(rule, key=_paper)],
        "lookahead_4": [max(habit, key=ours)] if habit else [],
        "random_draft": [
            max((c for c in found if c.draft.model_id == d), key=ours) for d in drafts
        ],
    }


def _regret(
    found: list[Cell], chosen: list[Cell], least: float = 0.0, decline: bool = False
) -> float:
    """Mean over the chosen and over both halves of 1 − S(chosen)/S(best), the best one chosen on
    the other half.

    Args:
      found: the decoders to choose from.
      chosen: by a policy.
      least: S of what else there is, 1 for plain decoding.
      decline: whether the policy takes that instead of a decoder that it predicts to be slower.
    """

    def judged(chooses: int, judges: int) -> float:
        best = max(least, _best_of_half(found, chooses))
        taken = [least if decline and c.predicted < least else _half(c, judges) for c in chosen]
        return float(np.mean([1 - s / best for s in taken]))

    return (judged(0, 1) + judged(1, 0)) / 2


def _choice(found: list[Cell], optimum: PredictedOptimum) -> dict[str, Any]:
    """Of one target: the predicted choice, the best one measured, whether speculation pays, and the regrets."""
    policies = _policies(found, optimum)
    chosen, best = policies["calibrated"][0], max(found, key=lambda c: c.measured)
    made = {name: taken for name, taken in policies.items() if taken}
    return {
        "target_id": found[0].target.model_id,
        "target_params": found[0].target.params_nonembedding,
        "optimum": optimum._asdict(),
        "chosen": _describe(chosen),
        "best": _describe(best),
        "pays_predicted": chosen.predicted > 1,
        "pays_measured": best.measured > 1,
        "pays_in_repetitions": float((best.rates > 1).mean()),
        "rank_correlation": _rank_correlation(found, False),
        "regret": {name: _regret(found, taken) for name, taken in made.items()},
        # Only the calibrated machine ever says not to speculate.
        "regret_with_plain": {
            name: _regret(found, taken, 1.0, decline=name in ("calibrated", "optimum"))
            for name, taken in made.items()
        },
        "regret_in_sample": {
            name: float(np.mean([1 - c.measured / best.measured for c in taken]))
            for name, taken in made.items()
        },
    }


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: float(np.mean([row[name] for row in rows]))
        for name in rows[0]
        if all(name in row for row in rows)
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
            predicted = max(of_batch, key=lambda c: c.predicted)
            # The best of several noisy ones looks better than it is: it is chosen on one half and
            # judged on the other.
            best = [_best_of_half(of_batch, half) for half in (0, 1)]
            points.append(
                {
                    "batch": batch,
                    "measured": float(np.mean(best)),
                    "predicted": predicted.predicted,
                    "measured_at_predicted": predicted.measured,
                }
            )
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


def _crossing(points: list[dict[str, float]], key: str) -> float | str:
    """The batch at which S falls to 1, by interpolation in its logarithm; "all" or "none" of the batches where it never does."""
    for left, right in itertools.pairwise(points):
        if left[key] > 1 >= right[key]:
            share = (left[key] - 1) / (left[key] - right[key])
            return float(
                np.exp(np.log(left["batch"]) + share * np.log(right["batch"] / left["batch"]))
            )
    return "all" if points[-1][key] > 1 else "none"


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
                "fastest_predicted": min(
                    ordered, key=lambda c: c.predicted_round_seconds
                ).draft.layers,
                "fastest_measured": min(ordered, key=lambda c: c.round_seconds).draft.layers,
                "best_predicted": max(ordered, key=lambda c: c.predicted).draft.layers,
                "best_measured": max(ordered, key=lambda c: c.measured).draft.layers,
            }
        )
    return rows
