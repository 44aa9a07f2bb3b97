"""The race at one size."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.child import SETTLE_SECONDS, ChildProcess
from benchmarks.train.model import BATCH, LENGTH, VOCABULARY, peer_shape, peer_weights, shape, train_flops_per_token
from sdsl_jax.config import TrainingConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.models import init_params
from sdsl_jax.training.step import TrainState, init_state, step_config, train_step

_LEARNING_RATE = 1e-3
_CHECKED_STEPS = 3


class _Ours:
    """Our step on the batches, as the training loop drives it: the loss of a step is read while the next one runs."""

    def __init__(self, size: str, batches: np.ndarray):
        self.model, self.config = shape(size), step_config(TrainingConfig())
        self.params = init_params(self.model, jax.random.key(0))
        self.state: TrainState = init_state(self.config, self.params)
        self.params = jax.device_get(self.params)
        self.batches = batches

    def steps(self, first: int, count: int) -> tuple[float, list[float]]:
        """Seconds, and the loss of each step."""
        time.sleep(SETTLE_SECONDS)
        losses: list[Any] = []
        began = time.perf_counter()
        for i in range(first, first + count):
            self.state, metrics = train_step(
                self.state,
                self.batches[i % len(self.batches)],
                np.float32(_LEARNING_RATE),
                model=self.model,
                config=self.config,
            )
            if len(losses) > 0:
                losses[-1] = float(losses[-1])
            losses.append(metrics.loss_nats)
        jax.block_until_ready(self.state.params)
        seconds = time.perf_counter() - began
        return seconds, [float(loss) for loss in losses]


def race(size: str, repetitions: int, target_seconds: float, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Times our step and the peer's, interleaved.

    Args:
      size: a key of `SHAPES`.
      repetitions: of each.
      target_seconds: about how long one repetition shall take.
      folder: for weights and batches.
      about: receives versions and the machine's matmul peak.
    """
    batches = np.random.default_rng(0).integers(0, VOCABULARY, (8, BATCH, LENGTH + 1)).astype(np.int32)
    np.save(folder / "batches.npy", batches)
    ours = _Ours(size, batches)
    np.savez(folder / "weights.npz", **peer_weights(ours.params))  # type: ignore[arg-type]
    training = TrainingConfig()
    recipe = {k: getattr(training, k) for k in ("weight_decay", "adam_b1", "adam_b2", "z_loss", "clip_norm")}
    asked = dict(
        shape=peer_shape(ours.model),
        recipe=recipe | {"learning_rate": _LEARNING_RATE},
        weights=str(folder / "weights.npz"),
        batches=str(folder / "batches.npy"),
    )
    eager, compiled = (ChildProcess("benchmarks.train.torch_child", "PyTorch") for _ in range(2))
    try:
        about |= {"peer": eager.ask("versions"), "jax": jax.__version__}
        about["matmul_flops_per_second"] = max(about.get("matmul_flops_per_second", 0.0), _matmul_peak(eager))
        for child in (eager, compiled):
            child.ask("load", **asked)
        began = time.perf_counter()
        _, losses = ours.steps(0, 1)
        compile_seconds = time.perf_counter() - began
        losses += ours.steps(1, _CHECKED_STEPS - 1)[1]
        peers = eager.ask("steps", first=0, count=_CHECKED_STEPS)["losses"]
        difference = max(abs(a - b) / b for a, b in zip(losses, peers))
        compile_error = ""
        try:
            compiled.ask("compile")
        except SdslError as error:
            compile_error = str(error)[:300]
        seconds, _ = ours.steps(0, 2)
        count = max(2, round(2 * target_seconds / seconds))
        times: dict[str, list[float]] = {"ours": [], "eager": [], "compiled": []}
        for _ in range(repetitions):
            times["ours"].append(ours.steps(0, count)[0] / count)
            times["eager"].append(eager.ask("steps", first=0, count=count)["seconds"] / count)
            if not compile_error:
                times["compiled"].append(compiled.ask("steps", first=0, count=count)["seconds"] / count)
    finally:
        eager.close()
        compiled.close()
    tokens, ratios = BATCH * LENGTH, [b / a for a, b in zip(times["ours"], times["eager"])]
    rate = tokens / statistics.median(times["ours"])
    return {
        "size": size,
        "tokens_per_second": rate,
        "eager_tokens_per_second": tokens / statistics.median(times["eager"]),
        "compiled_tokens_per_second": tokens / statistics.median(times["compiled"]) if times["compiled"] else None,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "share_of_peak": rate * train_flops_per_token(ours.model) / about["matmul_flops_per_second"],
        "compile_seconds": compile_seconds,
        "compile_error": compile_error,
        "loss_difference": difference,
        "steps_per_repetition": count,
        "seconds_per_step": times,
    }


def _matmul_peak(child: ChildProcess) -> float:
    """The better of PyTorch's and XLA's large product, FLOP/s: a peak that is too low would flatter us."""
    a = jax.random.normal(jax.random.key(0), (1024, 1024))
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(a))
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - began)
    return max(2 * 1024**3 / best, child.ask("matmul_peak")["flops_per_second"])
