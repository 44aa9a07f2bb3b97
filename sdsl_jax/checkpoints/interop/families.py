"""Published families: the names of their tensors, and what their configurations mean as a
`ModelConfig`.

A family is data: a `Layout` of names and a function from the fields of its config.json to a
`ModelConfig`. One model serves all families.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from sdsl_jax.checkpoints.interop.settings import Fields, names
from sdsl_jax.errors import SdslError
from sdsl_jax.models.config import Activation, ModelConfig, RopeScaling


class Layout(NamedTuple):
    """Names of a family's tensors, without `.weight` and `.bias`; empty if the family has no such
    tensor.

    Attributes:
      base: Prefix of everything but the head.
      bare: Prefix instead of `base` in files of the model without a head.
      block: Prefix of a block, with its number.
      qkv: Queries, keys and values: three names, or one for all.
      gate_up: Gate and up projection, or the up projection alone.
      transposed: Whether matrices are stored as [outputs, inputs].
      by_head: Whether the rows of a joint matrix of queries, keys and values are grouped by head.
      first_position: Rows of the table of positions that no position uses.
      buffers: Ends of names of tensors that hold no parameters, in files of older versions.
    """

    base: str
    embedding: str
    block: str
    attention_norm: str
    qkv: tuple[str, ...]
    out: str
    mlp_norm: str
    gate_up: tuple[str, ...]
    down: str
    final_norm: str
    head: str = "lm_head"
    positions: str = ""
    project_in: str = ""
    project_out: str = ""
    query_norm: str = ""
    key_norm: str = ""
    transposed: bool = True
    by_head: bool = False
    first_position: int = 0
    buffers: tuple[str, ...] = ()
    bare: str = ""


LLAMA = Layout(
    base="model.",
    embedding="embed_tokens",
    block="layers.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    final_norm="norm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    buffers=("rotary_emb.inv_freq",),
)
OPT = Layout(
    base="model.decoder.",
    bare="decoder.",
    embedding="embed_tokens",
    positions="embed_positions",
    first_position=2,
    project_in="project_in",
    project_out="project_out",
    block="layers.{}.",
    attention_norm="self_attn_layer_norm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    gate_up=("fc1",),
    down="fc2",
    final_norm="final_layer_norm",
)
NEOX = Layout(
    base="gpt_neox.",
    embedding="embed_in",
    block="layers.{}.",
    attention_norm="input_layernorm",
    qkv=("attention.query_key_value",),
    by_head=True,
    out="attention.dense",
    mlp_norm="post_attention_layernorm",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="final_layer_norm",
    head="embed_out",
    buffers=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
)
GPT2 = Layout(
    base="transformer.",
    embedding="wte",
    positions="wpe",
    block="h.{}.",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    mlp_norm="ln_2",
    gate_up=("mlp.c_fc",),
    down="mlp.c_proj",
    final_norm="ln_f",
    transposed=False,
    buffers=("attn.bias", "attn.masked_bias"),
)


_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


# The length before scaling, within the table of rotary scaling or beside it.
_TRAINED_LENGTH = "original_max_position_embeddings"
# What a table of rotary scaling may hold, by its kind; transformers knows all of these names and
# passes over the others'.
_ROPE_KINDS = ("default", "linear", "llama3", "yarn")
_ROPE_KEYS = names(
    """
    rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings attention_factor beta_fast
    beta_slow low_freq_factor high_freq_factor mscale mscale_all_dim truncate short_factor long_factor finetuned
    """
)


def unknown_rope_settings(fields: Fields) -> list[str]:
    """Full names of the entries in tables of rotary scaling that this package does not know."""
    tables = ((name, fields.values.get(name)) for name in ("rope_parameters", "rope_scaling"))
    return [
        f"{name}.{key}"
        for name, table in tables
        if isinstance(table, dict)
        for key in table
        if key not in _ROPE_KEYS
    ]


def _rope_kind(table: Fields) -> str:
    """The kind of scaling that a table describes."""
    kinds = {
        name: table.values[name]
        for name in ("rope_type", "type")
        if table.values.get(name) is not None
    }
    if not kinds:
        scales = [
            n
            for n in table.values
            if n not in ("rope_theta", "partial_rotary_factor") and table.values[n] is not None
        ]
        if scales:
            table.fail("rope_type", f"given beside {scales[0]}: one of " + ", ".join(_ROPE_KINDS))
        return "default"
    if len(set(map(str, kinds.values()))) > 1:
        table.fail("type", f"the rope_type beside it, {kinds['rope_type']!r}")
    return table.choice(next(iter(kinds)), {kind: kind for kind in _ROPE_KINDS}, "default")


def rotary(
    fields: Fields,
    theta: str = "rope_theta",
    part: str = "partial_rotary_factor",
    default_share: float = 1.0,
    length: int = 2048,
) -> tuple[float, float, RopeScaling | None]:
    """Base, rotated share of a head, and scaling of rotary positions, which transformers 4 and 5
    write in different places.
    """
    base, share = fields.number(theta, 10_000.0), fields.number(part, default_share)
    reach = fields.whole("max_position_embeddings", length)
    trained = fields.whole(_TRAINED_LENGTH, reach)
    newer, table = fields.table("rope_parameters"), fields.table("rope_scaling")
    if newer is not None:
        share = newer.number("partial_rotary_factor", share)
        if table is not None and table.values:
            # The older table wins if both are given, as in transformers: somebody added it to the
            # file.
            older = table.number("rope_theta", base)
            if newer.number("rope_theta", older) != older:
                newer.fail(
                    "rope_theta", f"{older:g}, as beside rope_scaling, or {theta} must be given"
                )
    if table is None or not table.values:
        table = newer
    if table is None:
        return base, share, None
    base, share = table.number("rope_theta", base), table.number("partial_rotary_factor", share)
    kind = _rope_kind(table)
    if kind == "default":
        return base, share, None
    factor = table.number("factor")
    if kind == "linear":
        return base, share, RopeScaling("linear", factor)
    original = table.whole(_TRAINED_LENGTH, trained)
    # Releases of transformers differ in which of the two they take.
    fields.only(
        _TRAINED_LENGTH,
        (original,),
        f"{table.name(_TRAINED_LENGTH)} is {original}, and they must be equal",
    )
    if kind == "llama3":
        low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
        return base, share, RopeScaling("llama3", factor, original, low, high)
    for unknown in ("mscale", "mscale_all_dim"):
        table.only(unknown, (), "this variant of yarn is not implemented")
    table.only(
        "truncate",
        (True,),
        "yarn is implemented with its corner frequencies rounded (truncate = true)",
    )
    attention = table.number("attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    low, high = table.number("beta_slow", 1.0), table.number("beta_fast", 32.0)
    return base, share, RopeScaling("yarn", factor, original, low, high, attention)


def _rotated(fields: Fields, share: float) -> int:
    """`ModelConfig.rotary_dim`, from the share of a head that is rotated."""
    head_dim = fields.whole("hidden_size") // fields.whole("num_attention_heads")
    rotated = int(head_dim * share)
    if rotated < 2 or rotated > head_dim or rotated % 2:
        fields.fail(
            "rotary_pct",
            f"such that an even number of a head's {head_dim} entries is rotated, not {rotated}",
        )
    return 0 if rotated == head_dim else rotated


def _require_full_attention(fields: Fields, layers: int, reach: int, window_alone: bool) -> None:
    """Refuses an attention window shorter than the announced length.

    Args:
      fields: Settings of the file.
      layers: Number of layers.
      reach: Announced length.
      window_alone: Whether a window applies to all layers unless the file says otherwise. If false,
        it must be switched on, and applies from `max_window_layers` on.
    """
    kinds = fields.values.get("layer_types")
    if kinds is not None:
        # These say what every layer sees, and take precedence over all other settings.
        if not isinstance(kinds, list) or any(
            kind not in ("full_attention", "attention") for kind in kinds
        ):
            fields.fail(
                "layer_types", "'full_attention' throughout: attention here sees everything"
            )
        return
    if (
        not fields.flag("use_sliding_window", window_alone)
        or fields.values.get("sliding_window") is None
    ):
        return
    first = fields.whole("max_window_layers", 0 if window_alone else 28, least=0)
    window = fields.whole("sliding_window", reach)
    if first < layers and window < reach:
        fields.fail(
            "sliding_window",
            f"at least max_position_embeddings ({reach}): attention here sees everything",
        )


def _llama(
    fields: Fields,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int | None = None,
    length: int = 2048,
    window_alone: bool = True,
) -> ModelConfig:
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    reach = fields.whole("max_position_embeddings", length)
    layers = fields.whole("num_hidden_layers")
    _require_full_attention(fields, layers, reach, window_alone)
    if fields.values.get("head_dim") is None and head_dim is None and width % heads:
        fields.fail(
            "hidden_size", f"a multiple of num_attention_heads ({heads}), unless head_dim is given"
        )
    size = fields.whole("head_dim", head_dim or width // heads)
    theta, share, scaling = rotary(fields, length=length)
    if share != 1:
        raise SdslError(
            f"partial_rotary_factor is {share:g}; the heads of this family are rotated as a whole (1)."
        )
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
        rope_scaling=scaling,
        max_positions=reach,
        scale_embedding=False,
    )


def llama(fields: Fields) -> ModelConfig:
    """Llama 1 to 3, and models that share their layout, such as SmolLM2."""
    bias = fields.flag("attention_bias", False)
    return _llama(fields, qkv_bias=bias, out_bias=bias, mlp_bias=fields.flag("mlp_bias", False))


def qwen2(fields: Fields) -> ModelConfig:
    """Qwen1.5, Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""
    return _llama(fields, qkv_bias=True, length=32_768, window_alone=False)


