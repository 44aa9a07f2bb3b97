"""The processes of one distributed program: how they find each other, and what they must agree on.

With one process, all of this costs nothing and says yes.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdsl_jax.errors import SdslError, require

_ENVIRONMENT = ("SDSL_COORDINATOR", "SDSL_PROCESSES", "SDSL_PROCESS")


def initialise_distributed() -> None:
    """Joins the processes of one distributed program; must run before anything else asks JAX for a
    device.

    The environment names the coordinator, which is process 0, and this process:
    `SDSL_COORDINATOR=host:port`, `SDSL_PROCESSES` and `SDSL_PROCESS`, from 0. Without them JAX
    finds out by itself under SLURM, Open MPI or Kubernetes and on Cloud TPUs.

    Raises:
      SdslError: the environment is incomplete or senseless, or the processes did not find each
        other.
    """
    given = [os.environ.get(name) for name in _ENVIRONMENT]
    missing = [name for name, value in zip(_ENVIRONMENT, given) if not value]
    require(
        len(missing) in (0, len(given)),
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; either all of {', '.join(_ENVIRONMENT)} "
        "must be, or none.",
    )
    arguments: dict[str, Any] = {}
    if not missing:
        coordinator, processes, process = map(str, given)
        good = processes.isdecimal() and process.isdecimal() and int(process) < int(processes)
        require(
            good,
            f"SDSL_PROCESS is {process!r} of SDSL_PROCESSES {processes!r}; they must be whole numbers, 0 <= process < processes.",
        )
        host, _, port = coordinator.rpartition(":")
        require(
            bool(host) and port.isdecimal(),
            f"SDSL_COORDINATOR is {coordinator!r}; it must be host:port.",
        )
        arguments = dict(
            coordinator_address=coordinator, num_processes=int(processes), process_id=int(process)
        )
    # It would swallow SIGTERM, on which the command line ends by itself.
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
    """Waits until every process is here; they must give the same name. Nothing, with one process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(value: int) -> int:
    """The value that the primary process brings, on every one of them; all must call it.

    For whatever decides what is computed next and might look different elsewhere: files, claims,
    clocks.
    """
    return (
        value
        if jax.process_count() == 1
        else int(multihost_utils.broadcast_one_to_all(np.int32(value)))
    )


def anywhere(flag: bool) -> bool:
    """Whether any process brings a true flag, on every one of them; all must call it."""
    return (
        flag
        if jax.process_count() == 1
        else bool(multihost_utils.process_allgather(np.bool_(flag)).any())
    )


def raise_together(error: SdslError | None, elsewhere: str) -> None:
    """Raises on every process what went wrong on any of them; all must call it.

    One that went on alone would wait for the others for ever.

    Args:
      error: of this process, if it has one.
      elsewhere: the message where only another process has one.

    Raises:
      SdslError: the own error, or `elsewhere`.
    """
    if anywhere(error is not None):
        raise error or SdslError(elsewhere)
