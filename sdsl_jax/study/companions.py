"""Processes that train beside a study that computes on one thread of a CPU.

Small models train fastest on one thread each, so a study leaves the other processors idle. A
companion trains rungs of the same folder: they are claimed, so no two processes train the same one,
and a model is the same to the last bit whichever process trained it. Companions write checkpoints
and models and nothing else. They end with the study, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from sdsl_jax.checkpoints import model_folder
from sdsl_jax.config import StudyConfig, load_study, to_toml
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.threads import available_threads, computing_threads
from sdsl_jax.preemption import Preempted, end_on_sigterm
from sdsl_jax.training.ladder import train_rungs
from sdsl_jax.training.rungs import Plan, plan_rungs

# FLOPs of the models that are left to train from which a process is worth starting: below, it
# would have imported JAX when they are done.
_WORTH_STARTING = 1e12
# Each takes a gigabyte of memory or so.
_MOST = 8
# Seconds that companions get to save what they have.
_SECONDS = 30
# Where Linux says how much of the processors a container may use.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def companion_count(plans: list[Plan]) -> int:
    """How many companions a study starts for these rungs: one for each idle processor and for each
    rung but one, and none where they would gain little.

    Args:
      plans: The rungs of the study.
    """
    left = [plan for plan in plans if not all(map(model_folder.is_whole, plan.all_folders))]
    if (
        not hasattr(os, "sched_setaffinity")
        or jax.process_count() > 1
        or computing_threads() != 1
        or sum(plan.flops for plan in left) < _WORTH_STARTING
    ):
        return 0
    return max(0, min(_processors(), len(left), _MOST + 1) - 1)


def _processors() -> int:
    """Processors that this process may run on, within the quota of its container."""
    try:
        quota, period = _QUOTA.read_text().split()
        return min(available_threads(), max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return available_threads()


@contextlib.contextmanager
def companions(config: StudyConfig, folder: Path, count: int) -> Iterator[None]:
    """Lets so many processes train the study's rungs while the context lasts.

    One that fails costs time and nothing else: its claims end with it, and the study trains its
    rungs.

    Args:
      config: The study.
      folder: The study's folder.
      count: Number of processes.
    """
    if not count:
        yield
        return
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="sdsl-") as scratch:
        file = Path(scratch) / "study.toml"
        file.write_text(to_toml(config), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(file), str(folder)]
        try:
            with contextlib.suppress(OSError):
                for processor in sorted(os.sched_getaffinity(0))[1 : count + 1]:
                    processes.append(_start(command, processor))
            yield
        finally:
            _end(processes)


def _start(command: list[str], processor: int) -> subprocess.Popen[bytes]:
    """Starts a command on one processor, which it inherits from this thread."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.sched_setaffinity(0, allowed)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Closes what the processes read from, at which they save and end, and waits for them."""
    deadline = time.monotonic() + _SECONDS
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _end_with_study() -> None:
    """Waits until the study has ended or closes the pipe, and then asks this process to end."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(file: Path, folder: Path) -> None:
    """What a companion does: it trains the rungs that nobody else trains.

    Args:
      file: The study's TOML.
      folder: The study's folder.
    """
    # Ctrl-C reaches it as well as the study, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_on_sigterm()
    threading.Thread(target=_end_with_study, daemon=True).start()
    with contextlib.suppress(Preempted, SdslError):
        config = load_study(file)
        dataset = load_dataset(config.data)
        train_rungs(config, dataset, folder, plan_rungs(config, dataset, folder), wait=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
