"""The settings of a co-design problem for serving: frozen dataclasses, one for each section; no
jax, no arrays.

Sizes are written as the loss law counts them: total parameters for the published laws but Kaplan's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdsl_jax.config.shape_penalty import LARGEST_REFERENCE, kaplan_penalty
from sdsl_jax.config.toml import from_dict, from_file
from sdsl_jax.counts import LARGEST, Count, require_plausible
from sdsl_jax.errors import require
from sdsl_jax.ranges import share_hint
from sdsl_jax.user_files import read_toml

LARGEST_LOOKAHEAD = 64


def _positive(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(
            0 < value <= LARGEST,
            f"{section}.{name} is {value:g}; it must be positive, and at most {LARGEST:g}.",
        )


def _shape(section: str, config: TargetConfig | DraftConfig) -> None:
    require(
        1 <= config.aspect_ratio <= 1024,
        f"{section}.aspect_ratio is {config.aspect_ratio:g}; width over layers must lie in [1, 1024].",
    )
    require(
        0 < config.kv_share <= 1,
        f"{section}.kv_share is {config.kv_share:g}; it must lie in (0, 1]{share_hint(config.kv_share)}.",
    )
    require(
        config.embedding_tables in (1, 2),
        f"{section}.embedding_tables is {config.embedding_tables}; it must be 1 (embedding and head share one) or 2.",
    )
    for name in ("weight_bytes", "cache_bytes"):
        value = getattr(config, name)
        require(0 < value <= 8, f"{section}.{name} is {value:g}; it must lie in (0, 8] bytes.")


@dataclass(frozen=True)
class TargetConfig:
    """The model that is served. The defaults of its shape are those of a recent model of tens of billions of parameters."""

    params: Count
    tokens: Count = 15e12
    name: str = ""
    vocab_size: Count = 128_000
    aspect_ratio: float = 100.0
    kv_share: float = 0.125
    embedding_tables: int = 2
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0

    def __post_init__(self):
        _positive("target", self, "params", "tokens", "vocab_size")
        for name in ("params", "tokens"):
            require_plausible(getattr(self, name), f"target.{name}")
        _shape("target", self)


@dataclass(frozen=True)
class DraftConfig:
    """The draft: of which family, trained on how much, and which sizes to compare.

    `acceptance` is a measured α of the one entry of `candidates`, used instead of the law; 0 if
    none was measured. `devices` share the draft by tensor parallelism; all devices of the target
    where it is left out, as vLLM and SGLang run it.
    """

    tokens: Count = 1e12
    name: str = ""
    candidates: tuple[Count, ...] = ()
    acceptance: float = 0.0
    aspect_ratio: float = 64.0
    kv_share: float = 0.25
    embedding_tables: int = 1
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0
    devices: int | None = None

    def __post_init__(self):
        _positive("draft", self, "tokens")
        require_plausible(self.tokens, "draft.tokens")
        _shape("draft", self)
        require(
            0 <= self.acceptance < 1,
            f"draft.acceptance is {self.acceptance:g}; a measured α must lie in (0, 1){share_hint(self.acceptance)}.",
        )
        for size in self.candidates:
            require(
                0 < size <= LARGEST,
                f"draft.candidates holds {size:g}; every size must be positive.",
            )
            require_plausible(size, "a size in draft.candidates")
        require(
            not self.acceptance or len(self.candidates) == 1,
            f"an acceptance of {self.acceptance:g} was given with {len(self.candidates)} candidates; it was measured with one "
            "draft, whose size must be the only candidate.",
        )


@dataclass(frozen=True)
class HardwareConfig:
    """On what is served: a preset or the file of a device, and how many of it. A price of 0 is that of the device's file."""

    name: str = "h100"
    devices: int = 1
    price_per_hour: float = 0.0

    def __post_init__(self):
        require(
            1 <= self.devices <= 4096,
            f"hardware.devices is {self.devices}; it must lie in [1, 4096].",
        )
        require(
            0 <= self.price_per_hour <= 1e6,
            f"hardware.price_per_hour is {self.price_per_hour:g}; it must lie in [0, 1e6].",
        )


