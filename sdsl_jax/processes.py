"""The processes of one distributed program: how they find each other and how they agree.

With a single process these functions cost nothing and return what they are given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdsl_jax.errors import SdslError, require

_ENVIRONMENT = ("SDSL_COORDINATOR", "SDSL_PROCESSES", "SDSL_PROCESS")


def initialise_distributed() -> None:
    """Joins the processes of one distributed program. Call it before anything uses a JAX device.

    Three environment variables name the coordinator (process 0) and this process:
    `SDSL_COORDINATOR=host:port`, `SDSL_PROCESSES` and `SDSL_PROCESS`, counted from 0. Without them
    JAX detects SLURM, Open MPI, Kubernetes and Cloud TPUs by itself.

    Raises:
      SdslError: The environment is incomplete or contradictory, or the processes did not find each
        other.
    """
    settings = [os.environ.get(name) for name in _ENVIRONMENT]
    missing = [name for name, value in zip(_ENVIRONMENT, settings) if not value]
    require(
        len(missing) in (0, len(settings)),
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; either all of {', '.join(_ENVIRONMENT)} "
        "must be, or none.",
    )
    arguments: dict[str, Any] = {}
    if not missing:
        coordinator, processes, process = map(str, settings)
        good = processes.isdecimal() and process.isdecimal() and int(process) < int(processes)
        require(
            good,
            f"SDSL_PROCESS is {process!r} of SDSL_PROCESSES {processes!r}; they must be whole numbers, 0 <= process < processes.",
        )
        host, _, port = coordinator.rpartition(":")
        require(
            host and port.isdecimal(),
            f"SDSL_COORDINATOR is {coordinator!r}; it must be host:port.",
        )
        arguments = dict(
            coordinator_address=coordinator, num_processes=int(processes), process_id=int(process)
        )
    # JAX's preemption service would swallow SIGTERM, which the command line handles itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        hint = "" if arguments else f"; set {', '.join(_ENVIRONMENT)}"
        raise SdslError(
            f"the processes of a distributed program could not be joined ({str(error).splitlines()[0].rstrip('.')}){hint}."
        ) from None


def is_primary() -> bool:
    """Whether this process writes what is written once: records, metrics, messages."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called it with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_primary(value: int) -> int:
    """The primary process's value, on every process; all processes must call it.

    Use it for anything that decides what runs next but may look different to each process: files,
    claims, clocks.
    """
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def any_process(flag: bool) -> bool:
    """Whether the flag is true on any process; all processes must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


@contextlib.contextmanager
def raised_on_all(message_elsewhere: str) -> Iterator[None]:
    """Within the block, an error of one process is raised on every process; all must run the block.

    Otherwise the processes without an error would wait forever for the one that stopped.

    Args:
      message_elsewhere: Message to raise where only another process has an error.

    Raises:
      SdslError: This process's error, or one with `message_elsewhere`.
    """
    failed = None
    try:
        yield
    except SdslError as error:
        failed = error
    if any_process(failed is not None):
        raise failed or SdslError(message_elsewhere)
