r"""What a decoding step costs, as smooth functions of a model's size.

A round of speculative decoding with lookahead γ costs γ·d + v *target steps*: d is a draft step and v the verify pass, both in
units of one autoregressive step of the target. The paper (arXiv 2603.11053) takes d = N/M and v = 1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from sdsl_jax.theory.arrays import Scalar


class ShapeRule(NamedTuple):
    """The continuous rule behind a family of Transformers: an aspect ratio, never fewer than one layer.

    Attributes:
      aspect_ratio: width divided by layers, in the limit of many layers.
      vocab_size: entries of the vocabulary, V.
      context: tokens of context that an average decoding step attends to.
      kv_share: width of keys, and of values, divided by the width: 1 with as many key-value heads as query heads.
      embedding_tables: 1 where embedding and head share a matrix, 2 where they do not.
    """

    aspect_ratio: Scalar
    vocab_size: Scalar
    context: Scalar
    kv_share: Scalar = 1.0
    embedding_tables: Scalar = 1.0


# One block holds 4·width² attention weights and about 8·width² of a SwiGLU MLP with hidden size 8/3·width.
BLOCK_PARAMS_PER_WIDTH_SQUARED = 12.0
# The power p of the smooth maximum of 1 and the layers that the aspect ratio asks for; where the two are equal it lies
# 2**(1/p) - 1 = 9 % above them, and elsewhere less.
_SMOOTH_MAX_POWER = 8.0


def layers_and_width(params: Scalar, rule: ShapeRule) -> tuple[Array, Array]:
    """Layers and width (real numbers) of the family member with `params` non-embedding parameters.

    Solves params = 12·layers·width² with width = aspect_ratio·layers, and layers smoothly kept at 1 or above.
    """
    params = jnp.asarray(params)
    wanted = (params / (BLOCK_PARAMS_PER_WIDTH_SQUARED * rule.aspect_ratio**2)) ** (1 / 3)
    layers = (1.0 + wanted**_SMOOTH_MAX_POWER) ** (1 / _SMOOTH_MAX_POWER)
    return layers, (params / (BLOCK_PARAMS_PER_WIDTH_SQUARED * layers)) ** 0.5


def flops_per_token(params: Scalar, rule: ShapeRule) -> Array:
    """Forward FLOPs for one token: 2N for the blocks, 2·V·width for the head, 4·context·width·layers for attention."""
    layers, width = layers_and_width(params, rule)
    return 2 * jnp.asarray(params) + 2 * rule.vocab_size * width + 4 * rule.context * width * layers


class ParameterCost(NamedTuple):
    """The paper's cost, c = N/M, and a fixed overhead c₀ of every draft step: d(N) = c₀ + N/M, v = 1."""

    target_params: Scalar
    overhead: Scalar = 0.0

    def draft_step(self, params: Scalar) -> Array:
        """Cost of one draft step in target steps, for a draft of `params` parameters."""
        return jnp.asarray(self.overhead) + jnp.asarray(params) / self.target_params

    @property
    def verify_pass(self) -> Scalar:
        """Cost of one verify pass in target steps."""
        return 1.0


class FlopCost(NamedTuple):
    """Costs in FLOPs: a draft step is the ratio of FLOPs per token and the verify pass costs one target step.

    With no head and no attention this is the paper's c = N/M.
    """

    rule: ShapeRule
    target_params: Scalar

    def draft_step(self, params: Scalar) -> Array:
        """Cost of one draft step in target steps, for a draft of `params` non-embedding parameters."""
        return flops_per_token(params, self.rule) / flops_per_token(self.target_params, self.rule)

    @property
    def verify_pass(self) -> Scalar:
        """Cost of one verify pass in target steps."""
        return 1.0


class StepTimeLaw(NamedTuple):
    """Seconds for one decoding step: a fixed overhead, a share for each layer, and a share for each FLOP."""

    overhead_seconds: Scalar
    seconds_per_layer: Scalar
    seconds_per_flop: Scalar

    def __call__(self, params: Scalar, rule: ShapeRule) -> Array:
        """Seconds of a one-token step of the family member with `params` non-embedding parameters."""
        layers, _ = layers_and_width(params, rule)
        return (
            jnp.asarray(self.overhead_seconds)
            + self.seconds_per_layer * layers
            + self.seconds_per_flop * flops_per_token(params, rule)
        )


class MeasuredCost(NamedTuple):
    """Costs from timings: the fitted time of a draft step, and the target's own step and verify pass.

    A verify pass of γ + 1 tokens takes `verify_seconds` + γ·`verify_seconds_per_draft`. A round therefore costs γ·d + v with
    the second part counted in d: every draft widens the pass by a token, and the closed form holds as it stands.
    """

    rule: ShapeRule
    step_time: StepTimeLaw
    target_step_seconds: Scalar
    verify_seconds: Scalar
    verify_seconds_per_draft: Scalar

    def draft_step(self, params: Scalar) -> Array:
        """Cost of one more draft in target steps: a step of the draft, and the verify pass made one token wider."""
        return (self.step_time(params, self.rule) + self.verify_seconds_per_draft) / self.target_step_seconds

    @property
    def verify_pass(self) -> Scalar:
        """Cost of a round in target steps that does not depend on the lookahead."""
        return jnp.asarray(self.verify_seconds) / self.target_step_seconds


CostModel = ParameterCost | FlopCost | MeasuredCost
