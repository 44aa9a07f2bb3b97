"""Where two runs over the same prompts first differ, such as a greedy run and the target's own text."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.decoding import Decoded, Model
from sdsl_jax.models import forward


@dataclass(frozen=True)
class Divergence:
    """The first position at which a row of one run differs from the same row of another.

    Attributes:
      row: Row of both runs.
      position: Position of the first token that differs; if one run ends earlier, its end.
      margin: The target's largest logit there minus the second largest, in nats. Rounding explains
        a divergence only where this is about the precision of the logits.
      largest_logit: Magnitude of the largest logit there, to compare the margin with: bfloat16 has
        8 bits.
    """

    row: int
    position: int
    margin: float
    largest_logit: float


def first_divergences(target: Model, one: Decoded, other: Decoded) -> list[Divergence]:
    """First divergences of two runs over the same prompts, in the order of rows; empty if all tokens
    agree.

    In float32 greedy speculative decoding gives the target's greedy output token for token. In
    bfloat16 a verify pass may round differently from a single step, and near ties may fall the other
    way.
    """
    width = min(one.tokens.shape[1], other.tokens.shape[1])
    a, b = (np.asarray(run.tokens)[:, :width] for run in (one, other))
    lengths = np.minimum(np.asarray(one.lengths), np.asarray(other.lengths))
    ends_differ = np.asarray(one.lengths) != np.asarray(other.lengths)
    within = np.arange(width) < lengths[:, None]
    differs = (a != b) & within
    rows = np.nonzero(differs.any(axis=1) | ends_differ)[0]
    if not len(rows):
        return []
    positions = np.where(differs[rows].any(axis=1), differs[rows].argmax(axis=1), lengths[rows])
    logits, _ = jax.jit(forward, static_argnums=0)(
        target.config, target.params, jnp.asarray(a[rows])
    )
    at = np.asarray(logits[np.arange(len(rows)), positions - 1].astype(jnp.float32))
    second, first = np.sort(at, axis=1)[:, -2:].T
    return [
        Divergence(int(row), int(position), float(x - y), float(np.abs(top).max()))
        for row, position, x, y, top in zip(rows, positions, first, second, at)
    ]
