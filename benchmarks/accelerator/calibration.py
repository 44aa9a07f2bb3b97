"""Seconds of decoding steps and verify passes by width, batch and context, as a hardware file.

Timing, fit and file are those of `sdsl calibrate`; what is timed differs. That command spreads some
80 programs over many shapes. This one takes about half as many of a few real sizes, in groups: a
group for which there is no time is left out, and the fit takes what was timed. A pass over one
token is a plain decoding step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from benchmarks.accelerator.parts import Measured, Task, progress, slug
from benchmarks.decode import floor
from sdsl_jax.fitting.calibration import GOAL, DeviceFit, fit_device, hardware_file, today
from sdsl_jax.hardware import save_hardware
from sdsl_jax.measurement.calibration import (
    Operation,
    Scale,
    build,
    model_name,
    time_operations,
    unseen_models,
)
from sdsl_jax.models import ModelConfig
from sdsl_jax.records import TimingRecord

HARDWARE_FILE = "hardware.toml"
_DTYPE, _CONFIDENCE = "bfloat16", 0.9
# Seconds of a program before any was timed, and of the fit.
_PROGRAM_SECONDS, _FIT_SECONDS = 4.0, 20.0
_BANDWIDTH_SECONDS = 10.0


class Group(NamedTuple):
    """Operations that are timed, or left out, together."""

    name: str
    operations: list[Operation]

    @property
    def programs(self) -> int:
        """Programs to compile: a round needs those that read both prompts as well."""
        return sum(1 if o.draft is None else 3 for o in self.operations)


class Plan(NamedTuple):
    """Everything that is timed.

    Attributes:
      scale: Lengths, and the room for decoded tokens.
      groups: Operations in the order of their value.
      repetitions: Timed runs of each operation.
      starts: Descents of the fit.
      draws: Bootstrap resamples of the fit.
      bandwidth_bytes: Size of the array that shows the memory's bandwidth.
    """

    scale: Scale
    groups: list[Group]
    repetitions: int
    starts: int
    draws: int
    bandwidth_bytes: int


def _scale(head_dim: int, kv_groups: int, prompts: tuple[int, int], new_tokens: int) -> Scale:
    return Scale((), (), head_dim, kv_groups, (), prompts, new_tokens)


def _passes(config: ModelConfig, *cells: tuple[int, int, int]) -> list[Operation]:
    """Passes of a model, each given by new tokens of a row, rows, and tokens before them."""
    return [Operation("verify", config, None, *cell) for cell in cells]


def accelerator_plan() -> Plan:
    """42 operations, 48 programs, of seven models from 9M to 5.8B parameters.

    Simulated with 3% of noise they identify every coefficient, with the largest model and without.
    """
    # Caches of 512 and 4,096 positions.
    scale = _scale(128, 4, (448, 4032), 64)
    short, long = scale.prompt_tokens

    def model(width: int, layers: int, vocab_size: int = 32_000) -> ModelConfig:
        return build(scale, (width, layers, vocab_size))

    tiny, small, large, largest = model(256, 1), model(768, 12), model(2048, 16), model(4096, 32)
    widths = [(width, 1, short) for width in (1, 2, 3, 5, 9, 17)]
    rows = [(1, 8, short), (5, 8, short), (1, 32, short), (17, 32, short)]
    groups = [
        Group("771M", _passes(large, *widths, *rows, (1, 1, long), (5, 8, long), (1, 32, long))),
        Group("98M", _passes(small, *widths, (1, 8, long), (5, 32, short), (17, 32, long))),
        # Depth and width apart from size; by their sizes the second and the fourth are held out.
        Group(
            "shapes",
            _passes(tiny, (1, 1, short), (5, 8, short), (9, 32, long))
            + _passes(model(512, 12, 8192), (1, 1, short), (5, 8, long), (17, 32, short))
            + _passes(model(2048, 2, 8192), (1, 1, long), (9, 32, short), (2, 8, short))
            + _passes(model(1024, 16), (1, 1, short), (5, 1, short), (3, 8, long), (17, 32, short)),
        ),
        Group(
            "rounds",
            [
                Operation("round", target, draft, lookahead, 1, short)
                for target, draft, lookahead in (
                    (large, small, 4),
                    (large, tiny, 8),
                    (small, tiny, 2),
                )
            ],
        ),
        Group("5.8B", _passes(largest, (1, 1, short), (5, 1, short), (17, 1, short), (1, 8, long))),
    ]
    return Plan(scale, groups, 5, 32, 64, 1 << 31)


def small_plan() -> Plan:
    """As few programs as a fit takes."""
    scale = _scale(16, 1, (8, 40), 16)
    short, long = scale.prompt_tokens
    shapes = ((16, 1), (16, 3), (32, 2), (48, 1))
    models = [build(scale, (width, layers, 64)) for width, layers in shapes]
    passes = [o for config in models for o in _passes(config, (1, 1, short), (3, 4, long))]
    rounds = [Operation("round", models[2], models[0], 2, 1, short)]
    return Plan(scale, [Group("passes", passes), Group("rounds", rounds)], 3, 8, 8, 1 << 22)


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """The fit is thousands of small operations, for which an accelerator is no help."""
    try:
        device = jax.devices("cpu")[0]
    except RuntimeError:
        yield
        return
    with jax.default_device(device):
        yield


def _curves(rows: list[TimingRecord]) -> dict[str, dict[str, float]]:
    """Seconds of a pass of one row over the shorter cache, in steps, by model and new tokens."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row.target_id for row in rows if row.operation == "verify"):
        mine = [row for row in rows if row.target_id == name and row.operation == "verify"]
        shortest = min(row.context - row.tokens for row in mine)
        seconds = {
            row.tokens: row.seconds
            for row in mine
            if row.batch == 1 and row.context - row.tokens == shortest
        }
        if 1 in seconds:
            found[name] = {str(w): s / seconds[1] for w, s in sorted(seconds.items())}
    return found


