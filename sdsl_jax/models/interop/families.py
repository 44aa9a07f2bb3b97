"""Published families: what their configurations mean in terms of `ModelConfig`.

A family is data: a `Layout` of names and a function from the fields of its config.json to a `ModelConfig`; there is one model for
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from sdsl_jax.models.config import Activation, ModelConfig, RopeScaling
from sdsl_jax.models.interop.fields import Fields
from sdsl_jax.models.interop.layouts import GPT2, LLAMA, NEOX, OPT, Layout

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def rotary(
    fields: Fields, theta: str = "rope_theta", default_theta: float = 10_000.0, default_share: float = 1.0
) -> tuple[float, float, RopeScaling | None]:
    """Base, rotated share of a head, and scaling of rotary positions; transformers 4 and 5 write them in different places."""
    base, share = fields.number(theta, default_theta), fields.number("rotary_pct", default_share)
    newer, table = fields.table("rope_parameters"), fields.table("rope_scaling")
    if newer is not None:
        base = newer.number("rope_theta", base)
        share = newer.number("partial_rotary_factor", share)
    # Where both are given the older one holds, as in transformers: it is what somebody added to the file.
    table = newer if table is None else table
    if table is None:
        return base, share, None
    base = table.number("rope_theta", base)
    name = "rope_type" if "rope_type" in table.values else "type"
    kind = table.choice(name, {k: k for k in ("default", "linear", "llama3", "yarn")}, "default")
    if kind == "default":
        return base, share, None
    factor, reach = table.number("factor"), fields.whole("max_position_embeddings")
    if kind == "linear":
        return base, share, RopeScaling("linear", factor)
    original = table.whole("original_max_position_embeddings", reach)
    if kind == "llama3":
        low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
        return base, share, RopeScaling("llama3", factor, original, low, high)
    for unknown in ("mscale", "mscale_all_dim"):
        table.only(unknown, (), "this variant of yarn is not implemented")
    table.only("truncate", (True,), "yarn is implemented with its corner frequencies rounded (truncate = true)")
    attention = table.number("attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    low, high = table.number("beta_slow", 1.0), table.number("beta_fast", 32.0)
    return base, share, RopeScaling("yarn", factor, original, low, high, attention)


def _rotated(fields: Fields, head_dim: int, share: float) -> int:
    """`ModelConfig.rotary_dim`."""
    rotated = int(head_dim * share)
    if rotated < 2 or rotated > head_dim or rotated % 2:
        fields.fail("rotary_pct", f"such that an even number of a head's {head_dim} entries is rotated, not {rotated}")
    return 0 if rotated == head_dim else rotated


def _llama(
    fields: Fields,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int | None = None,
) -> ModelConfig:
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    reach = fields.whole("max_position_embeddings", 2048)
    layers = fields.whole("num_hidden_layers")
    kinds = fields.values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        fields.fail("layer_types", "'full_attention' throughout: attention here sees everything")
    # The first layers see everything, as many as max_window_layers says.
    if fields.flag("use_sliding_window", False) and fields.values.get("max_window_layers", 0) < layers:
        window = fields.whole("sliding_window", reach)
        if window < reach:
            fields.fail("sliding_window", f"at least max_position_embeddings ({reach}): attention here sees everything")
    if fields.values.get("head_dim") is None and head_dim is None and width % heads:
        fields.fail("hidden_size", f"a multiple of num_attention_heads ({heads}), unless head_dim is given")
    size = fields.whole("head_dim", head_dim or width // heads)
    theta, share, scaling = rotary(fields)
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", heads),
        head_dim=size,
        hidden=fields.whole("intermediate_size"),
        qk_norm=qk_norm,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        rope_theta=theta,
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        activation=fields.choice("hidden_act", _ACTIVATIONS, "silu"),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        rotary_dim=_rotated(fields, size, share),
        rope_scaling=scaling,
        max_positions=reach,
        scale_embedding=False,
    )


def llama(fields: Fields) -> ModelConfig:
    """Llama 1 to 3 and what shares their layout, such as SmolLM2."""
    bias = fields.flag("attention_bias", False)
    return _llama(fields, qkv_bias=bias, out_bias=bias, mlp_bias=fields.flag("mlp_bias", False))


def qwen2(fields: Fields) -> ModelConfig:
    """Qwen1.5, Qwen2 and Qwen2.5: Llama with biases of queries, keys and values."""
    return _llama(fields, qkv_bias=True)


def qwen3(fields: Fields) -> ModelConfig:
    """Qwen3: Llama with normalised queries and keys."""
    bias = fields.flag("attention_bias", False)
    return _llama(fields, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=128)


def seed_oss(fields: Fields) -> ModelConfig:
    """Seed-OSS: Llama with its biases set one by one."""
    return _llama(
        fields,
        qkv_bias=fields.flag("attention_bias", True),
        out_bias=fields.flag("attention_out_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        head_dim=128,
    )


def opt(fields: Fields) -> ModelConfig:
    """OPT; its 350M model has norms after the residual stream and a smaller embedding."""
    fields.only("layer_norm_elementwise_affine", (True,), "norms without parameters are not implemented")
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    if width % heads:
        fields.fail("hidden_size", f"a multiple of num_attention_heads ({heads})")
    before, table = fields.flag("do_layer_norm_before", True), fields.whole("word_embed_proj_dim", width)
    bias = fields.flag("enable_bias", True)
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        width=width,
        layers=fields.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=fields.whole("ffn_dim"),
        qk_norm=False,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        norm_epsilon=1e-5,
        norm="layer",
        norm_position="pre" if before else "post",
        final_norm=before and not fields.flag("_remove_final_layer_norm", False),
        activation=fields.choice("activation_function", _ACTIVATIONS, "relu"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        positions="learned",
        max_positions=fields.whole("max_position_embeddings", 2048),
        embedding_width=0 if table == width else table,
        scale_embedding=False,
    )


def gpt_neox(fields: Fields) -> ModelConfig:
    """GPT-NeoX and Pythia."""
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    if width % heads:
        fields.fail("hidden_size", f"a multiple of num_attention_heads ({heads})")
    theta, share, scaling = rotary(fields, "rotary_emb_base", default_share=0.25)
    bias = fields.flag("attention_bias", True)
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        width=width,
        layers=fields.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=fields.whole("intermediate_size"),
        qk_norm=False,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        rope_theta=theta,
        norm_epsilon=fields.number("layer_norm_eps", 1e-5),
        norm="layer",
        residual="parallel" if fields.flag("use_parallel_residual", True) else "sequential",
        activation=fields.choice("hidden_act", _ACTIVATIONS, "gelu"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        rotary_dim=_rotated(fields, width // heads, share),
        rope_scaling=scaling,
        max_positions=fields.whole("max_position_embeddings", 2048),
        scale_embedding=False,
    )


def gpt2(fields: Fields) -> ModelConfig:
    """GPT-2."""
    fields.only("scale_attn_weights", (True,), "attention without a scale is not implemented")
    fields.only("scale_attn_by_inverse_layer_idx", (False,), "a scale for each layer is not implemented")
    fields.only("add_cross_attention", (False,), "cross-attention is not implemented")
    width, heads = fields.whole("n_embd"), fields.whole("n_head")
    if width % heads:
        fields.fail("n_embd", f"a multiple of n_head ({heads})")
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        width=width,
        layers=fields.whole("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=fields.whole("n_inner", 4 * width),
        qk_norm=False,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        norm="layer",
        activation=fields.choice("activation_function", _ACTIVATIONS, "gelu_new"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        positions="learned",
        max_positions=fields.whole("n_positions", 1024),
        scale_embedding=False,
    )


class Family(NamedTuple):
    """A published family: its class in transformers, its tensors, and what its configuration means."""

    architecture: str
    layout: Layout
    config: Callable[[Fields], ModelConfig]


# By `model_type` of config.json.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", GPT2, gpt2),
    "gpt_neox": Family("GPTNeoXForCausalLM", NEOX, gpt_neox),
    "llama": Family("LlamaForCausalLM", LLAMA, llama),
    "opt": Family("OPTForCausalLM", OPT, opt),
    "qwen2": Family("Qwen2ForCausalLM", LLAMA, qwen2),
    "qwen3": Family("Qwen3ForCausalLM", LLAMA, qwen3),
    "seed_oss": Family("SeedOssForCausalLM", LLAMA, seed_oss),
}


def family_of(fields: Fields) -> Family:
    """The family that a config.json names.

    Raises:
      SdslError: it is none that is known, or the weights are quantised.
    """
    kind = fields.values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        fields.fail("model_type", "one of " + ", ".join(FAMILIES))
    fields.only("quantization_config", (), "quantised weights are not read; use the folder of the original weights")
    return FAMILIES[kind]
