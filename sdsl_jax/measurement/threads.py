"""How many threads XLA computes with on a CPU."""

from __future__ import annotations

import os
import threading

from sdsl_jax.errors import SdslError, require


def _cpus() -> set[int]:
    # Not every system can say, or change, where a process may run.
    return (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )


def available_threads() -> int:
    """Processors that this process may run on."""
    return len(_cpus())


def _started() -> bool:
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


# What the backend was started with by `limit_threads`; None where something else started it.
_limit: int | None = None
_lock = threading.Lock()


def limit_threads(count: int) -> None:
    """Lets XLA's CPU backend compute with `count` threads, for the rest of the process.

    XLA gives its thread pool one thread per processor that the process may run on at the moment
    when the backend is first used. So the process is confined to `count` processors, the backend is
    created, and then the process may use all of them again: Python threads that compile programs
    do. On a system without processor affinity nothing happens.

    Few threads are right for timing small models: splitting a pass of a few million parameters
    among threads costs more than it gains, and costs a different amount every time.

    Args:
      count: threads, from 1 to the processors of this process.

    Raises:
      SdslError: the count lies outside its range, or the backend has been used already with another
        count.
    """
    global _limit
    with _lock:
        allowed = _cpus()
        require(
            1 <= count <= len(allowed),
            f"the number of threads is {count}; it must lie in [1, {len(allowed)}], the processors of this process.",
        )
        if not hasattr(os, "sched_setaffinity"):
            return
        if _started():
            have = len(allowed) if _limit is None else _limit
            if have != count:
                raise SdslError(
                    f"the number of threads is {count}, but jax computes with {have} already; choose before jax is used."
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
    """Threads that a computation may use on a CPU, as far as this process knows; 0 on an accelerator."""
    import jax

    if jax.default_backend() != "cpu":
        return 0
    return available_threads() if _limit is None else _limit
