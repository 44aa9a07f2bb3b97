"""The coefficients of a serving engine from anybody's step times: those that a table of one or two
models can tell, on top of a device whose others are known.

A calibration of our own times models that were chosen to tell every coefficient apart. A table from
an engine holds a few dozen passes of one or two models. So coefficients enter one at a time, as long
as each is worth its place by the Bayesian information criterion. The others keep the device's values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sdsl_jax.counts import short_count
from sdsl_jax.csv_table import CsvTable, read_csv
from sdsl_jax.errors import require
from sdsl_jax.fitting.hardware import (
    FITTED,
    HUBER,
    Timing,
    device_and_seconds,
    log_errors,
    timing_data,
    vector_of,
)
from sdsl_jax.fitting.solver import refit
from sdsl_jax.theory.hardware import Hardware, Precision, Shape
from sdsl_jax.theory.published_models import published_shape

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
# Rates of the device, which no fit exceeds, in words.
_PEAKS = {"bytes_per_second": "bandwidth", "flops_per_second": "peak"}
# Tables are padded to a multiple of so many rows.
_PADDED = 32
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


class StepTimes(NamedTuple):
    """The step times of one engine.

    Attributes:
      models: Name of the model of each row.
      timings: The rows.
      precision: Bytes of weights and caches.
    """

    models: list[str]
    timings: list[Timing]
    precision: Precision


def read_step_times(path: str | Path) -> dict[str, StepTimes]:
    """Reads a table of step times, by the names of its engines.

    Columns: `milliseconds` (or `seconds`) of one forward pass, `batch` (rows), `tokens_per_row` (new
    tokens, 1 if left out), `context` (positions in the cache of a row, 0 if left out), and the model:
    `model`, a published one such as Qwen3-1.7B, or its shape in `params` (non-embedding), `layers`,
    `width`, `query_width`, `kv_width`, `vocab_size`, `embedding_tables`, and for a mixture of experts
    `expert_params`, `experts`, `active_experts`. `engine` (or `hardware`) tells rows of several
    engines apart; `weight_bytes` and `cache_bytes` are 2 if left out.

    Raises:
      SdslError: The file cannot be read, a column is missing, a cell is unusable, or a model is
        not known.
    """
    table = read_csv(path, "table of step times", lower=True)
    unit, scale = ("milliseconds", 1e-3) if "milliseconds" in table else ("seconds", 1.0)
    if unit == "seconds" and unit not in table:
        table.require_columns("milliseconds")
    seconds = scale * table.numbers(unit)
    batch = table.numbers("batch")
    # Cells of a column that is absent.
    everywhere = np.ones(len(table))
    tokens = table.numbers("tokens_per_row") if "tokens_per_row" in table else everywhere
    context = table.amounts("context") if "context" in table else 0 * everywhere
    label = next((name for name in ("engine", "hardware") if name in table), None)
    labels = table.column(label) if label else ["engine"] * len(table)
    models, shapes = _shapes(table)
    weights = table.numbers("weight_bytes") if "weight_bytes" in table else 2 * everywhere
    caches = table.numbers("cache_bytes") if "cache_bytes" in table else 2 * everywhere
    engines = {}
    for name in dict.fromkeys(labels):
        rows = [i for i, one in enumerate(labels) if one == name]
        bytes_of = {(float(weights[i]), float(caches[i])) for i in rows}
        require(
            len(bytes_of) == 1,
            f"{table.path}: rows of {name} have several weight_bytes or cache_bytes; an engine is fitted at one precision.",
        )
        engines[name] = StepTimes(
            [models[i] for i in rows],
            [Timing(shapes[i], None, tokens[i], batch[i], context[i], seconds[i]) for i in rows],
            Precision(*bytes_of.pop()),
        )
    return engines


def _shapes(table: CsvTable) -> tuple[list[str], list[Shape]]:
    """Name and shape of the model of each row."""
    names = table.column("model") if "model" in table else [""] * len(table)
    if "layers" not in table:
        table.require_columns("model")
        known = {name: published_shape(name) for name in dict.fromkeys(names)}
        for name, line in zip(names, table.lines):
            require(
                known[name] is not None,
                f"{table.path}: line {line}: the shape of the model {name!r} is not known here; give the columns "
                f"{', '.join(Shape._fields[:7])}.",
            )
        return names, [shape for name in names if (shape := known[name]) is not None]
    optional = {
        "embedding_tables": 1.0,
        "expert_params": 0.0,
        "experts": 1.0,
        "active_experts": 1.0,
    }
    columns = [
        np.full(len(table), optional[name])
        if name in optional and name not in table
        else table.counts(name)
        for name in Shape._fields
    ]
    shapes = [Shape(*map(float, row)) for row in zip(*columns)]
    named = [
        name or f"{short_count(float(shape.total_params))}" for name, shape in zip(names, shapes)
    ]
    return named, shapes


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
        not_told = _not_told(problem, hardware, fitted, timings)
    off = np.abs(unseen / problem.seconds - 1)
    known = np.isfinite(off)
    return StepTimesFit(
        hardware=hardware,
        fitted=fitted,
        not_told=not_told,
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
        self._device = device
        # Padded, so that tables of a few rows share one program; padding weighs nothing.
        padded = [*timings, *[timings[-1]] * (-len(timings) % _PADDED)]
        peaks = {name: float(getattr(device, name)) for name in _PEAKS}
        self._data = timing_data(padded, precision, (), device)._replace(
            limits=jnp.asarray([peaks.get(name, np.inf) for name in FITTED])
        )

    def _fit(
        self, names: Sequence[str], used: np.ndarray
    ) -> tuple[Hardware, Float[np.ndarray, " n"]]:
        """The best fit of these coefficients to the used rows, and the seconds of all rows by it."""
        data = self._data._replace(
            active=jnp.asarray([name in names for name in (*FITTED, "sharpness")])
        )
        begin = {
            name: max(0.8 * float(getattr(self._device, name)), _BEGIN.get(name, _BEGIN_OF_A_LAYER))
            for name in names
        }
        start = vector_of(self._device._replace(**begin))
        best = refit(log_errors, start[None], data, used[None].astype(float), HUBER)
        hardware, seconds = device_and_seconds(np.asarray(best.parameters)[0], data)
        return jax.tree.map(float, hardware), np.asarray(seconds)[: len(used)]

    def predicted(self, hardware: Hardware) -> Float[np.ndarray, " n"]:
        """Seconds of each row on a device."""
        unchanged = self._data._replace(held=jax.tree.map(jnp.asarray, hardware))
        seconds = device_and_seconds(vector_of(self._device), unchanged)[1]
        return np.asarray(seconds)[: len(self.seconds)]

    def _criterion(self, names: Sequence[str], used: np.ndarray) -> float:
        """n·ln(mean squared error) + k·ln n of ln seconds: the smaller, the better."""
        off = np.abs(np.log(self._fit(names, used)[1] / self.seconds))[used]
        squares = np.mean(np.minimum(off, HUBER) ** 2)
        return len(off) * math.log(squares + _NOISE**2) + len(names) * math.log(len(off))

    def solve(self, used: np.ndarray) -> tuple[Hardware, tuple[str, ...]]:
        """The coefficients that the used rows tell, and the device with them."""
        # Every engine has an overhead of its own; one row tells it.
        names = ["layer_seconds"]
        # One row more than coefficients is the least that can contradict them.
        room = max(int(used.sum()) - 1, 1)
        best = self._criterion(names, used)
        while len(names) < min(room, len(COEFFICIENTS)):
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
        return self._fit(ordered, used)[0], ordered


def _errors(off: np.ndarray) -> Errors:
    if not len(off):
        return Errors(0, float("nan"), float("nan"))
    return Errors(len(off), float(np.median(off)), float(off.max()))


def _not_told(
    problem: _Problem, hardware: Hardware, fitted: tuple[str, ...], timings: Sequence[Timing]
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
        "flops_per_second": (
            len(models) == 1 and "token_seconds" in fitted,
            "one model was timed; arithmetic that the reading of weights does not hide is in token_seconds",
        ),
        "cache_slowdown": (not any(t.context for t in timings), "no row has a context"),
        "bytes_per_second": (
            len(models) == 1 and "cache_slowdown" in fitted,
            "one model was timed; the reading of its weights is not told from the overhead of its layers",
        ),
    }
    reasons = {}
    base = problem.predicted(hardware)
    for name in COEFFICIENTS:
        if name in fitted:
            continue
        applies, text = structural.get(name, (False, ""))
        if not applies:
            value = float(getattr(hardware, name))
            moved = [problem.predicted(hardware._replace(**{name: value * f})) for f in (0.5, 2.0)]
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
    for name, unit in _PEAKS.items():
        peak = float(getattr(device, name))
        if name in fitted and float(getattr(hardware, name)) >= 0.999 * peak:
            texts.append(
                f"the times ask for more than the device's {unit} of {peak:.3g} per second: are the bytes of a weight right?"
            )
    return tuple(texts)


__all__ = [
    "COEFFICIENTS",
    "HALVES_FROM",
    "Errors",
    "StepTimes",
    "StepTimesFit",
    "fit_step_times",
    "read_step_times",
]
