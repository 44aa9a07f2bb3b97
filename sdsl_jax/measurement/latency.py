"""The time of decoding steps."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdsl_jax.decoding import Model, Sampling, draw, probabilities, verify_tokens
from sdsl_jax.decoding.decode import broken_logits
from sdsl_jax.decoding.noise import round_noise, row_keys, start_keys
from sdsl_jax.decoding.sampling import finite_logits
from sdsl_jax.errors import require
from sdsl_jax.models import ModelConfig, Params, forward, init_cache
from sdsl_jax.statistics import Interval, median_interval

# Steps in one timed program, at least, at most, and the seconds that it is to take: dispatching
# from Python, about a millisecond, is then a small share of what is timed.
_STEPS, _MOST_STEPS, _LONG_ENOUGH = 16, 512, 0.03
# Compilations that run side by side.
_COMPILERS = 2


@functools.partial(jax.jit, static_argnames=("model", "width", "batch", "context"))
def _steps(
    params: Params, steps: Array, *, model: ModelConfig, width: int, batch: int, context: int
) -> tuple[Array, Array]:
    """Takes `steps` steps as a decoder would: forward, probabilities, and a draw (width 1) or a
    verification.

    Returns the last tokens, and whether all logits were finite.

    The cache has room for as much again as the context, as halfway through a decoding run: empty
    slots cost time as well.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    cache = init_cache(model, batch, 2 * context + width, dtype)
    keys = start_keys(row_keys(0, np.arange(batch)), _MOST_STEPS)

    def step(i, carry):
        tokens, finite, cache = carry
        positions = jnp.broadcast_to(context + jnp.arange(width), (batch, width))
        logits, cache = forward(model, params, tokens, positions, cache)
        finite &= finite_logits(logits).all()
        p = probabilities(logits, Sampling())
        noise = round_noise(keys, jnp.full(batch, i), width - 1, model.vocab_size)
        if width == 1:
            drawn = draw(p[:, 0], noise.residual)
        else:
            # The drafts' own distributions stand in for q: what they hold does not change the work.
            q = jnp.roll(p[:, :-1], 1, axis=-1)
            drawn = jax.vmap(verify_tokens, (0, 0, 0, None, 0, 0))(
                tokens[:, 1:], q, p, width - 1, noise.uniforms, noise.residual
            ).next_token
        return jnp.broadcast_to(drawn[:, None], (batch, width)), finite, cache

    carry = (jnp.zeros((batch, width), jnp.int32), jnp.ones((), bool), cache)
    return jax.lax.fori_loop(0, steps, step, carry)[:2]


class Step(NamedTuple):
    """One kind of step to be timed; rows and context are those of all steps where they are None."""

    model: Model
    width: int
    batch: int | None = None
    context: int | None = None


def time_steps(
    steps: dict[str, Step], *, batch: int, context: int, repetitions: int, confidence: float
) -> dict[str, Interval]:
    """Median seconds of each kind of step, all kinds interleaved so that drift of the machine hits
    them alike.

    Args:
      steps: kinds of steps by name.
      batch: rows.
      context: positions that precede the step.
      repetitions: timed runs of each kind.
      confidence: of the intervals.

    Raises:
      SdslError: the logits of a model are not finite.
    """
    shapes = {
        name: dict(
            model=s.model.config,
            width=s.width,
            batch=batch if s.batch is None else s.batch,
            context=context if s.context is None else s.context,
        )
        for name, s in steps.items()
    }

    def run(name: str, count: int) -> float:
        began = time.perf_counter()
        _, finite = jax.block_until_ready(
            _steps(steps[name].model.params, jnp.int32(count), **shapes[name])
        )
        seconds = time.perf_counter() - began
        require(bool(finite), broken_logits(f"model {name}"))
        return seconds

    counts = dict.fromkeys(steps, _STEPS)
    # Compiling takes most of the time, and a core for each program.
    with ThreadPoolExecutor(_COMPILERS) as pool:
        list(pool.map(lambda name: run(name, 1), steps))
    for name in steps:
        while counts[name] < _MOST_STEPS and run(name, counts[name]) < _LONG_ENOUGH:
            counts[name] *= 2
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name in steps:
            seconds[name].append(run(name, counts[name]) / counts[name])
    return {
        name: median_interval(np.asarray(values), confidence) for name, values in seconds.items()
    }
