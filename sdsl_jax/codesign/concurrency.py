"""What a draft costs in concurrency: the rows that still fit beside it, and the throughput of a full device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdsl_jax.codesign.program import whole_lookaheads
from sdsl_jax.codesign.serving_problem import MEMORY_SHARE, ServingProblem
from sdsl_jax.theory.arrays import in_numpy
from sdsl_jax.theory.hardware import Shape, cache_bytes
from sdsl_jax.theory.serving import Design, Serving, outcome, shapes


@dataclass(frozen=True)
class Capacity:
    """What fits in the memory that the weights leave, and its throughput where all of it is used.

    Attributes:
      cache_tokens: Positions that the caches can hold, those of all rows together.
      rows: Rows of a whole prompt and answer among them.
      lookahead: Drafts per round at so many rows: the best whole number; 0 without a draft, or
        where no row fits.
      tokens_per_second: Tokens of so many rows per second, whatever their latency; null where no
        row fits.
    """

    cache_tokens: int
    rows: int
    lookahead: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class Concurrency:
    """The memory that a draft takes from the rows: its weights and its caches.

    Attributes:
      row_tokens: Positions of a row: the tokens of a prompt and of an answer.
      with_draft: With the draft of the answer in memory.
      without_draft: With the target alone.
    """

    row_tokens: float
    with_draft: Capacity
    without_draft: Capacity


def cache_room(serving: Serving, target: Shape, draft: Shape | None = None) -> float:
    """Positions of the caches of all rows that fit beside the weights, a real number.

    Of each device `MEMORY_SHARE` may be used. Models that share devices share what their weights
    leave, and every position is in the caches of both. A draft on devices of its own has theirs.

    Args:
      serving: The device, precisions, and devices of each model.
      target: Shape of the target.
      draft: Shape of the draft; None for the target alone.
    """
    usable = MEMORY_SHARE * float(serving.hardware.memory_bytes)

    def of(shape: Shape, draft: bool) -> tuple[float, float]:
        """Bytes of weights, and of the cache of one position, on each device."""
        precision = serving.draft_precision if draft else serving.precision
        devices = float(serving.draft_devices if draft else serving.devices)
        weights = float(shape.total_params) * float(precision.weight_bytes)
        return weights / devices, float(cache_bytes(shape, precision, 1.0, 1.0)) / devices

    models = [of(target, False)] + ([of(draft, True)] if draft is not None else [])
    if serving.overlapped > 0:
        return max(0.0, min((usable - weights) / cache for weights, cache in models))
    weights, cache = (sum(part) for part in zip(*models))
    return max(0.0, (usable - weights) / cache)


def concurrency(problem: ServingProblem, design: Design) -> Concurrency | None:
    """What the draft of a design costs in rows; None where the memory of a device is not known."""
    serving, design = in_numpy((problem.inputs.serving, design))
    if not np.isfinite(serving.hardware.memory_bytes):
        return None
    draft, target = shapes(serving, design)
    longest = float(serving.prompt_tokens + serving.new_tokens)

    def capacity(room: float, lookaheads: np.ndarray | None) -> Capacity:
        rows = math.floor(room / longest * (1 + 1e-9))
        if not rows:
            return Capacity(math.floor(room), 0, 0, None)
        gives = outcome(
            serving,
            design._replace(
                batch=np.float64(rows),
                lookahead=np.ones(1) if lookaheads is None else lookaheads,
            ),
        )
        if lookaheads is None:
            alone = 1 / (gives.seconds_per_token * gives.speedup)
            return Capacity(math.floor(room), rows, 0, float(alone[0]))
        best = int(np.argmax(gives.tokens_per_second))
        speed = float(gives.tokens_per_second[best])
        return Capacity(math.floor(room), rows, round(float(lookaheads[best])), speed)

    lookaheads = whole_lookaheads(problem.program, problem.inputs)
    return Concurrency(
        longest,
        capacity(cache_room(serving, target, draft), lookaheads),
        capacity(cache_room(serving, target), None),
    )