def _time(plan: Plan, task: Task, result: dict[str, Any]) -> list[TimingRecord]:
    """Times the groups for which there is time, and keeps the rows after each."""
    rows: list[TimingRecord] = []
    operations: list[Operation] = []
    seconds, programs = 0.0, 0
    for group in plan.groups:
        expected = (seconds / programs if programs else _PROGRAM_SECONDS) * group.programs
        if rows and task.seconds_left - _FIT_SECONDS < expected:
            result["left_out"].append(group.name)
            continue
        progress(f"{group.name}: {len(group.operations)} operations, about {expected:.0f} s")
        began = time.monotonic()
        try:
            timed = time_operations(
                group.operations,
                plan.scale,
                dtype=_DTYPE,
                repetitions=plan.repetitions,
                confidence=_CONFIDENCE,
                threads=0,
            )
        except Exception as error:
            # Too little memory for one group shall not cost the others.
            result["failed"][group.name] = f"{type(error).__name__}: {error}"
            continue
        finally:
            seconds, programs = seconds + time.monotonic() - began, programs + group.programs
        rows += timed
        operations += group.operations
        unseen = unseen_models(operations)
        rows = [
            dataclasses.replace(row, held_out=int(bool({row.target_id, row.draft_id} & unseen)))
            for row in rows
        ]
        result["timings"] = [dataclasses.asdict(row) for row in rows]
        result["passes_in_steps"] = _curves(rows)
        result["seconds_per_program"] = seconds / programs
        task.keep(result)
    return rows


def _fitted(fit: DeviceFit) -> dict[str, Any]:
    return {
        "coefficients": {name: i._asdict() for name, i in fit.intervals.items()},
        "unseen": fit.unseen._asdict(),
        "unseen_by_kind": {kind: e._asdict() for kind, e in fit.unseen_kinds.items()},
        "all": fit.everything._asdict(),
        "noise": fit.noise,
        "condition_number": fit.condition_number,
        "warnings": list(fit.warnings),
        "predicted_seconds": [float(x) for x in fit.predicted],
    }


def _share_of_bandwidth(plan: Plan, rows: list[TimingRecord], best: float) -> dict[str, float]:
    """By model: least seconds that memory allows a step of one row, over those measured."""
    configs = {model_name(o.target): o.target for group in plan.groups for o in group.operations}
    shares = {}
    for row in rows:
        if row.operation == "verify" and row.tokens == row.batch == 1:
            read = floor.bytes_read(
                configs[row.target_id], batch=1, context=row.context, dtype=_DTYPE
            )
            shares[f"{row.target_id}, context {row.context}"] = read / best / row.seconds
    return shares


def measure(task: Task) -> Measured:
    """Times passes, fits the device and writes its file.

    Raises:
      SdslError: Too few groups could be timed for a fit.
    """
    plan = small_plan() if task.small else accelerator_plan()
    result: dict[str, Any] = {"left_out": [], "failed": {}}
    rows = _time(plan, task, result)
    progress(f"fit to {len(rows)} timings")
    with _on_cpu():
        fit = fit_device(rows, starts=plan.starts, draws=plan.draws, confidence=_CONFIDENCE)
    name = slug(jax.devices()[0].device_kind)
    save_hardware(hardware_file(name, rows, fit, today()), task.folder / HARDWARE_FILE)
    result |= {"file": HARDWARE_FILE, **_fitted(fit)}

    def extras() -> dict[str, Any]:
        if task.seconds_left < _BANDWIDTH_SECONDS and not task.small:
            return {}
        covered = 8 * plan.bandwidth_bytes if task.small else None
        rates = floor.bandwidth(plan.bandwidth_bytes, _DTYPE, covered)
        shares = _share_of_bandwidth(plan, rows, rates["best"])
        return {"bandwidth": rates, "share_of_bandwidth": shares}

    without = f", without {', '.join(result['left_out'])}" if result["left_out"] else ""
    headline = (
        f"median error on unseen models {fit.unseen.median:.1%}, {len(rows)} timings{without}"
    )
    return Measured(headline, fit.unseen.median, GOAL, result, True, extras)
