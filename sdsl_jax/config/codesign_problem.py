"""The settings of a co-design problem for serving: frozen dataclasses, one for each section; no
jax, no arrays.

Sizes are written as the loss law counts them: total parameters for the published laws but Kaplan's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sdsl_jax.config.toml import from_dict, from_file
from sdsl_jax.counts import (
    Count,
    parse_count,
    parse_share,
    parse_size,
    parse_sizes,
    read_number,
    require_plausible,
)
from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import require_fields, require_in
from sdsl_jax.statistics import Interval
from sdsl_jax.user_files import read_toml

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

    def __post_init__(self):
        require_fields("target", self, params=_COUNTED, vocab_size=_COUNTED)
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
        if left out, as vLLM and SGLang run it.
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
      devices: Devices that share the target (tensor-parallel size).
      price_per_hour: Price of a device per hour; that of the device's file if 0.
    """

    name: str = "h100"
    devices: int = 1
    price_per_hour: float = 0.0

    def __post_init__(self):
        require_fields("hardware", self, devices="[1, 4096]", price_per_hour="[0, 1e6]")


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
class ObjectiveConfig:
    """Weights of the metrics to minimise, Σ weight·ln metric; seconds per token where no weight is
    given.

    Attributes:
      seconds_per_token: Seconds per token of all sequences together.
      cost_per_million_tokens: Cost of serving a million tokens.
      latency_seconds: Seconds of a request.
      first_token_seconds: Seconds to the first token, a prefill by both models.
      total_cost: Cost of training the draft and serving the volume.
      memory_bytes: Bytes on the fullest device.
      training_flops: FLOPs of training the draft.
      training_cost: Cost of training the draft.
      draft_loss: Loss of the draft in nats per token.
      target_loss: Loss of the target in nats per token.
    """

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
        require_fields("objective", self, **dict.fromkeys(vars(self), "[0, 1e6]"))

    def given(self) -> dict[str, float]:
        """The metrics that have a weight."""
        return {k: v for k, v in vars(self).items() if v} or {"seconds_per_token": 1.0}


@dataclass(frozen=True)
class ConstraintsConfig:
    """Largest allowed values of metrics. Memory is limited to 90% of the devices' where no limit is
    given.

    Attributes:
      seconds_per_token: Seconds per token of all sequences together.
      cost_per_million_tokens: Cost of serving a million tokens.
      latency_seconds: Seconds of a request.
      first_token_seconds: Seconds to the first token, a prefill by both models.
      total_cost: Cost of training the draft and serving the volume.
      memory_bytes: Bytes on the fullest device.
      training_flops: FLOPs of training the draft.
      training_cost: Cost of training the draft.
      draft_loss: Loss of the draft in nats per token.
      target_loss: Loss of the target in nats per token.
    """

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
        require_fields("constraints", self, **dict.fromkeys(vars(self), "(0, inf]"))

    def given(self) -> dict[str, float]:
        """The metrics that have a limit."""
        return {k: v for k, v in vars(self).items() if math.isfinite(v)}


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


def _count(value: Any, flag: str) -> float:
    return parse_count(value, flag) if isinstance(value, str) else value


def _size(value: Any, flag: str) -> float:
    return parse_size(value, flag) if isinstance(value, str) else value


def _sizes(value: Any, flag: str) -> list[float]:
    if isinstance(value, str):
        return parse_sizes(value, flag)
    return [_size(v, flag) for v in (value if isinstance(value, Iterable) else [value])]


def _share(value: Any, flag: str) -> float:
    if isinstance(value, Interval):
        value = value.estimate
    several = isinstance(value, Iterable) and (not isinstance(value, str) or "," in value)
    require(
        not several,
        f"{flag} is {value!r}; it must be one number, measured with the one candidate. For several drafts, solve once for "
        "each.",
    )
    share = parse_share(value, flag) if isinstance(value, str) else value
    require_in("(0, 1)", "the acceptance", share)
    return share


def _pairs(values: Any, flag: str) -> dict[str, float]:
    """METRIC=NUMBER, each once. The weight of an objective may be left out."""
    if isinstance(values, Mapping):
        values = [f"{name}={value!r}" for name, value in values.items()]
    pairs: dict[str, float] = {}
    for text in values.split(",") if isinstance(values, str) else values:
        name, mark, number = (part.strip() for part in text.partition("="))
        if not name:
            continue
        name = name.replace("-", "_")
        require(name not in pairs, f"{flag} names {name} twice; it may be named once.")
        value = 1.0 if not mark and flag == "--objective" else read_number(number)
        if value is None:
            raise SdslError(f"{flag} is {text!r}; it must be of the form METRIC=NUMBER.")
        require_in("(0, inf]", f"{flag} {name}", value)
        pairs[name] = value
    return pairs


