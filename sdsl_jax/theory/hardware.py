r"""The time of a forward pass on a device, as a smooth function of everything that a designer can
choose.

A pass over w new tokens in each of B rows multiplies matrices by activations and attends to caches.
The two run one after the other, so each has a roofline of its own. A pass also costs a start, a time
for each layer, and a time for each token that is drawn or tested:

    t = c₀ + c₁·layers + c₂·B·w + c₃·B·w·V + communication
        + smoothmax(bytes of weights/bandwidth, FLOPs of matrices/peak)
        + smoothmax(bytes of caches/bandwidth, FLOPs of attention/peak)                           [seconds]

with the vocabulary size V. A pass over several tokens multiplies matrices instead of vectors, and a
pass over several tokens of one row takes other kernels of attention. Either makes c₁ larger.

The smooth maximum (x^p + y^p)^(1/p) is a roofline with a rounded corner: at p = 1 a device moves
and computes in turn, at p = ∞ it overlaps both completely. Without overheads, head and cache, at
equal precision, bytes and FLOPs of a pass are both proportional to the parameters, and so is its
time: d = N/M, the cost of arXiv 2603.11053.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdsl_jax.theory.arrays import Scalar, namespace
from sdsl_jax.theory.bracketed import best_lookahead
from sdsl_jax.theory.costs import MLP_SHARE, LinearCost, ShapeRule, layers_and_width
from sdsl_jax.theory.optima import DraftOptimum, optimal_draft_of_rounds


class Hardware(NamedTuple):
    """One kind of device: coefficients of the time of a pass, and what the device holds and costs.

    Attributes:
      pass_seconds: Overhead c₀ of any pass.
      layer_seconds: Overhead c₁ of each layer of a pass.
      token_seconds: Time c₂ to draw or test one token, in each row.
      bytes_per_second: Bandwidth of the memory that holds weights and caches.
      flops_per_second: Peak arithmetic in the precision of the pass; a multiply-add is two.
      sharpness: Exponent p ≥ 1 of the smooth maximum.
      round_seconds: Overhead of a round of speculative decoding, on top of its passes.
      link_bytes_per_second: Bandwidth between devices in each direction; infinite if unknown.
      link_seconds: Latency of one step of an all-reduce.
      memory_bytes: Memory of one device; infinite if unknown.
      price_per_hour: Price of one device; 0 if unknown.
      matrix_seconds: Overhead of each layer of a pass over more than one token, on top of
        `layer_seconds`: products of two matrices take longer to start than products with a vector.
      logit_seconds: Time c₃ of each vocabulary entry for each token that is drawn or tested:
        softmax, noise, comparison.
      cache_slowdown: Time of a byte of a cache over that of a byte of a weight.
      wide_seconds: Overhead of each layer of a pass over more than one token of a row, such as a
        verify pass, on top of the other two: attention takes another kernel.
      watts: Power that one device draws while it serves; 0 if unknown.
    """

    pass_seconds: Scalar
    layer_seconds: Scalar
    token_seconds: Scalar
    bytes_per_second: Scalar
    flops_per_second: Scalar
    sharpness: Scalar = 4.0
    round_seconds: Scalar = 0.0
    link_bytes_per_second: Scalar = float("inf")
    link_seconds: Scalar = 0.0
    memory_bytes: Scalar = float("inf")
    price_per_hour: Scalar = 0.0
    matrix_seconds: Scalar = 0.0
    logit_seconds: Scalar = 0.0
    cache_slowdown: Scalar = 1.0
    wide_seconds: Scalar = 0.0
    watts: Scalar = 0.0


class Shape(NamedTuple):
    """The sizes that the cost of a Transformer depends on, as real numbers: a family is smooth.

    With a mixture of experts each token passes through `active_experts` of `experts`, and a pass
    reads the experts that some of its tokens chose.

    Attributes:
      params: Non-embedding parameters, those of all experts among them.
      layers: Number of blocks.
      width: Width of the residual stream.
      query_width: Query heads times head size.
      kv_width: Key-value heads times head size.
      vocab_size: Entries of the vocabulary.
      embedding_tables: Matrices of vocab_size × width, 1 or 2.
      expert_params: Parameters of all experts of all layers together; 0 for a dense model.
      experts: Experts of a layer, E.
      active_experts: Experts that each token passes through, k.
    """

    params: Scalar
    layers: Scalar
    width: Scalar
    query_width: Scalar
    kv_width: Scalar
    vocab_size: Scalar
    embedding_tables: Scalar = 1.0
    expert_params: Scalar = 0.0
    experts: Scalar = 1.0
    active_experts: Scalar = 1.0

    @property
    def total_params(self) -> Array:
        """All parameters, the embedding tables among them."""
        tables = self.embedding_tables * self.vocab_size * self.width
        return namespace(self).asarray(self.params) + tables

    @property
    def active_params(self) -> Array:
        """Non-embedding parameters that one token passes through."""
        idle = namespace(self).asarray(self.expert_params) * (
            1 - self.active_experts / namespace(self).asarray(self.experts)
        )
        return namespace(self).asarray(self.params) - idle

    def read_params(self, tokens: Scalar) -> Array:
        """Non-embedding parameters that a pass over so many tokens reads, on average; of the experts
        those that `read_experts` counts."""
        left_out = self._left_out(tokens)
        return namespace(self, tokens).asarray(self.params) - self.expert_params * left_out

    def read_experts(self, tokens: Scalar) -> Array:
        """Experts of a layer that a pass over so many tokens reads, on average: E·(1 − (1 − k/E)^tokens).

        Each token chooses k of the E experts of a layer uniformly and independently of the others.
        """
        return namespace(self, tokens).asarray(self.experts) * (1 - self._left_out(tokens))

    def _left_out(self, tokens: Scalar) -> Array:
        """Probability that none of so many tokens chooses a given expert."""
        xp = namespace(self, tokens)
        return (1 - self.active_experts / xp.asarray(self.experts)) ** xp.asarray(tokens)

    def matrix_flops(self) -> Array:
        """Forward FLOPs of the matrices for one token, the head's among them."""
        return 2 * self.active_params + 2 * self.vocab_size * self.width

    def attention_flops(self, context: Scalar) -> Array:
        """Forward FLOPs of attention for one token that attends to `context` positions."""
        return 4 * namespace(self, context).asarray(context) * self.query_width * self.layers

    def flops_per_token(self, context: Scalar) -> Array:
        """Forward FLOPs for one token that attends to `context` positions."""
        return self.matrix_flops() + self.attention_flops(context)


