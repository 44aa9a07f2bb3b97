"""The coefficients of a device, fitted to timed passes and rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.errors import require
from sdsl_jax.fitting.solver import fit, refit
from sdsl_jax.records import LatencyRecord, ModelRecord
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.statistics import Interval, quantile_interval, resampled
from sdsl_jax.theory import ShapeRule
from sdsl_jax.theory.hardware import (
    Hardware,
    Load,
    Precision,
    Shape,
    family_shape,
    pass_time,
    round_time,
)

# Below the first the roofline has no corner; above the second no timing shows how sharp it is.
_SMALLEST_SHARPNESS, _LARGEST_SHARPNESS = 1.0, 16.0
# Bound of the logarithms of coefficients.
_FARTHEST = 80.0
# Residuals of ln seconds beyond this count linearly: a pass that runs another kernel shall not bend
# the rest.
HUBER = 0.1
# Coefficients that timings of several models always identify, besides the sharpness, and those that
# only some timings do.
_ALWAYS = ("pass_seconds", "layer_seconds", "token_seconds", "bytes_per_second", "flops_per_second")
FITTED = (
    *_ALWAYS,
    "round_seconds",
    "matrix_seconds",
    "wide_seconds",
    "logit_seconds",
    "cache_slowdown",
)


# A time that vanishes has the logarithm of this, in seconds.
_SHORTEST = 1e-14
# The coefficients that timings without any hold: no overheads.
_HELD = Hardware(**dict.fromkeys(FITTED, 0.0) | {"cache_slowdown": 1.0})


class Timing(NamedTuple):
    """One timed operation.

    Attributes:
      target: Shape of the model of a pass, or of the target of a round.
      draft: Shape of the draft of a round; None for a pass.
      tokens: New tokens of each row in a pass; the lookahead γ of a round.
      batch: Rows.
      context: Cache positions that a pass reads.
      seconds: Seconds of one pass or one round.
    """

    target: Shape
    draft: Shape | None
    tokens: float
    batch: float
    context: float
    seconds: float


class HardwareFit(NamedTuple):
    """Fitted coefficients.

    Attributes:
      hardware: The device.
      residuals: ln(predicted/measured), in the order of the timings.
      starts_agreeing: Share of starts that reached the same objective.
      condition_number: Condition number of the scaled Jacobian.
      status: How the best descent ended.
    """

    hardware: Hardware
    residuals: Float[np.ndarray, " n"]
    starts_agreeing: float
    condition_number: float
    status: SolverStatus


class TimingData(NamedTuple):
    """Timings as arrays, and which coefficients are fitted to them."""

    active: Array  # [coefficients and the sharpness]: whether it is fitted
    held: Hardware  # what the others are
    limits: Array  # [coefficients]: the largest value of each
    target: Shape
    draft: Shape
    is_round: Array
    tokens: Array
    batch: Array
    context: Array
    log_seconds: Array
    precision: Precision


def identifiable(timings: Sequence[Timing]) -> tuple[str, ...]:
    """Coefficients that timings can tell apart. The others keep their defaults, and these take over what they stand for."""
    wide, rows = np.asarray([(t.tokens, t.batch) for t in timings if t.draft is None]).T
    tokens = wide * rows
    contexts = np.asarray([t.batch * t.context for t in timings])
    spare = len(timings) > len(FITTED)
    conditions = {
        "round_seconds": any(t.draft is not None for t in timings),
        "matrix_seconds": spare and (tokens == 1).any() and (tokens > 1).any(),
        "wide_seconds": spare and (wide > 1).any() and (rows[wide == 1] > 1).any(),
        "logit_seconds": spare and len({float(t.target.vocab_size) for t in timings}) > 1,
        # Passes of other widths have caches of other sizes, by a few slots.
        "cache_slowdown": spare and contexts.max() > 1.5 * contexts.min(),
    }
    return tuple(name for name in FITTED if conditions.get(name, True))


def device_of(x: Array, data: TimingData) -> Hardware:
    """The device of a vector: logarithms of rates and times, and the logit of the sharpness."""
    sharpness = _SMALLEST_SHARPNESS + (_LARGEST_SHARPNESS - _SMALLEST_SHARPNESS) * jax.nn.sigmoid(
        x[-1]
    )
    # A coefficient that no timing shows drifts away; this keeps it finite, in single precision too.
    values = jnp.exp(jnp.clip(x[:-1], -_FARTHEST, _FARTHEST))
    values = jnp.append(jnp.minimum(values, data.limits), sharpness)
    names = (*FITTED, "sharpness")
    held = jnp.stack([jnp.asarray(getattr(data.held, name), values.dtype) for name in names])
    return data.held._replace(**dict(zip(names, jnp.where(data.active, values, held))))


def vector_of(hardware: Hardware) -> np.ndarray:
    """The inverse of `device_of`."""
    share = (float(hardware.sharpness) - _SMALLEST_SHARPNESS) / (
        _LARGEST_SHARPNESS - _SMALLEST_SHARPNESS
    )
    share = min(max(share, 1e-6), 1 - 1e-6)
    logs = [np.log(max(float(getattr(hardware, name)), _SHORTEST)) for name in FITTED]
    return np.asarray([*logs, np.log(share / (1 - share))])


def _log_seconds(hardware: Hardware, data: TimingData) -> Array:
    passes = pass_time(
        hardware, data.target, data.precision, Load(data.tokens, data.batch, data.context)
    )
    rounds = round_time(
        hardware,
        data.draft,
        data.target,
        data.tokens,
        data.batch,
        data.context,
        data.precision,
        data.precision,
    )
    return jnp.log(jnp.where(data.is_round, rounds.seconds, passes))


@jax.jit
def device_and_seconds(x: Array, data: TimingData) -> tuple[Hardware, Array]:
    """The device of a vector, and the seconds of each timing on it."""
    hardware = device_of(x, data)
    return hardware, jnp.exp(_log_seconds(hardware, data))


def log_errors(x: Array, data: TimingData) -> Array:
    """ln(predicted/measured) of each timing."""
    return _log_seconds(device_of(x, data), data) - data.log_seconds


def timing_data(
    timings: Sequence[Timing],
    precision: Precision,
    fitted: tuple[str, ...] | None = None,
    held: Hardware = _HELD,
) -> TimingData:
    """Timings as arrays.

    Args:
      timings: Passes and rounds.
      precision: Bytes of weights and caches.
      fitted: Coefficients that are fitted; those that the timings identify if left out.
      held: What the others are.
    """

    def stack(shapes: list[Shape]) -> Shape:
        return Shape(*(jnp.asarray(values, float) for values in zip(*shapes)))

    fitted = (*identifiable(timings), "sharpness") if fitted is None else fitted
    return TimingData(
        active=jnp.asarray([name in fitted for name in (*FITTED, "sharpness")]),
        held=jax.tree.map(lambda x: jnp.asarray(x, float), held),
        limits=jnp.asarray([np.inf] * len(FITTED)),
        target=stack([t.target for t in timings]),
        # A pass has no draft; its own model stands in and is not used.
        draft=stack([t.draft or t.target for t in timings]),
        is_round=jnp.asarray([t.draft is not None for t in timings]),
        tokens=jnp.asarray([t.tokens for t in timings], float),
        batch=jnp.asarray([t.batch for t in timings], float),
        context=jnp.asarray([t.context for t in timings], float),
        log_seconds=jnp.log(jnp.asarray([t.seconds for t in timings], float)),
        precision=precision,
    )


def record_shape(model: ModelRecord, rule: ShapeRule) -> Shape:
    """The shape of a trained model; without layers and width in its record, the family member of its size."""
    member = family_shape(float(model.params_nonembedding), rule)
    if not (model.layers and model.width):
        return Shape(*map(float, member))
    width = float(model.width)
    tables = (model.params_total - model.params_nonembedding) / (width * float(rule.vocab_size))
    return Shape(
        params=float(model.params_nonembedding),
        layers=float(model.layers),
        width=width,
        query_width=width,
        kv_width=width * float(rule.kv_share),
        vocab_size=float(rule.vocab_size),
        # A published model may have two where the family ties them.
        embedding_tables=float(rule.embedding_tables)
        if model.training_is_known
        else float(max(1, round(tables))),
    )


def timed_context(row: LatencyRecord) -> float:
    """Cache slots that a timed pass reads. The cache has twice the room of the context, and empty slots cost time too."""
    return float(2 * row.context + row.width)


def timings_of(
    models: Sequence[ModelRecord], latency: Sequence[LatencyRecord], rule: ShapeRule
) -> list[Timing]:
    """The timed steps of known models, as passes.

    Args:
      models: Records of the timed models, and perhaps of others.
      latency: Rows of `latency.csv`, all of models in `models`.
      rule: Shapes of their family: vocabulary, key-value heads and embedding tables.
    """
    shapes = {model.model_id: record_shape(model, rule) for model in models}
    return [
        Timing(shapes[r.model_id], None, r.width, r.batch, timed_context(r), r.seconds)
        for r in latency
    ]


def fit_hardware(
    timings: Sequence[Timing],
    precision: Precision,
    starts: int = 32,
    seed: int = 0,
    weights: Float[np.ndarray, " n"] | None = None,
) -> HardwareFit:
    """Fits a device to timings, by a robust fit of ln seconds from many starts.

    Args:
      timings: Passes, and rounds if there are any; without rounds `round_seconds` is 0.
      precision: Bytes of weights and caches.
      starts: Number of descents.
      seed: Seed of the starts.
      weights: Weights of the timings. Weight 0 leaves one out; its residual is still reported.

    Raises:
      SdslError: There are too few timings, or too few kinds of model.
    """
    weights = np.ones(len(timings)) if weights is None else np.asarray(weights, float)
    used = weights > 0
    fitted = identifiable([t for t, counts in zip(timings, used) if counts])
    unknown = len(fitted) + 1
    require(
        used.sum() >= unknown,
        f"a device has {unknown} coefficients to be fitted; {used.sum()} timings cannot tell them.",
    )
    shapes = {tuple(float(x) for x in t.target) for t, counts in zip(timings, used) if counts}
    require(
        len(shapes) >= 3,
        f"only {len(shapes)} kinds of model were timed; a device needs at least 3.",
    )
    seconds = np.asarray([t.seconds for t in timings])
    with jax.enable_x64(True):
        data = timing_data(timings, precision, (*fitted, "sharpness"))
        flops = np.asarray(data.target.flops_per_token(data.context) * data.tokens * data.batch)
        stored = np.asarray(data.target.total_params * precision.weight_bytes)
        shortest = seconds[used].min()
        guess = [
            shortest / 3,
            shortest / 6,
            shortest / 20,
            np.median((stored / seconds)[used]) * 2,
            np.median((flops / seconds)[used]) * 2,
            shortest / 3,
            shortest / 6,
            shortest / 6,
            shortest / 20 / np.median(np.asarray(data.target.vocab_size)),
            1.0,
        ]
        random = np.random.default_rng(seed)
        begin = np.concatenate([np.log(guess), [0.0]]) + random.normal(
            0, 1, (starts, len(guess) + 1)
        )
        best = fit(log_errors, begin, data, weights, HUBER)
        values = jax.tree.map(float, device_of(best.parameters, data))
    return HardwareFit(
        # What no timing shows tends to 0 on its logarithm and never gets there; a ratio must not.
        Hardware(*(value if value > _SHORTEST else 0.0 for value in values))._replace(
            cache_slowdown=max(values.cache_slowdown, _SHORTEST)
        ),
        np.asarray(best.residuals),
        float(best.starts_agreeing),
        float(best.condition_number),
        best.status,
    )


def hardware_intervals(
    fitted: HardwareFit,
    timings: Sequence[Timing],
    precision: Precision,
    labels: Sequence[str],
    confidence: float,
    draws: int,
    seed: int,
) -> dict[str, Interval]:
    """Intervals of the coefficients by a bootstrap over groups of timings.

    Residuals of one kind of model are correlated: most of the error is the same in all its timings,
    and repeating the measurement would not show it. So the bootstrap draws whole groups.

    Args:
      fitted: The fit to these timings.
      timings: Timings of the fit.
      precision: Bytes of weights and caches.
      labels: Group of each timing.
      confidence: Confidence of the intervals.
      draws: Number of resamples.
      seed: Seed of the resamples.
    """
    weights = resampled(np.asarray(labels), draws, seed)
    with jax.enable_x64(True):
        data = timing_data(timings, precision)
        fits = refit(log_errors, vector_of(fitted.hardware)[None], data, weights, HUBER)
        drawn = jax.vmap(lambda x: device_of(x, data))(fits.parameters)

    def interval(name: str) -> Interval:
        # Between order statistics nothing is interpolated: a rate that some resample does not see
        # at all is infinite.
        ends = quantile_interval(getattr(drawn, name), confidence, method="inverted_cdf")
        return Interval(float(getattr(fitted.hardware, name)), *ends)

    return {name: interval(name) for name in (*identifiable(timings), "sharpness")}


def predicted_seconds(
    hardware: Hardware, timings: Sequence[Timing], precision: Precision
) -> Float[np.ndarray, " n"]:
    """Seconds that the device takes for each operation by its coefficients, [n]."""
    with jax.enable_x64(True):
        return np.exp(np.asarray(_log_seconds(hardware, timing_data(timings, precision))))
