"""What the tensors of published families are called; names and shapes follow the classes of Hugging Face transformers."""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """Names of a family's tensors, without `.weight` and `.bias`; empty where it has none.

    Attributes:
      base: prefix of everything but the head.
      bare: what stands in its place in files of the model without a head.
      block: prefix of a block, with its number.
      qkv: queries, keys and values: three names, or one for all.
      gate_up: gate and up, or up alone.
      transposed: whether matrices lie as [outputs, inputs].
      by_head: whether rows of the one matrix of queries, keys and values are grouped by head.
      first_position: rows of the table of positions that no position uses.
      buffers: last parts of names of tensors that hold no parameters, in files of older versions.
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
