"""Measurements in parts, which any number of processes share.

One process measures a part and keeps what it found in a folder. Whoever needs all of it measures what
nobody else does, reads the rest, and puts the parts together in their own order, so that results do
not depend on how many processes there were. A part that is lost with its process is measured again.
"""

from __future__ import annotations

import functools
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdsl_jax.claims import Claim, ClaimLost
from sdsl_jax.measurement.latency import side_by_side
from sdsl_jax.progress import Progress
from sdsl_jax.records import whole_file

Arrays = dict[str, np.ndarray]
_POLL_SECONDS = 1.0


class Part(NamedTuple):
    """A part of a measurement.

    Attributes:
      name: Its name among the parts, and of its folder.
      cost: How much work it is; its work advances progress by as much.
      work: Measures it.
      workers: Parts like it that one process measures at once, on threads of its own.
    """

    name: str
    cost: float
    work: Callable[[], Arrays]
    workers: int = 1

    def file(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / self.name.replace("/", "_") / "result.npz"


def measure_parts(
    parts: Sequence[Part], folder: Path | None, progress: Progress, wait: bool = True
) -> dict[str, Arrays]:
    """Measures the parts that nobody else measures, those that cost most first.

    Args:
      parts: All parts.
      folder: Folder that all processes share; None to share and keep nothing.
      progress: Reports progress, in the units of the costs.
      wait: Whether to wait for parts that other processes measure. Otherwise they are left to those
        processes, once each of them has shown that it is alive.

    Returns:
      The results by name, in the order of the parts; without `wait` those of some parts may be
      missing.

    Raises:
      SdslError: A part cannot be measured, or the folder cannot be written.
    """
    claims = {part.name: Claim(part.file(folder).parent) for part in parts if folder is not None}
    by_cost = sorted(parts, key=lambda part: -part.cost)
    results: dict[str, Arrays] = {}
    while len(results) < len(parts):
        before = len(results)
        for workers in sorted({part.workers for part in parts}):
            left = [p for p in by_cost if p.workers == workers and p.name not in results]
            measure = functools.partial(_measure, folder, claims, progress)
            for part, found in zip(left, side_by_side(measure, left, workers)):
                if found is not None:
                    results[part.name] = found
        missing = [claims[part.name] for part in parts if part.name not in results]
        if missing and len(results) == before:
            if not wait and all(claim.alive for claim in missing):
                break
            time.sleep(_POLL_SECONDS)
    return {part.name: results[part.name] for part in parts if part.name in results}


def _measure(
    folder: Path | None, claims: dict[str, Claim], progress: Progress, part: Part
) -> Arrays | None:
    """What a part gives; None if another process measures it."""
    if folder is None:
        return part.work()
    path, claim = part.file(folder), claims[part.name]
    if (found := _read(path)) is None:
        if not claim.acquire():
            return None
        with claim:
            # Another process may have measured it before this one got the claim.
            if (found := _read(path)) is None:
                arrays = part.work()
                try:
                    claim.check()
                except ClaimLost:
                    return None
                with whole_file(path) as temporary:
                    np.savez(temporary, **arrays)  # type: ignore[arg-type]
                return arrays
    progress.advance(part.cost, f"{part.name}  measured already")
    return found


def _read(path: Path) -> Arrays | None:
    """A result; None if it is not there, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, zipfile.BadZipFile):
        path.unlink(missing_ok=True)
        return None
