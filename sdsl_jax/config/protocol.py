"""The settings of a protocol: which published checkpoints are measured as pairs, and how; read from TOML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdsl_jax.counts import Count, WholeCount
from sdsl_jax.errors import require
from sdsl_jax.ranges import require_fields, require_in


@dataclass(frozen=True)
class ProtocolModel:
    """A published checkpoint.

    Attributes:
      folder: its name within the folder of checkpoints; also the model's name in records.
      params: its total parameters, as published.
      train_tokens: tokens it was trained on, as published.
      drafts: of a target, folders of the drafts to measure; every draft of the protocol if empty.
      optimum: of a target, the draft size N* that a publication states; 0 if it states none.
    """

    folder: str
    params: Count
    train_tokens: Count
    drafts: tuple[str, ...] = ()
    optimum: Count = 0.0

    def __post_init__(self):
        require(
            bool(self.folder) and "/" not in self.folder and not self.folder.startswith("."),
            f"a checkpoint's folder is {self.folder!r}; it must be a name within the folder of checkpoints.",
        )
        for name in ("params", "train_tokens"):
            require_in("(0, inf)", f"{name} of {self.folder}", getattr(self, name))


@dataclass(frozen=True)
class ProtocolMeasure:
    """How each pair is measured; see `PairSettings`.

    Attributes:
      lookaheads: γ of the decoder.
      plane_lookahead: the γ whose token acceptance rate gives the α that the plane is fitted to.
      prompts: how many.
      prompt_tokens: longest prompt.
      new_tokens: tokens generated for each.
      temperature: of both models.
      batch: prompts decoded at a time.
      timed: prompts whose generation is timed; 0 for none.
      dtype: of weights and caches.
      confidence: of the intervals.
    """

    lookaheads: tuple[int, ...] = (1, 2, 4, 8)
    plane_lookahead: int = 4
    prompts: int = 64
    prompt_tokens: WholeCount = 128
    new_tokens: WholeCount = 96
    temperature: float = 1.0
    batch: int = 32
    timed: int = 4
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    confidence: float = 0.9

    def __post_init__(self):
        require(
            self.plane_lookahead in self.lookaheads,
            f"measure.plane_lookahead is {self.plane_lookahead}; it must be one of measure.lookaheads.",
        )
        require_fields(
            "measure",
            self,
            prompts="[1, inf)",
            prompt_tokens="[1, inf)",
            batch="[1, inf)",
            timed="[0, inf)",
        )


@dataclass(frozen=True)
class ProtocolConfig:
    """A protocol.

    Attributes:
      name: of the folder that it is written to.
      targets: models to speed up.
      drafts: models that propose.
      prompts: a .jsonl or .txt file, beside the protocol's own file unless it is given on the
        command line.
      draft_tokens: D, training tokens of the draft that the optima are for.
      measure: how pairs are measured.
      ignore_keys: settings that checkpoints are read without; see `sdsl measure --ignore-key`.
      seed: of all sampling.
    """

    name: str
    targets: tuple[ProtocolModel, ...]
    drafts: tuple[ProtocolModel, ...]
    prompts: str = "hellaswag.jsonl"
    draft_tokens: Count = 180e9
    measure: ProtocolMeasure = field(default_factory=ProtocolMeasure)
    ignore_keys: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        require(
            len(self.targets) > 0 and len(self.drafts) > 0,
            "a protocol needs at least one target and one draft.",
        )
        for role in ("targets", "drafts"):
            names = [model.folder for model in getattr(self, role)]
            require(len(set(names)) == len(names), f"the {role} name a folder twice.")
        known = {draft.folder for draft in self.drafts}
        for target in self.targets:
            unknown = [name for name in target.drafts if name not in known]
            require(
                not unknown,
                f"the drafts of {target.folder} hold {unknown[0] if unknown else ''}, which is none of the drafts.",
            )

    def drafts_of(self, target: ProtocolModel) -> tuple[ProtocolModel, ...]:
        """The drafts that a target is measured with."""
        return tuple(d for d in self.drafts if not target.drafts or d.folder in target.drafts)
