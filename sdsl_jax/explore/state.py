"""What an explorer page asks: the value of every control, as an address holds it and as flags of `sdsl codesign`."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdsl_jax.counts import exact_count, read_count, read_number, short_count
from sdsl_jax.errors import SdslError, require

# The choice of an acceptance law that stands for a measured α.
MEASURED = "measured"


@dataclass(frozen=True)
class State:
    """The value of every control.

    Attributes:
      target_params: Size of the target, in the count of the loss law.
      target_tokens: Training tokens of the target.
      draft_tokens: Training tokens of the draft.
      loss_law: Name of a loss law, among those that the page offers.
      acceptance_law: Name of an acceptance law among those that the page offers, or "measured".
      acceptance: Measured acceptance probability α; used with "measured" only.
      draft_params: Size of the draft that α was measured with; used with "measured" only.
      hardware: Name of a device, among those that the page offers.
      engine: Serving engine of the device's file; empty for none.
      devices: Devices that share the target.
      batch: Sequences decoded together.
      context: Mean positions in the KV cache of a sequence.
      prefill: "here", on the devices that decode, or "elsewhere".
      drafting: "in turn" with the target, or "overlapped" with its verification.
      weight_bytes: Bytes per weight of the target.
      candidates: Draft sizes to compare.
    """

    target_params: float = 70e9
    target_tokens: float = 15e12
    draft_tokens: float = 1e12
    loss_law: str = "besiroglu"
    acceptance_law: str = "paper"
    acceptance: float = 0.7
    draft_params: float = 1e9
    hardware: str = "h100"
    engine: str = ""
    devices: float = 4.0
    batch: float = 1.0
    context: float = 2048.0
    prefill: str = "here"
    drafting: str = "in turn"
    weight_bytes: float = 2.0
    candidates: tuple[float, ...] = ()

    def texts(self) -> dict[str, str]:
        """Every value as an address holds it."""
        return {name: written(value) for name, value in vars(self).items()}


def written(value: Any) -> str:
    """A value as an address and a command line hold it: 70B, in turn, 125M,1.3B."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ",".join(map(exact_count, value))
    return exact_count(float(value)) if value >= 1 else f"{value:g}"


@dataclass(frozen=True)
class Control:
    """One control of a page.

    Attributes:
      name: The field of `State` that it sets.
      label: What it is, for people.
      unit: Unit of its values; empty where they are names.
      group: Heading that it stands under.
      values: What it offers: numbers in rising order, or names.
      labels: How each of them is shown.
      form: "slider", "choice" or "sizes", a text of several counts.
      only_with: (name, value) of the choice of another control with which alone it means something.
      without: (name, value) with which it means nothing.
    """

    name: str
    label: str
    unit: str
    group: str
    values: tuple[Any, ...]
    labels: tuple[str, ...] = ()
    form: str = "slider"
    only_with: tuple[str, str] | None = None
    without: tuple[str, str] | None = None

    def __post_init__(self):
        if not self.labels:
            shown = tuple(v if isinstance(v, str) else short_count(v) for v in self.values)
            object.__setattr__(self, "labels", shown)


