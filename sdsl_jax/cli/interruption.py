"""Ctrl-C: one sentence and status 130, whatever the process is doing at that moment.

Python runs a signal's handler between two steps of the main thread, which may compile for a minute,
and the exception that it raises there makes the threads of libraries print their own tracebacks. So
three things happen. The handler raises `KeyboardInterrupt`, so that claims and partial files are cleaned
up. From then on, nothing else is printed to standard error. And a thread of our own, which Python
wakes at once, ends the process if the main thread does not do so within a few seconds, or when
Ctrl-C comes again. A hard end is safe: everything that can be resumed resumes exactly even after
kill -9.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import types
from typing import NoReturn

STATUS = 128 + signal.SIGINT
# What the main thread has to clean up after itself.
_GRACE_SECONDS = 3.0


class Interruption:
    """What SIGINT does to a process that runs the command; there is one for each process.

    Attributes:
      by: the signal that ends the command, once it has come; standard error is silent since.
      sentence: what the command says when SIGINT ends it.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self.sentence = ""
        self._running = self._raised = self._installed = False
        self._speaks = threading.Lock()
        self._stderr = self._nowhere = -1

    def begin(self, sentence: str) -> None:
        """From now on SIGINT ends the command, unless the process was started with SIGINT ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.sentence, self._running = sentence, True
        if self._stderr < 0:
            # Opened now: when a signal comes, there may be no file descriptor left.
            self._stderr, self._nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        if not self._installed and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._install()
        # A process that replaced itself by this one held the signal back meanwhile.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def done(self) -> None:
        """Call when the command has ended; SIGINT then prints no traceback while Python shuts down."""
        self._running = False

    def silence_at(self, number: signal.Signals) -> None:
        """Lets another signal silence the threads of libraries too, before its handler runs."""
        handler = signal.getsignal(number)
        if self._stderr >= 0 and callable(handler):

            def silently(_: int, frame: types.FrameType | None) -> None:
                self._silence(number)
                handler(number, frame)

            signal.signal(number, silently)

    def end(self, status: int, sentence: str) -> NoReturn:
        """Ends the process at once, without the exit handlers of libraries.

        Args:
          status: of the process.
          sentence: its last words on standard error.
        """
        # Of two threads that end the process one speaks.
        if self._speaks.acquire(blocking=False):
            with contextlib.suppress(OSError):
                os.write(
                    self._stderr,
                    f"{_restored(self._stderr)}{sentence}\n".encode("ascii", "replace"),
                )
            os._exit(status)
        while True:
            select.select([], [], [])

    def _install(self) -> None:
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._handle)
        threading.Thread(target=self._watch, args=(woken,), daemon=True).start()
        self._installed = True

    def _silence(self, number: signal.Signals) -> None:
        self.by = number
        os.dup2(self._nowhere, 2)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        """Runs in the main thread, as soon as that is back in Python."""
        if not self._ends(frame):
            signal.default_int_handler(number, frame)
        if self._running and not self._raised:
            self._raised = True
            self._silence(signal.SIGINT)
            raise KeyboardInterrupt

    def _watch(self, woken: int) -> None:
        """Runs in a thread of its own, which no work of the main thread keeps from running."""
        while True:
            # A signal at a time: the one after it may be there already.
            if os.read(woken, 1)[0] == signal.SIGINT:
                main = sys._current_frames().get(threading.main_thread().ident or 0)
                if self._ends(main):
                    break
        self._silence(signal.SIGINT)
        if self._running:
            select.select([woken], [], [], _GRACE_SECONDS)
        self.end(STATUS, self.sentence)

    def _ends(self, main: types.FrameType | None) -> bool:
        """Whether SIGINT is the command's to answer: while it runs, and at the end of the
        interpreter, but not in between.

        Args:
          main: what the main thread executes.
        """
        return self._running or not _in_main_module(main)


def _in_main_module(frame: types.FrameType | None) -> bool:
    """Whether the main thread is in the program itself, and not in the shutdown of Python."""
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    # The second is what `python -m` runs the module in.
    return frame is not None and frame.f_code.co_name in ("<module>", "_run_module_as_main")


def _restored(stderr: int) -> str:
    """Terminal codes that erase a progress bar and show the cursor again."""
    return "\r\x1b[K\x1b[?25h" if os.isatty(stderr) else ""


interruption = Interruption()
