"""One decoder-only Transformer for drafts and targets, training and decoding, our own families and
published ones.

Our own have pre-norm blocks with RMSNorm, rotary positions, grouped-query attention, optional
qk-norm and a SwiGLU MLP; the fields of `ModelConfig` say how others differ. Suffixes of locals give
shapes: B batch, T new tokens, S cache slots, D width, E width of the embedding, N query heads, K
key-value heads, G query heads that share a key-value head, H head size, F hidden size, V
vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sdsl_jax.models.config import ModelConfig
from sdsl_jax.models.kernels import (
    along_last,
    attend,
    linear,
    logits,
    never,
    rotary_tables,
    rotate,
)
from sdsl_jax.models.weights import activation_dtype, lookup, outputs_of

Rotation = tuple[Array, Array]  # cosines and sines of the positions
# Scaled queries [N, G, T, H], keys [N, H, T] and values [N, T, H] of the new tokens, and what was kept
# so far; to what is mixed, [N, G, T, H], and what to keep.
AttendBy = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
Params = Any  # an `nnx.State` of arrays, or the same tree of abstract or sharded arrays


class KVCache(NamedTuple):
    """Keys and values of one sequence per row, an array per layer.

    Slot s holds position s. A query at position t attends to slots 0..t, so slots beyond the tokens
    kept so far are never read before they are written again: rolling back costs nothing, it is
    enough to continue from an earlier position. Axes stand in the order in which the two products
    of attention read them, and rows and key-value heads share the first one: otherwise the compiler
    would transpose or copy the whole cache in every step.
    """

    keys: tuple[Float[Array, "B*K H S"], ...]
    values: tuple[Float[Array, "B*K S H"], ...]

    @property
    def capacity(self) -> int:
        """Number of positions that each row can hold."""
        return self.keys[0].shape[2]


class Outputs(NamedTuple):
    """What a pass over new tokens gives.

    Attributes:
      logits: Logits of the next token at every position.
      cache: The cache with the new tokens written to it; None without a cache. Of `attend_by`, what
        it keeps for each block.
      features: The residual stream after each tapped block, side by side; None without taps.
    """

    logits: Float[Array, "B T V"]
    cache: Any
    features: Float[Array, "B T F"] | None


def init_cache(config: ModelConfig, batch: int, capacity: int, dtype: Any = jnp.float32) -> KVCache:
    """An empty cache of `capacity` positions for `batch` rows."""
    N, H, S = batch * config.kv_heads, config.head_dim, capacity
    keys = tuple(jnp.zeros((N, H, S), dtype) for _ in range(config.layers))
    return KVCache(keys, tuple(jnp.zeros((N, S, H), dtype) for _ in range(config.layers)))


def _normal(scale: float):
    return nnx.initializers.normal(stddev=scale)


class RMSNorm(nnx.Module):
    """x · scale / rms(x), over the last axis."""

    def __init__(self, size: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((size,)))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalised activations, in the type of x; the mean is taken in float32."""
        wide = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(
            jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon
        )
        return (wide * inverse_rms).astype(x.dtype) * along_last(self.scale[...], x)


class LayerNorm(nnx.Module):
    """(x − mean) / deviation · scale + bias, over the last axis."""

    def __init__(self, size: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((size,)))
        self.bias = nnx.Param(jnp.zeros((size,)))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalised activations, in the type of x; moments, scale and bias are applied in float32."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(
            jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon
        )
        return (
            centred * inverse * along_last(self.scale[...], x) + along_last(self.bias[...], x)
        ).astype(x.dtype)


def _norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.width, config.norm_epsilon)


def _bias(size: int, wanted: bool) -> nnx.Param | None:
    return nnx.Param(jnp.zeros((size,))) if wanted else None


def _plus(x: Array, bias: nnx.Param | None) -> Array:
    return x if bias is None else x + along_last(bias[...], x)


