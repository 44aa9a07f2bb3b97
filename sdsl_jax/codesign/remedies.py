"""What would make a problem feasible that has no feasible design: flags and their values, found by evaluating designs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sdsl_jax.codesign.evaluate import Evaluated, evaluate, whole_lookaheads
from sdsl_jax.codesign.serving_problem import Problem
from sdsl_jax.theory.serving import Design

# Sizes of drafts and batches that are tried where they are variables.
_SIZES, _BATCHES = 24, 24
_MOST_DEVICES = 1024
_FLAGS = {
    "hardware.devices": "--devices",
    "draft.devices": "--draft-devices",
    "workload.batch": "--batch",
}


def remedies(problem: Problem, design: Design) -> list[dict[str, Any]]:
    """Each change that is enough by itself: its flags as text, and its values by key of the problem
    file.

    Devices double until some draft, lookahead and batch keep every limit; a batch is the largest
    below the given one that does; a limit is the least that can be kept beside the others. Limits
    that help only together are one change. What is no variable is as in the design.

    Args:
      problem: without a feasible design.
      design: that breaks its limits least.
    """
    config = problem.config
    found: list[dict[str, float]] = []
    devices, apart = config.hardware.devices, config.draft.devices
    if config.draft_devices < devices and _keeps(problem, design, devices, devices):
        found.append({"draft.devices": devices})
    doubled = [2**k for k in range(int(math.log2(devices)) + 1, int(math.log2(_MOST_DEVICES)) + 1)]
    # A draft that was put on some of the devices stays there if that will do, and else goes to all
    # of them.
    placements = [(n, d) for n in doubled for d in dict.fromkeys((apart or n, n))]
    more = next((place for place in placements if _keeps(problem, design, *place)), None)
    if more is not None:
        moved = {} if apart in (None, more[1]) else {"draft.devices": more[1]}
        found.append({"hardware.devices": more[0], **moved})
    if "batch" not in problem.program.variables:
        asked = int(config.workload.batch)
        batch = _largest(
            lambda rows: _keeps(problem, design, devices, config.draft_devices, rows), asked
        )
        found += [{"workload.batch": batch}] if batch else []
    found += _limits(problem, _designs(problem, design, devices, config.draft_devices))
    return [
        {"flags": " ".join(_flag(*pair) for pair in change.items()), "values": change}
        for change in found
    ]


def keeps_limits(problem: Problem, design: Design) -> bool:
    """Whether some draft, whole lookahead and batch keep every limit; what is no variable is as in the design."""
    return _keeps(problem, design, problem.devices, problem.config.draft_devices)


def _flag(key: str, value: float) -> str:
    section, name = key.split(".")
    return (
        f"--constraint {name}={value:.3g}"
        if section == "constraints"
        else f"{_FLAGS[key]} {value:g}"
    )


def _designs(
    problem: Problem, design: Design, devices: int, draft_devices: int, batch: float | None = None
) -> Evaluated:
    """Drafts, whole lookaheads and batches on so many devices; leaves [sizes, lookaheads, batches]."""
    inputs = problem.inputs

    def values(name: str, count: int) -> np.ndarray:
        if name not in problem.program.variables:
            return np.asarray([float(getattr(design, name))])
        low, high = (float(getattr(end, name)) for end in (inputs.lower, inputs.upper))
        return np.geomspace(low, high, count)

    rows = (
        np.unique(np.floor(values("batch", _BATCHES)))
        if batch is None
        else np.asarray([float(batch)])
    )
    grid = design._replace(
        draft_params=values("draft_params", _SIZES)[:, None, None],
        lookahead=whole_lookaheads(problem.program, inputs)[None, :, None],
        batch=rows[None, None, :],
    )
    serving = inputs.serving._replace(devices=float(devices), draft_devices=float(draft_devices))
    return evaluate(problem.program, inputs, serving, grid)


def _keeps(
    problem: Problem, design: Design, devices: int, draft_devices: int, batch: float | None = None
) -> bool:
    """Whether one of the designs keeps every limit."""
    return bool(np.asarray(_designs(problem, design, devices, draft_devices, batch).allowed).any())


def _limits(problem: Problem, designs: Evaluated) -> list[dict[str, float]]:
    """For each limit but that of memory, which no flag moves, the least value that can be kept
    beside all other limits.

    Where several must move, their values at the design with the smallest product of factors by
    which it exceeds them.
    """
    names, limits = problem.program.constraints, np.asarray(problem.inputs.limits)
    values = {name: np.asarray(getattr(designs.outcome, name)) for name in names}
    found = []
    for name, limit in zip(names, limits):
        others = [values[n] <= most for n, most in zip(names, limits) if n != name]
        kept = values[name][np.all(others, axis=0)] if others else values[name].ravel()
        if name != "memory_bytes" and kept.size and kept.min() > limit:
            found.append({f"constraints.{name}": _rounded_up(float(kept.min()))})
    fits = np.all(
        [values[n] <= most for n, most in zip(names, limits) if n == "memory_bytes"], axis=0
    )
    if found or not names or not np.any(fits):
        return found
    excess = np.prod(
        [np.maximum(values[name] / limit, 1) for name, limit in zip(names, limits)], axis=0
    )
    least = np.unravel_index(np.argmin(np.where(fits, excess, np.inf)), excess.shape)
    moved = {name: float(values[name][least]) for name in names}
    together = {
        f"constraints.{name}": _rounded_up(moved[name])
        for name, limit in zip(names, limits)
        if moved[name] > limit
    }
    return [together] if together else []


def _rounded_up(value: float) -> float:
    """To three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit * (1 + 1e-9)) * unit:.6g}")


def _largest(keeps: Callable[[int], bool], too_large: int) -> int | None:
    """The largest whole number below one that is too large; None if 1 is too large already. Limits are taken to rise with it."""
    if too_large <= 1 or not keeps(1):
        return None
    low, high = 1, too_large
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low
