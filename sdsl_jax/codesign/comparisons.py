"""Designs beside the optimum: the candidates of a user, published models, and fronts, a row of plain values each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdsl_jax.codesign.evaluate import Evaluated, at_best_lookahead, published
from sdsl_jax.codesign.program import Solved
from sdsl_jax.codesign.published_drafts import family_of_drafts
from sdsl_jax.codesign.serving_problem import Problem, memory
from sdsl_jax.theory.serving import Design, Outcome

# Published models that are named.
_NEAREST = 6


def plain(problem: Problem, design: Design, name: str) -> Any:
    """A quantity of a design as a number; sizes in both counts."""
    value = float(getattr(design, name))
    if name == "draft_params":
        return problem.both_counts(value, "draft", float(design.aspect_ratio))
    return problem.both_counts(value, "target") if name == "target_params" else value


def money(problem: Problem, given: Outcome) -> dict[str, float | None]:
    """What costs money, where a price is known."""
    known = float(problem.numbers.serving.hardware.price_per_hour) > 0
    names = ("cost_per_million_tokens", "training_cost", "total_cost")
    return {name: float(getattr(given, name)) if known else None for name in names}


def _loss(rows: Evaluated, solved: Solved) -> list[float]:
    """By how much the objective is worse than at the optimum, relative to it."""
    return [float(x) for x in np.expm1(rows.objective - float(solved.objective))]


def _rows(problem: Problem, rows: Evaluated, solved: Solved) -> list[dict[str, Any]]:
    """Evaluated designs, a row each."""
    found = []
    for i, loss in enumerate(_loss(rows, solved)):
        design, given = jax.tree.map(lambda x, i=i: x[i], (rows.design, rows.outcome))
        held = memory(problem.numbers.serving, design)
        found.append(
            {
                "draft_params": plain(problem, design, "draft_params"),
                "lookahead": int(design.lookahead),
                "speedup": float(given.speedup),
                "acceptance": float(given.acceptance),
                "tokens_per_second": float(given.tokens_per_second),
                "latency_seconds": float(given.latency_seconds),
                "per_device_bytes": held.per_device_bytes,
                "fits": held.fits,
                "within_constraints": bool(rows.allowed[i]),
                "regret": 1 - float(given.speedup) / float(solved.outcome.speedup),
                "objective_loss": loss,
            }
        )
    return found


def candidates(problem: Problem, solved: Solved) -> list[dict[str, Any]]:
    """The sizes that were asked about, each at its best lookahead, all else as at the optimum."""
    sizes = problem.config.draft.candidates
    if not sizes:
        return []
    designs = [solved.design._replace(draft_params=problem.draft_params(size)) for size in sizes]
    column = jax.tree.map(lambda *x: np.asarray(x, float)[:, None], *designs)
    found = at_best_lookahead(problem.task, problem.numbers, problem.numbers.serving, column)
    rows = _rows(problem, found, solved)
    return [{"size": size, **row} for size, row in zip(sizes, rows)]


def nearest_published(problem: Problem, solved: Solved) -> list[dict[str, Any]]:
    """Of each published family the model of the best predicted objective; all of the target's, if its name tells the family."""
    drafts, found = published(problem.task, problem.numbers, solved.design)
    losses = np.expm1(found.objective - float(solved.objective))
    family = family_of_drafts(problem.config.target.name)
    sizes, lookaheads = np.asarray(found.design.draft_params), np.asarray(found.design.lookahead)
    smaller = [i for i in range(len(drafts)) if sizes[i] < float(solved.design.target_params)]
    ranked = sorted((i for i in smaller if drafts[i].targets), key=lambda i: float(losses[i]))
    own = [i for i in ranked if drafts[i].family == family]
    first = [i for n, i in enumerate(ranked) if drafts[i].family not in {drafts[j].family for j in ranked[:n]}]
    return [
        {
            "name": drafts[i].name,
            "total_params": drafts[i].total_params,
            "tokens": drafts[i].tokens,
            "tokenizer_shared_with": drafts[i].targets,
            "lookahead": int(lookaheads[i]),
            "acceptance": float(found.outcome.acceptance[i]),
            "speedup": float(found.outcome.speedup[i]),
            "within_constraints": bool(found.allowed[i]),
            "regret": 1 - float(found.outcome.speedup[i]) / float(solved.outcome.speedup),
            "objective_loss": float(losses[i]),
        }
        for i in (own or first)[:_NEAREST]
    ]


def front(problem: Problem, name: str, values: Sequence[float], found: Sequence[Solved]) -> list[dict[str, Any]]:
    """The best design at each value of one quantity; values at which no design keeps the constraints are left out."""
    rows = []
    for value, one in zip(values, found):
        if not bool(one.feasible):
            continue
        rows.append(
            {
                name: float(value),
                "tokens_per_second": float(one.outcome.tokens_per_second),
                "latency_seconds": float(one.outcome.latency_seconds),
                "speedup": float(one.outcome.speedup),
                "draft_params": problem.both_counts(one.design.draft_params, "draft", float(one.design.aspect_ratio)),
                "lookahead": float(one.design.lookahead),
                **money(problem, one.outcome),
            }
        )
    return rows
