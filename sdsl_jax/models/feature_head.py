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

A head *on its target's tables* has no embedding and no readout of its own. It takes the embeddings
e(x) of the target, reads its last block, and predicts what that block gives at the next position;
the target's last norm and readout turn the prediction into logits, as EAGLE's do:

    draft 1:        h_t = blocks(E·e(x_t) + P·f_{t−1} + b)
    draft 2, 3, …:  h_t = blocks(E·e(x_t) + P·h_{t−1} + b)

Without blocks this is a linear map, whose best coefficients have a closed form
(`training.closed_form`). With blocks, of the target's shape, it starts as that map.

Features, hidden states and embeddings are divided by their root mean square first, tap by tap.
Suffixes as in `transformer`; F is the width of all features together.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sdsl_jax.errors import require
from sdsl_jax.models.config import ModelConfig
from sdsl_jax.models.family import SIZE_TOLERANCE, ModelCounts, count, norm_params
from sdsl_jax.models.kernels import linear
from sdsl_jax.models.transformer import (
    AttendBy,
    Params,
    abstract_params,
    embed,
    init_params,
    outputs,
    readout,
)
from sdsl_jax.models.weights import Matrix, lookup, outputs_of

_EPSILON = 1e-6


@dataclass(frozen=True)
class HeadConfig:
    """The architecture of a head on hidden states.

    Attributes:
      body: The small Transformer; of a head on its target's tables, the target with other blocks.
      target_width: Width of the target's residual stream.
      taps: Blocks of the target whose outputs are read, counted from 1.
      parallel: Drafts that one pass of the body gives; 0 if every draft has a pass of its own.
      on_tables: Whether it is on its target's tables.
    """

    body: ModelConfig
    target_width: int
    taps: tuple[int, ...]
    parallel: int = 0
    on_tables: bool = False

    def __post_init__(self):
        require(self.taps, "the head reads no block of its target; it must have at least one tap.")
        require(
            self.parallel == 0 or self.parallel >= 2,
            f"a parallel head gives {self.parallel} drafts; it must give at least 2.",
        )
        require(
            not self.on_tables or (len(self.taps) == 1 and self.body.width == self.target_width),
            "a head on its target's tables reads one block of the target and has its width.",
        )
        require(
            not (self.on_tables and self.parallel),
            "a head on its target's tables is not parallel.",
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
        own: dict[str, Any] = {"parallel": self.parallel} if self.parallel else {}
        own |= {"on_tables": True} if self.on_tables else {}
        return {
            "body": self.body.description(),
            "target_width": self.target_width,
            "taps": list(self.taps),
        } | own

    @property
    def extra_params(self) -> int:
        """Parameters beside those of the body; of a head on its target's tables, beside its blocks."""
        D, F = self.body.width, len(self.taps) * self.target_width
        if self.on_tables:
            return 2 * D * D + D
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


class FusionParams(NamedTuple):
    """What a head on its target's tables has of its own.

    Attributes:
      blocks: Its blocks.
      embed: E, from an embedding of the target.
      read: P, from features or the head's own hidden state.
      bias: b.
    """

    blocks: Params
    embed: Float[Array, "D D"]
    read: Float[Array, "D D"]
    bias: Float[Array, " D"]


class Tables(NamedTuple):
    """What a head on its target's tables takes from the target.

    Attributes:
      embedding: The target's embedding, [V, D].
      readout: Its last norm and the rows of its readout that the head uses, as parameters of the
        head's body without its blocks.
    """

    embedding: Matrix
    readout: Params


class TableHeadParams(NamedTuple):
    """Parameters of a head on its target's tables, as a pass takes them.

    Attributes:
      own: Those that belong to it.
      tables: Those of its target.
    """

    own: FusionParams
    tables: Tables

    @property
    def read(self) -> Float[Array, "D D"]:
        """P."""
        return self.own.read


AnyHeadParams = HeadParams | TableHeadParams


def table_body(target: ModelConfig, blocks: int, readout_ids: tuple[int, ...] = ()) -> ModelConfig:
    """The body of a head on its target's tables: the target with so many blocks.

    Args:
      target: The target.
      blocks: Blocks of the head, of the target's shape; may be 0.
      readout_ids: Ids that the head proposes; all if empty.

    Raises:
      SdslError: The target's norms follow its blocks, its embedding has a width of its own, its
        readout is an early exit's or truncated, or it has no norm before it.
    """
    require(
        target.norm_position == "pre" and not target.embedding_width,
        "a head on the target's tables needs a target whose norms precede attention and MLP, and whose embedding has its width.",
    )
    require(
        not (target.early_exit or target.readout_ids),
        "a head on the target's tables needs a target with the readout of all its ids.",
    )
    # It predicts the direction of what leaves the last block, and only a norm makes that enough.
    require(
        target.final_norm,
        "a head on the target's tables needs a target with a norm before its readout.",
    )
    return dataclasses.replace(
        target, layers=blocks, readout_ids=readout_ids, truncated=bool(readout_ids), logit_size=0
    )


def table_head_of_size(
    target: ModelConfig, params: int, readout_ids: tuple[int, ...] = ()
) -> HeadConfig:
    """The head on its target's tables with about so many parameters, tables not counted.

    Args:
      target: The target.
      params: Parameters.
      readout_ids: Ids that the head proposes; all if empty.

    Raises:
      SdslError: None is within 10%, or no head can be on the target's tables.
    """
    heads = [
        HeadConfig(
            table_body(target, n, readout_ids), target.width, (target.layers,), on_tables=True
        )
        for n in range(target.layers + 1)
    ]
    sizes = [head_counts(head, count(head.body, 0)).nonembedding for head in heads]
    nearest = int(np.argmin(np.abs(np.subtract(sizes, params))))
    require(
        abs(sizes[nearest] / params - 1) <= SIZE_TOLERANCE,
        f"a head on the target's tables of {params:g} parameters cannot be made: without blocks it has {sizes[0]:,}, and each "
        f"block adds {sizes[1] - sizes[0]:,}.",
    )
    return heads[nearest]


def tables_of(config: HeadConfig, target: ModelConfig, params: Params) -> Tables:
    """What a head takes from its target. Nothing is copied but the rows of a truncated readout.

    Args:
      config: The head, on its target's tables.
      target: Architecture of the target.
      params: Parameters of the target.

    Raises:
      SdslError: The head is made for a target of another architecture.
    """
    body = config.body
    require(
        table_body(target, body.layers, body.readout_ids) == dataclasses.replace(body, logit_size=0)
        and config.taps == (target.layers,),
        f"the head is on the tables of a target of {config.taps[0]} blocks of width {config.target_width} and "
        f"{body.vocab_size} ids; this target has {target.layers} of width {target.width} and {target.vocab_size} ids, or is "
        "otherwise another architecture.",
    )
    kept = {name: params[name] for name in params if name != "blocks"}
    embedding = params["embedding"].get_value()
    if body.truncated:
        ids = np.asarray(body.readout_ids)
        # The row of all other ids is not used: embeddings come from the whole table.
        rows = {"embedding": (np.append(ids, 0), 0), "head": (ids, 1)}
        for name, (some, axis) in rows.items():
            if name in kept:
                kept[name] = kept[name].replace(outputs_of(kept[name].get_value(), some, axis))
    return Tables(embedding, nnx.State(kept))


def start_fusion(
    config: HeadConfig,
    embed: Float[Array, "D D"],
    read: Float[Array, "D D"],
    bias: Float[Array, " D"],
    key: Array,
) -> FusionParams:
    """A head on its target's tables that is a linear map still: its blocks add nothing to the stream.

    Args:
      config: The head.
      embed: E.
      read: P.
      bias: b.
      key: Key of the random weights in its blocks.
    """

    def silent(path: Any, x: Array) -> Array:
        names = {getattr(part, "key", "") for part in path}
        return jnp.zeros_like(x) if names & {"out", "down"} else x

    blocks: Params = nnx.State({})
    if config.body.layers:
        small = dataclasses.replace(config.body, vocab_size=1, readout_ids=(), truncated=False)
        blocks = jax.tree_util.tree_map_with_path(silent, init_params(small, key)["blocks"])
    return FusionParams(blocks, embed, read, bias)


def graft(config: HeadConfig, body: Params) -> HeadParams:
    """A head that is the plain model still: P = Q = 0."""
    D, F = config.body.width, len(config.taps) * config.target_width
    feed = (config.parallel - 1, 2 * D, D) if config.parallel else (D, D)
    return HeadParams(body, jnp.zeros((F, D)), jnp.zeros(feed))


def abstract_head(config: HeadConfig) -> HeadParams | FusionParams:
    """Shapes and types of a head's own parameters, without allocating any of them."""
    if config.on_tables:
        D = config.target_width
        square, bias = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((D, D), (D,)))
        start = functools.partial(start_fusion, config)
        return jax.eval_shape(start, square, square, bias, jax.random.key(0))
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
    config: HeadConfig, params: AnyHeadParams, features: Float[Array, "... F"]
) -> Float[Array, "... D"]:
    """P·f: what the features of a position add to the embedding of the next token."""
    return normalised_features(features, len(config.taps)) @ params.read


