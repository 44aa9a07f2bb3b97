"""A model as a Hugging Face folder: the Llama layout, or Qwen3's where queries and keys are normalised.

Both name the same architecture as `sdsl_jax.models.transformer`: pre-norm blocks, rotary positions that turn the pair
(i, i + H/2), grouped-query attention, SwiGLU. Qwen3 adds an RMS norm of each head's query and key before the rotation,
with one scale per layer that all heads share. Names, shapes and configuration fields follow `LlamaForCausalLM` and
`Qwen3ForCausalLM` of Hugging Face transformers, where a matrix is [outputs, inputs], the transpose of ours.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flax import nnx

from sdsl_jax.errors import SdslError, require
from sdsl_jax.models.transformer import ModelConfig, Params

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"


class ModelLike(Protocol):
    """A configuration and its parameters, as `sdsl_jax.decoding.Model` holds them."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""

    @property
    def params(self) -> Params:
        """Its arrays."""


def export_llama(model: ModelLike, folder: str | os.PathLike[str], *, max_positions: int = 32_768) -> Path:
    """Writes a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads and that gives the same logits.

    Our embedding is multiplied by √width on its way in and, where it is tied, serves unmultiplied as the head. The layout
    knows no such factor, so the folder is always untied: `embed_tokens` holds the multiplied embedding and `lm_head` the
    head. A tied model thus grows by one vocabulary × width table. Weights are written in float32. The folder holds no
    tokenizer, names no begin- or end-of-sequence token (none unless `generate` is told one), and its generation settings
    sample from the model's own distribution, without the top-k of 50 that `generate` would apply otherwise.

    The folder appears only when it is complete; one that an earlier export wrote is replaced.

    Args:
      model: a configuration and its parameters.
      folder: where to write; new, empty, or an earlier export.
      max_positions: longest sequence that the configuration announces. Rotary positions set no limit of their own, and the
        model does not know the length that it was trained at.

    Returns:
      The folder.

    Raises:
      SdslError: safetensors is not installed; the folder holds something else or cannot be written; the width of a model
        without qk-norm is not a multiple of its heads, which `LlamaConfig` does not allow; `max_positions` is below 1.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise SdslError(
            "safetensors is not installed; writing a Hugging Face folder needs it: pip install 'sdsl_jax[interop]'."
        ) from None
    require(max_positions >= 1, f"max_positions is {max_positions}; it must be at least 1.")
    c = model.config
    require(
        c.qk_norm or c.width % c.heads == 0,
        f"the model's width is {c.width}; without qk-norm it must be a multiple of its {c.heads} heads to be a Llama folder.",
    )
    folder = Path(folder)
    _require_replaceable(folder)
    partial = _beside(folder, "partial")
    try:
        partial.mkdir(parents=True)
        # The metadata names the layout; transformers refuses files without it.
        save_file(_tensors(model), partial / WEIGHTS, metadata={"format": "pt"})
        _write_json(partial / CONFIG, _config(c, max_positions))
        _write_json(partial / GENERATION, {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0})
        _swap(partial, folder)
    except OSError as error:
        raise SdslError(f"cannot write the folder {folder} ({error.strerror or error}).") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _config(c: ModelConfig, max_positions: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM" if c.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if c.qk_norm else "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "rms_norm_eps": c.norm_epsilon,
        # transformers 4 reads the first, 5 the second.
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _tensors(model: ModelLike) -> dict[str, np.ndarray]:
    """Every tensor of the folder by its published name, float32 and contiguous."""
    c, tree = model.config, nnx.to_pure_dict(model.params)

    def array(x: Any) -> np.ndarray:
        return np.asarray(x).astype(np.float32)

    def matrix(x: Any) -> np.ndarray:
        return np.ascontiguousarray(array(x).T)

    embedding = array(tree["embedding"])
    tensors = {
        # In float32, as the model itself multiplies it: the product rounds alike.
        "model.embed_tokens.weight": embedding * np.float32(c.width**0.5),
        "model.norm.weight": array(tree["final_norm"]["scale"]),
        "lm_head.weight": embedding if c.tie_embeddings else matrix(tree["head"]),
    }
    for i in range(c.layers):
        block, name = tree["blocks"][i], f"model.layers.{i}"
        attention, mlp = block["attention"], block["mlp"]
        heads = [c.heads * c.head_dim, (c.heads + c.kv_heads) * c.head_dim]
        query, key, value = np.split(array(attention["qkv"]), heads, axis=1)
        gate, up = np.split(array(mlp["gate_up"]), 2, axis=1)
        tensors |= {
            f"{name}.input_layernorm.weight": array(block["attention_norm"]["scale"]),
            f"{name}.self_attn.q_proj.weight": matrix(query),
            f"{name}.self_attn.k_proj.weight": matrix(key),
            f"{name}.self_attn.v_proj.weight": matrix(value),
            f"{name}.self_attn.o_proj.weight": matrix(attention["out"]),
            f"{name}.post_attention_layernorm.weight": array(block["mlp_norm"]["scale"]),
            f"{name}.mlp.gate_proj.weight": matrix(gate),
            f"{name}.mlp.up_proj.weight": matrix(up),
            f"{name}.mlp.down_proj.weight": matrix(mlp["down"]),
        }
        if c.qk_norm:
            tensors[f"{name}.self_attn.q_norm.weight"] = array(attention["query_norm"]["scale"])
            tensors[f"{name}.self_attn.k_norm.weight"] = array(attention["key_norm"]["scale"])
    return tensors


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _beside(folder: Path, purpose: str) -> Path:
    """A hidden name in the same folder, so that a rename never crosses file systems."""
    return folder.with_name(f".{folder.name}.{purpose}-{os.getpid()}")


def _require_replaceable(folder: Path) -> None:
    """Refuses to overwrite what an export did not write: anything but an empty folder or exactly an export's files."""
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; the export needs a folder.")
    if folder.is_dir():
        others = sorted({entry.name for entry in folder.iterdir()} - {CONFIG, WEIGHTS, GENERATION})
        require(
            not others,
            f"the folder {folder} holds {others[0] if others else ''}, which no export wrote; "
            "the folder must be new, empty or an earlier export.",
        )


def _swap(partial: Path, folder: Path) -> None:
    """Puts the finished folder in its place; a folder that holds files cannot be renamed over, so the old one moves away."""
    if not folder.exists():
        partial.rename(folder)
        return
    doomed = _beside(folder, "old")
    folder.rename(doomed)
    try:
        partial.rename(folder)
    except OSError:
        doomed.rename(folder)
        raise
    shutil.rmtree(doomed, ignore_errors=True)