def _as_it_is(value: Any, flag: str) -> Any:
    return str(value) if isinstance(value, Path) else value


def _flag(keys: str, read: Callable[[Any, str], Any] = _as_it_is) -> Any:
    """A flag: the keys of the problem file that it sets, and how its value is read."""
    return field(default=None, metadata={"keys": keys, "read": read})


def _shown(metavar: str, constructor: Any = None) -> Any:
    """How the command line shows a flag, and as what it takes its value."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", constructor=constructor)


# Values of flags that also take text, such as 70B or 80%, which is all that a command line gives.
_Number = Annotated[float | None, _shown("X")]
_WholeNumber = Annotated[int | None, _shown("X")]
_CountText = Annotated[float | str | None, _shown("COUNT", str)]


@dataclass(frozen=True, kw_only=True)
class ProblemFlags:
    """A co-design problem by the flags of `sdsl codesign`.

    Counts may be numbers or strings such as "70B". Sizes are in the count of the loss law (total
    parameters, for the published laws but Kaplan's). From Python, metrics may be dictionaries, as
    in `constraint={"latency_seconds": 2}`, and variables a dictionary of ranges, as in
    `variables={"lookahead": (1, 8), "batch": "free"}`.

    Attributes:
      file: The problem as TOML, with the sections [target], [draft], [hardware], [workload],
        [laws], [objective], [constraints], [variables] and [optimizer]; flags override it.
      target_params: Size of the target.
      target_name: Name of the target, such as Qwen/Qwen3-32B: for engine settings, and to find
        published drafts with its tokenizer.
      target_tokens: Training tokens of the target; 15T if left out.
      draft_tokens: Training tokens of the draft; 1T if left out.
      hardware: a100, h100, h200, v5e, v6e, or the file of a device; h100 if left out.
      devices: Devices that share the target (tensor-parallel size); 1 if left out.
      draft_devices: Devices that share the draft (draft tensor-parallel size); all of the target's
        if left out, as vLLM and SGLang run it.
      batch: Sequences decoded together (max_num_seqs); 1 if left out.
      context: Mean number of tokens in the KV cache of a sequence; from the prompt, or 2048, if left
        out.
      prompt_tokens: Tokens of a prompt; from the context if left out.
      new_tokens: Tokens generated for a request (max_new_tokens); 256 if left out.
      prefill: Where prompts are prefilled: here (default), on the devices that decode, or elsewhere,
        on others (disaggregated prefill).
      candidates: Draft sizes to compare, such as 125M,350M,1.3B.
      acceptance: Acceptance probability α, measured with the one candidate; replaces the law. To
        compare drafts that have an α each, solve once for each (docs/codesign.md).
      objective: Metrics to minimise, with weights: seconds_per_token (default),
        cost_per_million_tokens, latency_seconds, ...
      constraint: A metric and the most it may be, such as latency_seconds=2; may be repeated.
      variables: What to choose: draft_params,lookahead (default; lookahead is vLLM's
        num_speculative_tokens), batch, draft_tokens, aspect_ratio, target_params.
      price_per_hour: Price of a device per hour, in any currency; needed by objectives and
        constraints in money.
      volume_tokens: Tokens to serve with the draft; 1T if left out.
      loss_law: besiroglu (default), hoffmann, hoffmann_unrounded, muennighoff, kaplan, or the JSON
        of a fit.
      acceptance_law: paper (default), or the JSON of a fit; FILE.json#NAME for one of several laws.
      weight_bytes: Bytes per weight of the target; 2 if left out.
      draft_weight_bytes: Bytes per weight of the draft; 2 if left out.
      cache_bytes: Bytes per element of both KV caches; 2 if left out.
      vocab_size: Vocabulary size of both; 128000 if left out.
      aspect_ratio: Width over layers of the target; 100 if left out.
      draft_aspect_ratio: Width over layers of the draft; 64 if left out.
      kv_share: Key-value width over width of the target (grouped-query attention); 0.125 if left
        out.
    """

    file: Annotated[Path | None, tyro.conf.Positional, _shown("[FILE.toml]")] = None
    target_params: _CountText = _flag("target.params", _size)
    target_name: Annotated[str | None, _shown("NAME", str)] = _flag("target.name")
    target_tokens: _CountText = _flag("target.tokens", _size)
    draft_tokens: _CountText = _flag("draft.tokens", _size)
    hardware: Annotated[str | Path | None, _shown("NAME|FILE.toml", str)] = _flag("hardware.name")
    devices: _WholeNumber = _flag("hardware.devices")
    draft_devices: _WholeNumber = _flag("draft.devices")
    batch: _Number = _flag("workload.batch")
    context: _CountText = _flag("workload.context", _count)
    prompt_tokens: _CountText = _flag("workload.prompt_tokens", _count)
    new_tokens: _CountText = _flag("workload.new_tokens", _count)
    prefill: Annotated[str | None, _shown("here|elsewhere", str)] = _flag("workload.prefill")
    candidates: Annotated[
        Sequence[float | str] | float | str | None, _shown("COUNT[,COUNT...]", str)
    ] = _flag("draft.candidates", _sizes)
    acceptance: Annotated[float | Interval | str | None, _shown("ALPHA", str)] = _flag(
        "draft.acceptance", _share
    )
    objective: Annotated[Mapping[str, float] | str | None, _shown("METRIC[=WEIGHT],...", str)] = (
        _flag("objective", _pairs)
    )
    constraint: Annotated[
        Mapping[str, float] | Sequence[str],
        tyro.conf.UseAppendAction,
        _shown("METRIC=LIMIT", tuple[str, ...]),
    ] = field(default=(), metadata={"keys": "constraints", "read": _pairs})
    variables: Annotated[
        Mapping[str, Any] | Sequence[str] | str | None, _shown("NAME,...", str)
    ] = None
    price_per_hour: _Number = _flag("hardware.price_per_hour")
    volume_tokens: _CountText = _flag("workload.volume_tokens", _count)
    loss_law: Annotated[str | Path | None, _shown("NAME|FILE.json", str)] = _flag("laws.loss")
    acceptance_law: Annotated[str | Path | None, _shown("NAME|FILE.json[#NAME]", str)] = _flag(
        "laws.acceptance"
    )
    weight_bytes: _Number = _flag("target.weight_bytes")
    draft_weight_bytes: _Number = _flag("draft.weight_bytes")
    cache_bytes: _Number = _flag("target.cache_bytes draft.cache_bytes")
    vocab_size: _CountText = _flag("target.vocab_size", _count)
    aspect_ratio: _Number = _flag("target.aspect_ratio")
    draft_aspect_ratio: _Number = _flag("draft.aspect_ratio")
    kv_share: _Number = _flag("target.kv_share")

    def config(self) -> ProblemConfig:
        """The settings of the problem.

        Raises:
          SdslError: the file cannot be read or parsed, or a value is not allowed.
        """
        changes: dict[str, dict[str, Any]] = {}
        for f in dataclasses.fields(ProblemFlags):
            value = getattr(self, f.name)
            empty = value is None or (isinstance(value, Sized) and not len(value))
            if empty or "keys" not in f.metadata:
                continue
            value = f.metadata["read"](value, f"--{f.name.replace('_', '-')}")
            for dotted in f.metadata["keys"].split():
                section, _, key = dotted.partition(".")
                changes.setdefault(section, {}).update({key: value} if key else value)
        names: Any = () if self.variables is None else self.variables
        if isinstance(names, Mapping):
            changes["variables"] = dict(names)
            names = ()
        names = names.split(",") if isinstance(names, str) else names
        names = [name.strip().replace("-", "_") for name in names if name.strip()]
        return load_problem(self.file, changes, names)


def load_problem(
    path: str | Path | None, changes: dict[str, dict[str, Any]], variables: Sequence[str] = ()
) -> ProblemConfig:
    """Reads a problem from a TOML file, if there is one, and applies changes.

    Args:
      path: of the file.
      changes: values by section and key. The sections [objective] and [variables] replace those
        of the file; others are added to.
      variables: names of all that is to vary, with the ranges of the file where it has them; as in
        the file if empty.

    Raises:
      SdslError: the file cannot be read or parsed, or a value is not allowed.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_toml(path, "problem file")
    values |= {section: {} for section in ("objective", "variables") if section in changes}
    for section, keys in changes.items():
        table = values.setdefault(section, {})
        require(isinstance(table, dict), f"{path}: {section} is {table!r}; it must be a table.")
        table.update(keys)
    if variables:
        ranges = values.get("variables", {})
        ranges = ranges if isinstance(ranges, dict) else {}
        values["variables"] = {name: ranges.get(name) or "free" for name in variables}
    target = values.get("target")
    require(
        target if not isinstance(target, dict) else "params" in target,
        "no size of the target was given; give --target-params, or a TOML file whose section [target] holds params."
        if path is None
        else f"the problem file {path} gives no size of the target; give --target-params, or params in its section [target].",
    )
    if path is None:
        return from_dict(ProblemConfig, values)
    changed = [f"{section}.{key}" for section, keys in changes.items() for key in keys]
    return from_file(
        ProblemConfig, values, path, [*changed, *(f"variables.{name}" for name in variables)]
    )