def feed_hidden(params: AnyHeadParams, hidden: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Q·h, or P·h on the target's tables: what the head's own hidden state at a position adds to the
    embedding of the next token."""
    feed = params.feed if isinstance(params, HeadParams) else params.read
    return _normalised(hidden) @ feed


def normalised_embeddings(tables: Tables, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Embeddings of the target, as a head on its tables reads them."""
    return _normalised(lookup(tables.embedding, tokens, jnp.float32, clip=True))


def later_logits(
    config: HeadConfig,
    params: AnyHeadParams,
    hidden: Float[Array, "B T D"],
    drawn: Int[Array, "B T"],
    number: Int[Array, ""] | int,
    compact: bool = False,
) -> Float[Array, "B T V"]:
    """Logits of draft `number` ≥ 2 of a parallel head with tables of its own, from the hidden state of its round and the token
    that was drawn before it; of the ids of its readout alone if compact."""
    assert isinstance(params, HeadParams)
    own = [_normalised(x) for x in (hidden, embed(config.body, params.body, drawn))]
    moved = jnp.concatenate(own, axis=-1) @ params.feed[number - 2]
    return readout(config.body, params.body, hidden + moved, compact)


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
    params: AnyHeadParams,
    tokens: Int[Array, "B T"],
    added: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    cache: Any,
    attend_by: AttendBy | None = None,
    compact: bool = False,
) -> HeadOutputs:
    """A pass over new tokens, with what is added to their embeddings. Logits are those of the ids of
    the readout alone if `compact`."""
    body: Params
    entering: dict[str, Any]
    if isinstance(params, HeadParams):
        body, entering = params.body, {"added_BTD": added}
    else:
        own, tables = params
        embedded = normalised_embeddings(tables, tokens).astype(own.embed.dtype)
        mapped = linear(embedded, own.embed, (config.body.width,))[0]
        body = nnx.State({**tables.readout, **({"blocks": own.blocks} if own.blocks else {})})
        entering = {"stream_BTD": mapped + own.bias[None, None] + added}
    out = outputs(
        config.body,
        body,
        tokens,
        positions,
        cache,
        taps=(config.body.layers,),
        attend_by=attend_by,
        compact=compact,
        **entering,
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
    params: AnyHeadParams,
    tokens: Int[Array, "B T"],
    features: Float[Array, "B T F"],
    drafts: int,
    compact: bool = False,
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
      compact: Whether logits of the ids of its readout alone are wanted.

    Returns:
      Logits of the token after each position; draft k means nothing before position k − 1.
    """
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    added = _shifted(read_features(config, params, features), 1, 1)
    if isinstance(params, HeadParams) and config.parallel:
        require(
            drafts <= config.parallel,
            f"a parallel head of {config.parallel} drafts is asked for {drafts}.",
        )
        out = head_outputs(config, params, tokens, added, positions, None, compact=compact)
        later = [
            later_logits(config, params, _shifted(out.hidden, k - 1, 1), tokens, k, compact)
            for k in range(2, drafts + 1)
        ]
        return jnp.stack([out.logits, *later])
    kept: Any = ((),) * config.body.layers
    logits = []
    for _ in range(drafts):
        out = head_outputs(
            config, params, tokens, added, positions, kept, _attend_unrolled, compact
        )
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
    if config.on_tables:
        return body.flops_per_token + 4.0 * D * D
    if config.parallel:
        return 4.0 * D * D + 2.0 * D * config.body.readout_size
    return body.flops_per_token + 2.0 * D * D


def head_counts(config: HeadConfig, body: ModelCounts) -> ModelCounts:
    """Counts of a head: those of its body, and P and Q. FLOPs are those of a token that is fed with
    features, as every kept token is once; a later draft multiplies by Q instead of P.

    A head on its target's tables counts its blocks, E, P and b as parameters, and the readout in its
    FLOPs.

    Args:
      config: Architecture.
      body: Counts of the body.
    """
    extra = config.extra_params
    if config.on_tables:
        own = (
            body.nonembedding - (norm_params(config.body) if config.body.final_norm else 0) + extra
        )
        return dataclasses.replace(
            body,
            nonembedding=own,
            total=own,
            flops_per_token=later_flops(config, body),
            weight_bytes=4 * own,
        )
    read = 2.0 * config.body.width * len(config.taps) * config.target_width
    return dataclasses.replace(
        body,
        nonembedding=body.nonembedding + extra,
        total=body.total + extra,
        flops_per_token=body.flops_per_token + read,
        weight_bytes=body.weight_bytes + 4 * extra,
    )
