"""The settings of a protocol: which published checkpoints are measured as pairs, and how. Read from
TOML.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdsl_jax.counts import Count, WholeCount
from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import require_fields, require_in


@dataclass(frozen=True)
class ProtocolModel:
    """A published checkpoint.

    Attributes:
      folder: Its name within the folder of checkpoints; also the model's name in records.
      params: Total parameters, as published.
      train_tokens: Training tokens, as published.
      drafts: For a target, folders of the drafts to measure; all drafts of the protocol if empty.
      optimum: For a target, the draft size N* that a publication states; 0 if it states none.
    """

    folder: str
    params: Count
    train_tokens: Count
    drafts: tuple[str, ...] = ()
    optimum: Count = 0.0

    def __post_init__(self):
        require(
            self.folder and "/" not in self.folder and not self.folder.startswith("."),
            f"a checkpoint's folder is {self.folder!r}; it must be a name within the folder of checkpoints.",
        )
        for name in ("params", "train_tokens"):
            require_in("(0, inf)", f"{name} of {self.folder}", getattr(self, name))


@dataclass(frozen=True)
class ProtocolMeasure:
    """How each pair is measured; see `PairSettings`.

    Attributes:
      lookaheads: Lookaheads γ of the decoder.
      plane_lookahead: The γ whose token acceptance rate gives the α that the plane is fitted to.
      prompts: Number of prompts.
      prompt_tokens: Longest prompt, in tokens.
      new_tokens: Tokens generated for each prompt.
      temperature: Sampling temperature of both models.
      batch: Prompts decoded at a time.
      timed: Prompts whose generation is timed; 0 for none.
      dtype: Type of weights and caches.
      confidence: Confidence of the intervals.
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
      name: Name of the folder it is written to.
      targets: Models to speed up.
      drafts: Models that propose.
      prompts: A .jsonl or .txt file, relative to the protocol's file unless it is given on the
        command line.
      draft_tokens: D, training tokens of the draft that the optima are for.
      measure: How pairs are measured.
      ignore_keys: Settings to ignore in checkpoints; see `sdsl measure --ignore-key`.
      seed: Seed of all sampling.
    """

    name: str
    targets: tuple[ProtocolModel, ...]
    drafts: tuple[ProtocolModel, ...]
    prompts: str = "hellaswag.jsonl"
    draft_tokens: Count = 180e9
    measure: ProtocolMeasure = ProtocolMeasure()
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
            if unknown:
                raise SdslError(
                    f"the drafts of {target.folder} hold {unknown[0]}, which is none of the drafts."
                )

    def drafts_of(self, target: ProtocolModel) -> tuple[ProtocolModel, ...]:
        """The drafts that a target is measured with."""
        return tuple(d for d in self.drafts if not target.drafts or d.folder in target.drafts)
