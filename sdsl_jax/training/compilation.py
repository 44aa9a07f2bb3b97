"""How long XLA has compiled in this process."""

from __future__ import annotations

import jax

# The name under which JAX reports every compilation, and every program that it reads from its cache
# instead.
_EVENT = "/jax/core/compile/backend_compile_duration"
_durations: list[float] = []


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _EVENT:
        _durations.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
    """Seconds spent compiling, or reading compiled programs, since this module was imported."""
    return sum(_durations)


def compilations() -> int:
    """Programs compiled, or read, since this module was imported."""
    return len(_durations)
