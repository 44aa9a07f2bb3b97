"""Families: from a requested non-embedding size to a configuration, and exact counts of a model."""

from __future__ import annotations

from dataclasses import dataclass

from sdsl_jax.config import FamilyConfig
from sdsl_jax.errors import require
from sdsl_jax.models.config import ModelConfig
from sdsl_jax.theory.costs import ShapeRule, layers_and_width

# How far the size that a family makes may lie from the size that was asked for.
SIZE_TOLERANCE = 0.10
# Hidden sizes of the MLP come in steps of this many units: fine enough to meet a wanted size,
# coarse enough for vector units.
_HIDDEN_STEP = 4


@dataclass(frozen=True)
class ModelCounts:
    """Exact sizes of a model.

    Attributes:
      nonembedding: Parameters other than the embeddings of tokens and positions and the head.
      total: All parameters.
      flops_per_token: Forward FLOPs for one token at `context` tokens of context; a multiply-add
        counts as two.
      weight_bytes: Bytes of all parameters in float32.
      cache_bytes_per_token: Bytes of keys and values for one position in float32.
    """

    nonembedding: int
    total: int
    flops_per_token: float
    weight_bytes: int
    cache_bytes_per_token: int


def _block_params(c: ModelConfig) -> tuple[int, int]:
    """Parameters of one block: those in its matrices, and those in its norms and biases."""
    query, kv, projections = c.heads * c.head_dim, c.kv_heads * c.head_dim, 3 if c.gated else 2
    matrices = 2 * c.width * (query + kv) + projections * c.width * c.hidden
    biases = (query + 2 * kv) * c.qkv_bias + c.width * c.out_bias
    biases += ((projections - 1) * c.hidden + c.width) * c.mlp_bias
    return matrices, 2 * norm_params(c) + (2 * c.head_dim if c.qk_norm else 0) + biases


def norm_params(c: ModelConfig) -> int:
    """Parameters of one norm of the residual stream."""
    return c.width * (1 if c.norm == "rms" else 2)


def count(config: ModelConfig, context: float) -> ModelCounts:
    """Counts parameters, FLOPs and bytes of a model, at an average of `context` tokens of context.

    Learned positions count as an embedding, like that of the tokens. Projections between embedding
    and residual stream do not.
    """
    c = config
    matrices, rest = _block_params(c)
    projections = 2 * c.embedding_width * c.width
    exit_map = c.width * c.width if c.early_exit else 0
    nonembedding = (
        c.layers * (matrices + rest) + projections + (norm_params(c) if c.final_norm else 0)
    )
    nonembedding += exit_map + (c.width if c.early_exit else 0)
    tables = c.embedding_rows * c.table_width
    if c.early_exit or not c.tie_embeddings:
        tables += (c.readout_size if c.truncated else c.vocab_size) * c.table_width
    positions = c.max_positions * c.width if c.positions == "learned" else 0
    readout = c.readout_size * c.table_width
    total = nonembedding + positions + tables
    attention = 4 * context * c.heads * c.head_dim * c.layers
    return ModelCounts(
        nonembedding=nonembedding,
        total=total,
        flops_per_token=2 * (c.layers * matrices + projections + exit_map + readout) + attention,
        weight_bytes=4 * total,
        cache_bytes_per_token=4 * 2 * c.layers * c.kv_heads * c.head_dim,
    )


def shape_rule(family: FamilyConfig, vocab_size: int, sequence_length: int) -> ShapeRule:
    """The smooth counterpart of the family; its average context is half a sequence."""
    tables = 1.0 if family.tie_embeddings else 2.0
    return ShapeRule(
        family.aspect_ratio,
        float(vocab_size),
        sequence_length / 2,
        1 / family.kv_groups,
        tables,
        float(family.layers),
        min_layers=float(family.min_layers),
    )


def member(
    family: FamilyConfig, params: int, vocab_size: int, whole_heads: bool = False
) -> ModelConfig:
    """The family's model with about `params` non-embedding parameters.

    Layers and width follow the family's aspect ratio and its least layers, or its number of layers. The hidden size of
    the MLP then makes up for what rounding left over. With `whole_heads` all heads have the family's
    size, and the width is a multiple of it.

    Raises:
      SdslError: No member is within 10% of `params`.
    """
    rule = shape_rule(family, vocab_size, 0)
    layers, width = (float(x) for x in layers_and_width(float(params), rule))
    layers = max(1, round(layers))
    heads = max(1, round(width / family.head_dim))
    kv_heads = max(1, heads // family.kv_groups)
    heads = kv_heads * max(1, round(heads / kv_heads))
    head_dim = family.head_dim if whole_heads else max(8, 8 * round(width / heads / 8))

    def build(hidden: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=vocab_size,
            width=heads * head_dim,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            qk_norm=family.qk_norm,
            tie_embeddings=family.tie_embeddings,
        )

    base = count(build(_HIDDEN_STEP), 0).nonembedding
    step = 3 * heads * head_dim * layers * _HIDDEN_STEP
    config = build(_HIDDEN_STEP * (1 + max(0, round((params - base) / step))))
    size = count(config, 0).nonembedding
    require(
        abs(size / params - 1) <= SIZE_TOLERANCE,
        f"the family cannot make a model of {params} non-embedding parameters; the nearest it makes has {size}, "
        f"and sizes from about {SMALLEST_SIZE * max(layers, family.min_layers)} up are allowed.",
    )
    return config


# Width 8, one layer: 256 attention weights, an MLP of hidden size 4 and the norms come to 392; the
# next sizes are 96 apart.
SMALLEST_SIZE = 500
