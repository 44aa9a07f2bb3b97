"""The start of a head on its target's tables: the best linear map, in closed form.

Without blocks such a head predicts the target's next hidden state f_t, divided by its root mean
square, linearly from x_t = [e(x_t), f_{t−1}, 1]. The best prediction in squares,

    min over W of Σ_t |f_t − x_t·W|² + λ·n·|W without its last row|²,

solves (Σ x xᵀ + λ·n·I′)·W = Σ x fᵀ, with I′ the identity but for a 0 where the constant stands. The
sums are taken in float64, some windows of the teacher's cache at a time, so memory does not grow with
the text. λ is the one that does best on a tenth of the windows, which the sums for it leave out; the
start then uses all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from sdsl_jax.errors import require
from sdsl_jax.models.feature_head import Tables, normalised_embeddings
from sdsl_jax.training.teacher import TeacherCache

# Windows that a start is computed from, whatever the token budgets: the first that the rung sees.
START_WINDOWS = 2048
# One window of so many tells which λ is best.
_HELD_OUT = 10
_STRENGTHS = tuple(10.0**k for k in range(-7, 1))
_AT_ONCE = 32


def start_steps(batch: int) -> int:
    """Steps that see the windows of a start."""
    return -(-START_WINDOWS // batch)


class NormalEquations(NamedTuple):
    """Sums over rows x and y of a linear regression y ≈ x·W, in float64.

    Attributes:
      gram: Σ x xᵀ.
      cross: Σ x yᵀ.
      squares: Σ |y|².
      rows: Number of rows.
    """

    gram: Float[np.ndarray, "I I"]
    cross: Float[np.ndarray, "I D"]
    squares: float
    rows: int

    @classmethod
    def of(cls, x: Float[np.ndarray, "n I"], y: Float[np.ndarray, "n D"]) -> NormalEquations:
        """Those of some rows."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return cls(x.T @ x, x.T @ y, float(np.square(y).sum()), len(x))

    def plus(self, other: NormalEquations) -> NormalEquations:
        """Those of the rows of both."""
        return NormalEquations(
            self.gram + other.gram,
            self.cross + other.cross,
            self.squares + other.squares,
            self.rows + other.rows,
        )

    def ridge(self, strength: float) -> Float[np.ndarray, "I D"]:
        """W at λ = `strength`; the last entry of x is the constant, which is not held back."""
        held_back = np.full(len(self.gram), strength * self.rows)
        held_back[-1] = 0.0
        return np.linalg.solve(self.gram + np.diag(held_back), self.cross)

    def error(self, weights: Float[np.ndarray, "I D"]) -> float:
        """Mean of |y − x·W|² over the rows."""
        fitted = (weights * (self.gram @ weights - 2 * self.cross)).sum()
        return float(self.squares + fitted) / self.rows


class LinearStart(NamedTuple):
    """The best linear head.

    Attributes:
      embed: E.
      read: P.
      bias: b.
      strength: λ.
      explained: Share of Σ |f|² that is explained in the windows that λ was chosen by.
    """

    embed: Float[np.ndarray, "D D"]
    read: Float[np.ndarray, "D D"]
    bias: Float[np.ndarray, " D"]
    strength: float
    explained: float


def linear_start(
    tables: Tables, cache: TeacherCache, windows: Sequence[int] | Int[np.ndarray, " n"]
) -> LinearStart:
    """The best linear head on its target's tables.

    Args:
      tables: What the head takes from its target.
      cache: The teacher's cache, with the features of its last block.
      windows: Numbers of the windows to use; every tenth chooses λ.

    Raises:
      SdslError: There are fewer than two windows.
    """
    require(
        len(windows) >= 2, f"a closed-form start needs 2 windows of text; there are {len(windows)}."
    )
    embed = jax.jit(normalised_embeddings)

    def equations(numbers: Sequence[int]) -> NormalEquations:
        total: NormalEquations | None = None
        for begin in range(0, len(numbers), _AT_ONCE):
            records = [cache[window] for window in numbers[begin : begin + _AT_ONCE]]
            tokens = np.stack([record["tokens"] for record in records])
            features = np.stack([record["features"] for record in records]).astype(np.float64)
            told = np.asarray(embed(tables, tokens[:, 1:-1]))
            known = features[:, :-1]
            rows = np.concatenate([told, known, np.ones((*known.shape[:2], 1))], axis=-1)
            flat = (z.reshape(-1, z.shape[-1]) for z in (rows, features[:, 1:]))
            part = NormalEquations.of(*flat)
            total = part if total is None else total.plus(part)
        assert total is not None
        return total

    chosen = np.arange(len(windows)) % _HELD_OUT == min(_HELD_OUT, len(windows)) - 1
    held_out, fitted = (
        equations([int(w) for w in np.asarray(windows)[c]]) for c in (chosen, ~chosen)
    )
    errors = {strength: held_out.error(fitted.ridge(strength)) for strength in _STRENGTHS}
    strength = min(errors, key=lambda s: errors[s])
    weights = fitted.plus(held_out).ridge(strength).astype(np.float32)
    width = weights.shape[1]
    explained = 1 - errors[strength] * held_out.rows / held_out.squares
    return LinearStart(weights[:width], weights[width:-1], weights[-1], strength, explained)