@dataclass(frozen=True)
class WorkloadConfig:
    """What is asked of the server.

    `context` is the mean number of positions in a row's cache. Left at 0 it follows from the
    prompt, `prompt_tokens` + `new_tokens`/2, or is 2048 where the prompt is left at 0 too, which
    then follows from the context. `prefill` says where prompts are read: "here", by the devices
    that decode, which decode nothing meanwhile, or "elsewhere", at nobody's cost.
    """

    batch: float = 1.0
    context: Count = 0.0
    prompt_tokens: Count = 0.0
    new_tokens: Count = 256.0
    volume_tokens: Count = 1e12
    prefill: Literal["here", "elsewhere"] = "here"

    def __post_init__(self):
        _positive("workload", self, "new_tokens", "volume_tokens")
        require(
            1 <= self.batch <= 1e6, f"workload.batch is {self.batch:g}; it must lie in [1, 1e6]."
        )
        require(
            self.batch == int(self.batch),
            f"workload.batch is {self.batch:g}; it must be a whole number of rows.",
        )
        require(
            self.new_tokens >= 1,
            f"workload.new_tokens is {self.new_tokens:g}; it must be at least 1.",
        )
        for name in ("context", "prompt_tokens"):
            value = getattr(self, name)
            require(0 <= value <= 1e8, f"workload.{name} is {value:g}; it must lie in [0, 1e8].")

    @property
    def mean_context(self) -> float:
        """Positions in the cache of a row, on average."""
        return self.context or (
            self.prompt_tokens + self.new_tokens / 2 if self.prompt_tokens else 2048.0
        )

    @property
    def prompt(self) -> float:
        """Tokens of a prompt."""
        return self.prompt_tokens or max(1.0, self.mean_context - self.new_tokens / 2)


@dataclass(frozen=True)
class LawsConfig:
    """The laws, each by name or from a file.

    `aspect_penalty` is κ in L·(1 + κ·ln²(r/r₀)) for a draft of aspect ratio r. The reference r₀ is
    [draft] aspect_ratio: the laws are taken to be those of drafts of that shape, and it to be the
    best. Left out κ is `kaplan_penalty` of r₀.
    """

    loss: str = "besiroglu"
    acceptance: str = "paper"
    aspect_penalty: float | None = None

    def __post_init__(self):
        value = self.aspect_penalty
        require(
            value is None or 0 <= value <= 1,
            f"laws.aspect_penalty is {value or 0:g}; it must lie in [0, 1].",
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the metrics that are to be small, Σ weight·ln metric; seconds per token where no weight is given."""

    seconds_per_token: float = 0.0
    cost_per_million_tokens: float = 0.0
    latency_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_cost: float = 0.0
    memory_bytes: float = 0.0
    training_flops: float = 0.0
    training_cost: float = 0.0
    draft_loss: float = 0.0
    target_loss: float = 0.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            require(
                0 <= value <= 1e6, f"objective.{name} is {value:g}; a weight must lie in [0, 1e6]."
            )

    def given(self) -> dict[str, float]:
        """The metrics that have a weight."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v} or {
            "seconds_per_token": 1.0
        }


@dataclass(frozen=True)
class ConstraintsConfig:
    """Largest allowed values of metrics; memory is limited to 90% of the devices' where no limit is given."""

    seconds_per_token: float = math.inf
    cost_per_million_tokens: float = math.inf
    latency_seconds: float = math.inf
    first_token_seconds: float = math.inf
    total_cost: float = math.inf
    memory_bytes: float = math.inf
    training_flops: float = math.inf
    training_cost: float = math.inf
    draft_loss: float = math.inf
    target_loss: float = math.inf

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            require(value > 0, f"constraints.{name} is {value:g}; a limit must be positive.")

    def given(self) -> dict[str, float]:
        """The metrics that have a limit."""
        return {k: v for k, v in dataclasses.asdict(self).items() if math.isfinite(v)}


@dataclass(frozen=True)
class VariablesConfig:
    """What may be chosen: [smallest, largest], or "free" for a range that fits the problem; the rest is fixed."""

    draft_params: str | tuple[Count, ...] = ""
    lookahead: str | tuple[float, ...] = ""
    batch: str | tuple[float, ...] = ""
    draft_tokens: str | tuple[Count, ...] = ""
    aspect_ratio: str | tuple[float, ...] = ""
    target_params: str | tuple[Count, ...] = ""

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            shown = value if isinstance(value, str) else list(value)
            require(
                value in ("", "free")
                or (len(value) == 2 and not isinstance(value, str) and 0 < value[0] < value[1]),
                f'variables.{name} is {shown!r}; it must be "free", or a smallest and a larger largest value.',
            )
            if name in ("lookahead", "batch") and isinstance(value, tuple):
                require(
                    value[0] >= 1,
                    f"variables.{name} starts at {value[0]:g}; it must be at least 1.",
                )
                require(
                    math.ceil(value[0]) <= value[1],
                    f"variables.{name} is {shown!r}; a whole number must lie in it.",
                )
        if isinstance(self.lookahead, tuple):
            highest = self.lookahead[1]
            require(
                highest <= LARGEST_LOOKAHEAD,
                f"variables.lookahead ends at {highest:g}; it must be at most {LARGEST_LOOKAHEAD}.",
            )

    def given(self) -> dict[str, str | tuple[float, ...]]:
        """The variables; draft size and lookahead where none is named."""
        named = {k: v for k, v in dataclasses.asdict(self).items() if v}
        return named or {"draft_params": "free", "lookahead": "free"}


