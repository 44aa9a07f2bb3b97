"""The design problem: speed-up as a differentiable function of draft size and lookahead, built from fitted laws."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.theory import AcceptanceLaw, ChinchillaLaw, CostModel, DraftOptimum, optimal_draft, speedup

Scalar = Float[Array, ""] | Float[np.ndarray, ""] | float


class DesignProblem(NamedTuple):
    """Which draft to train for one target: maximise S(α(N), γ, d(N), v) over N and γ (arXiv 2603.11053).

    A pytree whose leaves are coefficients, so that one compilation serves every target and every bootstrap draw.

    Attributes:
      loss: gives the loss of a draft of N non-embedding parameters.
      draft_tokens: that the draft will be trained on.
      target_loss: the target's own loss, nats per token.
      acceptance_law: from losses to α.
      cost: d(N) and v.
      bounds: smallest and largest N.
    """

    loss: ChinchillaLaw
    draft_tokens: Scalar
    target_loss: Scalar
    acceptance_law: AcceptanceLaw
    cost: CostModel
    bounds: tuple[Scalar, Scalar]

    def acceptance(self, params: Scalar) -> Array:
        """α of a draft of `params` non-embedding parameters."""
        return self.acceptance_law(self.loss(params, self.draft_tokens), self.target_loss)

    def speedup(self, params: Scalar, lookahead: Scalar) -> Array:
        """S of a draft at a lookahead γ ≥ 0, real or whole."""
        return speedup(self.acceptance(params), lookahead, self.cost.draft_step(params), self.cost.verify_pass)

    def log_speedup(self, x: Float[Array, 2]) -> Array:
        """ln S at x = (ln N, ln(1 + γ)), the coordinates of the optimiser."""
        return jnp.log(self.speedup(jnp.exp(x[0]), jnp.expm1(x[1])))

    def closed_form(self, tolerance: float = 0.01) -> DraftOptimum:
        """N* by a bracketed root and γ* by its closed form."""
        return optimal_draft(self.acceptance, self.cost.draft_step, self.cost.verify_pass, self.bounds, tolerance)
