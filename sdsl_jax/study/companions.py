"""Processes that train beside a study that computes on one thread of a CPU.

Small models train fastest on one thread each, so a study leaves the other processors idle. A
companion is `sdsl train` on the same folder: rungs are claimed, so no two processes train the same
one, and a model is the same to the last bit whichever process trained it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from sdsl_jax.checkpoints import model_folder
from sdsl_jax.config import StudyConfig, to_toml
from sdsl_jax.measurement.threads import available_threads, computing_threads
from sdsl_jax.training.rungs import Plan

# FLOPs of the models that are left to train from which a process is worth starting: below, it
# would have imported JAX when they are done.
_WORTH_STARTING = 3e11
# Seconds that a companion gets to end by itself, and to save what it has when it is told to.
_SECONDS = 30


def companion_count(plans: list[Plan]) -> int:
    """How many companions a study starts for these rungs: one for each idle processor and for each
    rung but one, and none where they would gain little.

    Args:
      plans: The rungs of the study.
    """
    left = [plan for plan in plans if not all(map(model_folder.is_whole, plan.models))]
    if (
        not hasattr(os, "sched_setaffinity")
        or jax.process_count() > 1
        or computing_threads() != 1
        or sum(plan.flops for plan in left) < _WORTH_STARTING
    ):
        return 0
    return max(0, min(available_threads(), len(left)) - 1)


@contextlib.contextmanager
def companions(config: StudyConfig, folder: Path, count: int) -> Iterator[None]:
    """Lets so many processes train the study's rungs while the context lasts.

    They end with it. One that fails costs time and nothing else: its claims become stale, and the
    study trains its rungs.

    Args:
      config: The study.
      folder: The study's folder.
      count: Number of processes.
    """
    with contextlib.ExitStack() as stack:
        if count:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sdsl-")))
            file = scratch / "study.toml"
            file.write_text(to_toml(config), encoding="utf-8")
            command = [sys.executable, "-m", "sdsl_jax.cli", "train", file, "--out", folder]
            for processor in sorted(os.sched_getaffinity(0))[1 : count + 1]:
                stack.push(functools.partial(_end, _start(command, processor)))
        yield


def _start(command: list[str | Path], processor: int) -> subprocess.Popen[bytes]:
    """Starts a command on one processor, which it inherits from this thread."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.sched_setaffinity(0, allowed)


def _end(process: subprocess.Popen[bytes], failed: type[BaseException] | None, *_: Any) -> None:
    """Waits for a process that has nothing left to do; makes it save and end if the study failed."""
    if failed is not None:
        process.terminate()
    for stop in (process.terminate, process.kill):
        try:
            process.wait(_SECONDS)
            return
        except subprocess.TimeoutExpired:
            stop()
    process.wait()