def qwen3(fields: Fields) -> ModelConfig:
    """Qwen3: Llama with normalised queries and keys."""
    bias = fields.flag("attention_bias", False)
    return _llama(
        fields,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        head_dim=128,
        length=32_768,
        window_alone=False,
    )


def seed_oss(fields: Fields) -> ModelConfig:
    """Seed-OSS: Llama with each of its biases set separately."""
    return _llama(
        fields,
        qkv_bias=fields.flag("attention_bias", True),
        out_bias=fields.flag("attention_out_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        # Its class takes null, unlike an absent field, for the width divided by the heads.
        head_dim=None if "head_dim" in fields.values else 128,
        length=524_288,
    )


def _with_layer_norms(fields: Fields, width: str, heads: str, **own: Any) -> ModelConfig:
    """A model with layer norms, a key-value head for every query head, and an MLP without a gate.

    Args:
      fields: Its config.json.
      width: Name of the field that holds the size of the residual stream.
      heads: Name of the field that holds the number of heads.
      own: What else the family sets.
    """
    size, count = fields.whole(width), fields.whole(heads)
    if size % count:
        fields.fail(width, f"a multiple of {heads} ({count})")
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        width=size,
        heads=count,
        kv_heads=count,
        head_dim=size // count,
        qk_norm=False,
        norm="layer",
        gated=False,
        scale_embedding=False,
        **own,
    )


