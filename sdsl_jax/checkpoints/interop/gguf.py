"""GGUF files of the llama architecture, quantised ones included: tensors are read as float32, and
the tokenizer gives the ids that llama.cpp gives. Needs the extra `gguf`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer

from sdsl_jax.checkpoints.identity import array_name
from sdsl_jax.checkpoints.interop.checkpoint import Checkpoint, Plan, naming, plan, require_room
from sdsl_jax.checkpoints.interop.families import FAMILIES, Layout
from sdsl_jax.checkpoints.interop.settings import (
    GGUF_DESCRIPTIONS,
    GGUF_LLAMA,
    Fields,
    require_settings,
    shown,
    unknown_warning,
)
from sdsl_jax.data.gguf_tokenizer import read_gguf_tokenizer
from sdsl_jax.errors import SdslError, require
from sdsl_jax.gguf_header import GGUFTensor, read_header
from sdsl_jax.models.config import ModelConfig, RopeScaling
from sdsl_jax.models.transformer import Params

# Names of llama.cpp, without `.weight`.
_GGUF = Layout(
    base="",
    embedding="token_embd",
    block="blk.{}.",
    attention_norm="attn_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    out="attn_output",
    mlp_norm="ffn_norm",
    gate_up=("ffn_gate", "ffn_up"),
    down="ffn_down",
    final_norm="output_norm",
    head="output",
)
_FREQUENCIES = "rope_freqs.weight"
# Tensors that llama.cpp passes over as well.
_UNUSED = (".attn_rot_embd",)
# Settings of a Llama config.json, and what the file calls them.
_NAMES = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
    "vocab_size": "llama.vocab_size",
}
_LENGTH = "max_position_embeddings"
_REQUIRED = (_LENGTH, "rms_norm_eps")
_ROPE_NAMES = {
    "rope_type": "llama.rope.scaling.type",
    "factor": "llama.rope.scaling.factor",
    "original_max_position_embeddings": "llama.rope.scaling.original_context_length",
    "beta_fast": "llama.rope.scaling.yarn_beta_fast",
    "beta_slow": "llama.rope.scaling.yarn_beta_slow",
}
_OLD_FACTOR = "llama.rope.scale_linear"


class GGUF(NamedTuple):
    """An open file.

    Attributes:
      checkpoint: Its model.
      tokenizer: Its tokenizer.
      end_ids: Ids that end a text.
      chat_template: Chat template; None if there is none.
    """

    checkpoint: Checkpoint
    tokenizer: HuggingFaceTokenizer
    end_ids: tuple[int, ...]
    chat_template: str | None


def open_gguf(path: Path, ignore: Sequence[str] = ()) -> GGUF:
    """Opens a GGUF file and checks its header.

    Args:
      path: Path to the file.
      ignore: Settings to read as if the file did not have them.

    Raises:
      SdslError: gguf is not installed; the file is damaged, contradicts itself, or has another
        architecture or tokenizer; or a tensor or setting of its architecture has no place in the
        model.
    """
    settings, tensors = read_header(path)
    kind = settings.get("general.architecture")
    require(
        kind == "llama",
        f"the file {path} is of the architecture {shown(kind)}; only 'llama' is read.",
    )
    file, ignored = Fields(path, settings).without(ignore)
    fields = _fields(file, tensors)
    with naming(fields):
        config = _with_biases(FAMILIES["llama"].config(fields), tensors)
    described = {
        name: value for name, value in file.values.items() if not name.startswith(GGUF_DESCRIPTIONS)
    }
    described |= {name: file.values[name] for name in GGUF_LLAMA.neutral if name in file.values}
    unknown = require_settings(Fields(path, described), GGUF_LLAMA, config)
    require_room(config, fields, tensors, "num_hidden_layers")
    scaling = _frequency_scaling(config, tensors)
    if scaling is not None:
        config = dataclasses.replace(config, rope_scaling=scaling)
    pieces = _plan(config)
    _match(path, pieces, tensors, {_FREQUENCIES} if scaling else set())
    tokenizer = read_gguf_tokenizer(path, file.values)
    warnings = (*unknown_warning(unknown, path), *tokenizer.warnings)
    checkpoint = Checkpoint(path, config, fields, pieces, tensors, unknown, ignored, warnings)
    return GGUF(checkpoint, tokenizer.tokenizer, tokenizer.end_ids, tokenizer.chat_template)


def _with_biases(config: ModelConfig, tensors: Mapping[str, GGUFTensor]) -> ModelConfig:
    """The configuration with the biases that the file holds. Those of the first block speak for all
    blocks.
    """

    def has_bias(*names: str) -> bool:
        return any(f"{_GGUF.block.format(0)}{name}.bias" in tensors for name in names)

    return dataclasses.replace(
        config,
        qkv_bias=has_bias(*_GGUF.qkv),
        out_bias=has_bias(_GGUF.out),
        mlp_bias=has_bias(*_GGUF.gate_up, _GGUF.down),
    )


def _frequency_scaling(
    config: ModelConfig, tensors: Mapping[str, GGUFTensor]
) -> RopeScaling | None:
    """The rope scaling that a table of frequency divisors stands for, if it is that of Llama 3.1 to
    3.3; otherwise None.
    """
    table = tensors.get(_FREQUENCIES)
    half = config.rotated // 2
    if table is None or table.shape != (half,) or config.rope_scaling is not None:
        return None
    divisors = table.read(0, half)
    factor, original, low, high = float(divisors[-1]), 8192, 1.0, 4.0
    if not 1 < factor < 1e6:
        return None
    turns = original / (2 * np.pi) * config.rope_theta ** (-np.arange(half) / half)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    same = np.allclose(divisors, 1 / (kept + (1 - kept) / factor), rtol=1e-4)
    return RopeScaling("llama3", factor, original, low, high) if same else None


def _match(path: Path, pieces: Plan, tensors: Mapping[str, GGUFTensor], used: set[str]) -> None:
    """Raises `SdslError` if a tensor is missing, has another shape, or is left over: in no piece
    and not in `used`.
    """
    for piece in (piece for parts in pieces.values() for piece in parts):
        require(
            piece.tensor in tensors and tensors[piece.tensor].shape == piece.shape,
            f"the tensor {piece.tensor} of {path} "
            + (
                f"has the shape {list(tensors[piece.tensor].shape)}"
                if piece.tensor in tensors
                else "is missing"
            )
            + f"; the file's own settings imply {list(piece.shape)}.",
        )
        used.add(piece.tensor)
    rest = sorted(
        name
        for name in tensors
        if name not in used and not name.removesuffix(".weight").endswith(_UNUSED)
    )
    if rest:
        raise SdslError(
            f"the tensor {rest[0]} of {path} has no place in the model that the file's settings describe"
            + (
                "; it scales rotary frequencies in another way than Llama 3 does"
                if rest[:1] == [_FREQUENCIES]
                else ""
            )
            + (
                "; it belongs to a mixture of experts"
                if any("_exp" in name or "gate_inp" in name for name in rest)
                else ""
            )
            + ": use the folder of the original weights."
        )


def _fields(file: Fields, tensors: Mapping[str, GGUFTensor]) -> Fields:
    """The settings of the file as those of a Llama config.json."""
    values = file.values
    settings = {ours: values[theirs] for ours, theirs in _NAMES.items() if theirs in values}
    if values.get("llama.vocab_size") is None:
        tokens = values.get("tokenizer.ggml.tokens")
        settings["vocab_size"] = len(tokens) if isinstance(tokens, list) else 0
    fields = Fields(
        file.path, settings | {"tie_word_embeddings": "output.weight" not in tensors}, names=_NAMES
    )
    for name in _REQUIRED:
        if name not in settings:
            fields.fail(name, "given")
    fields.whole(_LENGTH)
    scaling = {ours: values[theirs] for ours, theirs in _ROPE_NAMES.items() if theirs in values}
    old = values.get(_OLD_FACTOR)
    names = _ROPE_NAMES
    if "factor" not in scaling and old is not None:
        scaling["factor"], names = old, _ROPE_NAMES | {"factor": _OLD_FACTOR}
    elif old is not None:
        file.only(
            _OLD_FACTOR,
            (scaling["factor"],),
            f"{_ROPE_NAMES['factor']} beside it is {shown(scaling['factor'])}",
        )
    # As in llama.cpp, a factor without a kind means linear scaling, and no factor or 0 means 1.
    if scaling.get("factor") in (None, 0):
        scaling["factor"] = 1.0
    table = Fields(file.path, scaling, names=names)
    kind = table.choice("rope_type", {kind: kind for kind in ("none", "linear", "yarn")}, "linear")
    if kind == "none":
        table.only("factor", (1,), "but the file also says that nothing is scaled")
        return fields
    used: dict[str, Any] = {"rope_type": kind, "factor": table.number("factor")}
    if kind == "yarn":
        used["original_max_position_embeddings"] = table.whole(
            "original_max_position_embeddings", settings[_LENGTH]
        )
        used |= {
            name: table.number(name, default)
            for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
        }
    if kind == "yarn" or used["factor"] != 1:
        fields.values["rope_scaling"] = used
    return fields


def _plan(config: ModelConfig) -> Plan:
    """The plan of a model, with the rows of queries and keys in our order. In the file, two entries that rotate
    together are neighbours.
    """

    size = config.head_dim

    def order(heads: int) -> np.ndarray:
        return np.arange(heads * size).reshape(heads, 2, size // 2).transpose(0, 2, 1).ravel()

    queries, keys = order(config.heads), config.heads * size + order(config.kv_heads)
    pieces = plan(config, _GGUF)
    for path, parts in pieces.items():
        if path.endswith(("attention.qkv", "attention.qkv_bias")):
            query, key, value = parts
            pieces[path] = (query._replace(order=queries), key._replace(order=keys), value)
    return pieces


def rounded(params: Params, kind: str) -> Params:
    """Rounds weights to what a GGUF quantisation keeps of them, in their own type: the loss of the
    quantisation without its saving of memory.

    Vectors stay as they are, and so do matrices whose inputs the quantisation's blocks do not
    divide.

    Args:
      params: Weights of a model.
      kind: Quantisation that gguf can write, such as Q4_0 or Q8_0.

    Raises:
      SdslError: gguf is not installed, or does not know or cannot write the quantisation.
    """
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize
    except ImportError:
        raise SdslError(
            "gguf is not installed; rounding weights needs it: pip install 'sdsl_jax[gguf]'."
        ) from None
    names = {t.name for t in GGMLQuantizationType}
    require(
        kind in names,
        f"the quantisation is {kind!r}; it must be one of those of GGUF, such as Q4_0 or Q8_0.",
    )
    quantisation = GGMLQuantizationType[kind]
    block = GGML_QUANT_SIZES[quantisation][0]

    def one(path: Any, leaf: Any) -> Any:
        rows_are_inputs = array_name(path) not in ("embedding", "positions")
        matrix = np.asarray(leaf, np.float32)
        if leaf.ndim != 2 or matrix.shape[0 if rows_are_inputs else 1] % block:
            return leaf
        published = np.ascontiguousarray(matrix.T if rows_are_inputs else matrix)
        try:
            kept = dequantize(quantize(published, quantisation), quantisation)
        except NotImplementedError:
            raise SdslError(
                f"gguf cannot write the quantisation {kind}; Q4_0 and Q8_0 are two that it can."
            ) from None
        return jnp.asarray(kept.T if rows_are_inputs else kept, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, params)
