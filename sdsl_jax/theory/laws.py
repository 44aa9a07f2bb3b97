"""Loss laws and acceptance laws: small named tuples of coefficients that are called with sizes or losses.

This is their only home. `fitting` estimates the coefficients and `codesign` differentiates through them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Values = Float[Array, "*shape"] | Float[np.ndarray, "*shape"] | float


class ChinchillaLaw(NamedTuple):
    """L(N, D) = E + A/N^a + B/D^b, in nats per token (Hoffmann et al., 2203.15556).

    Attributes:
      E: loss that no size and no amount of data goes below.
      A: scale of the size term.
      B: scale of the data term.
      a: exponent of the size term.
      b: exponent of the data term.
    """

    E: Values
    A: Values
    B: Values
    a: Values
    b: Values

    def __call__(self, params: Values, tokens: Values) -> Array:
        """Loss of a model of `params` parameters after `tokens` tokens, in the counts that the law was fitted on."""
        return jnp.asarray(self.E) + self.A * jnp.asarray(params) ** -self.a + self.B * jnp.asarray(tokens) ** -self.b


class AffinePlane(NamedTuple):
    """α = A·x + B·y + C with x and y the perplexities of draft and target (arXiv 2603.11053). Unbounded.

    Attributes:
      A: per unit of draft perplexity.
      B: per unit of target perplexity.
      C: constant.
    """

    A: Values
    B: Values
    C: Values

    def __call__(self, draft_loss: Values, target_loss: Values) -> Array:
        """Acceptance probability at losses in nats per token; may leave [0, 1]."""
        return jnp.asarray(self.A) * jnp.exp(draft_loss) + self.B * jnp.exp(target_loss) + self.C


class LogitGap(NamedTuple):
    """logit α = level − slope·(L_draft − L_target): bounded, and defined for drafts better than their target.

    At equal loss α is sigmoid(level) < 1: two models of equal loss are not the same distribution.

    Attributes:
      level: logit of α at equal loss.
      slope: per nat of loss gap; positive where a better draft is accepted more often.
    """

    level: Values
    slope: Values

    def __call__(self, draft_loss: Values, target_loss: Values) -> Array:
        """Acceptance probability at losses in nats per token; in (0, 1)."""
        return jax.nn.sigmoid(self.level - self.slope * (jnp.asarray(draft_loss) - target_loss))


AcceptanceLaw = AffinePlane | LogitGap

# By the name that records carry.
ACCEPTANCE_LAWS: dict[str, type] = {"logit_gap": LogitGap, "affine_plane": AffinePlane}

# Besiroglu et al. (2404.10102), total parameters, and the plane of arXiv 2603.11053 on HellaSwag.
BESIROGLU = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, a=0.3478, b=0.3658)
PAPER_PLANE = AffinePlane(A=-0.0067, B=0.01297, C=0.642)
