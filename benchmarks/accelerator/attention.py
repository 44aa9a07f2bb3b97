"""The fused attention of the device beside the plain one: errors against float32, and speed.

Errors are ‖x − reference‖/‖reference‖ of the output and of the gradients of queries, keys and
values, for random inputs in bfloat16 scaled as the model scales them. On a CPU, which has no fused
kernel, XLA's implementation of the same call stands in.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.accelerator.parts import Measured, Task, progress
from sdsl_jax.measurement.latency import interleave, side_by_side, timed
from sdsl_jax.models.kernels import _fused_attention, attend, causal_attention

# bfloat16 keeps 8 bits: rounding alone is an error of 0.002.
GOAL = 0.01
# Rows × key-value heads, query heads that share one, tokens, size of a head: those of training, and
# grouped queries.
SHAPES = ((96, 1, 1024, 128), (64, 4, 1024, 64))
SMALL_SHAPES = ((4, 2, 96, 16),)
_OUTPUTS = ("output", "query gradient", "key gradient", "value gradient")
Attention = Callable[[Array, Array, Array], Array]


def reference(q: Array, k: Array, v: Array) -> Array:
    """softmax(q · k, causal) · v by its formula, in float32."""
    T = q.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    scores = jnp.einsum("ngqh,nhs->ngqs", q, k, precision="highest")
    at = jnp.arange(T)
    scores = jnp.where(at[None, None, :, None] >= at[None, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("ngqs,nsh->ngqh", weights, v, precision="highest")


def contenders() -> dict[str, Attention]:
    """The attentions by name; the model itself calls `attend`."""
    stand_in = functools.partial(_fused_attention, implementation="xla")
    fused = attend if jax.default_backend() == "gpu" else stand_in
    return {"fused": fused, "plain": causal_attention, "reference": reference}


def _inputs(shape: tuple[int, int, int, int]) -> list[Array]:
    """Queries, keys, values, and the gradient of the output."""
    N, G, T, H = shape
    random = np.random.default_rng(0)
    scales = {(N, G, T, H): H**-0.5, (N, H, T): 1.0, (N, T, H): 1.0}
    drawn = [random.standard_normal(axes, np.float32) * scale for axes, scale in scales.items()] + [
        random.standard_normal(shape, np.float32)
    ]
    return [jnp.asarray(x, jnp.bfloat16) for x in drawn]


def _program(attention: Attention) -> Callable[..., Any]:
    """Output and gradients of an attention as one program."""

    @jax.jit
    def both(q: Array, k: Array, v: Array, gradient: Array) -> Any:
        out, backward = jax.vjp(attention, q, k, v)
        return out, *backward(gradient.astype(out.dtype))

    return both


def _errors(found: Any, wanted: Any) -> dict[str, float]:
    def norm(x: np.ndarray) -> float:
        return float(np.linalg.norm(x.astype(np.float64).ravel()))

    pairs = [[np.asarray(x, np.float32) for x in pair] for pair in zip(found, wanted)]
    return {name: norm(a - b) / norm(b) for name, (a, b) in zip(_OUTPUTS, pairs)}


def compare(shape: tuple[int, int, int, int], calls: int, repetitions: int) -> dict[str, Any]:
    """Errors and seconds of forward and backward pass at a shape.

    Args:
      shape: As in `SHAPES`.
      calls: Calls in one timed run, so that calling from Python does not count.
      repetitions: Timed runs of each attention, in turn.
    """
    inputs = _inputs(shape)
    programs = {name: _program(attention) for name, attention in contenders().items()}
    first = side_by_side(lambda name: jax.block_until_ready(programs[name](*inputs)), programs)
    outputs = dict(zip(programs, first))

    def seconds(name: str, _: int) -> float:
        def work() -> Any:
            for _ in range(calls):
                out = programs[name](*inputs)
            return out

        return timed(work)[0] / calls

    raced = ("fused", "plain")
    runs = [functools.partial(seconds, name) for name in raced]
    medians = {
        name: statistics.median(times) for name, times in zip(raced, interleave(runs, repetitions))
    }
    return {
        "shape": shape,
        "errors": {name: _errors(outputs[name], outputs["reference"]) for name in raced},
        "seconds": medians,
        "plain_over_fused": medians["plain"] / medians["fused"],
    }


def measure(task: Task) -> Measured:
    """Compares at the shapes for which there is time, and at the first in any case."""
    result: dict[str, Any] = {"shapes": []}
    first_left = task.seconds_left
    for number, shape in enumerate(SMALL_SHAPES if task.small else SHAPES):
        if number and task.seconds_left < 1.2 * (first_left - task.seconds_left) / number:
            break
        progress(f"attention of {shape}")
        result["shapes"].append(compare(shape, *((2, 2) if task.small else (20, 5))))
        task.keep(result)
    worst = max(max(found["errors"]["fused"].values()) for found in result["shapes"])
    plain = max(max(found["errors"]["plain"].values()) for found in result["shapes"])
    faster = ", ".join(f"{found['plain_over_fused']:.2f}" for found in result["shapes"])
    headline = f"largest error {worst:.1e} (plain {plain:.1e}); {faster} times as fast as plain"
    return Measured(headline, worst, GOAL, result, at_most=True)