def family_shape(params: Scalar, rule: ShapeRule) -> Shape:
    """The family member with `params` non-embedding parameters.

    In a family with experts, the active experts of a block are together as large as the MLP of a
    dense block, so that depth and width are those of the dense model of the active parameters.
    """
    xp = namespace(params, rule)
    params = xp.asarray(params)
    copies = xp.asarray(rule.experts) / rule.active_experts
    dense = params / ((1 - MLP_SHARE) + MLP_SHARE * copies)
    layers, width = layers_and_width(dense, rule)
    return Shape(
        params,
        layers,
        width,
        width,
        width * rule.kv_share,
        rule.vocab_size,
        rule.embedding_tables,
        MLP_SHARE * dense * copies,
        rule.experts,
        rule.active_experts,
    )


class Precision(NamedTuple):
    """Bytes of a weight, and of an element of caches and activations."""

    weight_bytes: Scalar = 2.0
    cache_bytes: Scalar = 2.0


class Load(NamedTuple):
    """The work of a pass.

    Attributes:
      tokens: New tokens of each row, w.
      batch: Rows, B.
      context: Positions of each row's cache that the pass reads.
      devices: Devices that share the model (tensor parallelism).
    """

    tokens: Scalar
    batch: Scalar = 1.0
    context: Scalar = 0.0
    devices: Scalar = 1.0


def smooth_maximum(x: Scalar, y: Scalar, sharpness: Scalar) -> Array:
    """(x^p + y^p)^(1/p) for x, y ≥ 0; homogeneous of degree 1."""
    xp = namespace(x, y, sharpness)
    x, y = xp.asarray(x), xp.asarray(y)
    larger, smaller = xp.maximum(x, y), xp.minimum(x, y)
    ratio = smaller / xp.where(larger > 0, larger, 1.0)
    return larger * xp.exp(xp.log1p(ratio**sharpness) / sharpness)


def weight_bytes(shape: Shape, precision: Precision, tokens: Scalar = 1.0) -> Array:
    """Bytes of weights that a pass over so many tokens reads: all of a dense model except the
    embedding table, of which it reads a few rows; with experts, those that a token chose."""
    read = shape.read_params(tokens) + shape.vocab_size * shape.width
    return namespace(shape, precision, tokens).asarray(read) * precision.weight_bytes


def cache_bytes(shape: Shape, precision: Precision, batch: Scalar, context: Scalar) -> Array:
    """Bytes of keys and values of `batch` rows of `context` positions."""
    positions = namespace(shape, precision, batch, context).asarray(batch) * context
    return 2 * positions * shape.layers * shape.kv_width * precision.cache_bytes


