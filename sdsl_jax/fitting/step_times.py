"""The coefficients of a serving engine from anybody's step times: those that a table of one or two
models can tell, on top of a device whose others are known.

A calibration of our own times models that were chosen to tell every coefficient apart. A table from
an engine holds a few dozen passes of one or two models. So coefficients enter one at a time, as long
as each is worth its place by the Bayesian information criterion. The others keep the device's values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdsl_jax.errors import require
from sdsl_jax.fitting import hardware as devices
from sdsl_jax.fitting.hardware import Timing, predicted_seconds
from sdsl_jax.fitting.solver import refit
from sdsl_jax.theory.hardware import Hardware, Precision

# What a table can tell about an engine, in the order in which one is preferred to another that
# explains the rows as well: overheads that grow with the work before those that do not, and rates of
# the device last.
COEFFICIENTS = (
    "layer_seconds",
    "token_seconds",
    "wide_seconds",
    "matrix_seconds",
    "cache_slowdown",
    "bytes_per_second",
    "flops_per_second",
    "pass_seconds",
    "logit_seconds",
)
# From so many rows on, half of them predict the other half; below, all but one predict that one.
HALVES_FROM = 8
# Errors below this share of a row's time are noise of the timer, which no coefficient explains.
_NOISE = 0.003
# Criteria that differ by less than this do not tell two coefficients apart.
_ALIKE = 2.0
# A coefficient that changes no row by this share when it is doubled or halved is not seen.
_SEEN = 0.02
# Where a coefficient is 0 in the device's file, its descents begin at this.
_BEGIN = {"token_seconds": 5e-6, "logit_seconds": 1e-11, "pass_seconds": 1e-4}
_BEGIN_OF_A_LAYER = 3e-5


class Errors(NamedTuple):
    """|predicted/measured − 1| of rows that a fit did not see.

    Attributes:
      rows: Number of rows, or 0 if there were too few to leave any out.
      median: Median error.
      worst: Largest error.
    """

    rows: int
    median: float
    worst: float


class StepTimesFit(NamedTuple):
    """An engine's coefficients.

    Attributes:
      hardware: The device with the fitted coefficients in place of its own.
      fitted: Names of the fitted coefficients.
      not_told: Why each other coefficient keeps the device's value.
      unseen: Errors of rows left out of the choice of coefficients and of the fit alike.
      unseen_predicted: Seconds of each row from a fit that did not see it; NaN where there is none.
      left_out: How rows were left out: "half" or "one".
      everything: Errors of all rows with the final coefficients, which were fitted to them.
      predicted: Seconds of each row by the final coefficients.
      warnings: Caveats, a sentence each.
    """

    hardware: Hardware
    fitted: tuple[str, ...]
    not_told: dict[str, str]
    unseen: Errors
    unseen_predicted: Float[np.ndarray, " n"]
    left_out: str
    everything: Errors
    predicted: Float[np.ndarray, " n"]
    warnings: tuple[str, ...]


def fit_step_times(
    timings: Sequence[Timing], precision: Precision, device: Hardware
) -> StepTimesFit:
    """Fits an engine to passes of one or more models, by a robust fit of ln seconds.

    Args:
      timings: Passes, at least two. Of 8 or more, halves (every other row) predict each other; of
        fewer, each row is predicted from all others.
      precision: Bytes of weights and caches of the timed models.
      device: Coefficients that hold where the table cannot tell them. Its bandwidth and peak are
        also the largest that a fit may give.

    Raises:
      SdslError: There are fewer than two rows, or one is a round.
    """
    require(len(timings) >= 2, f"{len(timings)} step time cannot tell an engine; give at least 2.")
    require(
        all(t.draft is None for t in timings),
        "rounds were given; an engine is fitted to the times of single passes.",
    )
    rows = np.arange(len(timings))
    halves = len(timings) >= HALVES_FROM
    left_out = [rows % 2 == 0, rows % 2 == 1] if halves else [rows == i for i in rows]
    with jax.enable_x64(True):
        problem = _Problem(timings, precision, device)
        hardware, fitted = problem.solve(np.ones(len(rows), bool))
        unseen = np.full(len(rows), np.nan)
        for out in left_out if len(rows) > 2 else ():
            unseen[out] = problem.predicted(problem.solve(~out)[0])[out]
        predicted = problem.predicted(hardware)
    off = np.abs(unseen / problem.seconds - 1)
    known = np.isfinite(off)
    return StepTimesFit(
        hardware=hardware,
        fitted=fitted,
        not_told=_not_told(hardware, fitted, timings, precision),
        unseen=_errors(off[known]),
        unseen_predicted=unseen,
        left_out="half" if halves else "one",
        everything=_errors(np.abs(predicted / problem.seconds - 1)),
        predicted=predicted,
        warnings=_warnings(hardware, device, fitted, off[known], len(timings)),
    )


class _Problem:
    """Fits to any rows of one table; all share one compiled program."""

    def __init__(self, timings: Sequence[Timing], precision: Precision, device: Hardware):
        self.seconds = np.asarray([t.seconds for t in timings])
        self._timings, self._precision, self._device = timings, precision, device
        limits = {
            "bytes_per_second": float(device.bytes_per_second),
            "flops_per_second": float(device.flops_per_second),
        }
        table = devices._table(timings, precision, (), device)
        self._data = table._replace(
            limits=np.asarray([limits.get(name, np.inf) for name in devices._FITTED])
        )

    def _fits(self, names: Sequence[str], weights: Float[np.ndarray, "R n"]) -> list[Hardware]:
        """The best fit of these coefficients under each row of weights."""
        if not names:
            return [self._device] * len(weights)
        everything = (*devices._FITTED, "sharpness")
        data = self._data._replace(active=np.asarray([name in names for name in everything]))
        begin = {
            name: max(0.8 * float(getattr(self._device, name)), _BEGIN.get(name, _BEGIN_OF_A_LAYER))
            for name in names
        }
        start = devices._vector(self._device._replace(**begin))
        ends = refit(devices._residuals, start[None], data, weights, devices._HUBER)
        fitted = jax.vmap(lambda x: devices._hardware(x, data))(ends.parameters)
        return [Hardware(*(float(value[i]) for value in fitted)) for i in range(len(weights))]

    def predicted(self, hardware: Hardware) -> Float[np.ndarray, " n"]:
        return predicted_seconds(hardware, self._timings, self._precision)

    def _criterion(self, names: Sequence[str], used: np.ndarray) -> float:
        """n·ln(mean squared error) + k·ln n of ln seconds: the smaller, the better."""
        hardware = self._fits(names, used[None].astype(float))[0]
        off = np.log(self.predicted(hardware) / self.seconds)[used]
        squares = np.mean(np.minimum(np.abs(off), devices._HUBER) ** 2)
        return len(off) * math.log(squares + _NOISE**2) + len(names) * math.log(len(off))

    def solve(self, used: np.ndarray) -> tuple[Hardware, tuple[str, ...]]:
        """The coefficients that the used rows tell, and the device with them."""
        # Every engine has an overhead of its own; one row tells it.
        names = ["layer_seconds"]
        # One row more than coefficients is the least that can contradict them.
        room = max(int(used.sum()) - 1, 1)
        best = self._criterion(names, used)
        while len(names) < room:
            tried = {
                name: self._criterion([*names, name], used)
                for name in COEFFICIENTS
                if name not in names
            }
            least = min(tried.values())
            if least >= best - _ALIKE:
                break
            names.append(next(name for name, value in tried.items() if value <= least + _ALIKE))
            best = tried[names[-1]]
        ordered = tuple(name for name in COEFFICIENTS if name in names)
        return self._fits(ordered, used[None].astype(float))[0], ordered


def _errors(off: np.ndarray) -> Errors:
    if not len(off):
        return Errors(0, float("nan"), float("nan"))
    return Errors(len(off), float(np.median(off)), float(off.max()))


def _not_told(
    hardware: Hardware, fitted: tuple[str, ...], timings: Sequence[Timing], precision: Precision
) -> dict[str, str]:
    """Why each coefficient that was not fitted was not, a phrase each."""
    models = {tuple(map(float, t.target)) for t in timings}
    depths = {float(t.target.layers) for t in timings}
    vocabularies = {float(t.target.vocab_size) for t in timings}
    wide = {t.tokens > 1 for t in timings}
    several = {t.tokens * t.batch > 1 for t in timings}
    structural = {
        "pass_seconds": (
            len(depths) == 1,
            "all models have the same depth; it is in layer_seconds",
        ),
        "logit_seconds": (
            len(vocabularies) == 1,
            "all models have the same vocabulary; it is in token_seconds",
        ),
        "wide_seconds": (
            len(wide) == 1,
            "all rows feed several tokens to a row; it is in layer_seconds"
            if True in wide
            else "no row feeds several tokens to a row",
        ),
        "matrix_seconds": (
            len(several) == 1,
            "all rows feed several tokens; it is in layer_seconds"
            if True in several
            else "no row feeds several tokens",
        ),
        "cache_slowdown": (not any(t.context for t in timings), "no row has a context"),
        "bytes_per_second": (
            len(models) == 1 and "cache_slowdown" in fitted,
            "one model was timed; the reading of its weights is not told from the overhead of its layers",
        ),
    }
    reasons = {}
    base = predicted_seconds(hardware, timings, precision)
    for name in COEFFICIENTS:
        if name in fitted:
            continue
        applies, text = structural.get(name, (False, ""))
        if not applies:
            value = float(getattr(hardware, name))
            moved = [
                predicted_seconds(hardware._replace(**{name: value * f}), timings, precision)
                for f in (0.5, 2.0)
            ]
            change = max(float(np.abs(m / base - 1).max()) for m in moved)
            text = (
                f"no row changes by {_SEEN:.0%} if it doubles or halves"
                if value and change < _SEEN
                else "the rows come out hardly better with it"
            )
        reasons[name] = text
    return reasons


def _warnings(
    hardware: Hardware,
    device: Hardware,
    fitted: tuple[str, ...],
    off: np.ndarray,
    rows: int,
) -> tuple[str, ...]:
    texts = []
    if len(off) and (np.median(off) > 0.03 or off.max() > 0.1):
        texts.append(
            f"left-out rows are off by {np.median(off):.1%} in the median and {off.max():.1%} at worst: "
            "the cost model does not describe this engine well."
        )
    if rows < HALVES_FROM:
        texts.append(
            f"{rows} rows are few; {HALVES_FROM} or more would let one half of them test the other."
        )
    for name, unit in (("bytes_per_second", "bandwidth"), ("flops_per_second", "peak")):
        peak = float(getattr(device, name))
        if name in fitted and float(getattr(hardware, name)) >= 0.999 * peak:
            texts.append(
                f"the times ask for more than the device's {unit} of {peak:.3g} per second: are the bytes of a weight right?"
            )
    return tuple(texts)


__all__ = ["COEFFICIENTS", "HALVES_FROM", "Errors", "StepTimesFit", "fit_step_times"]