def _write(cache: Array, new: Array, positions_BT: Array, axis: int) -> Array:
    """The cache with the new entries in the slots of each row's consecutive positions, along one axis."""
    new = new.astype(cache.dtype)
    B = positions_BT.shape[0]
    if B == 1:
        # A scatter of one row would be compiled to several copies of the whole cache.
        return jax.lax.dynamic_update_slice_in_dim(cache, new, positions_BT[0, 0], axis)
    N = cache.shape[0]
    at_NT = jnp.repeat(positions_BT, N // B, axis=0)
    at = (jnp.arange(N)[:, None], *(slice(None),) * (axis - 1), at_NT)
    return cache.at[at].set(jnp.moveaxis(new, axis, 1), mode="promise_in_bounds")


class Attention(nnx.Module):
    """Causal grouped-query attention, over the new tokens alone or over a cache that they are first written to."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        scale_in = config.width**-0.5
        scale_out = (2 * config.layers * query) ** -0.5
        # Queries, keys and values in one matrix, gate and up in another: a decoding step reads few
        # large matrices faster than many small ones.
        self.qkv = nnx.Param(_normal(scale_in)(rngs.params(), (config.width, query + 2 * kv)))
        self.out = nnx.Param(_normal(scale_out)(rngs.params(), (query, config.width)))
        self.qkv_bias = _bias(query + 2 * kv, config.qkv_bias)
        self.out_bias = _bias(config.width, config.out_bias)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_dim, config.norm_epsilon)
            self.key_norm = RMSNorm(config.head_dim, config.norm_epsilon)

    def __call__(
        self,
        x_BTD: Array,
        positions_BT: Array,
        rotation: Rotation | None,
        cache: Any,
        attend_by: AttendBy | None = None,
    ):
        """What attention adds to the residual stream, and the cache with the new keys and values written to it."""
        c = self.config
        B, T, _ = x_BTD.shape
        N, H = B * c.kv_heads, c.head_dim
        sizes = (c.heads * H, c.kv_heads * H, c.kv_heads * H)
        parts = linear(x_BTD, self.qkv[...], sizes)
        if self.qkv_bias is not None:
            biases = jnp.split(self.qkv_bias[...], np.cumsum(sizes)[:-1].tolist())
            parts = tuple(y + along_last(bias, y) for y, bias in zip(parts, biases))
        q_BTNH, k_BTKH, v_BTKH = (y.reshape(B, T, -1, H) for y in parts)
        if c.qk_norm:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if rotation is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, *rotation), rotate(k_BTKH, *rotation)
        q_BTNH = q_BTNH * H**-0.5
        # Heads first, and query heads that share a key-value head as rows of the same product.
        q_NGTH = q_BTNH.transpose(0, 2, 1, 3).reshape(N, -1, T, H)
        k_NHS = k_BTKH.transpose(0, 2, 3, 1).reshape(N, H, T)
        v_NSH = v_BTKH.transpose(0, 2, 1, 3).reshape(N, T, H)
        if attend_by is not None:
            mixed_NGTH, cache = attend_by(q_NGTH, k_NHS, v_NSH, cache)
        elif cache is None:
            mixed_NGTH = attend(q_NGTH, k_NHS, v_NSH)
        else:
            k_NHS, v_NSH = (
                _write(cache[0], k_NHS, positions_BT, 2),
                _write(cache[1], v_NSH, positions_BT, 1),
            )
            cache = (k_NHS, v_NSH)
            mixed_NGTH = _attend_to_cache(q_NGTH, k_NHS, v_NSH, positions_BT)
        mixed_BTD = mixed_NGTH.reshape(B, c.heads, T, H).transpose(0, 2, 1, 3).reshape(B, T, -1)
        return _plus(linear(mixed_BTD, self.out[...], (c.width,))[0], self.out_bias), cache


def _attend_to_cache(q_NGTH: Array, k_NHS: Array, v_NSH: Array, positions_BT: Array) -> Array:
    """Attention of scaled queries to the slots of a cache up to their own positions."""
    N, G, T, H = q_NGTH.shape
    B, S = positions_BT.shape[0], k_NHS.shape[2]
    visible_BTS = jnp.arange(S)[None, None] <= positions_BT[:, :, None]
    scores_NQS = jnp.einsum(
        "nqh,nhs->nqs", q_NGTH.reshape(N, -1, H), k_NHS, preferred_element_type=jnp.float32
    )
    scores_BKGTS = jnp.where(
        visible_BTS[:, None, None], scores_NQS.reshape(B, -1, G, T, S), -jnp.inf
    )
    weights_BKGTS = jnp.exp(
        scores_BKGTS - jax.lax.stop_gradient(scores_BKGTS.max(axis=-1, keepdims=True))
    )
    total_NGT1 = weights_BKGTS.sum(axis=-1, keepdims=True).reshape(N, G, T, 1)
    mixed_NQH = jnp.einsum(
        "nqs,nsh->nqh", weights_BKGTS.reshape(scores_NQS.shape).astype(v_NSH.dtype), v_NSH
    )
    # The division by the softmax's sum after the product is cheaper.
    return mixed_NQH.reshape(N, G, T, H) / total_NGT1.astype(mixed_NQH.dtype)


_ACTIVATIONS: dict[str, Any] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """(f(x·gate) ∘ (x·up)) · down, which with f = silu is SwiGLU (2002.05202); without a gate f(x·up) · down."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        scale_out = (2 * config.layers * config.hidden) ** -0.5
        inner = config.hidden * (2 if config.gated else 1)
        self.activation = config.activation
        # Gate and up in one matrix; up alone where there is no gate.
        self.gate_up = nnx.Param(_normal(config.width**-0.5)(rngs.params(), (config.width, inner)))
        self.down = nnx.Param(_normal(scale_out)(rngs.params(), (config.hidden, config.width)))
        self.gate_up_bias = _bias(inner, config.mlp_bias)
        self.down_bias = _bias(config.width, config.mlp_bias)

    def __call__(self, x_BTD: Array) -> Array:
        """What the MLP adds to the residual stream."""
        hidden, width = self.down.shape
        parts = linear(x_BTD, self.gate_up[...], (hidden,) * (self.gate_up.shape[1] // hidden))
        if self.gate_up_bias is not None:
            parts = tuple(
                y + along_last(bias, y)
                for y, bias in zip(parts, jnp.split(self.gate_up_bias[...], len(parts)))
            )
        inner_BTF = _ACTIVATIONS[self.activation](parts[0])
        if len(parts) == 2:
            inner_BTF = inner_BTF * parts[1]
        return _plus(linear(inner_BTF, self.down[...], (width,))[0], self.down_bias)


class Block(nnx.Module):
    """Attention and MLP, each with a norm of its own, added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.norm_position, self.residual = config.norm_position, config.residual
        self.attention_norm = _norm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x_BTD: Array,
        positions_BT: Array,
        rotation: Rotation | None,
        cache: Any,
        attend_by: AttendBy | None = None,
    ):
        """The residual stream after the block, and the block's cache."""
        if self.norm_position == "post":
            mixed_BTD, cache = self.attention(x_BTD, positions_BT, rotation, cache, attend_by)
            x_BTD = self.attention_norm(x_BTD + mixed_BTD)
            return self.mlp_norm(x_BTD + self.mlp(x_BTD)), cache
        normed_BTD = self.attention_norm(x_BTD)
        mixed_BTD, cache = self.attention(normed_BTD, positions_BT, rotation, cache, attend_by)
        if self.residual == "parallel":
            return x_BTD + mixed_BTD + self.mlp(self.mlp_norm(x_BTD)), cache
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), cache


class Transformer(nnx.Module):
    """Maps token ids to the logits of the next token at every position."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        width, table = config.width, config.table_width
        self.embedding = nnx.Param(
            _normal(table**-0.5)(rngs.params(), (config.embedding_rows, table))
        )
        if config.positions == "learned":
            self.positions = nnx.Param(
                _normal(width**-0.5)(rngs.params(), (config.max_positions, width))
            )
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        if config.final_norm:
            self.final_norm = _norm(config)
        if config.embedding_width:
            self.project_in = nnx.Param(_normal(table**-0.5)(rngs.params(), (table, width)))
            self.project_out = nnx.Param(_normal(width**-0.5)(rngs.params(), (width, table)))
        if not config.tie_embeddings:
            columns = config.readout_size if config.truncated else config.vocab_size
            self.head = nnx.Param(_normal(table**-0.5)(rngs.params(), (table, columns)))
        if config.early_exit:
            self.exit_map = nnx.Param(jnp.zeros((width, width)))
            self.exit_bias = nnx.Param(jnp.zeros((width,)))
            self.exit_head = nnx.Param(
                _normal(table**-0.5)(rngs.params(), (config.vocab_size, table))
            )

    def embed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeddings of tokens, as they enter the residual stream."""
        c = self.config
        dtype = self.blocks[0].attention_norm.scale[...].dtype
        clip = c.ids > c.vocab_size
        if c.truncated:
            rows_V = np.full(c.vocab_size, len(c.readout_ids))
            rows_V[[*c.readout_ids]] = np.arange(len(c.readout_ids))
            tokens_BT = lookup(jnp.asarray(rows_V), tokens_BT, jnp.int32, clip)
        x_BTE = lookup(self.embedding[...], tokens_BT, dtype, clip)
        if c.scale_embedding:
            # Unit-variance activations, so that the tied matrix can keep the small scale that
            # logits want.
            x_BTE = x_BTE * c.width**0.5
        x_BTD = linear(x_BTE, self.project_in[...], (c.width,))[0] if c.embedding_width else x_BTE
        return x_BTD

    def readout(self, x_BTD: Float[Array, "B T D"], compact: bool = False) -> Float[Array, "B T V"]:
        """Logits from the residual stream after the last block; of `readout_ids` alone if compact."""
        c = self.config
        if c.early_exit:
            x_BTD = x_BTD + _plus(linear(x_BTD, self.exit_map[...], (c.width,))[0], self.exit_bias)
        if c.final_norm:
            x_BTD = self.final_norm(x_BTD)
        x_BTE = x_BTD
        if c.embedding_width:
            x_BTE = linear(x_BTD, self.project_out[...], (c.embedding_width,))[0]
        table = (
            self.exit_head if c.early_exit else self.embedding if c.tie_embeddings else self.head
        )
        rows: Any = table[...]
        ids = np.asarray(c.readout_ids, int)
        if c.readout_ids and not c.truncated:
            rows = outputs_of(rows, ids, 0 if c.tie_embeddings else 1)
        logits_BTV = logits(x_BTE, rows, c.tie_embeddings)
        if c.readout_ids:
            # The last row of a truncated embedding is no id's.
            logits_BTV, dtype = logits_BTV[..., : len(ids)], logits_BTV.dtype
            if compact:
                return logits_BTV
            whole = jnp.full((*logits_BTV.shape[:-1], c.vocab_size), never(dtype), dtype)
            logits_BTV = whole.at[..., ids].set(
                logits_BTV, unique_indices=True, indices_are_sorted=True
            )
        if c.ids > c.vocab_size:
            # Ids without a row are clipped to the last one where they come in.
            beyond = [(0, 0), (0, 0), (0, c.ids - c.vocab_size)]
            logits_BTV = jnp.pad(logits_BTV, beyond, constant_values=never(logits_BTV.dtype))
        return logits_BTV

    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"] | None = None,
        cache: Any = None,
        remat: bool = False,
        *,
        taps: tuple[int, ...] = (),
        added_BTD: Float[Array, "B T D"] | None = None,
        attend_by: AttendBy | None = None,
        stream_BTD: Float[Array, "B T D"] | None = None,
        first_block: int = 0,
        compact: bool = False,
    ) -> Outputs:
        """Runs the model over new tokens.

        Args:
          tokens_BT: Token ids.
          positions_BT: Positions of the tokens, consecutive in each row; 0..T−1 if omitted. They
            name the cache slots to write.
          cache: Keys and values of earlier positions; None to attend to the new tokens alone.
          remat: Whether to keep only what enters each block for the gradient, and compute the rest
            again. Saves memory for a third more work.
          taps: Blocks, counted from 1, whose outputs are returned as features; 0 is what enters the
            first block.
          added_BTD: What is added to the embeddings.
          attend_by: What attends in place of the cached attention. The cache then holds whatever it
            keeps, for each block.
          stream_BTD: The residual stream that enters block `first_block`, in place of embeddings.
          first_block: Block to begin with, counted from 0. The cache holds the others only, and taps
            count from it.
          compact: Whether logits of `readout_ids` alone are wanted, in their order, where the model
            has no others.
        """
        c = self.config
        B, T = tokens_BT.shape
        if positions_BT is None:
            # Without a cache all rows share one row of angles, whose sines and cosines are then
            # computed once.
            positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (1 if cache is None else B, T))
        rotation = None
        if c.rotated:
            rotation = rotary_tables(
                positions_BT[..., None], c.rotated, c.rope_theta, c.rope_scaling
            )
        x_BTD = self.embed(tokens_BT) if stream_BTD is None else stream_BTD
        if c.positions == "learned" and stream_BTD is None:
            # A block of drafts may reach beyond the table, where a decoder keeps nothing: any row
            # will do there.
            x_BTD = x_BTD + self.positions[...].at[positions_BT].get(mode="clip")
        if added_BTD is not None:
            x_BTD = x_BTD + added_BTD
        layers: list[Any] = [None] * (c.layers - first_block)
        if isinstance(cache, KVCache):
            layers = [*zip(cache.keys, cache.values)]
        elif cache is not None:
            layers = [*cache]
        streams = [x_BTD]
        for i, block in enumerate(list(self.blocks)[first_block:]):
            run = nnx.remat(Block.__call__) if remat else Block.__call__
            x_BTD, layers[i] = run(block, x_BTD, positions_BT, rotation, layers[i], attend_by)
            streams.append(x_BTD)
        logits_BTV = self.readout(x_BTD, compact)
        written: Any = None
        if attend_by is not None:
            written = tuple(layers)
        elif cache is not None:
            written = KVCache(*zip(*layers)) if layers else KVCache((), ())
        return Outputs(
            logits_BTV,
            written,
            jnp.concatenate([streams[tap] for tap in taps], axis=-1) if taps else None,
        )


