"""Which kernels a device spends its time on, by JAX's profiler."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from sdsl_jax.measurement.latency import timed

_SHOWN = 15


def busiest(work: Callable[[], Any]) -> dict[str, Any]:
    """Profiles a call whose programs are compiled already.

    Args:
      work: The call; what it returns is waited for.

    Returns:
      Wall-clock seconds, the share of them in which kernels of the device ran, and the seconds of
      the kernels that took most, their numbers left out. Without kernels if the profiler sees no
      accelerator, and only an error if it does not work: no measurement depends on it.
    """
    totals: collections.Counter[str] = collections.Counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                seconds, _ = timed(work)
            for path in Path(folder).rglob("*.xplane.pb"):
                for plane in ProfileData.from_file(str(path)).planes:
                    if not plane.name.startswith("/device:"):
                        continue
                    for line in plane.lines:
                        # Other lines repeat what the streams did, by operation.
                        if line.name.startswith("Stream"):
                            for event in line.events:
                                name = re.sub(r"[._]\d+$", "", event.name)
                                totals[name] += event.duration_ns
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "seconds": seconds,
        "busy_share": sum(totals.values()) / 1e9 / seconds if totals else None,
        "kernels": {name: ns / 1e9 for name, ns in totals.most_common(_SHOWN)},
    }
