"""From timed decoding steps to the coefficients of the step-time law."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdsl_jax.errors import require
from sdsl_jax.fitting.solver import fit
from sdsl_jax.records import LatencyRecord, ModelRecord, column
from sdsl_jax.theory import ShapeRule, StepTimeLaw


class StepTimeFit(NamedTuple):
    """The fitted law, the root mean square of the residuals in ln seconds, and the rows it was fitted to."""

    law: StepTimeLaw
    rmse: float
    rows: int


class _TimeData(NamedTuple):
    params: Array
    log_seconds: Array
    rule: ShapeRule


def _residuals(x: Array, data: _TimeData) -> Array:
    return jnp.log(StepTimeLaw(*jnp.exp(x))(data.params, data.rule)) - data.log_seconds


def fit_step_time(
    models: list[ModelRecord], latency: list[LatencyRecord], rule: ShapeRule, starts: int, seed: int
) -> StepTimeFit:
    """Fits seconds per one-token step = overhead + share per layer + share per FLOP, all three positive.

    Raises:
      SdslError: fewer than 4 sizes were timed.
    """
    by_id = {model.model_id: model for model in models}
    rows = [r for r in latency if r.operation == "decode" and r.model_id in by_id]
    sizes = np.asarray([by_id[r.model_id].params_nonembedding for r in rows], float)
    require(
        len(set(sizes)) >= 4, f"the step-time law needs decode steps of at least 4 sizes; {len(set(sizes))} were timed."
    )
    seconds = np.asarray(column(rows, "seconds"), float)
    guess = np.log([seconds.min() / 2, seconds.min() / 4, seconds.max() / 2 / (2 * sizes.max())])
    random = np.random.default_rng(seed)
    with jax.enable_x64(True):
        data = _TimeData(jnp.asarray(sizes), jnp.asarray(np.log(seconds)), rule)
        begin = jnp.asarray(guess + random.normal(0, 1, (starts, 3)))
        best = fit(_residuals, begin, data, jnp.ones(len(rows)), 0.1)
        law = StepTimeLaw(*np.exp(np.asarray(best.parameters)))
    return StepTimeFit(law, float(np.sqrt(np.square(best.residuals).mean())), len(rows))
