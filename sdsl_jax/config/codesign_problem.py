"""The settings of a co-design problem for serving: frozen dataclasses, one for each section; no
jax, no arrays.

Sizes are written as the loss law counts them: total parameters for the published laws but Kaplan's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sdsl_jax.counts import Count, require_plausible
from sdsl_jax.errors import require
from sdsl_jax.ranges import require_fields, require_in

LARGEST_LOOKAHEAD = 64
# The largest aspect ratio from which `kaplan_penalty` follows. Nearer to 154, the middle of the two
# ratios, their losses say little about κ, and there it would be infinite.
LARGEST_REFERENCE = 128.0


# No more than this of anything that is counted.
_COUNTED = "(0, 1e18]"


def _shape(section: str, config: TargetConfig | DraftConfig) -> None:
    require_fields(
        section,
        config,
        tokens=_COUNTED,
        aspect_ratio="[1, 1024]",
        kv_share="(0, 1]",
        embedding_tables="[1, 2]",
        weight_bytes="(0, 8]",
        cache_bytes="(0, 8]",
    )
    require_plausible(config.tokens, f"{section}.tokens")


def kaplan_penalty(reference: float) -> float:
    """κ of Kaplan et al. (2001.08361, Fig. 5) for losses that are least at the aspect ratio
    `reference`.

    They find a model of 6 layers, 4288 wide, within 3% of the loss of one of 48 layers, 1600 wide:
    ratios of 714.7 and 33.3. So κ·[ln²(714.7/r₀) − ln²(33.3/r₀)] = 0.03: 0.0056 at r₀ = 64. Past
    the middle of the two the first would be the better one.
    """
    wide, deep = (math.log(ratio / reference) ** 2 for ratio in (4288 / 6, 1600 / 48))
    return 0.03 / (wide - deep)


@dataclass(frozen=True)
class TargetConfig:
    """The model that is served. The defaults of its shape are those of a recent model of tens of
    billions of parameters.

    Attributes:
      params: Its size, in the count of the loss law.
      tokens: Its training tokens.
      name: Its name, such as Qwen/Qwen3-32B, which tells its tokenizer.
      vocab_size: Rows of the embedding; the draft has as many.
      aspect_ratio: Width over layers.
      kv_share: Key-value width over width (grouped-query attention).
      embedding_tables: 1 where embedding and head share a table, else 2.
      weight_bytes: Bytes per weight.
      cache_bytes: Bytes per element of the KV cache.
      experts: Experts of a layer of a mixture of experts; 1 in a dense model.
      active_experts: Experts that each token passes through; all of them if left out, which is
        allowed of a dense model only.
    """

    params: Count
    tokens: Count = 15e12
    name: str = ""
    vocab_size: Count = 128_000
    aspect_ratio: float = 100.0
    kv_share: float = 0.125
    embedding_tables: int = 2
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0
    experts: int = 1
    active_experts: int | None = None

    def __post_init__(self):
        require_fields("target", self, params=_COUNTED, vocab_size=_COUNTED, experts="[1, 1e5]")
        active = self.active_experts
        require(
            self.experts == 1 or active is not None,
            f"target.experts is {self.experts} and target.active_experts was not given; give the number of experts that "
            "each token passes through.",
        )
        require(
            active is None or 1 <= active <= self.experts,
            f"target.active_experts is {active}; it must lie in [1, {self.experts}], the experts of the target.",
        )
        require_plausible(self.params, "target.params")
        _shape("target", self)


@dataclass(frozen=True)
class DraftConfig:
    """The draft: its family, its training, and the sizes to compare.

    Attributes:
      tokens: Its training tokens.
      name: Its name, such as meta-llama/Llama-3.2-1B, if it exists.
      candidates: Sizes to compare, in the count of the loss law.
      acceptance: A measured α of the one candidate, used instead of the law; 0 if none was
        measured.
      aspect_ratio: Width over layers.
      kv_share: Key-value width over width (grouped-query attention).
      embedding_tables: 1 where embedding and head share a table, else 2.
      weight_bytes: Bytes per weight.
      cache_bytes: Bytes per element of the KV cache.
      devices: Devices that share the draft (draft tensor-parallel size); all devices of the target
        if left out, as vLLM and SGLang run it. One of its own if left out with overlapped drafting.
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
        _shape("draft", self)
        require_fields("draft", self, acceptance="[0, 1)", candidates=_COUNTED)
        for size in self.candidates:
            require_plausible(size, "a size in draft.candidates")
        count = len(self.candidates)
        several = " For several drafts, solve once for each." if count else ""
        require(
            not self.acceptance or count == 1,
            f"an acceptance of {self.acceptance:g} was given with {count or 'no'} candidates; it was measured with one "
            f"draft, whose size must be the only candidate.{several}",
        )


