"""Which models the drafts of a problem are: published ones, or those that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sdsl_jax.config.codesign_problem import DraftConfig, ProblemConfig
from sdsl_jax.theory.published_models import PUBLISHED_DRAFTS, PublishedDraft

# A name rounds its size, so that Llama-3.2-1B has 1.24 billion parameters.
_ROUNDING = 0.25
# Two sizes are one where they differ by less: 1.3B is that of OPT-1.3B, 1.316 billion.
_SAME_SIZE = 0.015
# Variables that a draft which exists leaves no choice of.
_OF_TRAINING = ("draft_tokens", "aspect_ratio")
# What describes a draft of one's own; where all of it is left out, a size may be that of a
# published model.
_OWN = ("tokens", "aspect_ratio", "kv_share", "embedding_tables")


_SIZE = r"\d+(\.\d+)?[mb](?![a-z0-9])"
# Names of targets, after the publisher and in lower case, that share the tokenizer of a family of
# drafts. A size must follow, so that relatives with another vocabulary or other inputs do not
# match: Qwen3-Next, Qwen2.5-VL, Llama-3.2-90B-Vision, GPT-NeoX-Japanese. QwQ-32B is a Qwen2.5-32B
# trained further; Llama 3, 3.1, 3.2 and 3.3 have the same merges and the same number of tokens;
# distilled models of DeepSeek-R1 keep the text tokens of the models they were made from, and rename
# control tokens.
_TARGETS = {
    "opt": rf"opt-(iml-(max-)?)?{_SIZE}",
    "Qwen2.5": rf"qwen2\.5(-coder|-math)?[-:]{_SIZE}|qwq[-:]32b(?![a-z0-9])|deepseek-r1-distill-qwen-{_SIZE}",
    "Qwen3": rf"qwen3(-coder)?[-:]{_SIZE}",
    "Llama": rf"(meta-)?llama-?3(\.[13])?[-:]{_SIZE}|llama-?3\.2[-:][13]b(?![a-z0-9])|deepseek-r1-distill-llama-{_SIZE}",
    "SmolLM2": rf"smollm2[-:]{_SIZE}",
    "pythia": rf"pythia-{_SIZE}|gpt-neox-20b",
}
_OTHER_INPUTS = re.compile(r"vision|omni|audio|-vl(-|$)")
# Heads that draft from the hidden states of a target: their names state the size of that target.
_HEADS = re.compile(r"eagle|medusa|hydra|dflash|speculator|(?<![a-z])mtp(?![a-z])")


def _last_part(name: str) -> str:
    return name.strip().rstrip("/").rpartition("/")[2].lower()


def family_of_drafts(target: str) -> str | None:
    """The family of drafts that share a target's tokenizer, by the target's name; None if it is unknown."""
    name = _last_part(target)
    if _OTHER_INPUTS.search(name):
        return None
    return next((family for family, pattern in _TARGETS.items() if re.match(pattern, name)), None)


def is_head(name: str) -> bool:
    """Whether a name is that of a drafting head, such as EAGLE or Medusa, which is no model by itself."""
    return _HEADS.search(_last_part(name)) is not None


def published_draft(name: str) -> PublishedDraft | None:
    """The published model that a name means, None if there is none. Copies and tuned versions
    (-Instruct, -deduped) count as the model itself.

    The coder and mathematics models of Qwen2.5 have the shapes of the base models.
    """
    if is_head(name):
        return None
    plain = re.sub(r"^(qwen2\.5)-(coder|math)-", r"\1-", _last_part(name))

    def same(draft: PublishedDraft) -> bool:
        return re.match(re.escape(_last_part(draft.name)) + r"(?![a-z0-9.])", plain) is not None

    return next(filter(same, PUBLISHED_DRAFTS), None)


def size_in_name(name: str) -> float | None:
    """The size in a model's name, such as 160M in JackFram/llama-160m.

    None if the name holds no size or several, and for drafting heads, whose names hold the size of
    their target.
    """
    if is_head(name):
        return None
    stated = re.findall(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", _last_part(name))
    sizes = {float(number) * {"m": 1e6, "b": 1e9}[unit] for number, unit in stated}
    return sizes.pop() if len(sizes) == 1 else None


class NamedDraft(NamedTuple):
    """The draft that `[draft] name` means.

    Attributes:
      name: Its name, as it was given.
      model: The published model, if it is one.
      size: Parameters in the count of the loss law; None where neither the name nor a single
        candidate tells them.
    """

    name: str
    model: PublishedDraft | None
    size: float | None


def to_be_trained(config: ProblemConfig) -> bool:
    """Whether the draft's training or shape is a variable, so that no existing model is meant."""
    return any(name in config.variables.given() for name in _OF_TRAINING)


