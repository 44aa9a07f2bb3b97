"""From the settings of a co-design problem to the program that is solved, in the units of the laws."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdsl_jax.codesign.drafts import AskedDrafts, asked_drafts, to_be_trained
from sdsl_jax.codesign.laws import MEASURED
from sdsl_jax.codesign.program import POWERED, PRICED, Program, ProgramInputs
from sdsl_jax.config.codesign_problem import (
    LARGEST_LOOKAHEAD,
    DraftConfig,
    ProblemConfig,
    TargetConfig,
)
from sdsl_jax.counts import short_bytes, short_count
from sdsl_jax.errors import require
from sdsl_jax.fitting.law_files import LoadedLaw, load_law
from sdsl_jax.hardware import HardwareFile, load_hardware
from sdsl_jax.theory import LogitPlane, ShapeRule
from sdsl_jax.theory.arrays import in_numpy
from sdsl_jax.theory.hardware import Precision, family_shape, resident_bytes
from sdsl_jax.theory.laws import About
from sdsl_jax.theory.published_models import PublishedDraft
from sdsl_jax.theory.serving import Design, Serving, shapes

# Weights and caches may fill so much of a device; activations, buffers and fragments need the rest.
MEMORY_SHARE = 0.9
# Ranges of free variables that do not depend on the problem.
_FREE = {
    "lookahead": (1.0, float(LARGEST_LOOKAHEAD)),
    "batch": (1.0, 1024.0),
    "draft_tokens": (1e10, 1e14),
    "aspect_ratio": (8.0, 512.0),
}
# Drafts range from a 10,000th of the target to its own size, and from a million non-embedding
# parameters on: smaller ones are embeddings and little else, to which no law of sizes was fitted.
# Targets range from a tenth to ten times the given one.
_DRAFT_SHARE, _TARGET_RANGE = 1e-4, 10.0
_HALVINGS = 80


def total_params(params: Any, rule: ShapeRule) -> Any:
    """N + tables·V·width(N): all parameters of the family member with N outside the embeddings."""
    return family_shape(params, rule).total_params


@functools.lru_cache(maxsize=1024)
def non_embedding_params(total: float, rule: ShapeRule) -> float:
    """The N of the family member with so many parameters in all, by bisection: the total rises with
    N.

    Raises:
      SdslError: the embeddings alone would take all of it.
    """
    low, high = 0.0, math.log(total)
    require(
        total > float(total_params(np.float64(1), rule)),
        f"a model of {short_count(total)} parameters in all is smaller than its embeddings of "
        f"{short_count(float(rule.vocab_size))} tokens; give a larger size or a smaller vocabulary.",
    )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = total_params(np.exp(middle), rule) < total
        low, high = (middle, high) if below else (low, middle)
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class Size:
    """The size of a model in both parameter counts.

    Attributes:
      total: All parameters, embeddings included.
      non_embedding: Parameters outside the embeddings.
    """

    total: float
    non_embedding: float


@dataclass(frozen=True)
class Sizes:
    """Converts sizes between the two parameter counts.

    Attributes:
      families: Shapes of models by role: "draft" and "target".
      counted: The count of the loss law, in which users give and read sizes: "total" or
        "non_embedding".
      model: The published model that the draft is; None where the draft's size is a variable, or
        the draft is none.
    """

    families: dict[str, ShapeRule]
    counted: str
    model: PublishedDraft | None = None

    def of(self, params: Any, role: str, aspect_ratio: float | None = None) -> Size:
        """Both counts of a draft or target, or of an array of them, by non-embedding parameters.

        A published model keeps its own embeddings. `aspect_ratio` replaces that of the family.
        """
        model = self.model if role == "draft" and np.ndim(params) == 0 else None
        if model is not None and float(params) == float(model.shape.params):
            return Size(model.total_params, float(params))
        rule = self.families[role]
        if aspect_ratio is not None:
            rule = rule._replace(aspect_ratio=aspect_ratio)
        total: Any = total_params(np.asarray(params, float), rule)
        return Size(total if total.ndim else float(total), params if total.ndim else float(params))

    def in_design(self, design: Design, name: str) -> float | Size:
        """A quantity of a design as a number; sizes in both counts."""
        value = float(getattr(design, name))
        if name == "draft_params":
            return self.of(value, "draft", float(design.aspect_ratio))
        return self.of(value, "target") if name == "target_params" else value

    def stated(self, design: Design, name: str) -> float:
        """A quantity of a design as a number; sizes in the count of the loss law."""
        value = self.in_design(design, name)
        return getattr(value, self.counted) if isinstance(value, Size) else value

    def non_embedding(self, size: float, role: str) -> float:
        """Non-embedding parameters of a model whose size is in the count of the loss law."""
        if self.counted != "total":
            return size
        return non_embedding_params(size, self.families[role])


@dataclass(frozen=True)
class ServingProblem:
    """A co-design problem that is ready to be solved.

    Attributes:
      config: What was asked.
      program: The static part of what is solved.
      inputs: Its numbers in float64; sizes are non-embedding parameters.
      loss: The loss law, with its draws.
      acceptance: The acceptance law; a constant where α was measured.
      hardware: The device, and what is known about its numbers.
      sizes: Converts sizes between the counts of parameters.
      drafts: What the names and sizes of drafts mean.
      notes: Decisions that were made on the way.
      memory_errors: Why no design fits in the devices' memory; empty where one does, or nothing is
        known about it.
    """

    config: ProblemConfig
    program: Program
    inputs: ProgramInputs
    loss: LoadedLaw
    acceptance: LoadedLaw
    hardware: HardwareFile
    sizes: Sizes
    drafts: AskedDrafts
    notes: tuple[str, ...] = ()
    memory_errors: tuple[str, ...] = ()

    @property
    def priced(self) -> bool:
        """Whether the price of a device is known."""
        return float(self.hardware.hardware.price_per_hour) > 0

    @property
    def powered(self) -> bool:
        """Whether the power of a device is known."""
        return float(self.hardware.hardware.watts) > 0


@dataclass(frozen=True)
class Memory:
    """Weights and caches of both models against the memory of the devices.

    Attributes:
      target_bytes: Weights and full caches of the target, on all its devices together; of all
        experts, where it has several.
      draft_bytes: Weights and full caches of the draft, on all its devices together.
      per_device_bytes: Bytes on the fullest device.
      capacity_bytes: Memory of a device; null where it is unknown.
      usable_share: Share of the capacity that weights and caches may fill.
      devices: Devices that share the target.
      fits: Whether both models fit; null where the capacity is unknown.
      smallest_devices: Smallest power of two of devices that fits; null if none does or the
        capacity is unknown.
      smallest_devices_exactly: Smallest number of devices that fits, for engines that split a
        model into any number of parts.
    """

    target_bytes: float
    draft_bytes: float
    per_device_bytes: float
    capacity_bytes: float
    usable_share: float
    devices: int
    fits: bool | None
    smallest_devices: int | None
    smallest_devices_exactly: int | None


def memory(serving: Serving, design: Design) -> Memory:
    """Weights and full caches of both models against the devices' memory."""
    serving, design = in_numpy((serving, design))
    longest = serving.prompt_tokens + serving.new_tokens
    draft, target = shapes(serving, design)
    of_target = float(resident_bytes(target, serving.precision, design.batch, longest))
    of_draft = float(resident_bytes(draft, serving.draft_precision, design.batch, longest))
    devices, draft_devices = int(serving.devices), int(serving.draft_devices)
    capacity = float(serving.hardware.memory_bytes)
    usable, per_draft_device = MEMORY_SHARE * capacity, of_draft / draft_devices
    apart = float(serving.overlapped) > 0
    per_device = of_target / devices
    per_device = max(per_device, per_draft_device) if apart else per_device + per_draft_device
    # A draft on all devices of the target stays on all of them, however many there are.
    everywhere = draft_devices == devices and not apart
    needed, room = (
        (of_target + of_draft, usable) if everywhere else (of_target, usable - per_draft_device)
    )
    # More devices of the target make no room for a draft on devices of its own.
    room = (usable if per_draft_device <= usable else 0.0) if apart else room
    power = exact = None
    if math.isfinite(capacity) and room > 0:
        exact = max(math.ceil(needed / room), 1 if everywhere or apart else draft_devices)
        power = 1 << (exact - 1).bit_length()
    return Memory(
        of_target,
        of_draft,
        per_device,
        capacity,
        MEMORY_SHARE,
        devices,
        fits(serving, per_device),
        power,
        exact,
    )


