"""SIGTERM, which schedulers send before they take a machine away.

The command line imports this module at once, so it stays light.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Preempted(BaseException):
    """The process was asked to end. Handlers of ordinary errors do not catch it."""


def end_on_sigterm() -> None:
    """Makes SIGTERM raise `Preempted` in the main thread, wherever it is."""

    def handler(*_: object) -> None:
        raise Preempted

    signal.signal(signal.SIGTERM, handler)


@contextmanager
def sigterm_held_back() -> Iterator[Callable[[], bool]]:
    """Holds SIGTERM back within the block, and raises `Preempted` after it if SIGTERM came.

    Yields a function that says whether it has come. Only the main thread can hold a signal back; in
    another thread SIGTERM keeps its effect.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if came.is_set():
        raise Preempted
