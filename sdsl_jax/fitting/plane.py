"""The paper's own fit: α = A·x + B·y + C by least squares, x and y the perplexities of draft and target (arXiv 2603.11053)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sdsl_jax.theory import PAPER_PLANE, coefficients


@dataclass(frozen=True)
class Plane:
    """A fitted plane.

    Attributes:
      A: α per unit of draft perplexity
      B: α per unit of target perplexity
      C: constant
      r_squared: share of the variance of α that it explains
      mean_squared_error: mean squared error of α
      pairs: pairs that it was fitted to; none if not published
    """

    A: float
    B: float
    C: float
    r_squared: float
    mean_squared_error: float
    pairs: int | None

    def __call__(self, draft_perplexity: np.ndarray, target_perplexity: np.ndarray) -> np.ndarray:
        """α; may leave [0, 1]."""
        return self.A * draft_perplexity + self.B * target_perplexity + self.C


# As published, with its quality of fit.
PUBLISHED_PLANE = Plane(
    **coefficients(PAPER_PLANE),
    r_squared=PAPER_PLANE.about.r_squared or 0.0,
    mean_squared_error=PAPER_PLANE.about.mean_squared_error or 0.0,
    pairs=None,
)


def fit_plane(
    draft_perplexity: Float[np.ndarray, " n"],
    target_perplexity: Float[np.ndarray, " n"],
    alpha: Float[np.ndarray, " n"],
) -> Plane | None:
    """The plane through measured pairs; None if they do not determine one, such as pairs of a single target."""
    design = np.stack([draft_perplexity, target_perplexity, np.ones(len(alpha))], axis=1)
    if len(alpha) < 4:
        return None
    # Columns of one length, so that the rank does not depend on the scale of perplexities.
    scaled = design / np.linalg.norm(design, axis=0)
    if np.linalg.matrix_rank(scaled, tol=1e-6) < 3:
        return None
    plane = np.linalg.lstsq(design, alpha, rcond=None)[0]
    error = float(np.square(alpha - design @ plane).mean())
    spread = float(np.var(alpha))
    a, b, c = map(float, plane)
    return Plane(a, b, c, 1 - error / spread if spread else float("nan"), error, len(alpha))
