"""A co-design problem by the flags of `sdsl codesign`, by a TOML file, or by both; no jax, no arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sdsl_jax.config.codesign_problem import ProblemConfig
from sdsl_jax.config.toml import from_dict, from_file
from sdsl_jax.counts import (
    parse_count,
    parse_share,
    parse_size,
    parse_sizes,
    read_count,
    read_number,
)
from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import require_in
from sdsl_jax.statistics import Interval
from sdsl_jax.user_files import read_toml


def _count(value: Any, flag: str) -> float:
    return parse_count(value, flag) if isinstance(value, str) else value


def _size(value: Any, flag: str) -> float:
    return parse_size(value, flag) if isinstance(value, str) else value


def _sizes(value: Any, flag: str) -> list[float]:
    if isinstance(value, str):
        return parse_sizes(value, flag)
    return [_size(v, flag) for v in (value if isinstance(value, Iterable) else [value])]


def _one_of(values: Sequence[float], flag: str) -> float:
    require(
        len(values) == 1,
        f"{flag} has {len(values)} values; a problem has one. From Python, solve once for each.",
    )
    return values[0]


def _rows(value: Any, flag: str) -> list[float]:
    """Numbers of rows: one, or several separated by commas."""
    if isinstance(value, str):
        numbers = [read_number(part) for part in value.split(",") if part.strip()]
        rows = [x for x in numbers if x is not None]
        require(
            rows and len(rows) == len(numbers),
            f"{flag} is {value!r}; it must be a whole number of rows, or several separated by commas.",
        )
        return rows
    return [float(v) for v in (value if isinstance(value, Iterable) else [value])]


def _contexts(value: Any, flag: str) -> list[float]:
    """Numbers of cache positions: one, or several separated by commas."""
    if isinstance(value, str):
        return [parse_count(part, flag) for part in value.split(",") if part.strip()]
    return [float(v) for v in (value if isinstance(value, Iterable) else [value])]


def _draft(value: Any) -> dict[str, Any]:
    """The keys of [draft] that name a draft at hand, by its name or its size."""
    size = value if isinstance(value, float | int) else read_count(value)
    if size is None:
        return {"name": value}
    return {"candidates": [_size(value, "--draft")]}


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
_RowsText = Annotated[float | str | Sequence[float] | None, _shown("ROWS[,ROWS...]", str)]
_ContextText = Annotated[float | str | Sequence[float] | None, _shown("COUNT[,COUNT...]", str)]
_NameOrSize = Annotated[float | str | None, _shown("NAME|COUNT", str)]


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
      experts: Experts of a layer of a target that is a mixture of experts; its size is that of all
        of them together.
      active_experts: Experts that each token passes through.
      draft_tokens: Training tokens of the draft; 1T if left out.
      hardware: a100, h100, h200, v5e, v6e, or the file of a device; h100 if left out.
      engine: A serving engine whose overheads count, such as vllm-graphs or transformers-eager of
        h100; assumed overheads of the device if left out.
      devices: Devices that share the target (tensor-parallel size); 1 if left out.
      draft_devices: Devices that share the draft (draft tensor-parallel size); all of the target's
        if left out, as vLLM and SGLang run it.
      draft: The draft at hand, by its name, such as Qwen/Qwen3-0.6B, or its size; its lookahead is
        then the only choice unless --variables says otherwise.
      overlapped: Draft the next round while the target verifies, on draft devices beside those of
        the target (one if left out). A round then takes the longer of the two, as if every such
        draft were of use: the best that overlapping can give.
      batch: Sequences decoded together (max_num_seqs); 1 if left out, with --schedule 1 to 256. The
        command takes several, such as 1,8,64.
      context: Mean number of tokens in the KV cache of a sequence; from the prompt, or 2048, if left
        out; with --schedule several, 512, 2048 and 8192 if left out.
      prompt_tokens: Tokens of a prompt; from the context if left out.
      new_tokens: Tokens generated for a request (max_new_tokens); 256 if left out.
      prefill: Where prompts are prefilled: here (default), on the devices that decode, or elsewhere,
        on others (disaggregated prefill).
      candidates: Draft sizes to compare, such as 125M,350M,1.3B.
      acceptance: Acceptance probability α, measured with the one candidate or draft; replaces the
        law. To compare drafts that have an α each, solve once for each (docs/codesign.md).
      objective: Metrics to minimise, with weights: seconds_per_token (default),
        cost_per_million_tokens, latency_seconds, ...
      constraint: A metric and the most it may be, such as latency_seconds=2; may be repeated.
      variables: What to choose: draft_params,lookahead (default; lookahead is vLLM's
        num_speculative_tokens), batch, draft_tokens, aspect_ratio, target_params.
      price_per_hour: Price of a device per hour, in any currency; needed by objectives and
        constraints in money.
      watts: Power of a device, for joules per token; that of its file if left out.
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
    experts: _WholeNumber = _flag("target.experts")
    active_experts: _WholeNumber = _flag("target.active_experts")
    draft_tokens: _CountText = _flag("draft.tokens", _size)
    hardware: Annotated[str | Path | None, _shown("NAME|FILE.toml", str)] = _flag("hardware.name")
    engine: Annotated[str | None, _shown("NAME", str)] = _flag("hardware.engine")
    devices: _WholeNumber = _flag("hardware.devices")
    draft_devices: _WholeNumber = _flag("draft.devices")
    draft: _NameOrSize = None
    overlapped: Annotated[bool, tyro.conf.FlagCreatePairsOff] = field(
        default=False, metadata={"keys": "hardware.overlapped", "read": _as_it_is}
    )
    batch: _RowsText = _flag(
        "workload.batch", lambda value, flag: _one_of(_rows(value, flag), flag)
    )
    context: _ContextText = _flag(
        "workload.context", lambda value, flag: _one_of(_contexts(value, flag), flag)
    )
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
    watts: _Number = _flag("hardware.watts")
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

    @property
    def batches(self) -> list[float]:
        """Every batch that was given."""
        return [] if self.batch is None else _rows(self.batch, "--batch")

    @property
    def contexts(self) -> list[float]:
        """Every context that was given."""
        return [] if self.context is None else _contexts(self.context, "--context")

    def config(self) -> ProblemConfig:
        """The settings of the problem.

        Raises:
          SdslError: the file cannot be read or parsed, or a value is not allowed.
        """
        changes: dict[str, dict[str, Any]] = {}
        for f in dataclasses.fields(ProblemFlags):
            value = getattr(self, f.name)
            unset = value is None or value is False
            empty = unset or (isinstance(value, Sized) and not len(value))
            if empty or "keys" not in f.metadata:
                continue
            value = f.metadata["read"](value, f"--{f.name.replace('_', '-')}")
            for dotted in f.metadata["keys"].split():
                section, _, key = dotted.partition(".")
                changes.setdefault(section, {}).update({key: value} if key else value)
        if self.draft is not None:
            require(
                self.candidates is None,
                "--draft names the draft at hand, and --candidates others to compare; give one of them.",
            )
            changes.setdefault("draft", {}).update(_draft(self.draft))
        at_hand = self.draft is not None and self.file is None
        names: Any = (
            (("lookahead",) if at_hand else ()) if self.variables is None else self.variables
        )
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
