"""The Transformer, its cache, and the families that shape it."""

from sdsl_jax.models.config import ModelConfig
from sdsl_jax.models.family import ModelCounts, count, member, shape_rule
from sdsl_jax.models.transformer import (
    KVCache,
    Outputs,
    Params,
    Transformer,
    abstract_params,
    forward,
    init_cache,
    init_params,
    outputs,
    prefill,
    prefill_with_features,
)

__all__ = [
    "KVCache",
    "ModelConfig",
    "ModelCounts",
    "Outputs",
    "Params",
    "Transformer",
    "abstract_params",
    "count",
    "forward",
    "init_cache",
    "init_params",
    "member",
    "outputs",
    "prefill",
    "prefill_with_features",
    "shape_rule",
]
