"""The coefficients of a serving engine from anybody's step times: those that a table of one or two
models can tell, on top of a device whose others are known.

A calibration of our own times models that were chosen to tell every coefficient apart. A table from
an engine holds a few dozen passes of one or two models. So coefficients enter one at a time, and
as many stay as the Bayesian information criterion says. The others keep the device's values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.counts import short_count
from sdsl_jax.csv_table import CsvTable, read_csv
from sdsl_jax.errors import require
from sdsl_jax.fitting.hardware import (
    FITTED,
    HUBER,
    Timing,
    TimingData,
    device_and_seconds,
    log_errors,
    timing_data,
    vector_of,
)
from sdsl_jax.fitting.solver import descend
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
# Errors of left-out rows that a cost model of an engine should not exceed.
GOAL_MEDIAN, GOAL_WORST = 0.03, 0.10
# Errors below this share of a row's time are noise of the timer, which no coefficient explains.
_NOISE = 0.003
# Criteria that differ by less than this do not tell two coefficients apart.
_ALIKE = 2.0
# Random halves among which those that are most alike in design are taken.
_SPLITS = 256
# A byte of a cache is never this much slower than a byte of a weight.
_IMPLAUSIBLE_SLOWDOWN = 4.0
# Rates of the device, which no fit exceeds, in words.
_PEAKS = {"bytes_per_second": "bandwidth", "flops_per_second": "peak"}
# Descents begin at these multiples of the device's overheads: from a coefficient that has gone to 0
# none comes back.
_STARTS = (0.8, 4.0)
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
      timings: Passes, at least two. Of 8 or more, two halves that are alike in their loads predict each
        other; of fewer, each row is predicted from all others.
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
    count = len(timings)
    halves = count >= HALVES_FROM
    if halves:
        first = _alike_half(timings)
        left_out = [first, ~first]
    else:
        left_out = list(np.eye(count, dtype=bool)) if count > 2 else []
    with jax.enable_x64(True):
        problem = _Problem(timings, precision, device)
        (hardware, fitted, predicted), *others = problem.solve(
            [np.ones(count, bool), *(~out for out in left_out)]
        )
        unseen = np.full(count, np.nan)
        for out, (_, _, seconds) in zip(left_out, others):
            unseen[out] = seconds[out]
        not_told = problem.not_told(hardware, fitted)
    off = np.abs(unseen / problem.seconds - 1)
    known = np.isfinite(off)
    everything = _errors(np.abs(predicted / problem.seconds - 1))
    return StepTimesFit(
        hardware=hardware,
        fitted=fitted,
        not_told=not_told,
        unseen=_errors(off[known]),
        unseen_predicted=unseen,
        left_out="half" if halves else "one",
        everything=everything,
        predicted=predicted,
        warnings=_warnings(
            hardware, device, fitted, _errors(off[known]), everything, predicted / problem.seconds
        ),
    )


def _alike_half(timings: Sequence[Timing]) -> np.ndarray:
    """The rows of one half of a table, [n]: of many random halves the one whose loads and models are
    most like those of the other. The times themselves have no say."""
    models = [tuple(map(float, t.target)) for t in timings]
    columns = [
        [math.log(t.batch), math.log(t.tokens), float(t.tokens > 1), math.log(t.batch * t.tokens)]
        + [math.log1p(t.context), float(t.context > 0), t.batch * t.context]
        + [float(model == other) for other in dict.fromkeys(models)]
        for t, model in zip(timings, models)
    ]
    design = np.asarray(columns)
    spread = design.std(0)
    design = (design - design.mean(0))[:, spread > 0] / spread[spread > 0]
    random, size = np.random.default_rng(0), (len(timings) + 1) // 2
    splits = [random.permutation(len(timings))[:size] for _ in range(_SPLITS)]
    # The rest has minus the sum of a half: columns are centred.
    best = min(splits, key=lambda half: float((design[half].sum(0) ** 2).sum()))
    chosen = np.zeros(len(timings), bool)
    chosen[best] = True
    return chosen


def _masked_log_errors(x: Array, data: TimingData) -> Array:
    """`log_errors` of a vector whose second half says which coefficients are fitted, so that one
    program fits any of them."""
    x, active = jnp.split(x, 2)
    return log_errors(x, data._replace(active=active > 0.5))


class _Problem:
    """Fits to any rows of one table; all share one compiled program."""

    def __init__(self, timings: Sequence[Timing], precision: Precision, device: Hardware):
        self.seconds = np.asarray([t.seconds for t in timings])
        self._device = device
        # Padded, so that tables of a few rows share one program; padding weighs nothing.
        padded = [*timings, *[timings[-1]] * (-len(timings) % _PADDED)]
        self._structural = _structural_reasons(timings)
        self._one_model = len({tuple(map(float, t.target)) for t in timings}) == 1
        peaks = {name: float(getattr(device, name)) for name in _PEAKS}
        self._data = timing_data(padded, precision, (), device)._replace(
            limits=jnp.asarray([peaks.get(name, np.inf) for name in FITTED])
        )

    def _fits(
        self, wanted: Sequence[tuple[Sequence[str], np.ndarray]]
    ) -> list[tuple[Hardware, Float[np.ndarray, " n"]]]:
        """For each set of coefficients and of rows, the best fit of these to those, and the seconds
        of all rows by it."""
        everything = (*FITTED, "sharpness")
        starts = []
        for names, _ in wanted:
            active = [float(name in names) for name in everything]
            for scale in _STARTS:
                begin = {
                    name: scale
                    * max(float(getattr(self._device, name)), _BEGIN.get(name, _BEGIN_OF_A_LAYER))
                    for name in names
                }
                begin |= {
                    name: float(getattr(self._device, name)) / (1 + scale)
                    for name in _PEAKS
                    if name in names
                }
                starts.append([*vector_of(self._device._replace(**begin)), *active])
        weights = np.repeat([used.astype(float) for _, used in wanted], len(_STARTS), axis=0)
        ends = descend(_masked_log_errors, np.asarray(starts), self._data, weights, HUBER)
        objective = np.asarray(ends.objective).reshape(len(wanted), len(_STARTS))
        best = objective.argmin(1) + len(_STARTS) * np.arange(len(wanted))
        fits = []
        for x in np.asarray(ends.parameters)[best]:
            values, fitted = np.split(x, 2)
            data = self._data._replace(active=jnp.asarray(fitted > 0.5))
            hardware, seconds = device_and_seconds(values, data)
            fits.append((jax.tree.map(float, hardware), np.asarray(seconds)[: len(self.seconds)]))
        return fits

    def predicted(self, hardware: Hardware) -> Float[np.ndarray, " n"]:
        """Seconds of each row on a device."""
        unchanged = self._data._replace(held=jax.tree.map(jnp.asarray, hardware))
        seconds = device_and_seconds(vector_of(self._device), unchanged)[1]
        return np.asarray(seconds)[: len(self.seconds)]

    def _criterion(self, seconds: Float[np.ndarray, " n"], used: np.ndarray, count: int) -> float:
        """n·ln(mean Huber loss) + k·ln n of ln seconds: the smaller, the better."""
        off = np.abs(np.log(seconds / self.seconds))[used]
        loss = np.where(off < HUBER, off**2, 2 * HUBER * off - HUBER**2).mean()
        return len(off) * math.log(loss + _NOISE**2) + count * math.log(len(off))

    def solve(
        self, row_sets: Sequence[np.ndarray]
    ) -> list[tuple[Hardware, tuple[str, ...], Float[np.ndarray, " n"]]]:
        """For each set of rows the device, the coefficients that the rows tell, and the seconds of
        all rows.

        Coefficients enter one at a time, the best first, to the end: when rows are far off it can take
        two to be of use. Of the sets on the way the smallest counts that is as good as the best.
        """
        # Every engine has an overhead of its own; one row tells it.
        paths: list[list[tuple[float, list[str]]]] = []
        first = self._fits([(["layer_seconds"], used) for used in row_sets])
        for used, (_, seconds) in zip(row_sets, first):
            paths.append([(self._criterion(seconds, used, 1), ["layer_seconds"])])
        possible = [name for name in COEFFICIENTS if name not in self._structural]
        for length in range(2, len(possible) + 1):
            tried = [
                (i, [*path[-1][1], name], used)
                for i, (path, used) in enumerate(zip(paths, row_sets))
                # One row more than coefficients is the least that can contradict them.
                if length < used.sum() and len(path) == length - 1
                for name in possible
                if name not in path[-1][1]
            ]
            if not tried:
                break
            fits = self._fits([(names, used) for _, names, used in tried])
            for i, path in enumerate(paths):
                values = [
                    (self._criterion(seconds, used, length), names)
                    for (j, names, used), (_, seconds) in zip(tried, fits)
                    if i == j
                ]
                if values:
                    least = min(value for value, _ in values)
                    path.append(next(v for v in values if v[0] <= least + _ALIKE))
        chosen = []
        for path in paths:
            least = min(value for value, _ in path)
            names = next(names for value, names in path if value <= least + _ALIKE)
            chosen.append(tuple(name for name in COEFFICIENTS if name in names))
        fits = self._fits(list(zip(chosen, row_sets)))
        return [(hardware, names, s) for names, (hardware, s) in zip(chosen, fits)]

    def not_told(self, hardware: Hardware, fitted: tuple[str, ...]) -> dict[str, str]:
        """Why each coefficient that was not fitted was not, a phrase each."""
        base = self.predicted(hardware)
        every = np.ones(len(self.seconds), bool)

        def error(seconds: Float[np.ndarray, " n"]) -> float:
            return float(np.abs(np.log(seconds / self.seconds)).mean())

        others = [name for name in COEFFICIENTS if name not in fitted]
        with_it = self._fits([((*fitted, name), every) for name in others])
        reasons = {}
        for name, (_, seconds) in zip(others, with_it):
            value = float(getattr(hardware, name))
            moved = [self.predicted(hardware._replace(**{name: value * f})) for f in (0.5, 2.0)]
            change = max(float(np.abs(m / base - 1).max()) for m in moved)
            if name in self._structural:
                reasons[name] = self._structural[name]
            elif name == "flops_per_second" and self._one_model and "token_seconds" in fitted:
                reasons[name] = (
                    "one model was timed; arithmetic that the reading of weights does not hide is in token_seconds"
                )
            elif name == "bytes_per_second" and self._one_model and "cache_slowdown" in fitted:
                reasons[name] = (
                    "one model was timed; the reading of its weights is not told from the overhead of its layers"
                )
            elif value and change < _SEEN:
                reasons[name] = f"no row changes by {_SEEN:.0%} if it doubles or halves"
            else:
                reasons[name] = (
                    f"with it the mean error of the rows goes from {error(base):.2%} to {error(seconds):.2%}, too little for one "
                    "more"
                )
        return reasons


def _structural_reasons(timings: Sequence[Timing]) -> dict[str, str]:
    """Coefficients that a table cannot tell by its columns alone, and why."""
    wide = {t.tokens > 1 for t in timings}
    several = {t.tokens * t.batch > 1 for t in timings}
    contexts = {t.context for t in timings}
    reasons = {}
    if len({float(t.target.layers) for t in timings}) == 1:
        reasons["pass_seconds"] = "all models have the same depth; it is in layer_seconds"
    if len({float(t.target.vocab_size) for t in timings}) == 1:
        reasons["logit_seconds"] = "all models have the same vocabulary; it is in token_seconds"
    if len(wide) == 1:
        reasons["wide_seconds"] = (
            "all rows feed several tokens to a row; it is in layer_seconds"
            if True in wide
            else "no row feeds several tokens to a row"
        )
    if len(several) == 1:
        reasons["matrix_seconds"] = (
            "all rows feed several tokens; it is in layer_seconds"
            if True in several
            else "no row feeds several tokens"
        )
    if contexts == {0.0}:
        reasons["cache_slowdown"] = "no row has a context"
    elif len(contexts) == 1:
        reasons["cache_slowdown"] = "all rows have the same context; it is in token_seconds"
    if len({tuple(map(float, t.target)) for t in timings}) == len(contexts) == 1:
        reasons["bytes_per_second"] = "one model was timed at one context; it is in layer_seconds"
    return reasons


def _errors(off: np.ndarray) -> Errors:
    if not len(off):
        return Errors(0, float("nan"), float("nan"))
    return Errors(len(off), float(np.median(off)), float(off.max()))


def _warnings(
    hardware: Hardware,
    device: Hardware,
    fitted: tuple[str, ...],
    unseen: Errors,
    everything: Errors,
    ratio: Float[np.ndarray, " n"],
) -> tuple[str, ...]:
    """Caveats; `ratio` is predicted over measured of all rows."""
    texts = []
    if unseen.rows and (unseen.median > GOAL_MEDIAN or unseen.worst > GOAL_WORST):
        fits_all = everything.median <= GOAL_MEDIAN and everything.worst <= GOAL_WORST
        texts.append(
            f"left-out rows are off by {unseen.median:.1%} in the median and {unseen.worst:.1%} at worst: "
            + (
                "all rows together are fitted well, and part of them tells too little; time more."
                if fits_all
                else "the cost model does not describe this engine well."
            )
        )
    if everything.rows < HALVES_FROM:
        texts.append(
            f"{everything.rows} rows are few; {HALVES_FROM} or more would let one half of them test the other."
        )
    peaks = [
        unit
        for name, unit in _PEAKS.items()
        if name in fitted and float(getattr(hardware, name)) >= 0.999 * float(getattr(device, name))
    ]
    # Without any overhead the device alone takes longer than was measured.
    idle = float(hardware.layer_seconds) < 1e-9 and float(np.median(ratio)) > 1 + GOAL_MEDIAN
    if peaks or idle:
        texts.append(
            f"the times ask for more than the {' and the '.join(peaks) or 'bandwidth or peak'} of the device: are weight_bytes "
            "and the device right?"
        )
    if float(hardware.cache_slowdown) > _IMPLAUSIBLE_SLOWDOWN and "cache_slowdown" in fitted:
        texts.append(
            f"a cache_slowdown of {float(hardware.cache_slowdown):.1f} is implausible: the device may be slower than its file "
            "says."
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