def opt(fields: Fields) -> ModelConfig:
    """OPT. Its 350M model has norms after the residual stream and a smaller embedding."""
    width = fields.whole("hidden_size")
    before = fields.flag("do_layer_norm_before", True)
    table, bias = fields.whole("word_embed_proj_dim", width), fields.flag("enable_bias", True)
    return _with_layer_norms(
        fields,
        "hidden_size",
        "num_attention_heads",
        layers=fields.whole("num_hidden_layers"),
        hidden=fields.whole("ffn_dim"),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        norm_epsilon=1e-5,
        norm_position="pre" if before else "post",
        final_norm=before and not fields.flag("_remove_final_layer_norm", False),
        activation=fields.choice("activation_function", _ACTIVATIONS, "relu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        positions="learned",
        max_positions=fields.whole("max_position_embeddings", 2048),
        embedding_width=0 if table == width else table,
    )


def gpt_neox(fields: Fields) -> ModelConfig:
    """GPT-NeoX and Pythia."""
    theta, share, scaling = rotary(fields, "rotary_emb_base", "rotary_pct", 0.25)
    fields.only("rope_theta", (theta,), "this family reads rotary_emb_base instead")
    bias = fields.flag("attention_bias", True)
    return _with_layer_norms(
        fields,
        "hidden_size",
        "num_attention_heads",
        layers=fields.whole("num_hidden_layers"),
        hidden=fields.whole("intermediate_size"),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        rope_theta=theta,
        norm_epsilon=fields.number("layer_norm_eps", 1e-5),
        residual="parallel" if fields.flag("use_parallel_residual", True) else "sequential",
        activation=fields.choice("hidden_act", _ACTIVATIONS, "gelu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        rotary_dim=_rotated(fields, share),
        rope_scaling=scaling,
        max_positions=fields.whole("max_position_embeddings", 2048),
    )


# GPT-2's own names, and those that transformers accepts as well.
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}


def gpt2(fields: Fields) -> ModelConfig:
    """GPT-2."""
    others = {
        name: fields.values[other]
        for name, other in _GPT2_NAMES.items()
        if fields.values.get(other) is not None
    }
    for name, value in others.items():
        fields.only(name, (value,), f"{_GPT2_NAMES[name]} beside it is another")
    fields = Fields(fields.path, fields.values | others)
    return _with_layer_norms(
        fields,
        "n_embd",
        "n_head",
        layers=fields.whole("n_layer"),
        hidden=fields.whole("n_inner", 4 * fields.whole("n_embd")),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        activation=fields.choice("activation_function", _ACTIVATIONS, "gelu_new"),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        positions="learned",
        max_positions=fields.whole("n_positions", 1024),
    )


class Family(NamedTuple):
    """A published family.

    Attributes:
      architecture: Its class in transformers.
      layout: Names of its tensors.
      config: Function from its config.json to our configuration.
    """

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


# Other families, by what they are; messages say more of them than that they are unknown.
_EXPERTS = names("mixtral dbrx deepseek_v2 deepseek_v3 gpt_oss jamba llama4 minimax arctic grok-1")
_EXPERT_SETTINGS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
_QUANTISED = ("quantization_config", "quantization", "compression_config")


def family_of(fields: Fields) -> Family:
    """The family that a config.json names.

    Raises:
      SdslError: it is none that is known, or the weights are quantised.
    """
    kind = fields.values.get("model_type")
    for name in _QUANTISED:
        if fields.values.get(name):
            table = fields.values[name]
            method = (
                table.get("quant_method") or table.get("format")
                if isinstance(table, dict)
                else None
            )
            how = (
                f" by {method}"
                if isinstance(method, str)
                else " as MLX writes it"
                if name == "quantization"
                else ""
            )
            raise SdslError(
                f"the weights beside {fields.path} are quantised{how} ({name}), which is not read; use the folder of the "
                "original weights."
            )
    if not isinstance(kind, str) or kind not in FAMILIES:
        allowed = "one of " + ", ".join(FAMILIES)
        if isinstance(kind, str) and (
            "moe" in kind
            or kind in _EXPERTS
            or any(fields.values.get(name) for name in _EXPERT_SETTINGS)
        ):
            allowed += "; this is a mixture of experts, which is not read"
        fields.fail("model_type", allowed)
    return FAMILIES[kind]