@dataclass(frozen=True)
class OptimizerConfig:
    """The gradient method: a transformation of Optax, and the rounds of the augmented Lagrangian around it."""

    name: Literal["adam", "nadam", "momentum"] = "adam"
    learning_rate: float = 0.1
    steps: int = 200
    starts: int = 16
    rounds: int = 10

    def __post_init__(self):
        require(
            0 < self.learning_rate <= 10,
            f"optimizer.learning_rate is {self.learning_rate:g}; it must lie in (0, 10].",
        )
        for name in ("steps", "starts", "rounds"):
            value = getattr(self, name)
            require(
                1 <= value <= 100_000, f"optimizer.{name} is {value}; it must lie in [1, 100000]."
            )


@dataclass(frozen=True)
class ProblemConfig:
    """A whole co-design problem."""

    target: TargetConfig
    draft: DraftConfig = field(default_factory=DraftConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    laws: LawsConfig = field(default_factory=LawsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    constraints: ConstraintsConfig = field(default_factory=ConstraintsConfig)
    variables: VariablesConfig = field(default_factory=VariablesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        require(
            1 <= self.draft_devices <= self.hardware.devices,
            f"draft.devices is {self.draft_devices}; it must lie in [1, {self.hardware.devices}], for the draft runs on "
            "devices of the target.",
        )
        require(
            not self.draft.acceptance or not self.variables.draft_params,
            f"draft.acceptance is {self.draft.acceptance:g}, measured with one draft; variables.draft_params must not be given.",
        )
        require(
            self.draft.aspect_ratio <= LARGEST_REFERENCE
            or self.laws.aspect_penalty is not None
            or not self.variables.aspect_ratio,
            f"draft.aspect_ratio is {self.draft.aspect_ratio:g}, for which no penalty on shapes follows from Kaplan et al. (to "
            f"{LARGEST_REFERENCE:g}); give laws.aspect_penalty.",
        )

    @property
    def draft_devices(self) -> int:
        """Devices that share the draft: those of the target where nothing else was said."""
        return self.hardware.devices if self.draft.devices is None else self.draft.devices

    @property
    def aspect_penalty(self) -> float:
        """κ; 0 where none follows, for then every draft has the ratio that it would be counted from."""
        if self.laws.aspect_penalty is not None:
            return self.laws.aspect_penalty
        reference = self.draft.aspect_ratio
        return kaplan_penalty(reference) if reference <= LARGEST_REFERENCE else 0.0


def load_problem(
    path: str | Path | None, changes: dict[str, dict[str, Any]], variables: Sequence[str] = ()
) -> ProblemConfig:
    """Reads a problem from a TOML file, if there is one, and applies changes.

    Args:
      path: of the file.
      changes: values by section and key. A section [objective] replaces that of the file; others
        are added to.
      variables: names of all that is to vary, with the ranges of the file where it has them; as in
        the file if empty.

    Raises:
      SdslError: the file cannot be read or parsed, or a value is not allowed.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_toml(path, "problem file")
    if "objective" in changes:
        values["objective"] = {}
    for section, keys in changes.items():
        table = values.setdefault(section, {})
        require(isinstance(table, dict), f"{path}: {section} is {table!r}; it must be a table.")
        table.update(keys)
    if variables:
        ranges = values.get("variables", {})
        ranges = ranges if isinstance(ranges, dict) else {}
        values["variables"] = {name: ranges.get(name) or "free" for name in variables}
    require(
        bool(values.get("target")),
        "no target was given; give --target-params, or a TOML file whose section [target] holds params."
        if path is None
        else f"the problem file {path} names no target; give --target-params, or params in its section [target].",
    )
    if path is None:
        return from_dict(ProblemConfig, values)
    changed = [f"{section}.{key}" for section, keys in changes.items() for key in keys]
    return from_file(
        ProblemConfig, values, path, [*changed, *(f"variables.{name}" for name in variables)]
    )