def fits(serving: Serving, per_device_bytes: float) -> bool | None:
    """Whether the fullest device holds so much; None where its memory is unknown."""
    usable = MEMORY_SHARE * float(serving.hardware.memory_bytes)
    # To the same tolerance as constraints: a design may rest on this limit.
    return per_device_bytes <= (1 + 1e-6) * usable if math.isfinite(usable) else None


def smallest_draft(target: float) -> float:
    """The smallest draft worth looking at, in non-embedding parameters."""
    return min(1e6, target / 100)


def constant_acceptance(alpha: float, loss: LoadedLaw) -> LoadedLaw:
    """A measured α as a law, of one draft and one target."""
    about = About(MEASURED, loss.law.about.params_count, loss.law.about.text, "probability")
    law = LogitPlane(float(np.log(alpha / (1 - alpha))), 0.0, 0.0, about)
    return LoadedLaw(MEASURED, law, None, "a measured α comes without draws", None, [])


def with_acceptance(problem: ServingProblem, alpha: float) -> ServingProblem:
    """The problem with a measured α of its draft in place of the acceptance law."""
    law = constant_acceptance(alpha, problem.loss)
    serving = problem.inputs.serving._replace(acceptance_law=law.law)
    return replace(problem, acceptance=law, inputs=problem.inputs._replace(serving=serving))