def steps(low: float, high: float, digits: Sequence[float]) -> tuple[float, ...]:
    """Round numbers in [low, high]: each of `digits` times a power of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{d}e{p}") for p in powers for d in digits]
    return tuple(v for v in sorted({*every, low, high}) if low <= v <= high)


def doublings(low: float, high: float) -> tuple[float, ...]:
    """`low` and its doublings, up to `high`."""
    return tuple(low * 2**k for k in range(round(math.log2(high / low)) + 1))


def digits(values: Sequence[float]) -> tuple[str, ...]:
    """Numbers with all their digits: 2,048."""
    return tuple(f"{value:,.0f}" for value in values)


_FINE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
_COARSE = (1, 2, 5)


@dataclass(frozen=True)
class Choices:
    """What a page offers, and what stays the same on all of it.

    Names in an address are looked up here: an address can name nothing that the page was not
    opened with, and so no file.

    Attributes:
      loss_laws: Value of --loss-law by the name shown.
      acceptance_laws: Value of --acceptance-law by the name shown.
      hardware: Value of --hardware by the name shown.
      engines: Engines of each device, by the name shown.
      target_params: Sizes of targets.
      target_tokens: Training tokens of targets.
      draft_tokens: Training tokens of drafts.
      draft_params: Sizes of drafts with a measured α.
      batches: Numbers of rows.
      contexts: Numbers of cache positions.
      devices: Numbers of devices.
      counted: What sizes count: "total" or "non-embedding" parameters.
      fixed: Other flags of `sdsl codesign`, which no control changes.
      start: The state in which the page opens.
    """

    loss_laws: Mapping[str, str]
    acceptance_laws: Mapping[str, str]
    hardware: Mapping[str, str]
    engines: Mapping[str, tuple[str, ...]]
    target_params: tuple[float, ...] = steps(1e8, 2e12, _FINE)
    target_tokens: tuple[float, ...] = steps(1e10, 1e14, _COARSE)
    draft_tokens: tuple[float, ...] = steps(1e10, 1e14, _COARSE)
    draft_params: tuple[float, ...] = steps(1e6, 1e11, _COARSE)
    batches: tuple[float, ...] = doublings(1, 1024)
    contexts: tuple[float, ...] = doublings(128, 131072)
    devices: tuple[float, ...] = doublings(1, 64)
    counted: str = "total"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    start: State = State()

    def with_stops(self, state: State) -> Choices:
        """The same choices, with the numbers of a state among the stops of the sliders."""
        stops = {
            "target_params": "target_params",
            "target_tokens": "target_tokens",
            "draft_tokens": "draft_tokens",
            "draft_params": "draft_params",
            "batch": "batches",
            "context": "contexts",
            "devices": "devices",
        }
        changes: dict[str, Any] = {
            field: tuple(sorted({*getattr(self, field), getattr(state, name)}))
            for name, field in stops.items()
        }
        return dataclasses.replace(self, **changes)

    def controls(self) -> list[Control]:
        """The controls of the page, in the order in which they are shown."""
        engines = dict.fromkeys(name for names in self.engines.values() for name in names)
        measured = ("acceptance_law", MEASURED)
        shares = tuple(round(0.02 * k, 2) for k in range(5, 50))
        percent = tuple(f"{a:.2f}" for a in shares)
        target, draft, device, load = "Target", "Draft", "Devices", "Load"
        laws = tuple(self.acceptance_laws)
        candidates = Control(
            "candidates",
            "Candidates to compare",
            "parameters",
            draft,
            (),
            form="sizes",
            without=measured,
        )
        precision = ("4 bits", "8 bits", "16 bits", "32 bits")

        def choice(name: str, label: str, group: str, values: Any, **more: Any) -> Control:
            return Control(name, label, "", group, tuple(values), form="choice", **more)

        every = [
            Control("target_params", "Target size", "parameters", target, self.target_params),
            Control("target_tokens", "Target trained on", "tokens", target, self.target_tokens),
            choice(
                "weight_bytes", "Target weights", target, (0.5, 1.0, 2.0, 4.0), labels=precision
            ),
            Control("draft_tokens", "Draft trained on", "tokens", draft, self.draft_tokens),
            candidates,
            choice("drafting", "Drafting", draft, ("in turn", "overlapped")),
            choice("loss_law", "Loss law", "Laws", self.loss_laws),
            choice("acceptance_law", "Acceptance", "Laws", (*laws, MEASURED)),
            Control("acceptance", "Measured α", "", "Laws", shares, percent, only_with=measured),
            Control(
                "draft_params",
                "Draft that it was measured with",
                "parameters",
                "Laws",
                self.draft_params,
                only_with=measured,
            ),
            choice("hardware", "Device", device, self.hardware),
            choice(
                "engine",
                "Serving engine",
                device,
                ("", *engines),
                labels=("overheads of the device", *engines),
            ),
            Control("devices", "Devices for the target", "devices", device, self.devices),
            Control("batch", "Batch", "sequences", load, self.batches, digits(self.batches)),
            Control("context", "Context", "tokens", load, self.contexts, digits(self.contexts)),
            choice("prefill", "Prefill", load, ("here", "elsewhere")),
        ]
        return [one for one in every if len(one.values) != 1]

    def state(self, texts: Mapping[str, str]) -> State:
        """The state that the texts of an address name; what they leave out is as at the start.

        Raises:
          SdslError: A name is unknown, or a value is not offered or out of range.
        """
        values: dict[str, Any] = {}
        for control in self.controls():
            text = texts.get(control.name)
            if text is None:
                continue
            values[control.name] = _read(control, str(text))
        unknown = [name for name in texts if name not in State.__dataclass_fields__]
        require(not unknown, f"the address names {', '.join(unknown)}, which is no control.")
        state = dataclasses.replace(self.start, **values)
        # Another device has other engines, and its own overheads stand in for one it does not have.
        if state.engine and state.engine not in self.engines.get(state.hardware, ()):
            state = dataclasses.replace(state, engine="")
        return state

    def flags(self, state: State) -> dict[str, Any]:
        """The state as flags of `sdsl codesign`, by their names in `ProblemFlags`."""
        flags: dict[str, Any] = dict(self.fixed) | {
            "target_params": state.target_params,
            "target_tokens": state.target_tokens,
            "draft_tokens": state.draft_tokens,
            "hardware": self.hardware[state.hardware],
            "devices": int(state.devices),
            "batch": int(state.batch),
            "context": state.context,
            "prefill": state.prefill,
            "loss_law": self.loss_laws[state.loss_law],
            "weight_bytes": state.weight_bytes,
        }
        if state.engine:
            flags["engine"] = state.engine
        if state.drafting == "overlapped":
            flags["overlapped"] = True
        if state.acceptance_law == MEASURED:
            return flags | {
                "acceptance": state.acceptance,
                "candidates": (state.draft_params,),
            }
        flags["acceptance_law"] = self.acceptance_laws[state.acceptance_law]
        return flags | ({"candidates": state.candidates} if state.candidates else {})


def command(flags: Mapping[str, Any]) -> str:
    """`sdsl codesign` with these flags, for a POSIX shell; those at their defaults are left out."""
    words = ["sdsl", "codesign"]
    if flags.get("file"):
        words.append(shlex.quote(str(flags["file"])))
    for name, value in flags.items():
        # What a file says holds only where no flag is given.
        default = None if flags.get("file") else _DEFAULTS.get(name)
        if name == "file" or value in (default, None, ()):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(shlex.quote(written(value)))
    return " ".join(words)


# What `sdsl codesign` takes where a flag is left out; a test compares it with its settings.
_DEFAULTS = {
    "target_tokens": 15e12,
    "draft_tokens": 1e12,
    "devices": 1,
    "batch": 1,
    "prefill": "here",
    "loss_law": "besiroglu",
    "acceptance_law": "paper",
    "weight_bytes": 2.0,
}


# Units of what is counted one by one.
_WHOLE = ("sequences", "devices")


def _read(control: Control, text: str) -> Any:
    """The value of a control that a text names."""
    if control.form == "sizes":
        parts = [part for part in text.split(",") if part.strip()]
        sizes = tuple(read_count(part) or 0.0 for part in parts)
        require(
            len(sizes) <= 12 and all(1e3 <= size <= 1e18 for size in sizes),
            f"{control.label} is {text!r}; it must be up to 12 sizes such as 125M,1.3B.",
        )
        return sizes
    if control.values and isinstance(control.values[0], str):
        known = ", ".join(value for value in control.values if value)
        require(
            text in control.values,
            f"{control.label} has no choice {text!r}; it must be one of {known}.",
        )
        return text
    value = read_count(text) if control.unit else read_number(text)
    low, high = control.values[0], control.values[-1]
    if value is None or not low <= value <= high:
        shown = f"{control.labels[0]} to {control.labels[-1]}"
        raise SdslError(f"{control.label} is {text!r}; it must be a number from {shown}.")
    require(
        control.unit not in _WHOLE or value == int(value),
        f"{control.label} is {text!r}; it must be a whole number.",
    )
    return value
