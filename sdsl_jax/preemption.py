"""SIGTERM, which schedulers send before they take a machine away; light, for the command line imports it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Preempted(BaseException):
    """The process was asked to end. Like `KeyboardInterrupt`, no handler of ordinary errors must swallow it."""


def end_on_sigterm() -> None:
    """Makes SIGTERM raise `Preempted` in the main thread, wherever it is."""

    def handler(*_: object) -> None:
        raise Preempted

    signal.signal(signal.SIGTERM, handler)


@contextmanager
def sigterm_held_back() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM waits: what it yields says whether one came, and the end of the block then
    raises `Preempted`.

    Only the main thread can do that; in another one SIGTERM does what it did before.
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