def communication_seconds(
    hardware: Hardware, shape: Shape, precision: Precision, load: Load
) -> Array:
    """Two ring all-reduces of activations in each layer (Megatron, 1909.08053): 2·(1 − 1/n)·bytes/link each; 0 for n = 1."""
    xp = namespace(hardware, shape, precision, load)
    message = xp.asarray(load.batch) * load.tokens * shape.width * precision.cache_bytes
    steps = 2 * (1 - 1 / xp.asarray(load.devices))
    return (
        2
        * xp.asarray(shape.layers)
        * steps
        * (message / hardware.link_bytes_per_second + hardware.link_seconds * load.devices)
    )


def pass_time(hardware: Hardware, shape: Shape, precision: Precision, load: Load) -> Array:
    """Seconds of one forward pass: a decoding step if `load.tokens` is 1, a verify pass if it is γ + 1."""
    of_numpy = namespace(hardware, shape, precision, load) is np
    return (_pass_time if of_numpy else _traced_pass_time)(hardware, shape, precision, load)


def _pass_time(hardware: Hardware, shape: Shape, precision: Precision, load: Load) -> Array:
    xp = namespace(hardware, shape, precision, load)
    tokens = xp.asarray(load.batch) * load.tokens

    def roofline(moved: Scalar, flops: Scalar) -> Array:
        devices = xp.asarray(load.devices)
        return smooth_maximum(
            moved / (hardware.bytes_per_second * devices),
            flops / (hardware.flops_per_second * devices),
            hardware.sharpness,
        )

    # Rises from 0 for one token to 1 for two, and stays there, so that a verify pass is convex in γ
    # ≥ 1. The slope at two tokens is that above them: half of the one below, which `clip` has
    # there, would end a search for the best γ at 1.
    def several(count: Array) -> Array:
        return xp.where(count < 2, xp.maximum(count - 1, 0.0), 1.0)

    started = (
        hardware.layer_seconds
        + hardware.matrix_seconds * several(tokens)
        + hardware.wide_seconds * several(xp.asarray(load.tokens))
    )
    # By position: the slope in the context is then that on its right, at context 0 too.
    cache = hardware.cache_slowdown * cache_bytes(shape, precision, load.batch, 1.0)
    of_a_position = roofline(cache, tokens * shape.attention_flops(1.0))
    return (
        xp.asarray(hardware.pass_seconds)
        + started * shape.layers
        + (hardware.token_seconds + hardware.logit_seconds * xp.asarray(shape.vocab_size)) * tokens
        + roofline(weight_bytes(shape, precision, tokens), tokens * shape.matrix_flops())
        + load.context * of_a_position
        + communication_seconds(hardware, shape, precision, load)
    )


# Traced once for each kind of arguments, however often optimisers nest, map and differentiate it.
_traced_pass_time = jax.jit(_pass_time)


class Round(NamedTuple):
    """Where the time of a round of speculative decoding goes, in seconds.

    Attributes:
      draft: Time of γ passes of the draft, the first of them two tokens wide.
      verify: Time of the target's pass over γ + 1 tokens.
      overhead: Time that is spent on neither.
      overlap: Time in which the passes of both run at once; 0 where one waits for the other.
    """

    draft: Array
    verify: Array
    overhead: Array
    overlap: Scalar = 0.0

    @property
    def seconds(self) -> Array:
        """Time of the whole round."""
        return self.draft + self.verify - self.overlap + self.overhead


# Of the maximum of two times that run side by side. Where they are equal it lies 2.2% above them;
# where one is 90% of the other, 0.1%.
_SIDE_BY_SIDE = 32.0


def longer(x: Scalar, y: Scalar) -> Array:
    """The longer of two times, with a rounded corner for a gradient: (x³² + y³²)^(1/32).

    At most 2.2% above the larger of the two, and equal to it where the other is 0.
    """
    return smooth_maximum(x, y, _SIDE_BY_SIDE)


def overlapped(one: Round) -> Round:
    """A round in which the draft of the next one runs while the target verifies this one, on
    devices of its own: max(γ·d, v) and the overhead, with the corner of `longer`.

    The least time that overlapping can give. It takes the next round's drafts to be of use whatever
    the target decides, which needs every draft accepted and the bonus token guessed, or drafts
    ready for each possible end of the round.
    """
    return one._replace(overlap=one.draft + one.verify - longer(one.draft, one.verify))


