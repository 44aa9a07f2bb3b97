"""The models that a study measures: drafts of every kind, and targets, by their names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from sdsl_jax.checkpoints.loading import load_recorded
from sdsl_jax.config import HEAD_KINDS
from sdsl_jax.decoding import Head, Model
from sdsl_jax.decoding.drafters import with_logits
from sdsl_jax.decoding.feature_drafter import with_tables
from sdsl_jax.errors import require
from sdsl_jax.models import ModelConfig
from sdsl_jax.models.feature_head import HeadConfig
from sdsl_jax.records import ModelRecord


class StudyModels(NamedTuple):
    """Models by name.

    Attributes:
      drafts: Drafts that are models of their own.
      targets: Targets.
      heads: Heads on the hidden states of one of the targets, each with the name of that target.
    """

    drafts: dict[str, Model]
    targets: dict[str, Model]
    heads: dict[str, tuple[Head, str]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every draft with every target, and every head with its own."""
        every = [(d, t) for d in self.drafts for t in self.targets]
        return every + [(name, target) for name, (_, target) in self.heads.items()]

    @property
    def aligned(self) -> StudyModels:
        """The same models with equally many logits, see `one_vocabulary`: the table of a published
        target may have more rows than its tokenizer has tokens."""
        heads = {name: head for name, (head, _) in self.heads.items()}
        drafts, targets = self.drafts, self.targets
        every = aligned(drafts | targets | heads)
        return StudyModels(
            {name: every[name] for name in drafts},
            {name: every[name] for name in targets},
            {name: (every[name], target) for name, (_, target) in self.heads.items()},
        )

    def draft(self, name: str) -> Model | Head:
        """A draft of any kind."""
        return self.heads[name][0] if name in self.heads else self.drafts[name]


def aligned(models: dict[str, Any]) -> dict[str, Any]:
    """Models and heads by name, all with as many logits as the largest of their tables."""
    size = max((model.config.ids for model in models.values()), default=0)

    def padded(config: ModelConfig | HeadConfig) -> ModelConfig | HeadConfig:
        if isinstance(config, HeadConfig):
            return dataclasses.replace(config, body=with_logits(config.body, size))
        return with_logits(config, size)

    return {name: model._replace(config=padded(model.config)) for name, model in models.items()}


def load_models(records: list[ModelRecord], study: Path) -> dict[str, Model]:
    """The models of the records that stand by themselves, each with its parameters checked against
    the recorded digest."""
    return {r.model_id: load_recorded(r, study).model for r in records if r.kind not in HEAD_KINDS}


def by_role(models: dict[str, Model], records: list[ModelRecord]) -> StudyModels:
    """Loaded models as drafts and targets, without heads."""

    def of(role: str) -> dict[str, Model]:
        names = [r.model_id for r in records if r.role == role and r.model_id in models]
        return {name: models[name] for name in names}

    return StudyModels(of("draft"), of("target"), {})


def load_heads(
    records: list[ModelRecord], study: Path, models: dict[str, Model]
) -> dict[str, tuple[Head, str]]:
    """The heads among the records, with the names of their targets.

    Args:
      records: The records.
      study: The study's folder.
      models: The loaded models by name, targets among them.

    Raises:
      SdslError: The target of a head is none of the study's.
    """
    targets = {r.params_digest: r.model_id for r in records if r.role == "target"}
    heads = {}
    for record in records:
        if record.kind in HEAD_KINDS:
            require(
                record.teacher_digest in targets,
                f"{record.model_id} is a head on a target that is none of the study's.",
            )
            draft = load_recorded(record, study).draft
            assert isinstance(draft, Head)
            name = targets[record.teacher_digest]
            heads[record.model_id] = with_tables(draft, models[name]), name
    return heads
