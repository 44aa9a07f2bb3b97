"""Lines of logit α in the logarithm of the draft's size, over bootstrap draws, and the size that each asks for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

# Sizes that N* is looked for among, and how far beyond the trained drafts; lookaheads.
GRID, BEYOND, MOST_DRAFTS = 241, 8.0, 24


def with_ones(axes: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k+1"]:
    """Columns of a regression: a level first."""
    return np.concatenate([np.ones((len(axes), 1)), axes], axis=1)


def least_squares(
    x: Float[np.ndarray, "n k"], y: Float[np.ndarray, " n"], weights: Float[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws k"]:
    """Coefficients under each row of weights; minimum-norm where a draw does not determine them."""
    normal = np.einsum("dn,nk,nl->dkl", weights, x, x)
    return np.einsum("dkl,dn,nl,n->dk", np.linalg.pinv(normal), weights, x, y)


def best_sizes(
    lines: Float[np.ndarray, "draws 2"],
    middle: float,
    trained: tuple[float, float],
    cost: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """N* and its speed-up for each line of logit α in ln N.

    Args:
      lines: Level at the middle size, and slope.
      middle: The middle size.
      trained: The smallest and the largest size that was trained.
      cost: Cost of a draft step of each size, in steps of the target.
    """
    grid = np.geomspace(trained[0] / BEYOND, trained[1] * BEYOND, GRID)
    step = cost(grid)
    logit = lines[:, :1] + lines[:, 1:] * np.log(grid / middle)
    alpha = np.clip(1 / (1 + np.exp(-logit)), 1e-9, 1 - 1e-9)
    best = np.ones_like(alpha)
    for lookahead in range(MOST_DRAFTS + 1):
        tokens = (1 - alpha ** (lookahead + 1)) / (1 - alpha)
        best = np.maximum(best, tokens / (1 + lookahead * step))
    return grid[best.argmax(axis=1)], best.max(axis=1)
