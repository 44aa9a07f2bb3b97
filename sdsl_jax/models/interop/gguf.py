"""GGUF files of the llama architecture, quantised ones included: their tensors are read as float32. Needs gguf, an extra.

The file holds the tokenizer as well; it becomes a tokenizer of the `tokenizers` library with the same ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as HuggingFaceTokenizer

from sdsl_jax.errors import SdslError, require
from sdsl_jax.models.interop.checkpoint import Checkpoint, array_name
from sdsl_jax.models.interop.families import FAMILIES
from sdsl_jax.models.interop.fields import Fields
from sdsl_jax.models.interop.layouts import Layout
from sdsl_jax.models.interop.plan import Plan, plan
from sdsl_jax.models.transformer import Params

SUFFIX = ".gguf"

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
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How texts are cut before merges, by the name in the file: a pattern, or whether digits stand alone.
_PRE: dict[str, Any] = {
    "default": False,
    "gpt-2": False,
    "smollm": True,
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}
_CONTROL, _USER_DEFINED = 3, 4


class _Tensor(NamedTuple):
    """A tensor of a GGUF file, with what `checkpoint` asks of one."""

    name: str
    shape: tuple[int, ...]
    file: Path
    data: np.ndarray
    kind: Any

    def read(self, start: int, count: int) -> np.ndarray:
        """Some of its rows, dequantised."""
        from gguf import dequantize

        return dequantize(self.data[start : start + count], self.kind)


class GGUF(NamedTuple):
    """An open file.

    Attributes:
      checkpoint: its model.
      tokenizer: its tokenizer.
      end_ids: ids that end a text.
      chat_template: None if there is none.
    """

    checkpoint: Checkpoint
    tokenizer: HuggingFaceTokenizer
    end_ids: tuple[int, ...]
    chat_template: str | None


def open_gguf(path: Path) -> GGUF:
    """Opens a GGUF file and checks its header.

    Raises:
      SdslError: gguf is not installed; the file is damaged, of another architecture or tokenizer, or contradicts itself.
    """
    try:
        import gguf
    except ImportError:
        raise SdslError("gguf is not installed; reading a .gguf file needs it: pip install 'sdsl_jax[gguf]'.") from None
    require(path.is_file(), f"the file {path} does not exist.")
    try:
        reader = gguf.GGUFReader(path)
        tensors = {
            t.name: _Tensor(t.name, tuple(int(n) for n in reversed(t.shape)), path, t.data, t.tensor_type)
            for t in reader.tensors
        }
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise SdslError(f"the file {path} is truncated or no GGUF file ({error}).") from None
    kind = values.get("general.architecture")
    require(kind == "llama", f"the file {path} is of the architecture {kind!r}; only 'llama' is read.")
    require(
        "rope_freqs.weight" not in tensors,
        f"the file {path} scales its rotary frequencies by a table, which is not read; use the folder of the original weights.",
    )
    fields = _fields(path, values, "output.weight" not in tensors)
    config = FAMILIES["llama"].config(fields)
    pieces = _plan(config.heads, config.kv_heads, config.head_dim, plan(config, _GGUF))
    for piece in (piece for parts in pieces.values() for piece in parts):
        require(
            piece.tensor in tensors and tensors[piece.tensor].shape == piece.shape,
            f"the tensor {piece.tensor} of {path} "
            + (f"has the shape {list(tensors[piece.tensor].shape)}" if piece.tensor in tensors else "is missing")
            + f"; the file's own settings imply {list(piece.shape)}.",
        )
    end = values.get("tokenizer.ggml.eos_token_id")
    return GGUF(
        Checkpoint(path, config, fields, pieces, tensors),  # type: ignore[arg-type]
        _tokenizer(path, values),
        () if end is None else (int(end),),
        values.get("tokenizer.chat_template"),
    )


def _fields(path: Path, values: dict[str, Any], tied: bool) -> Fields:
    """The settings of the file as those of a Llama config.json."""
    names = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
    }
    found = {ours: values[f"llama.{theirs}"] for ours, theirs in names.items() if f"llama.{theirs}" in values}
    require(
        values.get("llama.rope.scaling.type", "none") == "none",
        f"the file {path} scales its rotary frequencies, which is not read from GGUF; use the folder of the original weights.",
    )
    tokens = values.get("tokenizer.ggml.tokens") or []
    found |= {"vocab_size": values.get("llama.vocab_size", len(tokens)), "tie_word_embeddings": tied}
    return Fields(path, found)


def _plan(heads: int, kv_heads: int, head_dim: int, pieces: Plan) -> Plan:
    """The plan with rows of queries and keys in our order: in the file the two that rotate together are neighbours."""

    def order(begin: int, count: int) -> np.ndarray:
        return begin + np.arange(count * head_dim).reshape(count, 2, head_dim // 2).transpose(0, 2, 1).ravel()

    found = dict(pieces)
    for path, parts in pieces.items():
        if path.endswith("attention.qkv"):
            query, key, value = parts
            keys = order(heads * head_dim, kv_heads)
            found[path] = (query._replace(order=order(0, heads)), key._replace(order=keys), value)
    return found


def _tokenizer(path: Path, values: dict[str, Any]) -> HuggingFaceTokenizer:
    kind, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    require(
        kind == "gpt2" and pre in _PRE,
        f"the tokenizer of {path} is of the kind {kind!r} with pre-tokenizer {pre!r}; only 'gpt2' with one of "
        f"{', '.join(_PRE)} is read.",
    )
    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]]
    made = HuggingFaceTokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    rule = _PRE[pre]
    if isinstance(rule, str):
        cut: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated")]
    else:
        cut = [pre_tokenizers.Digits(individual_digits=True)] if rule else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not isinstance(rule, str))
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, byte_level])
    made.decoder = decoders.ByteLevel()
    kinds = values.get("tokenizer.ggml.token_type") or []
    special = [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds) if k == _CONTROL]
    made.add_special_tokens(special)
    made.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds) if k == _USER_DEFINED])
    begin = values.get("tokenizer.ggml.bos_token_id")
    if values.get("tokenizer.ggml.add_bos_token") and begin is not None:
        lead: Any = [("begin", int(begin))]
        made.post_processor = processors.TemplateProcessing(single="begin $A", special_tokens=lead)
    return made


def rounded(params: Params, kind: str) -> Params:
    """Weights as a GGUF quantisation would keep them, in the type that they have: what is lost to it, without its memory.

    Vectors stay as they are, and matrices whose inputs its blocks do not divide.

    Args:
      params: of a model.
      kind: a quantisation that gguf can write, such as Q4_0 or Q8_0.

    Raises:
      SdslError: gguf is not installed, or does not know or cannot write the quantisation.
    """
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize
    except ImportError:
        raise SdslError("gguf is not installed; rounding weights needs it: pip install 'sdsl_jax[gguf]'.") from None
    names = {t.name for t in GGMLQuantizationType}
    require(kind in names, f"the quantisation is {kind!r}; it must be one of those of GGUF, such as Q4_0 or Q8_0.")
    wanted = GGMLQuantizationType[kind]
    block = GGML_QUANT_SIZES[wanted][0]

    def one(path: Any, leaf: Any) -> Any:
        rows_are_inputs = array_name(path) not in ("embedding", "positions")
        matrix = np.asarray(leaf, np.float32)
        if leaf.ndim != 2 or matrix.shape[0 if rows_are_inputs else 1] % block:
            return leaf
        published = np.ascontiguousarray(matrix.T if rows_are_inputs else matrix)
        try:
            kept = dequantize(quantize(published, wanted), wanted)
        except NotImplementedError:
            raise SdslError(f"gguf cannot write the quantisation {kind}; Q4_0 and Q8_0 are two that it can.") from None
        return jnp.asarray(kept.T if rows_are_inputs else kept, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, params)
