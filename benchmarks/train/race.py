"""The race at one size."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.child import ChildProcess
from benchmarks.train.model import (
    BATCH,
    LENGTH,
    VOCABULARY,
    peer_shape,
    peer_weights,
    train_flops_per_token,
)
from benchmarks.train.ours import LEARNING_RATE, Ours
from sdsl_jax.config import TrainingConfig
from sdsl_jax.errors import SdslError

_CHECKED_STEPS = 3


def race(
    size: str, repetitions: int, target_seconds: float, folder: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Times our step and the peer's, interleaved; ours also as one rung per core, each in a process
    of its own.

    Args:
      size: a key of `SHAPES`.
      repetitions: of each.
      target_seconds: about how long one repetition shall take.
      folder: for weights and batches.
      about: receives versions and the machine's matmul peak.
    """
    batches = (
        np.random.default_rng(0).integers(0, VOCABULARY, (8, BATCH, LENGTH + 1)).astype(np.int32)
    )
    np.save(folder / "batches.npy", batches)
    ours = Ours()
    ours.load(size, str(folder / "batches.npy"))
    np.savez(folder / "weights.npz", **peer_weights(ours.weights))  # type: ignore[arg-type]
    training = TrainingConfig()
    recipe = {
        k: getattr(training, k)
        for k in ("weight_decay", "adam_b1", "adam_b2", "z_loss", "clip_norm")
    }
    asked = dict(
        shape=peer_shape(ours.model),
        recipe=recipe | {"learning_rate": LEARNING_RATE},
        weights=str(folder / "weights.npz"),
        batches=str(folder / "batches.npy"),
    )
    eager, compiled = (ChildProcess("benchmarks.train.torch_child", "PyTorch") for _ in range(2))
    rungs = _one_per_core(size, folder)
    try:
        about |= {"peer": eager.ask("versions"), "jax": jax.__version__}
        about["matmul_flops_per_second"] = max(
            about.get("matmul_flops_per_second", 0.0), _matmul_peak(eager)
        )
        for child in (eager, compiled):
            child.ask("load", **asked)
        began = time.perf_counter()
        losses = ours.steps(0, 1)["losses"]
        compile_seconds = time.perf_counter() - began
        losses += ours.steps(1, _CHECKED_STEPS - 1)["losses"]
        peers = eager.ask("steps", first=0, count=_CHECKED_STEPS)["losses"]
        difference = max(abs(a - b) / b for a, b in zip(losses, peers))
        compile_error = ""
        try:
            compiled.ask("compile")
        except SdslError as error:
            compile_error = str(error)[:300]
        _steps_at_once(rungs, 2)
        seconds = ours.steps(0, 2)["seconds"]
        count = max(2, round(2 * target_seconds / seconds))
        times: dict[str, list[float]] = {"ours": [], "rungs": [], "eager": [], "compiled": []}
        for _ in range(repetitions):
            times["ours"].append(ours.steps(0, count)["seconds"] / count)
            if rungs:
                times["rungs"].append(_steps_at_once(rungs, count) / (count * len(rungs)))
            times["eager"].append(eager.ask("steps", first=0, count=count)["seconds"] / count)
            if not compile_error:
                times["compiled"].append(
                    compiled.ask("steps", first=0, count=count)["seconds"] / count
                )
    finally:
        for child in (eager, compiled, *rungs):
            child.close()
    tokens = BATCH * LENGTH
    ratios, rung_ratios = (
        [b / a for a, b in zip(times[name], times["eager"])] or [float("nan")]
        for name in ("ours", "rungs")
    )
    rate = tokens / statistics.median(times["ours"])
    return {
        "size": size,
        "tokens_per_second": rate,
        "eager_tokens_per_second": tokens / statistics.median(times["eager"]),
        "compiled_tokens_per_second": tokens / statistics.median(times["compiled"])
        if times["compiled"]
        else None,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "rungs_at_once": len(rungs),
        "rungs_tokens_per_second": tokens / statistics.median(times["rungs"]) if rungs else None,
        "rungs_ratio": statistics.median(rung_ratios) if rungs else None,
        "share_of_peak": rate
        * train_flops_per_token(ours.model)
        / about["matmul_flops_per_second"],
        "compile_seconds": compile_seconds,
        "compile_error": compile_error,
        "loss_difference": difference,
        "steps_per_repetition": count,
        "seconds_per_step": times,
    }


def _one_per_core(size: str, folder: Path) -> list[ChildProcess]:
    """A process per core, each with a rung of its own; none where processes cannot be bound to cores."""
    if shutil.which("taskset") is None:
        return []
    children = [
        ChildProcess("benchmarks.train.ours", "our step", ("taskset", "-c", str(core)))
        for core in sorted(os.sched_getaffinity(0))
    ]
    for child in children:
        child.ask("load", size=size, batches=str(folder / "batches.npy"))
    return children


def _steps_at_once(children: list[ChildProcess], count: int) -> float:
    """Seconds in which every child takes `count` steps, all at the same time."""
    if not children:
        return 0.0
    with ThreadPoolExecutor(len(children)) as pool:
        return max(
            pool.map(lambda child: child.ask("steps", first=0, count=count)["seconds"], children)
        )


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
