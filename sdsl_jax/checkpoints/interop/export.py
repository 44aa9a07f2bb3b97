"""Writes a model as a Hugging Face folder, in the layout of Llama, of Qwen2 if queries, keys and
values have biases, or of Qwen3 if queries and keys are normalised. A folder that is read and
written again is the same, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdsl_jax.checkpoints.identity import array_name
from sdsl_jax.checkpoints.interop.checkpoint import OWN, Piece, Plan, plan
from sdsl_jax.checkpoints.interop.families import FAMILIES
from sdsl_jax.checkpoints.interop.settings import CONFIG, Fields
from sdsl_jax.checkpoints.interop.shards import INDEX, WEIGHTS
from sdsl_jax.decoding import Model
from sdsl_jax.digests import file_sha256, json_sha256
from sdsl_jax.errors import SdslError, require
from sdsl_jax.models.config import ModelConfig

GENERATION, TOKENIZER, TOKENIZER_CONFIG = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_WRITTEN = {CONFIG, WEIGHTS, INDEX, GENERATION, TOKENIZER, TOKENIZER_CONFIG}


def export_llama(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    end_token: str | None = None,
    end_ids: tuple[int, ...] = (),
    chat_template: str | None = None,
    max_positions: int = 32_768,
    shard_bytes: int = 5_000_000_000,
) -> Path:
    """Writes a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads and that gives
    the same logits.

    Our own models multiply the embedding by √width on its way in and, if it is tied, use it
    unmultiplied as the head. The layout has no such factor, so the exported folder is untied:
    `embed_tokens` holds the multiplied embedding and `lm_head` the head. A tied model therefore
    grows by one vocabulary × width table in the folder, and shrinks back when `open_checkpoint`
    reads it. Weights keep their type. The generation settings sample from the model's own
    distribution, without the top-k of 50 that `generate` would apply otherwise.

    The folder appears only once it is complete. A folder that an earlier export wrote is replaced.

    Args:
      model: Configuration and parameters.
      folder: Where to write; a new or empty folder, or an earlier export.
      tokenizer: Content of a tokenizer.json; without it the folder has none.
      end_token: Token of `tokenizer` that ends a text.
      end_ids: Ids that end a text; `generate` of transformers stops at them.
      chat_template: Chat template of the tokenizer.
      max_positions: Longest sequence that the configuration announces, unless the model has a
        length of its own. Rotary positions set no limit, and the model does not know the length it
        was trained at.
      shard_bytes: Largest size of a file of weights, unless a single tensor is larger.

    Returns:
      The folder.

    Raises:
      SdslError: safetensors is not installed, the folder holds something else or cannot be written,
        the layouts cannot express the model, or `max_positions` or `shard_bytes` is below 1.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise SdslError(
            "safetensors is not installed; writing a Hugging Face folder needs it: pip install 'sdsl_jax[interop]'."
        ) from None
    require(max_positions >= 1, f"max_positions is {max_positions}; it must be at least 1.")
    require(shard_bytes >= 1, f"shard_bytes is {shard_bytes}; it must be at least 1.")
    c = model.config
    kind = _kind(c)
    folder = Path(folder)
    _require_replaceable(folder)
    partial = _beside(folder, "partial")
    arrays = {
        array_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    }
    dtype = str(next(iter(arrays.values())).dtype)
    pieces = _published_plan(c, kind)
    shards = _shards(pieces, np.dtype(next(iter(arrays.values())).dtype).itemsize, shard_bytes)
    try:
        partial.mkdir(parents=True)
        for name, paths in shards.items():
            tensors = {n: t for path in paths for n, t in _tensors(c, path, arrays, pieces[path])}
            # The metadata names the layout; transformers refuses files without it.
            save_file(tensors, partial / name, metadata={"format": "pt"})
            (partial / name).chmod(0o644)  # the library leaves it to its owner alone
        if len(shards) > 1:
            where = {
                piece.tensor: name
                for name, paths in shards.items()
                for path in paths
                for piece in pieces[path]
            }
            total = sum(leaf.nbytes for leaf in arrays.values())
            _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
        ends = (
            {"eos_token_id": list(end_ids) if len(end_ids) > 1 else end_ids[0]} if end_ids else {}
        )
        plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        _write_json(partial / GENERATION, plain | ends)
        if tokenizer is not None:
            (partial / TOKENIZER).write_text(tokenizer, encoding="utf-8")
            settings: dict[str, Any] = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
            }
            settings |= {"chat_template": chat_template} if chat_template else {}
            _write_json(
                partial / TOKENIZER_CONFIG,
                settings | ({"eos_token": end_token} if end_token else {}),
            )
        config = _config(c, kind, dtype, max_positions) | ends
        # By these a later export knows whether the folder is still as this one left it.
        config[OWN] |= {"files": _digests(partial), "config": _config_digest(config)}
        _write_json(partial / CONFIG, config)
        _swap(partial, folder)
    except OSError as error:
        raise SdslError(f"cannot write the folder {folder} ({error.strerror or error}).") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _kind(c: ModelConfig) -> str:
    """The family whose layout expresses a model.

    Raises:
      SdslError: No family's layout does.
    """
    llama = dict(
        norm="rms",
        norm_position="pre",
        final_norm=True,
        residual="sequential",
        gated=True,
        activation="silu",
    )
    llama |= dict(positions="rotary", rotary_dim=0, embedding_width=0, early_exit=False)
    require(
        not c.readout_ids,
        f"the model computes logits of {len(c.readout_ids)} of its {c.vocab_size} ids; a Llama folder can only hold all of them.",
    )
    for name, value in llama.items():
        require(
            getattr(c, name) == value,
            f"the model's {name} is {getattr(c, name)!r}; a Llama folder can only hold {value!r}.",
        )
    # Llama has biases everywhere in attention or nowhere; Qwen2 of queries, keys and values; Qwen3
    # is like Llama; Seed-OSS sets them one by one.
    qwen2 = c.qkv_bias and not c.mlp_bias and c.width == c.heads * c.head_dim
    kind = (
        "qwen3"
        if c.qk_norm
        else "llama"
        if c.qkv_bias == c.out_bias
        else "qwen2"
        if qwen2
        else "seed_oss"
    )
    fits = {"qwen3": c.qkv_bias == c.out_bias and not c.mlp_bias}
    require(
        fits.get(kind, True),
        f"the model has biases of queries, keys and values: {c.qkv_bias}, of attention's output: {c.out_bias}, of its MLP: "
        f"{c.mlp_bias}, normalised queries: {c.qk_norm}, and heads of {c.head_dim} at width {c.width}; neither Llama, Qwen2, "
        "Qwen3 nor Seed-OSS has that.",
    )
    require(
        kind != "llama" or c.width % c.heads == 0,
        f"the model's width is {c.width}; without qk-norm it must be a multiple of its {c.heads} heads to be a Llama folder.",
    )
    return kind


