"""Changes that would make an infeasible problem feasible, as flags and values, found by evaluating designs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdsl_jax.codesign.program import Evaluated, evaluate, whole_lookaheads
from sdsl_jax.codesign.serving_problem import ServingProblem
from sdsl_jax.theory.serving import Design

# Sizes of drafts and batches that are tried where they are variables.
_SIZES, _BATCHES = 24, 24
_MOST_DEVICES = 1024
_FLAGS = {
    "hardware.devices": "--devices",
    "draft.devices": "--draft-devices",
    "workload.batch": "--batch",
}


@dataclass(frozen=True)
class Remedy:
    """One change that makes an infeasible problem feasible by itself.

    Attributes:
      flags: The flags to give.
      values: The values to set, by key of the problem file.
    """

    flags: str
    values: dict[str, float]


def remedies(problem: ServingProblem, design: Design) -> list[Remedy]:
    """Each change that is enough by itself.

    Devices double until some draft, lookahead and batch keep every limit; a batch is the largest
    below the given one that does; a limit is the least that can be kept beside the others. Limits
    that help only together are one change. What is no variable is as in the design.

    Args:
      problem: A problem without a feasible design.
      design: The design that breaks its limits least.
    """
    config = problem.config
    changes: list[dict[str, float]] = []
    devices, apart = config.hardware.devices, config.draft.devices
    if config.hardware.overlapped:
        apart = config.draft_devices
    elif (
        config.draft_devices < devices and _designs(problem, design, devices, devices).allowed.any()
    ):
        changes.append({"draft.devices": devices})
    doubled = [2**k for k in range(int(math.log2(devices)) + 1, int(math.log2(_MOST_DEVICES)) + 1)]
    # A draft that was put on some of the devices stays there if that will do, and else goes to all
    # of them.
    placements = [(n, d) for n in doubled for d in dict.fromkeys((apart or n, n))]
    more = next(
        (place for place in placements if _designs(problem, design, *place).allowed.any()), None
    )
    if more is not None:
        moved = {} if apart in (None, more[1]) else {"draft.devices": more[1]}
        changes.append({"hardware.devices": more[0], **moved})
    if "batch" not in problem.program.variables:
        batch = _largest(
            lambda rows: bool(
                _designs(problem, design, devices, config.draft_devices, rows).allowed.any()
            ),
            int(config.workload.batch),
        )
        changes += [{"workload.batch": batch}] if batch else []
    changes += _limits(problem, _designs(problem, design, devices, config.draft_devices))
    return [Remedy(" ".join(_flag(*pair) for pair in each.items()), each) for each in changes]


def keeps_limits(problem: ServingProblem, design: Design) -> bool:
    """Whether some draft, whole lookahead and batch keep every limit; what is no variable is as in
    the design."""
    config = problem.config
    designs = _designs(problem, design, config.hardware.devices, config.draft_devices)
    return bool(designs.allowed.any())


def _flag(key: str, value: float) -> str:
    section, name = key.split(".")
    if section == "constraints":
        return f"--constraint {name}={value:.3g}"
    return f"{_FLAGS[key]} {value:g}"


def _designs(
    problem: ServingProblem,
    design: Design,
    devices: int,
    draft_devices: int,
    batch: float | None = None,
) -> Evaluated:
    """Drafts, whole lookaheads and batches on so many devices; leaves [sizes, lookaheads, batches]."""
    inputs = problem.inputs

    def values(name: str, count: int) -> np.ndarray:
        if name not in problem.program.variables:
            return np.asarray([float(getattr(design, name))])
        low, high = (float(getattr(end, name)) for end in (inputs.lower, inputs.upper))
        return np.geomspace(low, high, count)

    free = np.unique(np.floor(values("batch", _BATCHES)))
    rows = free if batch is None else np.asarray([float(batch)])
    grid = design._replace(
        draft_params=values("draft_params", _SIZES)[:, None, None],
        lookahead=whole_lookaheads(problem.program, inputs)[None, :, None],
        batch=rows[None, None, :],
    )
    serving = inputs.serving._replace(devices=float(devices), draft_devices=float(draft_devices))
    return evaluate(problem.program, inputs._replace(serving=serving), grid)


def _limits(problem: ServingProblem, designs: Evaluated) -> list[dict[str, float]]:
    """For each limit, the least value that can be kept beside all other limits; memory has no flag.

    Where several must move, their values at the design with the smallest product of factors by
    which it exceeds them.
    """
    limits = dict(zip(problem.program.constraints, np.asarray(problem.inputs.limits)))
    values = {name: np.asarray(getattr(designs.outcome, name)) for name in limits}
    every = np.ones(designs.objective.shape, bool)
    changes = []
    for name in limits:
        others = every.copy()
        for other, limit in limits.items():
            others &= (other == name) | (values[other] <= limit)
        kept = values[name][others]
        if name != "memory_bytes" and kept.size and kept.min() > limits[name]:
            changes.append({f"constraints.{name}": _rounded_up(float(kept.min()))})
    fits = values["memory_bytes"] <= limits["memory_bytes"] if "memory_bytes" in limits else every
    if changes or not limits or not fits.any():
        return changes
    excess = np.prod([np.maximum(values[n] / limit, 1) for n, limit in limits.items()], axis=0)
    least = np.unravel_index(np.argmin(np.where(fits, excess, np.inf)), excess.shape)
    together = {
        f"constraints.{name}": _rounded_up(float(values[name][least]))
        for name, limit in limits.items()
        if float(values[name][least]) > limit
    }
    return [together] if together else []


def _rounded_up(value: float) -> float:
    """To three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit * (1 + 1e-9)) * unit:.6g}")


def _largest(keeps: Callable[[int], bool], too_large: int) -> int | None:
    """The largest whole number below one that is too large, assuming that limits rise with it; None
    if 1 is too large already."""
    if too_large <= 1 or not keeps(1):
        return None
    low, high = 1, too_large
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low