@functools.cache
def _graph(config: ModelConfig):
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: ModelConfig, key: Array) -> Params:
    """Random parameters of a model, as a pytree of float32 arrays."""
    return nnx.state(Transformer(config, nnx.Rngs(params=key)), nnx.Param)


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and types of a model's parameters, without allocating any of them."""
    return _graph(config)[1]


def forward(
    config: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"] | None = None,
    cache: KVCache | None = None,
    remat: bool = False,
    compact: bool = False,
) -> tuple[Float[Array, "B T V"], KVCache | None]:
    """Logits and cache of `Transformer.__call__`, as a pure function of parameters, to be used inside `jax.jit` with
    `config` static."""
    return outputs(config, params, tokens_BT, positions_BT, cache, remat, compact=compact)[:2]


def outputs(
    config: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"] | None = None,
    cache: KVCache | None = None,
    remat: bool = False,
    **more: Any,
) -> Outputs:
    """`Transformer.__call__` with all its outputs and arguments, as a pure function of parameters."""
    return nnx.merge(_graph(config)[0], params)(tokens_BT, positions_BT, cache, remat, **more)


def embed(
    config: ModelConfig, params: Params, tokens_BT: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """`Transformer.embed` as a pure function of parameters."""
    return nnx.merge(_graph(config)[0], params).embed(tokens_BT)


def readout(
    config: ModelConfig, params: Params, x_BTD: Float[Array, "B T D"], compact: bool = False
) -> Float[Array, "B T V"]:
    """`Transformer.readout` as a pure function of parameters."""
    return nnx.merge(_graph(config)[0], params).readout(x_BTD, compact)


def prefill_with_features(
    config: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    *,
    capacity: int,
    taps: tuple[int, ...],
) -> tuple[KVCache, Float[Array, "B T F"] | None]:
    """A cache of `capacity` positions that has seen every prompt, and the features of every position;
    None without taps.

    Padding on the right is seen as well, and overwritten before anything can attend to it. Compiled
    apart from the decoding loops, so that the many pairs of a study share it. Where the parameters are
    split over devices, so is the cache.
    """
    shardings = _cache_shardings(config, params, tokens_BT.shape[0])
    return _prefill(config, params, tokens_BT, capacity=capacity, taps=taps, shardings=shardings)


@functools.partial(jax.jit, static_argnames=("config", "capacity", "taps", "shardings"))
def _prefill(config, params, tokens_BT, *, capacity, taps, shardings):
    empty = init_cache(config, tokens_BT.shape[0], capacity, activation_dtype(params))
    if shardings is not None:
        empty = KVCache(
            *(
                tuple(jax.lax.with_sharding_constraint(x, sharding) for x in part)
                for part, sharding in zip(empty, shardings)
            )
        )
    _, cache, features = outputs(config, params, tokens_BT, cache=empty, taps=taps)
    return cache, features


def _cache_shardings(
    config: ModelConfig, params: Params, rows: int
) -> tuple[NamedSharding, NamedSharding] | None:
    """How keys and values are split: by rows and heads, or within heads; None where parameters are not."""
    for leaf in jax.tree.leaves(params):
        sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and any(sharding.spec):
            axis = next(name for name in sharding.spec if name is not None)
            break
    else:
        return None
    mesh, devices = sharding.mesh, sharding.mesh.shape[axis]
    if rows * config.kv_heads % devices == 0:
        return (NamedSharding(mesh, PartitionSpec(axis)),) * 2
    if config.head_dim % devices == 0:
        keys, values = PartitionSpec(None, axis), PartitionSpec(None, None, axis)
        return NamedSharding(mesh, keys), NamedSharding(mesh, values)
    return None


def prefill(
    config: ModelConfig, params: Params, tokens_BT: Int[Array, "B T"], *, capacity: int
) -> KVCache:
    """The cache alone of `prefill_with_features`."""
    return prefill_with_features(config, params, tokens_BT, capacity=capacity, taps=())[0]
