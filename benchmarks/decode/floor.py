"""The shortest time that a step can take: the bytes that it must read over measured bandwidth, and
its FLOPs over measured arithmetic.

Bandwidth is the best of several readers, each over arrays as large as what the step reads, because a
small model stays in a cache that is far faster than memory. The readers are numpy's sum and dot
product in one thread per core (they release Python's lock), and XLA's sum and matrix-vector product.
Arithmetic is a large square matrix product. The best repetition counts: a floor that is too high
would flatter the decoder.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.measurement.latency import timed
from sdsl_jax.models import ModelConfig, count

_REPETITIONS = 5
# Bytes that one timed reading covers, as often as it must go over the array to get there: on an
# accelerator so many that starting the program does not count.
_BYTES_TIMED, _BYTES_TIMED_ON_ACCELERATOR = 1 << 30, 1 << 36


class Floor(NamedTuple):
    """The least seconds of one step, and what they are made of."""

    seconds: float
    bytes_read: float
    flops: float


def _best_seconds(work: Callable[[], object]) -> float:
    """Seconds of the best repetition."""
    timed(work)  # compiles
    return min(timed(work)[0] for _ in range(_REPETITIONS))


@functools.partial(jax.jit, static_argnums=2)
def _sums(array, start, times):
    # The addend makes every pass depend on the one before it, so the compiler cannot leave one out.
    return jax.lax.fori_loop(
        0, times, lambda _, s: (array + s * 1e-30).astype(jnp.float32).sum() * 1e-30, start
    )


@functools.partial(jax.jit, static_argnums=2)
def _products(matrix, vector, times):
    return jax.lax.fori_loop(
        0, times, lambda _, x: (matrix @ x) * jnp.asarray(1e-3, x.dtype), vector
    )


def _numpy_rates(size: int, times: int) -> dict[str, float]:
    threads = os.cpu_count() or 1
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    readers: dict[str, Callable[[np.ndarray], object]] = {
        "numpy sum": np.sum,
        "numpy dot": lambda x: np.dot(x, x),
    }

    def passes(read: Callable[[np.ndarray], object], part: np.ndarray) -> None:
        for _ in range(times):
            read(part)

    rates = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, read in readers.items():
            work = functools.partial(passes, read)
            seconds = _best_seconds(lambda w=work: list(pool.map(w, parts)))  # type: ignore[misc]
            rates[f"{name}, {threads} threads"] = size * times / seconds
    return rates


def bandwidth(size: int, dtype: Any = jnp.float32, covered: int | None = None) -> dict[str, float]:
    """Bytes per second of each reader; "best" holds the largest.

    Args:
      size: About the bytes of the array.
      dtype: Its type.
      covered: Bytes that one timed reading covers; by default enough for the device.
    """
    item = jnp.dtype(dtype).itemsize
    side = max(64, math.isqrt(size // item))
    actual = side * side * item
    on_cpu = jax.default_backend() == "cpu"
    covered = covered or (_BYTES_TIMED if on_cpu else _BYTES_TIMED_ON_ACCELERATOR)
    times = max(1, math.ceil(covered / actual))
    rates = _numpy_rates(actual, times) if on_cpu else {}
    matrix, vector = jnp.full((side, side), 1e-3, dtype), jnp.ones(side, dtype)
    readers = {
        "XLA sum": functools.partial(_sums, matrix, jnp.float32(0), times),
        "XLA matrix-vector": functools.partial(_products, matrix, vector, times),
    }
    for name, read in readers.items():
        rates[name] = actual * times / _best_seconds(read)
    rates["best"] = max(rates.values())
    return rates


def matmul_flops(dtype: Any = jnp.float32) -> float:
    """FLOPs per second of a square matrix product at the precision that the decoder uses."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    with jax.default_matmul_precision("highest"):
        product = (
            jax.jit(jnp.matmul).lower(*[jax.ShapeDtypeStruct((side, side), dtype)] * 2).compile()
        )
    matrix = jnp.full((side, side), 1e-3, dtype)
    return 2 * side**3 / _best_seconds(lambda: product(matrix, matrix))


def bytes_read(
    config: ModelConfig, *, batch: int, context: float, dtype: Any = jnp.float32
) -> float:
    """Bytes of one step: all weights once, except an embedding that only gives rows, and each row's keys and values."""
    counts = count(config, context)
    table = config.vocab_size * config.width
    weights = counts.total - (0 if config.tie_embeddings else table)
    cache = counts.cache_bytes_per_token / 4 * context * batch
    return (weights + cache) * jnp.dtype(dtype).itemsize


def floor(
    config: ModelConfig,
    *,
    batch: int,
    width: int,
    context: float,
    rate: float,
    flops: float,
    dtype: Any = jnp.float32,
) -> Floor:
    """The floor of a step that feeds `width` tokens to each of `batch` rows.

    Args:
      config: Configuration of the model.
      batch: Rows decoded together.
      width: Tokens per row.
      context: Average number of tokens in a row's cache; empty slots need not be read.
      rate: Bytes per second.
      flops: FLOPs per second.
      dtype: Number type of weights and cache.
    """
    needed = bytes_read(config, batch=batch, context=context, dtype=dtype)
    work = count(config, context).flops_per_token * batch * width
    return Floor(max(needed / rate, work / flops), needed, work)


def device() -> str:
    """Kind of the first device, for CPUs the processor's own name, and the number of cores."""
    first = jax.devices()[0]
    name = first.device_kind
    cpuinfo = Path("/proc/cpuinfo")
    if first.platform == "cpu" and cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} CPU cores"
