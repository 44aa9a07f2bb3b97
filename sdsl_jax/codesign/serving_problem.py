"""From the settings of a co-design problem to the program and the inputs that are solved, in the units of the laws."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.drafts_at_hand import model_of, named_draft, stated_size, to_be_trained
from sdsl_jax.codesign.laws import MEASURED
from sdsl_jax.codesign.program import Program, ProgramInputs
from sdsl_jax.codesign.published_drafts import PublishedDraft
from sdsl_jax.codesign.sizes import non_embedding_params, total_params
from sdsl_jax.config.codesign_problem import (
    LARGEST_LOOKAHEAD,
    DraftConfig,
    ProblemConfig,
    TargetConfig,
)
from sdsl_jax.errors import require
from sdsl_jax.fitting.law_files import LoadedLaw, acceptance_law, loss_law
from sdsl_jax.hardware import HardwareFile, load_hardware
from sdsl_jax.theory import LogitPlane, ShapeRule
from sdsl_jax.theory.hardware import Precision, family_shape, resident_bytes
from sdsl_jax.theory.laws import About
from sdsl_jax.theory.serving import Design, Serving, counted, shapes

# Weights and caches may fill so much of a device; activations, buffers and fragments need the rest.
MEMORY_SHARE = 0.9
# Metrics in money, which mean nothing without a price.
_PRICED = ("cost_per_million_tokens", "total_cost", "training_cost")
_UNITS = {
    "seconds": "s",
    "cost": "in the unit of the price",
    "bytes": "bytes",
    "flops": "FLOPs",
    "loss": "nats per token",
}
# Ranges of variables that are free without one, where they do not depend on the problem.
_FREE = {
    "lookahead": (1.0, float(LARGEST_LOOKAHEAD)),
    "batch": (1.0, 1024.0),
    "draft_tokens": (1e10, 1e14),
    "aspect_ratio": (8.0, 512.0),
}
# Drafts from a 10,000th of the target to its own size, and of a million non-embedding parameters or
# more: smaller ones are embeddings and little else, to which no law of sizes was fitted. Targets
# from a tenth to ten times the one that was given.
_DRAFT_SHARE, _TARGET_RANGE = 1e-4, 10.0


def unit_of(metric: str) -> str:
    """The unit of a metric."""
    return next(unit for part, unit in _UNITS.items() if part in metric)


@dataclass(frozen=True)
class Problem:
    """A problem that is ready to be solved.

    Attributes:
      config: what was asked.
      program: static part of the program.
      inputs: float64 numbers of the program; sizes are non-embedding parameters.
      loss: the loss law, with its draws.
      acceptance: the acceptance law; the constant of a measured α where there is one.
      hardware: the device, and what is known about its numbers.
      notes: what had to be decided on the way.
      misfits: why no design fits in the devices' memory; empty where one does, or nothing is known.
      model: the published model that the draft is, where its size is no variable and it is one.
    """

    config: ProblemConfig
    program: Program
    inputs: ProgramInputs
    loss: LoadedLaw
    acceptance: LoadedLaw
    hardware: HardwareFile
    notes: tuple[str, ...]
    misfits: tuple[str, ...] = ()
    model: PublishedDraft | None = None

    @property
    def counted(self) -> str:
        """What users count: "total" or "non_embedding" parameters, as the loss law does."""
        return _count_of(self.loss)

    @property
    def devices(self) -> int:
        """That share the target."""
        return self.config.hardware.devices

    def family(self, role: str, aspect_ratio: float | None = None) -> ShapeRule:
        """Shapes of drafts, or of targets; of another aspect ratio if one is given."""
        serving = self.inputs.serving
        if role == "target":
            return serving.target_family
        return (
            serving.draft_family
            if aspect_ratio is None
            else serving.draft_family._replace(aspect_ratio=aspect_ratio)
        )

    def stated_size(self, params: Any, role: str, aspect_ratio: float | None = None) -> float:
        """A size in the count of the loss law, in which users give and read sizes, of a draft or target."""
        return float(self.stated_sizes(params, role, aspect_ratio))

    def stated_sizes(self, params: Any, role: str, aspect_ratio: float | None = None) -> np.ndarray:
        """As `stated_size`, of many."""
        if role == "draft" and self._is_model(params):
            assert self.model is not None
            return np.asarray(stated_size(self.model, self.counted))
        with jax.enable_x64(True):
            return np.asarray(
                counted(family_shape(params, self.family(role, aspect_ratio)), self.loss.law)
            )

    def both_counts(
        self, params: Any, role: str, aspect_ratio: float | None = None
    ) -> dict[str, float]:
        """A size in total and in non-embedding parameters."""
        if role == "draft" and self._is_model(params):
            assert self.model is not None
            return {"total": self.model.total_params, "non_embedding": float(params)}
        with jax.enable_x64(True):
            return {
                "total": total_params(float(params), self.family(role, aspect_ratio)),
                "non_embedding": float(params),
            }

    def _is_model(self, params: Any) -> bool:
        """Whether a size outside embeddings is that of the published model, whose embeddings are its own."""
        return (
            self.model is not None
            and np.ndim(params) == 0
            and float(params) == float(self.model.shape.params)
        )

    def draft_params(self, size: float) -> float:
        """Non-embedding parameters of a draft of a stated size."""
        with jax.enable_x64(True):
            return _non_embedding(size, self.inputs.serving.draft_family, self.loss)


class Memory(NamedTuple):
    """What has to be held, against what can be.

    Attributes:
      target_bytes: weights and caches of the target, on all devices together.
      draft_bytes: of the draft.
      per_device_bytes: on the fullest device.
      capacity_bytes: of a device.
      usable_bytes: of it for weights and caches.
      fits: whether they fit; None where the capacity is not known.
      smallest_devices: the smallest power of two that fits; None if there is none or the capacity
        is not known.
      smallest_exactly: the smallest number that fits, for engines that can split a model into any
        number of parts.
    """

    target_bytes: float
    draft_bytes: float
    per_device_bytes: float
    capacity_bytes: float
    usable_bytes: float
    fits: bool | None
    smallest_devices: int | None
    smallest_exactly: int | None


def memory(serving: Serving, design: Design) -> Memory:
    """Weights and full caches of both models against the devices' memory."""
    longest = serving.prompt_tokens + serving.new_tokens
    draft, target = shapes(serving, design)
    of_target = float(resident_bytes(target, serving.precision, design.batch, longest))
    of_draft = float(resident_bytes(draft, serving.draft_precision, design.batch, longest))
    capacity = float(serving.hardware.memory_bytes)
    usable, per_draft_device = MEMORY_SHARE * capacity, of_draft / float(serving.draft_devices)
    per_device = of_target / float(serving.devices) + per_draft_device
    known = np.isfinite(capacity)
    # A draft on all devices of the target stays on all of them, however many there are.
    everywhere = float(serving.draft_devices) == float(serving.devices)
    held, room = (
        (of_target + of_draft, usable) if everywhere else (of_target, usable - per_draft_device)
    )
    power = exact = None
    if known and room > 0:
        exact = max(math.ceil(held / room), 1 if everywhere else int(serving.draft_devices))
        power = 1 << (exact - 1).bit_length()
    # To the same tolerance as constraints: a design may rest on this limit.
    fits = bool(per_device <= (1 + 1e-6) * usable) if known else None
    return Memory(of_target, of_draft, per_device, capacity, usable, fits, power, exact)


