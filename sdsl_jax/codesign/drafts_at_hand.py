"""Which models the drafts of a problem are: the one that [draft] name means, and candidates that are published models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sdsl_jax.codesign.published_drafts import (
    PUBLISHED_DRAFTS,
    PublishedDraft,
    family_of_drafts,
    is_head,
    published_draft,
    size_in_name,
)
from sdsl_jax.config.codesign_problem import DraftConfig, ProblemConfig

# A name rounds its size, so that Llama-3.2-1B has 1.24 billion parameters.
_ROUNDING = 0.25
# Two sizes are one where they differ by less: 1.3B is that of OPT-1.3B, 1.316 billion.
_SAME_SIZE = 0.015
# Variables that a draft which exists leaves no choice of.
_OF_TRAINING = ("draft_tokens", "aspect_ratio")
# What describes a draft of one's own; where all of it is left out, a size may be that of a
# published model.
_OWN = ("tokens", "aspect_ratio", "kv_share", "embedding_tables")


class NamedDraft(NamedTuple):
    """The draft that [draft] name means.

    Attributes:
      name: as it was given.
      model: the published model, if it is one.
      size: in the count of the loss law; None where neither the name nor a single candidate tells
        it.
    """

    name: str
    model: PublishedDraft | None
    size: float | None


def stated_size(model: PublishedDraft, counted: str) -> float:
    """The size of a published model in "total" or "non_embedding" parameters."""
    return model.total_params if counted == "total" else float(model.shape.params)


def to_be_trained(config: ProblemConfig) -> bool:
    """Whether the draft's training or shape is to be chosen, so that no model that exists is meant."""
    return any(name in config.variables.given() for name in _OF_TRAINING)


def named_draft(config: ProblemConfig, counted: str) -> NamedDraft | None:
    """The draft that [draft] names; None where it names none.

    A model that is not published here has the size of the candidate that its name agrees with, else
    the size that its name states, else that of the only candidate. A drafting head has none: what
    it costs is no matter of its parameters.
    """
    draft = config.draft
    if not draft.name:
        return None
    model = published_draft(draft.name)
    if model is not None:
        return NamedDraft(draft.name, model, stated_size(model, counted))
    if is_head(draft.name):
        return NamedDraft(draft.name, None, None)
    stated, candidates = size_in_name(draft.name), draft.candidates
    if stated is not None:
        return NamedDraft(draft.name, None, _nearest(candidates, stated) or stated)
    return NamedDraft(draft.name, None, candidates[0] if len(candidates) == 1 else None)


def measured_with_another(config: ProblemConfig, named: NamedDraft, counted: str) -> bool:
    """Whether [draft] acceptance was measured with its candidate, and the named draft is not that one."""
    if not config.draft.acceptance:
        return False
    (size,) = config.draft.candidates
    return named.size != size and (
        named.model is None or model_of(config, size, counted) != named.model
    )


def model_of(config: ProblemConfig, size: float, counted: str) -> PublishedDraft | None:
    """The published model that a candidate size stands for; None where it is the size of a draft of
    one's own.

    It is the named one where the sizes agree, if that is published. Otherwise it is the one of that
    size which may share the target's tokenizer, unless [draft] describes a draft of one's own.
    """
    draft = config.draft
    if to_be_trained(config):
        return None
    named = named_draft(config, counted)
    if (
        named is not None
        and named.size is not None
        and size in (named.size, _nearest(draft.candidates, named.size))
    ):
        return named.model
    if any(getattr(draft, key) != getattr(DraftConfig, key) for key in _OWN):
        return None
    family = family_of_drafts(config.target.name)
    alike = [
        model
        for model in PUBLISHED_DRAFTS
        if abs(size / stated_size(model, counted) - 1) < _SAME_SIZE
        and may_share_tokenizer(model, config, family)
    ]
    return alike[0] if len(alike) == 1 else None


def may_share_tokenizer(model: PublishedDraft, config: ProblemConfig, family: str | None) -> bool:
    """Whether a model is of the target's family of tokenizers; where that is unknown, whether its family has targets so large."""
    if family is not None:
        return model.family == family
    return config.target.params <= 1.05 * model.largest_target


def _nearest(sizes: Sequence[float], size: float) -> float | None:
    """The nearest of sizes, if it is near enough for a rounded name."""
    near = [each for each in sizes if abs(each / size - 1) <= _ROUNDING]
    return min(near, key=lambda each: abs(each / size - 1), default=None)
