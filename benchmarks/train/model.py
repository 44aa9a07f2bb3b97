"""What is trained: five sizes of one shape, and their weights in the names of the peer."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sdsl_jax.models import ModelConfig, Params

VOCABULARY, LENGTH, BATCH, HEAD = 512, 256, 16, 32
# Width and layers.
SHAPES = {"25k": (32, 2), "149k": (64, 3), "786k": (128, 4), "2.7M": (192, 6), "6.3M": (256, 8)}


def shape(size: str) -> ModelConfig:
    """The model of a size; the MLP is 8/3 as wide as the model."""
    width, layers = SHAPES[size]
    heads = width // HEAD
    return ModelConfig(
        vocab_size=VOCABULARY,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=HEAD,
        hidden=4 * round(8 * width / 3 / 4),
    )


def train_flops_per_token(config: ModelConfig) -> float:
    """FLOPs of forward and backward pass per token, 6 per weight that is multiplied, and causal attention's own."""
    matrices = config.layers * (
        2 * config.width * config.head_dim * (config.heads + config.kv_heads)
        + 3 * config.width * config.hidden
    )
    attention = (
        6 * config.layers * config.heads * config.head_dim * LENGTH
    )  # 12 · T/2 seen positions
    return 6 * (matrices + config.vocab_size * config.width) + attention


def peer_weights(params: Params) -> dict[str, np.ndarray]:
    """Our parameters by the names of the peer's."""
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path).replace(
            ".value", ""
        )
        name = name.replace(".attention.", ".").replace(".mlp.", ".").removesuffix(".scale")
        found[f"{name}.weight"] = np.asarray(value)
    return found


def peer_shape(config: ModelConfig) -> dict[str, Any]:
    """What the peer needs to build the same model."""
    names = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "hidden")
    return {name: getattr(config, name) for name in names}
