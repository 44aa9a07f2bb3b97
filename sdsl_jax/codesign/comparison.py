"""Drafts in the place of an optimum's own: the sizes that were asked about, the named draft, and published models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from sdsl_jax.codesign.drafts import may_share_tokenizer
from sdsl_jax.codesign.program import Evaluated, Program, ProgramInputs, Solved, at_best_lookahead
from sdsl_jax.codesign.serving_problem import ServingProblem, Size, fits
from sdsl_jax.records.documents import document
from sdsl_jax.theory.hardware import Shape, family_shape
from sdsl_jax.theory.published_models import PUBLISHED_DRAFTS, PublishedDraft
from sdsl_jax.theory.serving import Design

# So many drafts at a time: whatever their number, a single compilation serves them.
_DRAFTS_TOGETHER = 12
# Published models that are suggested.
_SUGGESTED = 6


class Draft(NamedTuple):
    """A draft with a shape of its own.

    Attributes:
      shape: Layers, width and all else that its cost depends on.
      tokens: Its training tokens.
      aspect_ratio: From which a penalty on its loss is counted; that of the family where none is.
    """

    shape: Shape
    tokens: float
    aspect_ratio: float


def published(inputs: ProgramInputs, model: PublishedDraft) -> Draft:
    """A published model. Its own shape is what it was trained in: no penalty is counted from it."""
    return Draft(model.shape, model.tokens, float(inputs.serving.draft_family.aspect_ratio))


def compared(
    program: Program, inputs: ProgramInputs, design: Design, drafts: Sequence[Draft]
) -> Evaluated:
    """Drafts in the place of a design's own, each at its best whole lookahead, leaves [drafts]."""
    # Of a few lengths only, so that one compilation serves many problems.
    padded = [*drafts, *[drafts[-1]] * (-len(drafts) % _DRAFTS_TOGETHER)]
    columns = jax.tree.map(lambda *x: np.asarray(x, float)[:, None], *padded)
    own = design._replace(
        draft_params=columns.shape.params,
        aspect_ratio=columns.aspect_ratio,
        draft_tokens=columns.tokens,
    )
    table = at_best_lookahead(program, inputs, own, columns.shape)
    return jax.tree.map(lambda x: x[: len(drafts)], table)


@dataclass(frozen=True)
class ComparedDraft:
    """A draft in the place of the optimum's, at its best whole lookahead.

    Attributes:
      draft_params: Size of the draft.
      draft_layers: Layers of the draft; a fraction where its family has no such size.
      draft_width: Width of the draft's residual stream.
      lookahead: Drafts per round: the best whole number for this draft.
      speedup: Speed-up S over the target alone.
      acceptance: Probability α that a draft token is accepted.
      tokens_per_second: Tokens of all rows per second.
      latency_seconds: Seconds of a request, its prefill included.
      per_device_bytes: Bytes on the fullest device.
      fits: Whether both models fit; null where the memory is unknown.
      within_constraints: Whether every constraint holds.
      regret: Share of the optimum's speed-up that is lost.
      objective_loss: By which share the objective is worse than at the optimum.
    """

    draft_params: Size
    draft_layers: float
    draft_width: float
    lookahead: int
    speedup: float
    acceptance: float
    tokens_per_second: float
    latency_seconds: float
    per_device_bytes: float
    fits: bool | None
    within_constraints: bool
    regret: float
    objective_loss: float


@dataclass(frozen=True)
class Candidate(ComparedDraft):
    """A draft that the user asked about.

    Attributes:
      size: Size that was asked about, in the count of the loss law.
      published: Name of the published model that it is; null if it is none.
    """

    size: float
    published: str | None


@dataclass(frozen=True)
class SuggestedDraft(ComparedDraft):
    """A published model.

    Attributes:
      name: Name on the Hugging Face Hub.
      family: Family of models with the same tokenizer.
      total_params: All parameters.
      tokens: Training tokens.
      tokenizer_shared_with: Published targets that have the same tokenizer.
      tokenizer: "shared" with the target, "another", or "unknown".
      plausible: Whether it may share the tokenizer of such a target.
      divides_among_devices: Whether its heads divide among the draft's devices.
    """

    name: str
    family: str
    total_params: float
    tokens: float
    tokenizer_shared_with: str
    tokenizer: str
    plausible: bool
    divides_among_devices: bool


@dataclass(frozen=True)
class Comparison:
    """Drafts in the place of the optimum's, each at its best whole lookahead.

    Attributes:
      candidates: The sizes that were asked about.
      published: Models that exist, best predicted objective first; those of other or unknown
        tokenizers come last.
      named: The draft that `[draft] name` means; None without a name, or where its size or
        acceptance is unknown.
      optimum: The draft of the design itself.
    """

    candidates: list[Candidate]
    published: list[SuggestedDraft]
    named: ComparedDraft | None
    optimum: ComparedDraft

    @property
    def longest(self) -> int:
        """The longest lookahead among them."""
        rows = [*self.candidates, *self.published, self.optimum]
        return max(row.lookahead for row in [*rows, *([self.named] if self.named else [])])


