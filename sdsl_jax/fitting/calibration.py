"""A device fitted to the timings of a calibration, with its error on models held out from the fit."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sdsl_jax.errors import require
from sdsl_jax.fitting.hardware import (
    HardwareFit,
    Timing,
    fit_hardware,
    hardware_intervals,
    predicted_seconds,
)
from sdsl_jax.hardware import Calibration, HardwareFile
from sdsl_jax.records import TimingRecord
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.statistics import Interval
from sdsl_jax.theory.hardware import Hardware, Precision, Shape

# Bytes of an element.
BYTES = {"float32": 4.0, "bfloat16": 2.0}
# Timings are noisy if the half-width of their intervals exceeds this share in the median.
_NOISY = 0.05
# A coefficient is not identified if its interval spans more than this factor ...
_VAGUE = 3.0
# ... which matters if it moves the time of a tenth of the timings by more than this share.
_MATTERS = 0.1
# The error on unseen models that a device's model should not exceed.
GOAL = 0.10


class Errors(NamedTuple):
    """|predicted/measured − 1| over some timings."""

    timings: int
    median: float
    worst: float


class DeviceFit(NamedTuple):
    """A calibrated device.

    Attributes:
      hardware: Coefficients, fitted to all timings.
      precision: Bytes of weights and caches in the timings.
      intervals: Intervals of the coefficients.
      condition_number: Condition number of the fit to all timings.
      unseen: Errors on the held-out models, with coefficients fitted to the others.
      unseen_kinds: Errors on the held-out models for each kind of operation.
      everything: Errors over all timings with the final coefficients.
      noise: Half the interval of a timing relative to it, the median over the timings.
      predicted: Seconds by the final coefficients, in the order of the rows.
      warnings: Caveats, a sentence each.
    """

    hardware: Hardware
    precision: Precision
    intervals: dict[str, Interval]
    condition_number: float
    unseen: Errors
    unseen_kinds: dict[str, Errors]
    everything: Errors
    noise: float
    predicted: np.ndarray
    warnings: tuple[str, ...]


def today() -> str:
    """Today's date, such as 2026-11-25."""
    return datetime.date.today().isoformat()


def hardware_file(
    name: str, rows: Sequence[TimingRecord], fitted: DeviceFit, date: str
) -> HardwareFile:
    """A calibrated device as a file to be shared.

    Args:
      name: Name of the device.
      rows: Timings that it was fitted to.
      fitted: The fit.
      date: Date of the timings.
    """
    first = rows[0]
    how = f", {first.threads} thread{'s' * (first.threads != 1)}" if first.threads else ""
    return HardwareFile(
        name=name,
        hardware=fitted.hardware,
        precision=fitted.precision,
        devices=first.device + how,
        source="sdsl calibrate, models with random weights",
        measured=True,
        calibration=Calibration(
            date=date,
            jax=jax.__version__,
            dtype=first.dtype,
            threads=first.threads,
            timings=len(rows),
            shapes=len({name for row in rows for name in (row.target_id, row.draft_id) if name}),
            unseen_timings=fitted.unseen.timings,
            unseen_median_error=round(fitted.unseen.median, 4),
            unseen_worst_error=round(fitted.unseen.worst, 4),
            median_error=round(fitted.everything.median, 4),
            noise=round(fitted.noise, 4),
        ),
        notes=fitted.warnings,
    )


def timing_of(row: TimingRecord) -> Timing:
    """The timing of a record."""

    def shape(role: str) -> Shape:
        # The timed models are dense: a record has no columns of experts.
        names = [name for name in Shape._fields if hasattr(row, f"{role}_{name}")]
        return Shape(**{name: float(getattr(row, f"{role}_{name}")) for name in names})

    draft = shape("draft") if row.operation == "round" else None
    return Timing(shape("target"), draft, row.tokens, row.batch, row.context, row.seconds)


