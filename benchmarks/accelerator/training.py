"""Model FLOPs utilisation of the training step at 100M parameters and 1,024 tokens, in bfloat16.

The step is driven as the training loop drives it (`benchmarks.train.ours`). Its FLOPs, the peak of
the device and the definition of the share are those of `sdsl train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.busiest import busiest
from benchmarks.accelerator.parts import Measured, Task, progress
from benchmarks.decode import floor
from benchmarks.train.ours import Ours
from sdsl_jax.config import FamilyConfig, TrainingConfig
from sdsl_jax.device import device_name
from sdsl_jax.measurement.calibration import random_params
from sdsl_jax.models import ModelConfig, abstract_params, count, forward, member, transformer
from sdsl_jax.models.kernels import causal_attention, token_losses
from sdsl_jax.records import ModelRecord
from sdsl_jax.training.metrics import utilisation

GOAL = 0.45
TRAINING = TrainingConfig(compute_dtype="bfloat16")
# Of the memory, what may be saved for the gradient; XLA saves less than it is counted here, for it
# computes cheap things again.
_MEMORY_SHARE, _LARGEST_BATCH = 0.8, 64
# Another shape takes about so long.
_SHAPE_SECONDS = 45.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model to train and the length of its sequences."""

    name: str
    model: ModelConfig
    length: int


def shapes(small: bool) -> list[Shape]:
    """What is trained: the first decides, with heads and widths as a GPU likes them; the second is
    what the command in docs/training.md trains, deeper and narrower."""
    if small:
        tiny = ModelConfig(
            vocab_size=64, width=32, layers=2, heads=2, kv_heads=2, head_dim=16, hidden=64
        )
        return [Shape("tiny", tiny, 32)]
    wide = ModelConfig(
        vocab_size=32_000, width=768, layers=14, heads=6, kv_heads=6, head_dim=128, hidden=2048
    )
    return [
        Shape("14 layers of width 768", wide, 1024),
        Shape("20 layers of width 640", member(FamilyConfig(head_dim=64), 10**8, 256), 1024),
    ]


def sequence_bytes(shape: Shape) -> float:
    """Bytes that one more sequence in a batch makes the loss save for its gradient, at most."""

    def loss(params: Any, tokens: Any) -> Any:
        cast = jax.tree.map(lambda x: x.astype(TRAINING.compute_dtype), params)
        return token_losses(forward(shape.model, cast, tokens[:, :-1])[0], tokens[:, 1:])[0].mean()

    def saved(batch: int) -> int:
        tokens = jax.ShapeDtypeStruct((batch, shape.length + 1), jnp.int32)
        # The plain attention saves more than a fused one.
        with _attention(plain=True):
            backward = jax.eval_shape(
                lambda params, tokens: jax.vjp(lambda p: loss(p, tokens), params)[1],
                abstract_params(shape.model),
                tokens,
            )
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(backward))

    return float(saved(2) - saved(1))


def chosen_batch(shape: Shape, small: bool) -> int:
    """The largest power of two of sequences that the memory holds, at most 64."""
    if small:
        return 4
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    fits = _MEMORY_SHARE * memory / sequence_bytes(shape)
    return 2 ** int(math.log2(min(max(fits, 1.0), _LARGEST_BATCH)))


@contextlib.contextmanager
def _attention(plain: bool) -> Iterator[None]:
    """Traces the model with the plain attention, where the fused one did not work."""
    with mock.patch.object(
        transformer, "attend", causal_attention if plain else transformer.attend
    ):
        yield


def _begin(shape: Shape, batch: int) -> tuple[Ours, list[float]]:
    """A training run after three steps, the first of which compiles, and their losses."""
    random = np.random.default_rng(0)
    run = Ours()
    run.begin(
        shape.model,
        random_params(shape.model, "float32", random),
        random.integers(0, shape.model.vocab_size, (4, batch, shape.length + 1)).astype(np.int32),
        TRAINING,
    )
    return run, run.steps(0, 3)["losses"]


def _train(shape: Shape, batch: int, plain: bool, repetitions: int) -> dict[str, Any]:
    """Times the step at a batch."""
    began = time.monotonic()
    run, losses = _begin(shape, batch)
    begin_seconds = time.monotonic() - began
    steps = max(2, min(20, round(1.5 / run.steps(3, 2)["seconds"] * 2)))
    times = []
    for _ in range(repetitions):
        taken = run.steps(0, steps)
        times.append(taken["seconds"] / steps)
        losses += taken["losses"]
    seconds, counts = statistics.median(times), count(shape.model, shape.length / 2)
    record = ModelRecord(
        "benchmark", "target", counts.nonembedding, counts.total, batch * shape.length, 0,
        losses[-1], math.exp(min(losses[-1], 100.0)), flops_per_token=counts.flops_per_token,
        train_seconds=seconds, device=device_name(),
    )  # fmt: skip
    used = utilisation(record)
    return {
        "model": shape.model.description(),
        "parameters": counts.total,
        "nonembedding": counts.nonembedding,
        "length": shape.length,
        "batch": batch,
        "plain_attention": plain,
        "seconds_per_step": times,
        "tokens_per_second": record.tokens_per_second,
        "flops_per_second": used.flops_per_second,
        "share_of_peak": used.share,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "start_and_compilation_seconds": begin_seconds,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def _profile(shape: Shape, batch: int, plain: bool) -> dict[str, Any]:
    """What the device does in ten steps."""
    with _attention(plain):
        run, _ = _begin(shape, batch)
    return busiest(lambda: run.steps(0, 10) and run.state.params)


def train(shape: Shape, small: bool) -> dict[str, Any]:
    """Times a shape: at half the batch while memory is short, and with plain attention if the fused
    one does not work."""
    batch, plain = chosen_batch(shape, small), False
    problems: list[str] = []
    while True:
        progress(f"{shape.name}: {batch} sequences of {shape.length} tokens")
        try:
            with _attention(plain):
                found = _train(shape, batch, plain, 2 if small else 5)
            return {"name": shape.name, **found, "problems": problems}
        except Exception as error:
            problems.append(f"batch {batch}: {type(error).__name__}: {str(error)[:500]}")
            if "RESOURCE_EXHAUSTED" in str(error) and batch > 1:
                batch //= 2
            elif not plain:
                plain = True
            else:
                raise
            jax.clear_caches()


def measure(task: Task) -> Measured:
    """Times the first shape, and the second if there is time."""
    result: dict[str, Any] = {"shapes": []}
    for shape in shapes(task.small):
        if result["shapes"] and task.seconds_left < _SHAPE_SECONDS:
            break
        result["shapes"].append(train(shape, task.small))
        task.keep(result)
    first = result["shapes"][0]

    def extras() -> dict[str, Any]:
        peak = None if task.small else floor.matmul_flops(TRAINING.compute_dtype)
        profile = _profile(shapes(task.small)[0], first["batch"], first["plain_attention"])
        return {"matmul_flops_per_second": peak, "profile": profile}

    share = first["share_of_peak"]
    used = "peak of this device unknown" if math.isnan(share) else f"{share:.1%} of the peak"
    headline = (
        f"{used}, {first['flops_per_second'] / 1e12:.3g} TFLOP/s, "
        f"{first['tokens_per_second']:,.0f} tokens/s"
    )
    return Measured(headline, share, GOAL, result, extras=extras)