def build(config: ProblemConfig) -> ServingProblem:
    """Loads the laws and the device, converts sizes, and sets up variables, objective and
    constraints.

    Raises:
      SdslError: a law or device cannot be loaded, a size has no model, or money is asked about
        without a price.
    """
    hardware = load_hardware(config.hardware.name, config.hardware.engine)
    price = config.hardware.price_per_hour or float(hardware.hardware.price_per_hour)
    watts = config.hardware.watts or float(hardware.hardware.watts)
    known = hardware.hardware._replace(price_per_hour=price, watts=watts)
    hardware = replace(hardware, hardware=known)
    objective, limits = config.objective.given(), config.constraints.given()
    for name in (*objective, *limits):
        require(
            name not in PRICED or price > 0,
            f"{name} is in money, and the price of a {config.hardware.name} is not known; give --price-per-hour.",
        )
        require(
            name not in POWERED or watts > 0,
            f"{name} is an energy, and the power of a {config.hardware.name} is not known; give --watts.",
        )
    loss = load_law(config.laws.loss, "loss")
    alpha = config.draft.acceptance
    acceptance = (
        constant_acceptance(alpha, loss)
        if alpha
        else load_law(config.laws.acceptance, "acceptance")
    )
    sizes = _sizes(config, loss)
    asked = asked_drafts(config, sizes.counted)
    target = sizes.non_embedding(config.target.params, "target")
    ranges = _ranges(config, target, sizes)
    size = None
    if "draft_params" not in ranges:
        size, model = _the_draft(config, asked)
        sizes = replace(sizes, model=model)
    first = target / 200 if size is None else sizes.non_embedding(size, "draft")
    tokens = config.draft.tokens
    serving = _serving(config, loss, acceptance, hardware, sizes)
    if sizes.model is not None:
        first, tokens = float(sizes.model.shape.params), sizes.model.tokens
    fixed = Design(first, 4.0, tokens, config.draft.aspect_ratio, config.workload.batch, target)
    lower = fixed._replace(**{name: low for name, (low, _) in ranges.items()})
    upper = fixed._replace(**{name: high for name, (_, high) in ranges.items()})
    smallest = memory(serving, lower)
    if smallest.fits is not None:
        limits = {"memory_bytes": MEMORY_SHARE * smallest.capacity_bytes} | limits
    inputs = ProgramInputs(
        serving,
        fixed,
        lower,
        upper,
        np.asarray(list(objective.values())),
        np.asarray(list(limits.values())),
    )
    inputs = in_numpy(inputs)
    program = Program(
        variables=tuple(ranges),
        objective=tuple(objective),
        constraints=tuple(limits),
        optimizer=config.optimizer.name,
        steps=config.optimizer.steps,
        rounds=config.optimizer.rounds if limits else 1,
    )
    unknown = "the memory of the device is not known, so it is unknown whether the models fit"
    return ServingProblem(
        config,
        program,
        inputs,
        loss,
        acceptance,
        hardware,
        sizes,
        asked,
        notes=(unknown,) if smallest.fits is None else (),
        memory_errors=(_memory_error(smallest, ranges),) if smallest.fits is False else (),
    )


