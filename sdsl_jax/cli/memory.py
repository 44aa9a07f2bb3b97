"""Memory in large pages for training on CPUs under Linux.

A training step fills some hundred megabytes with intermediate results and gives them back. With the
C library's settings the kernel takes the memory back as well, and maps and clears it anew in every
step, 4 kB at a time: up to a third of the time of a step. Other settings are read when a process
starts, so the command starts itself once more with them.
"""

from __future__ import annotations

import contextlib
import os
import sys

_SETTINGS = {"hugetlb": "1", "mmap_max": "0", "trim_threshold": "100000000000", "arena_max": "1"}
_VARIABLE, _OFF = "GLIBC_TUNABLES", "SDSL_NO_HUGE_PAGES"


def use_huge_pages() -> None:
    """Starts the running command again with large pages, once, before jax is imported.

    Nothing happens on other systems, with SDSL_NO_HUGE_PAGES=1, where GLIBC_TUNABLES is set
    already, and in a process that has imported jax, which did more than start.
    """
    if sys.platform != "linux" or "jax" in sys.modules:
        return
    if _VARIABLE in os.environ or os.environ.get(_OFF, "") not in ("", "0"):
        return
    settings = ":".join(f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # large pages are worth no failure
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_VARIABLE: settings}
        )
