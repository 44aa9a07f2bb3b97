"""Compiled programs kept between runs of the command, in a folder of the user's."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path

from sdsl_jax.cache_folders import processor, programs_folder
from sdsl_jax.compiler_options import quick_options

# Programs that compile faster than this many seconds are compiled again: reading them would save
# little.
_WORTH_KEEPING = "0.02"


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> None:
    """Points JAX's persistent compilation cache to a folder, by the environment that JAX reads when
    it is imported.

    `SDSL_NO_CACHE=1` leaves it off, `JAX_COMPILATION_CACHE_DIR` names another folder, and a folder
    that cannot be written to is passed over. Nothing changes in a process that has imported JAX
    already. A job that inherits the folder of the host that submitted it takes that of its own
    processor instead.
    """
    if environment.get("SDSL_NO_CACHE", "") not in ("", "0") or "jax" in sys.modules:
        return
    ours, given = programs_folder(environment), environment.get("JAX_COMPILATION_CACHE_DIR")
    if given is None or Path(given).parent == ours:
        folder = ours / processor()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if not os.access(folder, os.W_OK | os.X_OK):
            return
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # An entry that cannot be read or written, for lack of room perhaps, costs a compilation and
    # nothing else.
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache entry"
    )
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _WORTH_KEEPING)


def compile_quickly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Leaves out the compiler's expensive passes, for a command whose programs take longer to
    compile than to run.

    Nothing changes where XLA_FLAGS is set already, and in a process that has imported JAX.
    """
    if "jax" in sys.modules or "XLA_FLAGS" in environment:
        return
    if options := quick_options():
        environment["XLA_FLAGS"] = " ".join(
            f"--{name}={str(value).lower()}" for name, value in options.items()
        )