def _sizes(config: ProblemConfig, loss: LoadedLaw) -> Sizes:
    def family(
        model: TargetConfig | DraftConfig, experts: float = 1.0, active: float = 1.0
    ) -> ShapeRule:
        return ShapeRule(
            model.aspect_ratio,
            config.target.vocab_size,
            config.workload.mean_context,
            model.kv_share,
            float(model.embedding_tables),
            experts=experts,
            active_experts=active,
        )

    target = config.target
    of_target = family(target, float(target.experts), float(target.active_experts or 1))
    counted = "total" if loss.law.about.params_count == "total" else "non_embedding"
    return Sizes({"draft": family(config.draft), "target": of_target}, counted)


def _serving(
    config: ProblemConfig,
    loss: LoadedLaw,
    acceptance: LoadedLaw,
    hardware: HardwareFile,
    sizes: Sizes,
) -> Serving:
    draft, target, workload = config.draft, config.target, config.workload
    return Serving(
        hardware=hardware.hardware,
        loss_law=loss.law,
        acceptance_law=acceptance.law,
        draft_family=sizes.families["draft"],
        target_family=sizes.families["target"],
        target_tokens=target.tokens,
        context=workload.mean_context,
        prompt_tokens=workload.prompt,
        new_tokens=workload.new_tokens,
        precision=Precision(target.weight_bytes, target.cache_bytes),
        draft_precision=Precision(draft.weight_bytes, draft.cache_bytes),
        devices=float(config.hardware.devices),
        draft_devices=float(config.draft_devices),
        aspect_penalty=config.aspect_penalty,
        volume_tokens=workload.volume_tokens,
        prefill_share=float(workload.prefill == "here"),
        draft_shape=None if sizes.model is None else sizes.model.shape,
        overlapped=float(config.hardware.overlapped),
    )


def _the_draft(
    config: ProblemConfig, asked: AskedDrafts
) -> tuple[float | None, PublishedDraft | None]:
    """The draft whose size is no variable: its size in the count of the loss law, and the published
    model that it is, if it is one."""
    if asked.candidates:
        return asked.candidates[0]
    if asked.named is None:
        return None, None
    require(
        asked.named.size is not None,
        f"the size of the draft {config.draft.name} is unknown here; give it as the only one of [draft] candidates, "
        "or as --draft.",
    )
    return asked.named.size, None if to_be_trained(config) else asked.named.model


def _ranges(config: ProblemConfig, target: float, sizes: Sizes) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each variable; sizes in non-embedding parameters."""
    ranges: dict[str, tuple[float, float]] = {}
    free = _FREE | {
        "draft_params": (max(_DRAFT_SHARE * target, smallest_draft(target)), target),
        "target_params": (target / _TARGET_RANGE, target * _TARGET_RANGE),
    }
    for name, value in config.variables.given().items():
        # A measured acceptance is that of one draft, whose size is no variable.
        if name == "draft_params" and config.draft.acceptance:
            continue
        if isinstance(value, str):
            ranges[name] = free[name]
            continue
        low, high = value
        if name in ("draft_params", "target_params"):
            role = name.removesuffix("_params")
            low, high = (sizes.non_embedding(size, role) for size in (low, high))
        ranges[name] = (low, high)
    require(ranges, "no variable is left to be chosen; name lookahead among the variables.")
    return ranges


def _memory_error(smallest: Memory, variables: Collection[str]) -> str:
    """Why not even the smallest models fit."""
    words = {"draft_params": "draft", "batch": "batch"}
    free = [word for name, word in words.items() if name in variables]
    what = f"even the smallest {' and '.join(free)}" if free else "target and draft"
    enough = f"; {smallest.smallest_devices} would do" if smallest.smallest_devices else ""
    return (
        f"the models do not fit on {smallest.devices} device{'s' * (smallest.devices > 1)}: weights and caches of {what} "
        f"take {short_bytes(smallest.per_device_bytes)} of each device, of whose {short_bytes(smallest.capacity_bytes)} "
        f"{MEMORY_SHARE:.0%} can be used{enough}; times are computed as if they fitted"
    )
