r"""What a round costs where that is a line in the lookahead, as smooth functions of a model's size.

A round of speculative decoding with lookahead γ costs γ·d + v *target steps*: d is a draft step and
v the verify pass, both in units of one autoregressive step of the target. The paper (arXiv
2603.11053) takes d = N/M and v = 1. On a device a round is no such line: `hardware` has the cost
model for that, with the same methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sdsl_jax.theory.arrays import Scalar, namespace
from sdsl_jax.theory.lookahead import optimal_lookahead_unchecked
from sdsl_jax.theory.optima import DraftOptimum, optimal_draft


class ShapeRule(NamedTuple):
    """The continuous rule behind a family of Transformers: a constant aspect ratio and a least number
    of layers, or a constant number of layers.

    Attributes:
      aspect_ratio: Width divided by layers, in the limit of many layers.
      vocab_size: V, entries of the vocabulary.
      context: Tokens of context that an average decoding step attends to.
      kv_share: Width of the keys (and of the values) divided by the width; 1 with as many key-value
        heads as query heads.
      embedding_tables: 1 where embedding and head share a matrix, 2 where they do not.
      layers: Layers of every size; 0 where they follow the aspect ratio.
      experts: Experts of a layer, 1 in a dense model.
      active_experts: Experts that each token passes through.
      min_layers: Layers of the smallest sizes, where layers follow the aspect ratio.
    """

    aspect_ratio: Scalar
    vocab_size: Scalar
    context: Scalar
    kv_share: Scalar = 1.0
    embedding_tables: Scalar = 1.0
    layers: Scalar = 0.0
    experts: Scalar = 1.0
    active_experts: Scalar = 1.0
    min_layers: Scalar = 1.0


# One block holds 4·width² attention weights and about 8·width² of a SwiGLU MLP with hidden size
# 8/3·width.
BLOCK_PARAMS_PER_WIDTH_SQUARED = 12.0
# The share of the MLP among them.
MLP_SHARE = 8.0 / 12.0
# The power p of the smooth maximum of the least layers and those that the aspect ratio asks for;
# where the two are equal it lies 2**(1/p) - 1 = 9% above them, and elsewhere less.
_SMOOTH_MAX_POWER = 8.0


def layers_and_width(params: Scalar, rule: ShapeRule) -> tuple[Array, Array]:
    """Layers and width (real numbers) of the family member with `params` non-embedding parameters.

    Solves params = 12·layers·width² with width = aspect_ratio·layers, and layers smoothly kept at
    the rule's least or above; or with the rule's own number of layers.
    """
    xp: Any = namespace(params, rule)
    size = xp.asarray(params)
    unbounded = (size / (BLOCK_PARAMS_PER_WIDTH_SQUARED * rule.aspect_ratio**2)) ** (1 / 3)
    least = xp.asarray(rule.min_layers)
    layers = (least**_SMOOTH_MAX_POWER + unbounded**_SMOOTH_MAX_POWER) ** (1 / _SMOOTH_MAX_POWER)
    layers = xp.where(xp.asarray(rule.layers) > 0, rule.layers, layers)
    return layers, (size / (BLOCK_PARAMS_PER_WIDTH_SQUARED * layers)) ** 0.5


def flops_per_token(params: Scalar, rule: ShapeRule) -> Array:
    """Forward FLOPs for one token: 2N for the blocks, 2·V·width for the head, 4·context·width·layers for attention."""
    layers, width = layers_and_width(params, rule)
    return 2 * jnp.asarray(params) + 2 * rule.vocab_size * width + 4 * rule.context * width * layers


@dataclass(frozen=True)
class LinearCost:
    """The cost of a round where it is a line in the lookahead: γ·d(N) + 1 target steps."""

    # Cost of one verify pass in target steps.
    verify_pass = 1.0
    # Smallest and largest γ: the line goes through plain decoding at 0, and has no end.
    lookahead_bounds = (0.0, float("inf"))
    # How the best draft is found.
    method = "closed form"

    def draft_step(self, params: Scalar) -> Array:
        """Cost of one draft step in target steps, for a draft of `params` parameters."""
        raise NotImplementedError

    def round_cost(self, params: Scalar, lookahead: Scalar) -> Array:
        """γ·d + v, in target steps."""
        return jnp.asarray(lookahead) * self.draft_step(params) + self.verify_pass

    def best_lookahead(self, acceptance: Scalar, params: Scalar) -> Array:
        """The best γ ≥ 1, a real number, whether or not it pays; infinite at α ≥ 1."""
        best = optimal_lookahead_unchecked(acceptance, self.draft_step(params), self.verify_pass)
        # S falls on both sides of its maximum, so the best lookahead of at least one draft is that
        # maximum or 1.
        return jnp.maximum(best.lookahead, 1.0)

    def optimal_draft(
        self, acceptance: Callable[[Array], Array], bounds: tuple[Scalar, Scalar]
    ) -> DraftOptimum:
        """The best draft size and lookahead, as `optima.optimal_draft` finds them."""
        return optimal_draft(acceptance, self.draft_step, bounds, self.verify_pass)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ParameterCost(LinearCost):
    """The paper's cost, c = N/M, and a fixed overhead c₀ of every draft step: d(N) = c₀ + N/M, v = 1."""

    target_params: Scalar
    overhead: Scalar = 0.0

    def draft_step(self, params: Scalar) -> Array:
        """Cost of one draft step in target steps, for a draft of `params` parameters."""
        return jnp.asarray(self.overhead) + jnp.asarray(params) / self.target_params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlopCost(LinearCost):
    """Costs in FLOPs: a draft step is the ratio of FLOPs per token and the verify pass costs one
    target step.

    With no head and no attention this is the paper's c = N/M. The target is the family's member of
    its size, unless `target_flops` gives its own FLOPs per token.
    """

    rule: ShapeRule
    target_params: Scalar
    target_flops: Scalar | None = None

    def draft_step(self, params: Scalar) -> Array:
        """Cost of one draft step in target steps, for a draft of `params` non-embedding parameters."""
        of_target = self.target_flops
        if of_target is None:
            of_target = flops_per_token(self.target_params, self.rule)
        return flops_per_token(params, self.rule) / of_target