@dataclass(frozen=True)
class HardwareConfig:
    """The devices that serve.

    Attributes:
      name: A preset such as h100, or the file of a device.
      engine: A serving engine of that file, such as vllm-graphs; the device's own overheads if
        empty.
      devices: Devices that share the target (tensor-parallel size).
      price_per_hour: Price of a device per hour; that of the device's file if 0.
      watts: Power of a device while it serves; that of the device's file if 0.
      overlapped: Whether the draft of the next round runs while the target verifies, on devices of
        its own beside those of the target.
    """

    name: str = "h100"
    engine: str = ""
    devices: int = 1
    price_per_hour: float = 0.0
    watts: float = 0.0
    overlapped: bool = False

    def __post_init__(self):
        require_fields(
            "hardware", self, devices="[1, 4096]", price_per_hour="[0, 1e6]", watts="[0, 1e6]"
        )


@dataclass(frozen=True)
class WorkloadConfig:
    """What is asked of the server.

    Attributes:
      batch: Sequences decoded together.
      context: Mean positions in the KV cache of a sequence. If 0, it follows from the prompt,
        `prompt_tokens` + `new_tokens`/2, or is 2048 where that is 0 too.
      prompt_tokens: Tokens of a prompt; from the context if 0.
      new_tokens: Tokens generated for a request.
      volume_tokens: Tokens to serve with the draft.
      prefill: Where prompts are read: "here", by the devices that decode, which decode nothing
        meanwhile, or "elsewhere", by devices whose cost is not counted.
    """

    batch: float = 1.0
    context: Count = 0.0
    prompt_tokens: Count = 0.0
    new_tokens: Count = 256.0
    volume_tokens: Count = 1e12
    prefill: Literal["here", "elsewhere"] = "here"

    def __post_init__(self):
        require_fields(
            "workload",
            self,
            batch="[1, 1e6]",
            context="[0, 1e8]",
            prompt_tokens="[0, 1e8]",
            new_tokens="[1, 1e18]",
            volume_tokens=_COUNTED,
        )
        require(
            self.batch == int(self.batch),
            f"workload.batch is {self.batch:g}; it must be a whole number of rows.",
        )

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

    Attributes:
      loss: The loss law.
      acceptance: The acceptance law.
      aspect_penalty: κ in L·(1 + κ·ln²(r/r₀)) for a draft of aspect ratio r. The reference r₀ is
        the aspect ratio of [draft]: the laws are taken to be those of drafts of that shape, and it
        to be the best. `kaplan_penalty` of r₀ if left out.
    """

    loss: str = "besiroglu"
    acceptance: str = "paper"
    aspect_penalty: float | None = None

    def __post_init__(self):
        require_in("[0, 1]", "laws.aspect_penalty", self.aspect_penalty or 0.0)


@dataclass(frozen=True)
class _MetricsConfig:
    """A number for each metric; None where none is given.

    Attributes:
      seconds_per_token: Seconds per token of all sequences together.
      cost_per_million_tokens: Cost of serving a million tokens.
      latency_seconds: Seconds of a request.
      first_token_seconds: Seconds to the first token (TTFT), a prefill by both models.
      output_token_seconds: Seconds between two tokens of a request while it decodes (TPOT).
      joules_per_token: Joules per token of all devices.
      total_cost: Cost of training the draft and serving the volume.
      memory_bytes: Bytes on the fullest device.
      training_flops: FLOPs of training the draft.
      training_cost: Cost of training the draft.
      draft_loss: Loss of the draft in nats per token.
      target_loss: Loss of the target in nats per token.
    """

    seconds_per_token: float | None = None
    cost_per_million_tokens: float | None = None
    latency_seconds: float | None = None
    first_token_seconds: float | None = None
    output_token_seconds: float | None = None
    joules_per_token: float | None = None
    total_cost: float | None = None
    memory_bytes: float | None = None
    training_flops: float | None = None
    training_cost: float | None = None
    draft_loss: float | None = None
    target_loss: float | None = None

    def _named(self) -> dict[str, float]:
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class ObjectiveConfig(_MetricsConfig):
    """Weights of the metrics to minimise, Σ weight·ln metric; seconds per token where no weight is
    given.
    """

    def __post_init__(self):
        require_fields("objective", self, **dict.fromkeys(self._named(), "[0, 1e6]"))

    def given(self) -> dict[str, float]:
        """The metrics that have a weight."""
        return {k: v for k, v in self._named().items() if v} or {"seconds_per_token": 1.0}


@dataclass(frozen=True)
class ConstraintsConfig(_MetricsConfig):
    """Largest allowed values of metrics. Memory is limited to 90% of the devices' where no limit is
    given.
    """

    def __post_init__(self):
        require_fields("constraints", self, **dict.fromkeys(self._named(), "(0, inf]"))

    def given(self) -> dict[str, float]:
        """The metrics that have a limit."""
        return {k: v for k, v in self._named().items() if math.isfinite(v)}


@dataclass(frozen=True)
class VariablesConfig:
    """What to choose: [smallest, largest], or "free" for a range that fits the problem; the rest is
    fixed.

    Attributes:
      draft_params: Size of the draft, in the count of the loss law.
      lookahead: Drafts per round, γ.
      batch: Sequences decoded together.
      draft_tokens: Training tokens of the draft.
      aspect_ratio: Width over layers of the draft.
      target_params: Size of the target, in the count of the loss law.
    """

    draft_params: str | tuple[Count, ...] = ""
    lookahead: str | tuple[float, ...] = ""
    batch: str | tuple[float, ...] = ""
    draft_tokens: str | tuple[Count, ...] = ""
    aspect_ratio: str | tuple[float, ...] = ""
    target_params: str | tuple[Count, ...] = ""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value in ("", "free"):
                continue
            is_range = not isinstance(value, str) and len(value) == 2 and 0 < value[0] < value[1]
            shown = value if isinstance(value, str) else list(value)
            require(
                is_range,
                f'variables.{name} is {shown!r}; it must be "free", or a smallest and a larger largest value.',
            )
            if name in ("lookahead", "batch"):
                low, high = value
                require_in("[1, inf)", f"the lower end of variables.{name}", low)
                require(
                    math.ceil(low) <= high,
                    f"variables.{name} is {shown!r}; a whole number must lie in it.",
                )
                if name == "lookahead":
                    highest = f"(1, {LARGEST_LOOKAHEAD}]"
                    require_in(highest, "the upper end of variables.lookahead", high)

    def given(self) -> dict[str, str | tuple[float, ...]]:
        """The variables; draft size and lookahead where none is named."""
        named = {k: v for k, v in vars(self).items() if v}
        return named or {"draft_params": "free", "lookahead": "free"}


@dataclass(frozen=True)
class OptimizerConfig:
    """The gradient method, and the rounds of the augmented Lagrangian around it.

    Attributes:
      name: A transformation of Optax.
      learning_rate: Initial step size, in e-folds of the variables.
      steps: Updates in a round.
      starts: Starting points.
      rounds: Rounds, after each of which the multipliers of the constraints are updated.
    """

    name: Literal["adam", "nadam", "momentum"] = "adam"
    learning_rate: float = 0.1
    steps: int = 200
    starts: int = 16
    rounds: int = 10

    def __post_init__(self):
        require_in("(0, 10]", "optimizer.learning_rate", self.learning_rate)
        counts = dict.fromkeys(("steps", "starts", "rounds"), "[1, 100000]")
        require_fields("optimizer", self, **counts)


@dataclass(frozen=True)
class ProblemConfig:
    """A whole co-design problem: a section of the file for each attribute.

    Attributes:
      target: The model that is served.
      draft: The draft.
      hardware: The devices.
      workload: What is asked of the server.
      laws: The laws.
      objective: Weights of the metrics to minimise.
      constraints: Largest allowed values of metrics.
      variables: What to choose.
      optimizer: The gradient method.
    """

    target: TargetConfig
    draft: DraftConfig = DraftConfig()
    hardware: HardwareConfig = HardwareConfig()
    workload: WorkloadConfig = WorkloadConfig()
    laws: LawsConfig = LawsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    constraints: ConstraintsConfig = ConstraintsConfig()
    variables: VariablesConfig = VariablesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        apart = self.hardware.overlapped
        most = 4096 if apart else self.hardware.devices
        why = "" if apart else ", for the draft runs on devices of the target"
        require(
            1 <= self.draft_devices <= most,
            f"draft.devices is {self.draft_devices}; it must lie in [1, {most}]{why}.",
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
        """Devices that share the draft. Where nothing else was said, those of the target, or one of
        its own with overlapped drafting."""
        usual = 1 if self.hardware.overlapped else self.hardware.devices
        return usual if self.draft.devices is None else self.draft.devices

    @property
    def aspect_penalty(self) -> float:
        """κ; 0 where none follows, for then every draft has the ratio that it would be counted from."""
        if self.laws.aspect_penalty is not None:
            return self.laws.aspect_penalty
        reference = self.draft.aspect_ratio
        return kaplan_penalty(reference) if reference <= LARGEST_REFERENCE else 0.0