def _rule(config: TargetConfig | DraftConfig, vocab_size: float, context: float) -> ShapeRule:
    return ShapeRule(
        config.aspect_ratio, vocab_size, context, config.kv_share, float(config.embedding_tables)
    )


def smallest_draft(target: float) -> float:
    """The smallest draft worth looking at, in non-embedding parameters."""
    return min(1e6, target / 100)


def _count_of(loss: LoadedLaw) -> str:
    return "total" if loss.law.about.params_count == "total" else "non_embedding"


def _non_embedding(size: float, rule: ShapeRule, loss: LoadedLaw) -> float:
    return non_embedding_params(size, rule) if _count_of(loss) == "total" else size


def constant_acceptance(alpha: float, loss: LoadedLaw) -> LoadedLaw:
    """A measured α as a law, of one draft and one target."""
    about = About(MEASURED, loss.law.about.params_count, loss.law.about.text, "probability")
    law = LogitPlane(float(np.log(alpha / (1 - alpha))), 0.0, 0.0, about)
    return LoadedLaw("measured", law, None, "a measured α comes without draws", None, [])


def build(config: ProblemConfig) -> Problem:
    """Loads what the settings name, converts sizes, and sets up variables, objective and
    constraints.

    Raises:
      SdslError: a law or device cannot be loaded, a size has no model, or money is asked about
        without a price.
    """
    c = config
    hardware = load_hardware(c.hardware.name)
    device = hardware.hardware
    if c.hardware.price_per_hour:
        device = device._replace(price_per_hour=c.hardware.price_per_hour)
    objective, limits = c.objective.given(), c.constraints.given()
    for name in (*objective, *limits):
        require(
            name not in _PRICED or float(device.price_per_hour) > 0,
            f"{name} is in money, and the price of a {c.hardware.name} is not known; give --price-per-hour.",
        )
    loss = loss_law(c.laws.loss)
    alpha = (
        constant_acceptance(c.draft.acceptance, loss)
        if c.draft.acceptance
        else acceptance_law(c.laws.acceptance)
    )
    with jax.enable_x64(True):
        vocabulary, context = c.target.vocab_size, c.workload.mean_context
        draft_family, target_family = (
            _rule(c.draft, vocabulary, context),
            _rule(c.target, vocabulary, context),
        )
        target = _non_embedding(c.target.params, target_family, loss)
        serving = Serving(
            hardware=device,
            loss_law=loss.law,
            acceptance_law=alpha.law,
            draft_family=draft_family,
            target_family=target_family,
            target_tokens=c.target.tokens,
            context=context,
            prompt_tokens=c.workload.prompt,
            new_tokens=c.workload.new_tokens,
            precision=Precision(c.target.weight_bytes, c.target.cache_bytes),
            draft_precision=Precision(c.draft.weight_bytes, c.draft.cache_bytes),
            devices=float(c.hardware.devices),
            draft_devices=float(c.draft_devices),
            aspect_penalty=c.aspect_penalty,
            volume_tokens=c.workload.volume_tokens,
            prefill_share=float(c.workload.prefill == "here"),
        )
        ranges = _ranges(c, target, draft_family, target_family, loss)
        size, model = (None, None) if "draft_params" in ranges else _the_draft(c, loss)
        first = target / 200 if size is None else _non_embedding(size, draft_family, loss)
        tokens = c.draft.tokens
        if model is not None:
            serving = serving._replace(draft_shape=model.shape)
            first, tokens = float(model.shape.params), model.tokens
        fixed = Design(first, 4.0, tokens, c.draft.aspect_ratio, c.workload.batch, target)
        lower = fixed._replace(**{k: low for k, (low, _) in ranges.items()})
        upper = fixed._replace(**{k: high for k, (_, high) in ranges.items()})
        limits, notes, misfits = _with_memory(limits, serving, lower, ranges)
        inputs = ProgramInputs(
            serving,
            fixed,
            lower,
            upper,
            np.asarray(list(objective.values())),
            np.asarray(list(limits.values())),
        )
        inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), inputs)
    program = Program(
        variables=tuple(ranges),
        objective=tuple(objective),
        constraints=tuple(limits),
        optimizer=c.optimizer.name,
        steps=c.optimizer.steps,
        rounds=c.optimizer.rounds if limits else 1,
    )
    return Problem(
        config,
        program,
        inputs,
        loss,
        alpha,
        replace(hardware, hardware=device),
        notes,
        misfits,
        model,
    )


