"""The number of threads that XLA computes with on a CPU."""

from __future__ import annotations

import os
import threading

from sdsl_jax.errors import require


def _cpus() -> set[int]:
    # Not every system can report, or change, the processors of a process.
    return (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )


def available_threads() -> int:
    """Processors that this process may run on."""
    return len(_cpus())


def _started() -> bool:
    """Whether jax has created a backend: it then refuses to change its number of CPU devices."""
    import jax

    devices = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", devices + 2)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", devices)
    return False


# Threads that `limit_threads` started the backend with; None if something else started it.
_limit: int | None = None
_lock = threading.Lock()


def limit_threads(count: int) -> None:
    """Lets XLA's CPU backend compute with `count` threads, for the rest of the process.

    XLA starts one thread for each processor that the process may run on when the backend is first
    used. This function confines the process to `count` processors, creates the backend, and then
    lets the process use all of them again, as Python threads that compile programs do. It does
    nothing on a system without processor affinity.

    Few threads are right for timing small models: splitting a pass of a few million parameters
    among threads costs more than it gains, and the cost varies from run to run.

    Args:
      count: Number of threads, from 1 to the processors of this process.

    Raises:
      SdslError: the count is out of range, or the backend was started with another count.
    """
    global _limit
    with _lock:
        allowed = _cpus()
        require(
            1 <= count <= len(allowed),
            f"the number of threads is {count}; it must lie in [1, {len(allowed)}], the processors "
            "of this process.",
        )
        if not hasattr(os, "sched_setaffinity"):
            return
        if _started():
            current = len(allowed) if _limit is None else _limit
            require(
                current == count,
                f"the number of threads is {count}, but jax computes with {current} already; choose "
                "before jax is used.",
            )
            return
        import jax

        os.sched_setaffinity(0, set(sorted(allowed)[:count]))
        try:
            jax.devices()
        finally:
            os.sched_setaffinity(0, allowed)
        _limit = count


def computing_threads() -> int:
    """Threads that a computation on the CPU may use, as far as this process knows; 0 on an accelerator."""
    import jax

    if jax.default_backend() != "cpu":
        return 0
    return available_threads() if _limit is None else _limit
