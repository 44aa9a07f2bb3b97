"""A draft that reads its target's hidden states: a small Transformer with two more inputs.

At the position of token x_t it reads the embedding e(x_t) and, where the target has already seen
token x_{t−1}, the target's features f_{t−1} there. Within a round the target has not seen the drafts
yet: from the second draft on, the head reads its own hidden state h_{t−1} instead, as EAGLE does
(2401.15077):

    draft 1:        e(x_t) + P·f_{t−1}
    draft 2, 3, …:  e(x_t) + Q·h_{t−1}

With P = Q = 0 it is the plain model. A *parallel* head runs its body once a round and makes every
later draft from that one hidden state h and the token that was drawn before it (Medusa, 2401.10774,
with the drawn token fed in), each draft k with a Q of its own:

    draft k > 1:    readout(h + Q_k·[h, e(x_t)])

Features, hidden states and embeddings are divided by their root mean square first, tap by tap.
Suffixes as in `transformer`; F is the width of all features together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.errors import require
from sdsl_jax.models.config import ModelConfig
from sdsl_jax.models.family import ModelCounts
from sdsl_jax.models.transformer import (
    AttendBy,
    Params,
    abstract_params,
    embed,
    outputs,
    readout,
)

_EPSILON = 1e-6


@dataclass(frozen=True)
class HeadConfig:
    """The architecture of a head on hidden states.

    Attributes:
      body: The small Transformer.
      target_width: Width of the target's residual stream.
      taps: Blocks of the target whose outputs are read, counted from 1.
      parallel: Drafts that one pass of the body gives; 0 if every draft has a pass of its own.
    """

    body: ModelConfig
    target_width: int
    taps: tuple[int, ...]
    parallel: int = 0

    def __post_init__(self):
        require(self.taps, "the head reads no block of its target; it must have at least one tap.")
        require(
            self.parallel == 0 or self.parallel >= 2,
            f"a parallel head gives {self.parallel} drafts; it must give at least 2.",
        )

    @property
    def ids(self) -> int:
        """Number of ids that have logits."""
        return self.body.ids

    @property
    def position_limit(self) -> int:
        """Number of positions that its body can tell apart, see `ModelConfig.position_limit`."""
        return self.body.position_limit

    def description(self) -> dict[str, Any]:
        """The fields as plain values, for digests and files."""
        own = {"parallel": self.parallel} if self.parallel else {}
        return {
            "body": self.body.description(),
            "target_width": self.target_width,
            "taps": list(self.taps),
        } | own

    @property
    def extra_params(self) -> int:
        """Parameters beside those of the body."""
        D, F = self.body.width, len(self.taps) * self.target_width
        return D * F + (2 * D * D * (self.parallel - 1) if self.parallel else D * D)


class HeadParams(NamedTuple):
    """Parameters of a head.

    Attributes:
      body: Those of the small Transformer.
      read: P, from features to what is added to an embedding.
      feed: Q, from the head's own hidden state; of a parallel head Q_2, Q_3, …, each from a hidden
        state and an embedding.
    """

    body: Params
    read: Float[Array, "F D"]
    feed: Float[Array, "D D"] | Float[Array, "K-1 2D D"]


def graft(config: HeadConfig, body: Params) -> HeadParams:
    """A head that is the plain model still: P = Q = 0."""
    D, F = config.body.width, len(config.taps) * config.target_width
    feed = (config.parallel - 1, 2 * D, D) if config.parallel else (D, D)
    return HeadParams(body, jnp.zeros((F, D)), jnp.zeros(feed))


def abstract_head(config: HeadConfig) -> HeadParams:
    """Shapes and types of a head's parameters, without allocating any of them."""
    return jax.eval_shape(lambda body: graft(config, body), abstract_params(config.body))


def normalised_features(features: Float[Array, "... F"], taps: int) -> Float[Array, "... F"]:
    """Features of so many taps, each tap's divided by their root mean square. To do it twice is to
    do it once."""
    parts = jnp.split(features, taps, axis=-1)
    return jnp.concatenate([_normalised(x) for x in parts], axis=-1)


def _normalised(x: Float[Array, "... W"]) -> Float[Array, "... W"]:
    mean = jnp.square(x.astype(jnp.float32)).mean(axis=-1, keepdims=True)
    return (x / jnp.sqrt(mean + _EPSILON)).astype(x.dtype)


def read_features(
    config: HeadConfig, params: HeadParams, features: Float[Array, "... F"]
) -> Float[Array, "... D"]:
    """P·f: what the features of a position add to the embedding of the next token."""
    return normalised_features(features, len(config.taps)) @ params.read