def _the_draft(
    config: ProblemConfig, loss: LoadedLaw
) -> tuple[float | None, PublishedDraft | None]:
    """The one draft where its size is no variable: its stated size, and the published model that it is, if it is one."""
    if config.draft.candidates:
        size = config.draft.candidates[0]
        return size, model_of(config, size, _count_of(loss))
    named = named_draft(config, _count_of(loss))
    return (
        (None, None)
        if named is None
        else (named.size, None if to_be_trained(config) else named.model)
    )


def _ranges(
    config: ProblemConfig,
    target: float,
    draft_family: ShapeRule,
    target_family: ShapeRule,
    loss: LoadedLaw,
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each variable, in non-embedding parameters."""
    found: dict[str, tuple[float, float]] = {}
    free = _FREE | {
        "draft_params": (max(_DRAFT_SHARE * target, smallest_draft(target)), target),
        "target_params": (target / _TARGET_RANGE, target * _TARGET_RANGE),
    }
    for name, value in config.variables.given().items():
        # A measured acceptance is that of one draft, whose size is no variable.
        if name == "draft_params" and config.draft.acceptance:
            continue
        if isinstance(value, str):
            found[name] = free[name]
            continue
        low, high = value
        if name in ("draft_params", "target_params"):
            family = draft_family if name == "draft_params" else target_family
            low, high = (_non_embedding(size, family, loss) for size in (low, high))
        found[name] = (low, high)
    require(bool(found), "no variable is left to be chosen; name lookahead among the variables.")
    return found


def _with_memory(
    limits: dict[str, float], serving: Serving, lower: Design, variables: Collection[str]
) -> tuple[dict[str, float], tuple[str, ...], tuple[str, ...]]:
    """The limits with that of the devices' memory, what there is to note, and why nothing fits where nothing does."""
    held = memory(serving, lower)
    if held.fits is None:
        return (
            limits,
            ("the memory of the device is not known: nothing says whether the models fit",),
            (),
        )
    limits = {"memory_bytes": held.usable_bytes} | limits
    if held.fits:
        return limits, (), ()
    free = [
        word for name, word in (("draft_params", "draft"), ("batch", "batch")) if name in variables
    ]
    what = f"even the smallest {' and '.join(free)}" if free else "target and draft"
    needed = f"; {held.smallest_devices} would do" if held.smallest_devices else ""
    count = int(serving.devices)
    text = (
        f"the models do not fit on {count} device{'s' * (count > 1)}: weights and caches of {what} "
        f"take {held.per_device_bytes / 1e9:.3g} GB of each device, of whose {held.capacity_bytes / 1e9:.3g} GB "
        f"{MEMORY_SHARE:.0%} can be used{needed}; times are as if they fitted"
    )
    return limits, (), (text,)
