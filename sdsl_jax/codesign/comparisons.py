"""Designs beside the optimum: the candidates of a user, published models, and fronts, a row of plain values each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.codesign.drafts_at_hand import (
    may_share_tokenizer,
    measured_with_another,
    model_of,
    named_draft,
)
from sdsl_jax.codesign.evaluate import Draft, Evaluated, compared, family_member, published
from sdsl_jax.codesign.program import Solved
from sdsl_jax.codesign.published_drafts import PUBLISHED_DRAFTS, PublishedDraft, family_of_drafts
from sdsl_jax.codesign.serving_problem import MEMORY_SHARE, Problem
from sdsl_jax.theory.serving import Design, Outcome

# Published models that are named.
_NEAREST = 6
# What a row of a published model has of the row of any draft.
_OF_MODELS = (
    "lookahead",
    "acceptance",
    "speedup",
    "within_constraints",
    "regret",
    "objective_loss",
)


def plain(problem: Problem, design: Design, name: str) -> Any:
    """A quantity of a design as a number; sizes in both counts."""
    value = float(getattr(design, name))
    if name == "draft_params":
        return problem.both_counts(value, "draft", float(design.aspect_ratio))
    return problem.both_counts(value, "target") if name == "target_params" else value


def money(problem: Problem, given: Outcome) -> dict[str, float | None]:
    """What costs money, where a price is known."""
    known = float(problem.inputs.serving.hardware.price_per_hour) > 0
    names = ("cost_per_million_tokens", "training_cost", "total_cost")
    return {name: float(getattr(given, name)) if known else None for name in names}


class Comparison(NamedTuple):
    """Drafts in the place of the optimum's, each at its best whole lookahead, as rows of plain
    values.

    Attributes:
      candidates: the sizes that were asked about.
      published: models that exist, by predicted objective, those of other or unknown tokenizers
        behind.
      named: the draft that [draft] name means; None where it names none, or one of unknown size or
        acceptance.
      optimum: the draft of the design itself.
    """

    candidates: list[dict[str, Any]]
    published: list[dict[str, Any]]
    named: dict[str, Any] | None
    optimum: dict[str, Any]


def compare(problem: Problem, solved: Solved, design: Design) -> Comparison:
    """Candidates, published models and the named draft, all else as in a design; a model that is
    two of these has one answer.

    Where an acceptance was measured, it is that of the one candidate, and no other draft is
    compared.
    """
    config, counted = problem.config, problem.counted
    tokens = float(config.draft.tokens if problem.model else design.draft_tokens)

    def member(params: float) -> Draft:
        return family_member(problem.inputs, params, tokens, float(design.aspect_ratio))

    sizes = config.draft.candidates
    models = [model_of(config, size, counted) for size in sizes]
    named = named_draft(config, counted)
    if config.draft.acceptance:
        shown: list[PublishedDraft] = [model for model in models if model is not None]
    else:
        shown = list(PUBLISHED_DRAFTS)
    drafts = [
        published(problem.inputs, m) if m else member(problem.draft_params(size))
        for m, size in zip(models, sizes)
    ]
    drafts += [published(problem.inputs, model) for model in shown]
    # A measured acceptance tells nothing of a named draft that is not the candidate.
    if named is not None and (named.size is None or measured_with_another(config, named, counted)):
        named = None
    if named is not None and named.size is not None:
        drafts.append(
            published(problem.inputs, named.model)
            if named.model
            else member(problem.draft_params(named.size))
        )
    optimum = (
        published(problem.inputs, problem.model)
        if problem.model
        else member(float(design.draft_params))
    )
    drafts.append(optimum)
    rows = _rows(problem, compared(problem.program, problem.inputs, design, drafts), drafts, solved)
    of_models = [
        _of_model(problem, model, row)
        for model, row in zip(shown, rows[len(sizes) :])
        if model.shape.params < float(design.target_params)
    ]
    return Comparison(
        [
            {"size": size, "published": model.name if model else None, **row}
            for size, model, row in zip(sizes, models, rows)
        ],
        _suggested(of_models),
        None if named is None else rows[-2] | {"size": named.size},
        rows[-1],
    )


def _rows(
    problem: Problem, found: Evaluated, drafts: Sequence[Draft], solved: Solved
) -> list[dict[str, Any]]:
    """Evaluated drafts, a row each; `objective_loss` is by how much the objective is worse than at the optimum."""
    serving, rows = problem.inputs.serving, []
    lookaheads = np.asarray(found.design.lookahead)
    usable = MEMORY_SHARE * float(serving.hardware.memory_bytes)
    for i, draft in enumerate(drafts):
        given = jax.tree.map(lambda x, i=i: float(x[i]), found.outcome)
        rows.append(
            {
                "draft_params": {
                    "total": float(draft.shape.total_params),
                    "non_embedding": float(draft.shape.params),
                },
                "lookahead": int(lookaheads[i]),
                "speedup": given.speedup,
                "acceptance": given.acceptance,
                "tokens_per_second": given.tokens_per_second,
                "latency_seconds": given.latency_seconds,
                "per_device_bytes": given.memory_bytes,
                "fits": given.memory_bytes <= (1 + 1e-6) * usable if np.isfinite(usable) else None,
                "within_constraints": bool(found.allowed[i]),
                "regret": 1 - given.speedup / float(solved.outcome.speedup),
                "objective_loss": float(np.expm1(found.objective[i] - float(solved.objective))),
            }
        )
    return rows


def _of_model(problem: Problem, model: PublishedDraft, row: dict[str, Any]) -> dict[str, Any]:
    config, family = problem.config, family_of_drafts(problem.config.target.name)
    shared = "unknown" if family is None else "shared" if model.family == family else "another"
    return {
        "name": model.name,
        "family": model.family,
        "total_params": model.total_params,
        "tokens": model.tokens,
        "tokenizer_shared_with": model.targets,
        "tokenizer": shared,
        "plausible": may_share_tokenizer(model, config, family),
        "divides_among_devices": model.heads % config.draft_devices == 0,
        **{key: row[key] for key in _OF_MODELS},
    }


def _suggested(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All models of the target's family; without one, the best of each family, those that can have such a target first."""
    ranked = sorted(rows, key=lambda row: (not row["plausible"], row["objective_loss"]))
    own = [row for row in ranked if row["tokenizer"] == "shared"]
    firsts = {row["family"]: row for row in reversed(ranked) if row["tokenizer_shared_with"]}
    return (own or [row for row in ranked if firsts.get(row["family"]) is row])[:_NEAREST]


def front(
    problem: Problem, name: str, values: Sequence[float], found: Sequence[Solved]
) -> list[dict[str, Any]]:
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
                "draft_params": problem.both_counts(
                    one.design.draft_params, "draft", float(one.design.aspect_ratio)
                ),
                "lookahead": float(one.design.lookahead),
                **money(problem, one.outcome),
            }
        )
    return rows