def feed_hidden(params: HeadParams, hidden: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Q·h: what the head's own hidden state at a position adds to the embedding of the next token."""
    return _normalised(hidden) @ params.feed


def later_logits(
    config: HeadConfig,
    params: HeadParams,
    hidden: Float[Array, "B T D"],
    drawn: Int[Array, "B T"],
    number: Int[Array, ""] | int,
) -> Float[Array, "B T V"]:
    """Logits of draft `number` ≥ 2 of a parallel head, from the hidden state of its round and the token
    that was drawn before it."""
    own = [_normalised(x) for x in (hidden, embed(config.body, params.body, drawn))]
    moved = jnp.concatenate(own, axis=-1) @ params.feed[number - 2]
    return readout(config.body, params.body, hidden + moved)


class HeadOutputs(NamedTuple):
    """What a pass of a head gives.

    Attributes:
      logits: Logits of the next token.
      cache: Its cache.
      hidden: Its hidden state, what leaves the last block.
    """

    logits: Float[Array, "B T V"]
    cache: Any
    hidden: Float[Array, "B T D"]


def head_outputs(
    config: HeadConfig,
    params: HeadParams,
    tokens: Int[Array, "B T"],
    added: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    cache: Any,
    attend_by: AttendBy | None = None,
) -> HeadOutputs:
    """A pass over new tokens, with what is added to their embeddings."""
    out = outputs(
        config.body,
        params.body,
        tokens,
        positions,
        cache,
        taps=(config.body.layers,),
        added_BTD=added,
        attend_by=attend_by,
    )
    assert out.features is not None
    return HeadOutputs(out.logits, out.cache, out.features)


def _shifted(x: Array, by: int, axis: int) -> Array:
    """What stands `by` positions earlier along an axis; zeros before the first."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (by, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, padding), 0, x.shape[axis], axis=axis)


def _attend_unrolled(
    q_NGTH: Array, k_NHT: Array, v_NTH: Array, passes: tuple[tuple[Array, Array], ...]
) -> tuple[Array, Any]:
    """Attention of pass k: to the keys of pass 1 up to position t − k + 1, and from there on to one
    key of each later pass, which is what the cache of a decoder holds then."""
    passes = (*passes, (k_NHT, v_NTH))
    number, T = len(passes), q_NGTH.shape[2]
    first_k, first_v = passes[0]
    hidden_TT = np.arange(T)[None] > np.arange(T)[:, None] - number + 1
    first_NGTT = jnp.einsum("ngth,nhs->ngts", q_NGTH, first_k, preferred_element_type=jnp.float32)
    first_NGTT = jnp.where(hidden_TT[None, None], -jnp.inf, first_NGTT)
    later = []
    for i, (k, v) in enumerate(passes[1:], 2):
        # The key of pass i lies k − i positions back. Not a product of matrices: one of them for each
        # position would be slow.
        k_N1TH = _shifted(k, number - i, 2).transpose(0, 2, 1)[:, None]
        score_NGT1 = (q_NGTH * k_N1TH).astype(jnp.float32).sum(axis=-1, keepdims=True)
        later.append((score_NGT1, _shifted(v, number - i, 1)[:, None]))
    # Before position k − 1 there is no round to be in: the shifted keys there are zeros, and whatever
    # comes out is not used.
    largest_NGT1 = first_NGTT.max(axis=-1, keepdims=True)
    for score_NGT1, _ in later:
        largest_NGT1 = jnp.maximum(largest_NGT1, score_NGT1)
    largest_NGT1 = jax.lax.stop_gradient(largest_NGT1)
    weights_NGTT = jnp.exp(first_NGTT - largest_NGT1)
    total_NGT1 = weights_NGTT.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("ngts,nsh->ngth", weights_NGTT.astype(v_NTH.dtype), first_v)
    for score_NGT1, v_N1TH in later:
        weight_NGT1 = jnp.exp(score_NGT1 - largest_NGT1)
        total_NGT1 = total_NGT1 + weight_NGT1
        mixed = mixed + weight_NGT1.astype(v_NTH.dtype) * v_N1TH
    mixed = mixed / total_NGT1.astype(v_NTH.dtype)
    return mixed, passes


def unrolled(
    config: HeadConfig,
    params: HeadParams,
    tokens: Int[Array, "B T"],
    features: Float[Array, "B T F"],
    drafts: int,
) -> Float[Array, "K B T V"]:
    """The logits of drafts 1 … K at every position, each as if a round had begun K − 1 tokens before.

    Draft k at position t has seen the target's features up to position t − k, and its own hidden
    states after that.

    Args:
      config: Architecture.
      params: Parameters.
      tokens: Token ids.
      features: The target's features of the same tokens; those of the last are not read.
      drafts: K, at least 1; of a parallel head at most as many as it gives.

    Returns:
      Logits of the token after each position; draft k means nothing before position k − 1.
    """
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    added = _shifted(read_features(config, params, features), 1, 1)
    if config.parallel:
        require(
            drafts <= config.parallel,
            f"a parallel head of {config.parallel} drafts is asked for {drafts}.",
        )
        out = head_outputs(config, params, tokens, added, positions, None)
        later = [
            later_logits(config, params, _shifted(out.hidden, k - 1, 1), tokens, k)
            for k in range(2, drafts + 1)
        ]
        return jnp.stack([out.logits, *later])
    kept: Any = ((),) * config.body.layers
    logits = []
    for _ in range(drafts):
        out = head_outputs(config, params, tokens, added, positions, kept, _attend_unrolled)
        logits.append(out.logits)
        kept, added = out.cache, _shifted(feed_hidden(params, out.hidden), 1, 1)
    return jnp.stack(logits)


def later_flops(config: HeadConfig, body: ModelCounts) -> float:
    """FLOPs of a draft after the first of a round: a pass of the body and Q, or of a parallel head
    its Q and a readout.

    Args:
      config: Architecture.
      body: Counts of the body.
    """
    D = config.body.width
    if config.parallel:
        return 4.0 * D * D + 2.0 * D * config.body.readout_size
    return body.flops_per_token + 2.0 * D * D


def head_counts(config: HeadConfig, body: ModelCounts) -> ModelCounts:
    """Counts of a head: those of its body, and P and Q. FLOPs are those of a token that is fed with
    features, as every kept token is once; a later draft multiplies by Q instead of P.

    Args:
      config: Architecture.
      body: Counts of the body.
    """
    extra = config.extra_params
    read = 2.0 * config.body.width * len(config.taps) * config.target_width
    return dataclasses.replace(
        body,
        nonembedding=body.nonembedding + extra,
        total=body.total + extra,
        flops_per_token=body.flops_per_token + read,
        weight_bytes=body.weight_bytes + 4 * extra,
    )