def _published_plan(c: ModelConfig, kind: str) -> Plan:
    """The plan of the folder, with a separate head if the embedding has a factor."""
    layout = FAMILIES[kind].layout
    pieces = plan(c, layout)
    if c.scale_embedding and c.tie_embeddings:
        pieces["head"] = (Piece(f"{layout.head}.weight", (c.vocab_size, c.width)),)
    return pieces


def _tensors(
    c: ModelConfig, path: str, arrays: dict[str, Any], pieces: tuple[Piece, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """The published tensors of one array, contiguous."""
    array = np.asarray(arrays["embedding" if path == "head" and c.tie_embeddings else path])
    if path == "embedding" and c.scale_embedding:
        # In the type and order of the model's own product, which thus rounds alike.
        array = array * array.dtype.type(c.width**0.5)
    begin = 0
    for piece in pieces:
        end = begin + piece.shape[0]
        yield (
            piece.tensor,
            np.ascontiguousarray(array[:, begin:end].T if piece.transposed else array[begin:end]),
        )
        begin = end


def _shards(pieces: Plan, itemsize: int, limit: int) -> dict[str, list[str]]:
    """The arrays of each file, in order."""
    groups: list[list[str]] = [[]]
    filled = 0
    for path, parts in pieces.items():
        size = itemsize * sum(math.prod(piece.shape) for piece in parts)
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(path)
        filled += size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {
        f"model-{i:05d}-of-{len(groups):05d}.safetensors": group
        for i, group in enumerate(groups, 1)
    }


def _config(c: ModelConfig, kind: str, dtype: str, max_positions: int) -> dict[str, Any]:
    rope = _rope(c)
    return {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_positions or max_positions,
        "rms_norm_eps": c.norm_epsilon,
        # transformers 4 reads the first two, 5 the third.
        "rope_theta": c.rope_theta,
        "rope_scaling": None if c.rope_scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": c.rope_theta},
        "attention_bias": c.qkv_bias and (c.out_bias or kind == "seed_oss"),
        "attention_out_bias": c.out_bias,
        "mlp_bias": c.mlp_bias,
        "tie_word_embeddings": c.tie_embeddings and not c.scale_embedding,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": dtype,
        "torch_dtype": dtype,
        OWN: {"tied": c.tie_embeddings and c.scale_embedding},
    }


def _rope(c: ModelConfig) -> dict[str, Any]:
    """What a configuration says about rotary positions, except their base."""
    scaling = c.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return rope
    rope["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
        return rope | {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    corners = {"beta_slow": scaling.low, "beta_fast": scaling.high}
    return rope | corners | {"attention_factor": scaling.attention_factor}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _beside(folder: Path, purpose: str) -> Path:
    """A hidden name in the same folder, so that a rename never crosses file systems."""
    return folder.with_name(f".{folder.name}.{purpose}-{os.getpid()}")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the configuration, by name."""
    return {
        path.name: file_sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != CONFIG
    }


def _config_digest(config: dict[str, Any]) -> str:
    """SHA-256 of what a configuration says about the model, whatever the order of its keys."""
    return json_sha256({key: value for key, value in config.items() if key != OWN})


def _require_replaceable(folder: Path) -> None:
    """Refuses to overwrite anything but an empty folder or exactly the files of an export."""
    require(
        not folder.exists() or folder.is_dir(), f"{folder} is a file; the export needs a folder."
    )
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name not in _WRITTEN and not _is_shard(name)]
    config = Fields.read(folder / CONFIG).values if CONFIG in names and not others else {}
    if names and not others and OWN not in config:
        others = names  # somebody else's checkpoint has files of the same names
    if others:
        raise SdslError(
            f"the folder {folder} holds {others[0]}, which no export wrote; "
            "the folder must be new, empty or an earlier export."
        )
    changed = _changed(folder, config) if names else None
    require(
        changed is None,
        f"the folder {folder} is an export whose {changed} was changed since, by further training perhaps; name another folder, "
        "or delete this one.",
    )


def _changed(folder: Path, config: dict[str, Any]) -> str | None:
    """The first file that differs from what the export wrote; None if none does."""
    own = config[OWN]
    if not isinstance(own, dict) or not isinstance(own.get("files"), dict):
        # Exports of earlier versions know no digests; who trains one further with Transformers
        # leaves that library's version.
        return CONFIG if "transformers_version" in config else None
    if _config_digest(config) != own.get("config"):
        return CONFIG
    there, left = _digests(folder), own["files"]
    return next(
        (name for name in sorted(there.keys() | left) if there.get(name) != left.get(name)), None
    )


def _is_shard(name: str) -> bool:
    return name.startswith("model-") and name.endswith(".safetensors")


def _swap(partial: Path, folder: Path) -> None:
    """Puts the finished folder in place. The old one moves away first, since a folder with files
    cannot be renamed over.
    """
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
