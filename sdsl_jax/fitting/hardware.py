"""From timed passes and rounds to the coefficients of a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.errors import require
from sdsl_jax.fitting.solver import fit
from sdsl_jax.records import LatencyRecord, ModelRecord
from sdsl_jax.theory import ShapeRule
from sdsl_jax.theory.hardware import Hardware, Load, Precision, Shape, family_shape, pass_time, round_time

# Beyond these the rounded corner of the roofline is as good as none, or as sharp as any timing shows.
_SMALLEST_SHARPNESS, _LARGEST_SHARPNESS = 1.0, 16.0
# Logarithms of coefficients reach this far.
_FARTHEST = 80.0
# Residuals of ln seconds beyond this count linearly: a pass that runs by another kernel is no reason to bend the rest.
_HUBER = 0.1
# Coefficients that are fitted, besides the sharpness; the last of them only to rounds.
_FITTED = ("pass_seconds", "layer_seconds", "token_seconds", "bytes_per_second", "flops_per_second", "round_seconds")


class Timing(NamedTuple):
    """One timed operation.

    Attributes:
      target: the model of a pass, or the target of a round.
      draft: the draft of a round; None for a pass.
      tokens: new tokens of each row in a pass; the lookahead γ of a round.
      batch: rows.
      context: cache positions that a pass reads.
      seconds: of one pass or one round.
    """

    target: Shape
    draft: Shape | None
    tokens: float
    batch: float
    context: float
    seconds: float


class HardwareFit(NamedTuple):
    """Fitted coefficients; `residuals` are ln(predicted/measured), in the order of the timings."""

    hardware: Hardware
    residuals: Float[np.ndarray, " n"]
    starts_agreeing: float
    condition_number: float


class _Data(NamedTuple):
    target: Shape
    draft: Shape
    is_round: Array
    tokens: Array
    batch: Array
    context: Array
    log_seconds: Array
    precision: Precision


def _hardware(x: Array) -> Hardware:
    """The device of a vector: logs of the rates and times, and the sharpness between its bounds."""
    sharpness = _SMALLEST_SHARPNESS + (_LARGEST_SHARPNESS - _SMALLEST_SHARPNESS) * jax.nn.sigmoid(x[-1])
    # A coefficient that no timing shows drifts away: it stays a finite number, in single precision too.
    values = jnp.exp(jnp.clip(x[:-1], -_FARTHEST, _FARTHEST))
    return Hardware(**dict(zip(_FITTED, values)), sharpness=sharpness)


def _log_seconds(hardware: Hardware, data: _Data) -> Array:
    passes = pass_time(hardware, data.target, data.precision, Load(data.tokens, data.batch, data.context))
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


def _residuals(x: Array, data: _Data) -> Array:
    return _log_seconds(_hardware(x), data) - data.log_seconds


def _table(timings: Sequence[Timing], precision: Precision) -> _Data:
    def stack(shapes: list[Shape]) -> Shape:
        return Shape(*(jnp.asarray(values, float) for values in zip(*shapes)))

    return _Data(
        target=stack([t.target for t in timings]),
        # A pass has no draft; its own model stands in, and is not looked at.
        draft=stack([t.draft or t.target for t in timings]),
        is_round=jnp.asarray([t.draft is not None for t in timings]),
        tokens=jnp.asarray([t.tokens for t in timings], float),
        batch=jnp.asarray([t.batch for t in timings], float),
        context=jnp.asarray([t.context for t in timings], float),
        log_seconds=jnp.log(jnp.asarray([t.seconds for t in timings], float)),
        precision=precision,
    )


def record_shape(model: ModelRecord, rule: ShapeRule) -> Shape:
    """The shape of a trained model; records that do not hold its layers and width give the family member of its size."""
    member = family_shape(float(model.params_nonembedding), rule)
    if not (model.layers and model.width):
        return Shape(*map(float, member))
    width = float(model.width)
    return Shape(
        params=float(model.params_nonembedding),
        layers=float(model.layers),
        width=width,
        query_width=width,
        kv_width=width * float(rule.kv_share),
        vocab_size=float(rule.vocab_size),
        embedding_tables=float(rule.embedding_tables),
    )


def timed_context(row: LatencyRecord) -> float:
    """Cache slots that a timed pass reads: the cache has room for as much again as the context, and empty slots cost time too."""
    return float(2 * row.context + row.width)


def timings_of(models: Sequence[ModelRecord], latency: Sequence[LatencyRecord], rule: ShapeRule) -> list[Timing]:
    """The timed steps of known models, as passes.

    Args:
      models: that were timed, among others.
      latency: rows of `latency.csv`, all of models in `models`.
      rule: of their family: vocabulary, key-value heads and embedding tables.
    """
    shapes = {model.model_id: record_shape(model, rule) for model in models}
    return [Timing(shapes[r.model_id], None, r.width, r.batch, timed_context(r), r.seconds) for r in latency]


def fit_hardware(timings: Sequence[Timing], precision: Precision, starts: int = 32, seed: int = 0) -> HardwareFit:
    """Fits a device to timings, by a robust fit of ln seconds from many starts.

    Args:
      timings: passes, and rounds if there are any; without rounds `round_seconds` is 0.
      precision: bytes of weights and caches.
      starts: descents.
      seed: of the starts.

    Raises:
      SdslError: too few timings, or all of one kind of model.
    """
    rounds = any(t.draft is not None for t in timings)
    unknown = len(_FITTED) + rounds
    require(
        len(timings) >= unknown,
        f"a device has {unknown} coefficients to be fitted; {len(timings)} timings cannot tell them.",
    )
    shapes = {tuple(float(x) for x in t.target) for t in timings}
    require(len(shapes) >= 3, f"only {len(shapes)} kinds of model were timed; a device needs at least 3.")
    seconds = np.asarray([t.seconds for t in timings])
    with jax.enable_x64(True):
        data = _table(timings, precision)
        flops = np.asarray(data.target.flops_per_token(data.context) * data.tokens * data.batch)
        weights = np.asarray(data.target.total_params * precision.weight_bytes)
        shortest = seconds.min()
        guess = [
            shortest / 3,
            shortest / 6,
            shortest / 20,
            np.median(weights / seconds) * 2,
            np.median(flops / seconds) * 2,
            shortest / 3,
        ]
        random = np.random.default_rng(seed)
        begin = np.concatenate([np.log(guess), [0.0]]) + random.normal(0, 1, (starts, len(guess) + 1))
        best = fit(_residuals, begin, data, jnp.ones(len(timings)), _HUBER)
        found = jax.tree.map(float, _hardware(best.parameters))
    if not rounds:
        found = found._replace(round_seconds=0.0)
    return HardwareFit(found, np.asarray(best.residuals), float(best.starts_agreeing), float(best.condition_number))


def predicted_seconds(hardware: Hardware, timings: Sequence[Timing], precision: Precision) -> Float[np.ndarray, " n"]:
    """Seconds that a device should take for each operation."""
    with jax.enable_x64(True):
        return np.exp(np.asarray(_log_seconds(hardware, _table(timings, precision))))