def round_time(
    hardware: Hardware,
    draft: Shape,
    target: Shape,
    lookahead: Scalar,
    batch: Scalar,
    context: Scalar,
    precision: Precision,
    draft_precision: Precision,
    devices: Scalar = 1.0,
    draft_devices: Scalar = 1.0,
) -> Round:
    """The time of a round.

    The draft's first pass feeds two tokens, since after a full acceptance it has not seen its own
    last token yet. Its other passes feed one.

    Args:
      hardware: The device.
      draft: Shape of the draft.
      target: Shape of the target.
      lookahead: Drafted tokens per round, γ ≥ 1.
      batch: Rows.
      context: Cache positions that a pass reads in each row.
      precision: Precision of the target.
      draft_precision: Precision of the draft.
      devices: Devices that share the target (tensor parallelism).
      draft_devices: Devices that share the draft.
    """
    lookahead = namespace(hardware, draft, target, lookahead, batch).asarray(lookahead)
    first = pass_time(hardware, draft, draft_precision, Load(2.0, batch, context, draft_devices))
    others = pass_time(hardware, draft, draft_precision, Load(1.0, batch, context, draft_devices))
    verify = pass_time(hardware, target, precision, Load(lookahead + 1, batch, context, devices))
    overhead = namespace(hardware, verify).asarray(hardware.round_seconds)
    return Round(first + (lookahead - 1) * others, verify, overhead)


def resident_bytes(shape: Shape, precision: Precision, batch: Scalar, context: Scalar) -> Array:
    """Memory that a model occupies: all its weights, and the caches of `batch` rows of `context` positions."""
    return shape.total_params * precision.weight_bytes + cache_bytes(
        shape, precision, batch, context
    )


class DeviceRound(NamedTuple):
    """The cost of a round of one draft and target on a device, as a function of the lookahead alone.

    Attributes:
      first_pass: Seconds that the draft's first pass takes beyond its others, plus the overhead of
        the round.
      draft_step: Seconds of any other pass of the draft.
      target_step: Seconds of one step of the target alone.
      device: Cost model, for the verify pass.
    """

    first_pass: Array
    draft_step: Array
    target_step: Array
    device: HardwareCost

    def cost(self, lookahead: Array) -> Array:
        """Cost of a round with lookahead γ ≥ 1, in target steps; convex in γ for dense models, as a pass
        is in its tokens."""
        verify = self.device.pass_seconds(self.device.target, lookahead + 1)
        return (self.first_pass + lookahead * self.draft_step + verify) / self.target_step


class HardwareCost(NamedTuple):
    """The cost of rounds on a device, in steps of the target on the same device.

    Attributes:
      hardware: The device.
      rule: Family that drafts come from.
      target: Shape of the target.
      precision: Precision of both models.
      batch: Rows.
      context: Cache positions that a pass reads in each row.
    """

    hardware: Hardware
    rule: ShapeRule
    target: Shape
    precision: Precision
    batch: Scalar
    context: Scalar

    def pass_seconds(self, shape: Shape, tokens: Scalar) -> Array:
        """Seconds of a pass that feeds `tokens` to every row."""
        return pass_time(
            self.hardware, shape, self.precision, Load(tokens, self.batch, self.context)
        )

    def round_of(self, params: Scalar) -> DeviceRound:
        """The rounds of a draft of `params` non-embedding parameters."""
        draft = family_shape(params, self.rule)
        round_of_one = round_time(
            self.hardware,
            draft,
            self.target,
            1.0,
            self.batch,
            self.context,
            self.precision,
            self.precision,
        )
        step = self.pass_seconds(draft, 1.0)
        return DeviceRound(
            round_of_one.draft - step + round_of_one.overhead,
            step,
            self.pass_seconds(self.target, 1.0),
            self,
        )

    def draft_step(self, params: Scalar) -> Array:
        """Cost of one draft step in target steps, for a draft of `params` non-embedding parameters."""
        return self.pass_seconds(family_shape(params, self.rule), 1.0) / self.pass_seconds(
            self.target, 1.0
        )

    def round_cost(self, params: Scalar, lookahead: Scalar) -> Array:
        """Cost of a round with lookahead γ ≥ 1, in target steps."""
        return self.round_of(params).cost(jnp.asarray(lookahead))

    @property
    def lookahead_bounds(self) -> tuple[float, float]:
        """Smallest and largest γ. A round drafts at least one token; plain decoding is another program."""
        return 1.0, 64.0

    @property
    def method(self) -> str:
        """How the best draft is found."""
        return "bracketed roots"

    def best_lookahead(self, acceptance: Scalar, params: Scalar) -> Array:
        """The best γ ≥ 1, a real number, whether or not it pays; infinite at α ≥ 1."""
        best = best_lookahead(
            acceptance, self.round_of(params), DeviceRound.cost, self.lookahead_bounds
        )
        return jnp.where(jnp.asarray(acceptance) >= 1, jnp.inf, best)

    def optimal_draft(
        self, acceptance: Callable[[Array], Array], bounds: tuple[Scalar, Scalar]
    ) -> DraftOptimum:
        """The best draft size and lookahead, as `optima.optimal_draft_of_rounds` finds them."""
        return optimal_draft_of_rounds(
            acceptance,
            self.draft_step,
            self.round_of,
            DeviceRound.cost,
            bounds,
            self.lookahead_bounds,
        )


CostModel = LinearCost | HardwareCost
