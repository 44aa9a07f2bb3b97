"""The command `sdsl`: thin subcommands, and the only place that prints.

This module is all that is imported before Ctrl-C and the standard streams are taken care of, so it
stays light.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from sdsl_jax.cli import streams
from sdsl_jax.cli.interruption import STATUS as INTERRUPTED
from sdsl_jax.cli.interruption import interruption
from sdsl_jax.errors import SdslError
from sdsl_jax.preemption import Preempted, end_on_sigterm

_FAILED, _PREEMPTED = 2, 128 + signal.SIGTERM
_RESUMABLE = ("study", "train", "tune", "protocol")


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = sys.argv[1:]
    resumable = arguments[:1] != [] and arguments[0] in _RESUMABLE
    continues = "; the same command continues where it stood" * resumable
    streams.fill_gaps()
    if resumable:
        _start_with_huge_pages()
    try:
        interruption.begin(f"sdsl: interrupted{continues}.")
        if resumable:
            end_on_sigterm()
            interruption.silence_at(signal.SIGTERM)
        streams.prepare()
        from sdsl_jax.cli.commands import run

        run(arguments)
        sys.stdout.flush()
    except Preempted:
        _end(_PREEMPTED, f"sdsl: ended by SIGTERM{continues}.")
    except BaseException as error:
        # When Ctrl-C interrupts them, imports and libraries may raise anything.
        if interruption.by is signal.SIGINT or isinstance(error, KeyboardInterrupt):
            _end(INTERRUPTED, interruption.sentence)
        _fail(error, continues)
        raise
    finally:
        interruption.done()
    if interruption.by is signal.SIGINT:
        _end(INTERRUPTED, interruption.sentence)


def _start_with_huge_pages() -> None:
    """Restarts the process with large memory pages; Ctrl-C is held back until it has restarted."""
    from sdsl_jax.cli.memory import use_huge_pages

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    use_huge_pages()


def _fail(error: BaseException, continues: str) -> None:
    """Ends the process with one sentence for an error of the user's; returns for any other error."""
    if isinstance(error, SdslError):
        _end(_FAILED, f"sdsl: error: {error}")
    if isinstance(error, OSError) and error.filename is not None:
        # A folder without read permission, for example. An error without a file is a bug.
        _end(_FAILED, f"sdsl: error: cannot use {error.filename} ({error.strerror}){continues}.")
    if isinstance(error, OSError | SystemExit):
        if (refused := streams.refusal(sys.stdout, error)) is not None:
            streams.discard(1)
            if isinstance(refused, BrokenPipeError):  # whoever reads it has seen enough
                _end(128 + signal.SIGPIPE)
            _end(_FAILED, f"sdsl: error: cannot write to standard output ({refused.strerror}).")
        if streams.refusal(sys.stderr, error) is not None:
            streams.discard(2)
            _end(_FAILED)


def _end(status: int, sentence: str = "") -> NoReturn:
    """Ends the process with a sentence on standard error.

    The other processes of a distributed program cannot continue without this one, so it waits
    neither for them nor for threads that were running when a signal came.
    """
    if interruption.by is not None:
        streams.flush_quietly()
        interruption.end(status, sentence)
    if sentence:
        streams.say(sentence)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        streams.flush_quietly()
        os._exit(status)
    sys.exit(status)