def compare(problem: ServingProblem, solved: Solved, design: Design) -> Comparison:
    """Candidates, published models and the named draft, all else as in a design.

    A model that is two of these has one answer. Where an acceptance was measured, it is that of the
    one candidate, and no other draft is compared.
    """
    config, sizes, asked = problem.config, problem.sizes, problem.drafts
    tokens = float(config.draft.tokens if sizes.model else design.draft_tokens)
    aspect_ratio = float(design.aspect_ratio)
    family = problem.inputs.serving.draft_family._replace(aspect_ratio=aspect_ratio)

    def draft(model: PublishedDraft | None, params: float) -> Draft:
        if model is not None:
            return published(problem.inputs, model)
        return Draft(family_shape(params, family), tokens, aspect_ratio)

    models = (
        [model for _, model in asked.candidates if model]
        if config.draft.acceptance
        else list(PUBLISHED_DRAFTS)
    )
    # A measured acceptance tells nothing of a named draft that is not the candidate.
    named = None if asked.measured_with_another else asked.named
    by_size = [(model, size) for size, model in asked.candidates]
    by_size += [(named.model, named.size)] if named and named.size else []
    drafts = [draft(model, sizes.non_embedding(size, "draft")) for model, size in by_size]
    drafts.append(draft(sizes.model, float(design.draft_params)))
    drafts += [published(problem.inputs, model) for model in models]
    rows = _rows(problem, solved, design, drafts)
    candidates = [
        Candidate(**vars(row), size=size, published=model.name if model else None)
        for (size, model), row in zip(asked.candidates, rows)
    ]
    suggestions = [
        _suggestion(problem, model, row)
        for model, row in zip(models, rows[len(by_size) + 1 :])
        if model.shape.params < float(design.target_params)
    ]
    return Comparison(
        candidates,
        _suggested(suggestions),
        named=rows[len(asked.candidates)] if len(by_size) > len(asked.candidates) else None,
        optimum=rows[len(by_size)],
    )


def on_all_devices(
    problem: ServingProblem, solved: Solved, whole: Solved, comparison: Comparison
) -> Comparison:
    """The same drafts on all devices of the target, in turn with it, where engines put them; the
    optimum's own draft with the lookahead and the numbers of the answer.

    Args:
      problem: The problem that was solved.
      solved: Its optimum.
      whole: The optimum in whole numbers.
      comparison: The drafts where the problem puts them.
    """
    config, serving = problem.config, problem.inputs.serving
    if config.draft_devices != config.hardware.devices or config.hardware.overlapped:
        in_turn = serving._replace(draft_devices=serving.devices, overlapped=0.0)
        everywhere = replace(
            problem,
            config=replace(
                config,
                draft=replace(config.draft, devices=None),
                hardware=replace(config.hardware, overlapped=False),
            ),
            inputs=problem.inputs._replace(serving=in_turn),
        )
        return compare(everywhere, solved, whole.design)
    # To the last digit.
    optimum = replace(
        comparison.optimum,
        lookahead=round(float(whole.design.lookahead)),
        acceptance=float(whole.outcome.acceptance),
        speedup=float(whole.outcome.speedup),
        within_constraints=bool(whole.feasible),
    )
    return replace(comparison, optimum=optimum)


def _rows(
    problem: ServingProblem, solved: Solved, design: Design, drafts: Sequence[Draft]
) -> list[ComparedDraft]:
    table = compared(problem.program, problem.inputs, design, drafts)
    rows = []
    for i, draft in enumerate(drafts):
        gives = jax.tree.map(lambda x, i=i: float(x[i]), table.outcome)
        size = Size(float(draft.shape.total_params), float(draft.shape.params))
        rows.append(
            document(
                ComparedDraft,
                gives,
                draft_params=size,
                draft_layers=float(draft.shape.layers),
                draft_width=float(draft.shape.width),
                lookahead=int(np.asarray(table.design.lookahead)[i]),
                per_device_bytes=gives.memory_bytes,
                fits=fits(problem.inputs.serving, gives.memory_bytes),
                within_constraints=bool(table.allowed[i]),
                regret=1 - gives.speedup / float(solved.outcome.speedup),
                objective_loss=float(np.expm1(table.objective[i] - float(solved.objective))),
            )
        )
    return rows


def _suggestion(
    problem: ServingProblem, model: PublishedDraft, row: ComparedDraft
) -> SuggestedDraft:
    family = problem.drafts.family
    shared = "unknown" if family is None else "shared" if model.family == family else "another"
    return SuggestedDraft(
        **vars(row),
        name=model.name,
        family=model.family,
        total_params=model.total_params,
        tokens=model.tokens,
        tokenizer_shared_with=model.targets,
        tokenizer=shared,
        plausible=may_share_tokenizer(model, problem.config, family),
        divides_among_devices=model.heads % problem.config.draft_devices == 0,
    )


def _suggested(rows: list[SuggestedDraft]) -> list[SuggestedDraft]:
    """All models of the target's family; without one, the best of each family, those that can have
    such a target first."""
    ranked = sorted(rows, key=lambda row: (not row.plausible, row.objective_loss))
    own = [row for row in ranked if row.tokenizer == "shared"]
    firsts = {row.family: row for row in reversed(ranked) if row.tokenizer_shared_with}
    return (own or [row for row in ranked if firsts.get(row.family) is row])[:_SUGGESTED]