def fit_device(
    rows: Sequence[TimingRecord], *, starts: int, draws: int, confidence: float, seed: int = 0
) -> DeviceFit:
    """Fits a device to timings: first without the held-out models, to measure the error on them,
    then to all.

    Args:
      rows: Timings of one device and one dtype.
      starts: Number of descents of a fit.
      draws: Number of bootstrap resamples.
      confidence: Confidence of the intervals.
      seed: Seed of starts and resamples.

    Raises:
      SdslError: There are too few rows, none is held out, or they have several dtypes.
    """
    dtypes = sorted({row.dtype for row in rows})
    require(
        len(dtypes) == 1 and dtypes[0] in BYTES,
        f"the timings are in {', '.join(dtypes) or 'no type'}; a device is fitted to one of {', '.join(BYTES)}.",
    )
    precision = Precision(BYTES[dtypes[0]], BYTES[dtypes[0]])
    timings = [timing_of(row) for row in rows]
    unseen_rows = np.asarray([bool(row.held_out) for row in rows])
    require(
        unseen_rows.any(),
        "none of the timings is held out; the error on unseen models needs some.",
    )
    # Weights rather than fewer rows, so that both fits share one compilation.
    seen = fit_hardware(timings, precision, starts, seed, weights=np.where(unseen_rows, 0.0, 1.0))
    measured = np.asarray([row.seconds for row in rows])
    off = np.abs(predicted_seconds(seen.hardware, timings, precision) / measured - 1)
    kinds = np.asarray([row.operation for row in rows])
    fitted = fit_hardware(timings, precision, starts, seed)
    labels = [row.target_id for row in rows]
    intervals = hardware_intervals(fitted, timings, precision, labels, confidence, draws, seed)
    predicted = predicted_seconds(fitted.hardware, timings, precision)
    half = np.asarray([(row.seconds_high - row.seconds_low) / 2 / row.seconds for row in rows])
    noise = float(np.nanmedian(half)) if np.isfinite(half).any() else 0.0
    unseen = _errors(off[unseen_rows])
    return DeviceFit(
        hardware=fitted.hardware,
        precision=precision,
        intervals=intervals,
        condition_number=fitted.condition_number,
        unseen=unseen,
        unseen_kinds={
            k: _errors(off[unseen_rows & (kinds == k)])
            for k in dict.fromkeys(kinds)
            if (unseen_rows & (kinds == k)).any()
        },
        everything=_errors(np.abs(predicted / measured - 1)),
        noise=noise,
        predicted=predicted,
        warnings=_warnings(fitted, intervals, timings, precision, unseen, noise),
    )


def _errors(off: np.ndarray) -> Errors:
    return Errors(len(off), float(np.median(off)), float(off.max()))


def _warnings(
    fitted: HardwareFit,
    intervals: dict[str, Interval],
    timings: Sequence[Timing],
    precision: Precision,
    unseen: Errors,
    noise: float,
) -> tuple[str, ...]:
    texts = []
    if fitted.status is not SolverStatus.CONVERGED:
        texts.append(f"the fit {fitted.status.message}: do not rely on its coefficients.")
    if noise > _NOISY:
        texts.append(
            f"the timings are noisy: half of their intervals are wider than ± {noise:.0%}; other programs may be running."
        )
    if unseen.median > GOAL:
        texts.append(
            f"on unseen models the median error is {unseen.median:.0%}, more than {GOAL:.0%}: take predictions of this file "
            "as rough."
        )
    for name in vague(fitted.hardware, intervals, timings, precision):
        low, high = intervals[name].low, intervals[name].high
        texts.append(
            f"{name} is not identified by these timings: its interval runs from {low:.2g} to {high:.2g}."
        )
    if fitted.condition_number > 1e4:
        texts.append(
            f"the condition number of the fit is {fitted.condition_number:.0e}: some coefficients only have a sum that is known."
        )
    return tuple(texts)


def vague(
    hardware: Hardware,
    intervals: dict[str, Interval],
    timings: Sequence[Timing],
    precision: Precision,
) -> list[str]:
    """Coefficients with wide intervals that matter for some timings."""
    names = []
    for name, interval in intervals.items():
        if name == "sharpness" or interval.high <= _VAGUE * max(interval.low, 1e-30):
            continue
        ends = [
            predicted_seconds(hardware._replace(**{name: max(end, 1e-30)}), timings, precision)
            for end in (interval.low, interval.high)
        ]
        change = np.abs(ends[1] - ends[0]) / predicted_seconds(hardware, timings, precision)
        if np.quantile(change, 0.9) > _MATTERS:
            names.append(name)
    return names