def named_draft(config: ProblemConfig, counted: str) -> NamedDraft | None:
    """The draft that `[draft] name` means; None if there is no name.

    A model that is not in `PUBLISHED_DRAFTS` has the size of the candidate that its name agrees
    with, else the size in its name, else the size of the only candidate. A drafting head has no
    size: its cost does not follow from its parameters.
    """
    draft = config.draft
    if not draft.name:
        return None
    model = published_draft(draft.name)
    if model is not None:
        return NamedDraft(draft.name, model, model.size(counted))
    if is_head(draft.name):
        return NamedDraft(draft.name, None, None)
    stated, candidates = size_in_name(draft.name), draft.candidates
    if stated is not None:
        return NamedDraft(draft.name, None, _nearest(candidates, stated) or stated)
    return NamedDraft(draft.name, None, candidates[0] if len(candidates) == 1 else None)


def model_of(config: ProblemConfig, size: float, counted: str) -> PublishedDraft | None:
    """The published model that a candidate size stands for; None for a draft of the user's own.

    It is the named model where the sizes agree, if that one is published. Otherwise it is the model
    of that size which may share the target's tokenizer, unless `[draft]` describes a draft of the
    user's own. Where the target's family is known, the size in a model's name counts too: 1.5B is
    Qwen2.5-1.5B, which has 1.54 billion parameters.
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
        if (
            abs(size / model.size(counted) - 1) < _SAME_SIZE
            or (family is not None and size == size_in_name(model.name))
        )
        and may_share_tokenizer(model, config, family)
    ]
    return alike[0] if len(alike) == 1 else None


def may_share_tokenizer(model: PublishedDraft, config: ProblemConfig, family: str | None) -> bool:
    """Whether a model can share the target's tokenizer: it is of that family, or, where the family is
    unknown, its own family has targets as large."""
    if family is not None:
        return model.family == family
    return config.target.params <= 1.05 * model.largest_target


class AskedDrafts(NamedTuple):
    """What the names and sizes in a problem mean.

    Attributes:
      candidates: Each size to compare, with the published model that it is; None where it is none.
      named: The draft that `[draft] name` means; None without a name.
      measured_with_another: Whether `[draft] acceptance` was measured with a candidate that is not
        the named draft.
      family: Family of drafts that share the target's tokenizer; None if it is unknown.
    """

    candidates: tuple[tuple[float, PublishedDraft | None], ...]
    named: NamedDraft | None
    measured_with_another: bool
    family: str | None


def asked_drafts(config: ProblemConfig, counted: str) -> AskedDrafts:
    """What the names and sizes in a problem mean; sizes in the count of the loss law."""
    candidates = tuple((size, model_of(config, size, counted)) for size in config.draft.candidates)
    named, another = named_draft(config, counted), False
    if named is not None and config.draft.acceptance:
        ((size, model),) = candidates
        another = named.size != size and (named.model is None or model != named.model)
    return AskedDrafts(candidates, named, another, family_of_drafts(config.target.name))


def _nearest(sizes: Sequence[float], size: float) -> float | None:
    """The nearest of several sizes, if it is near enough for the size in a name."""
    near = [each for each in sizes if abs(each / size - 1) <= _ROUNDING]
    return min(near, key=lambda each: abs(each / size - 1), default=None)
