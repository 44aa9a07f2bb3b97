"""`sdsl export`: a model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from sdsl_jax.cli.terminal import say, standard_console
from sdsl_jax.errors import require


def export(
    model: Annotated[Path, Positional, arg(metavar="DIR|FILE.gguf")],
    out: Annotated[Path, arg(metavar="DIR")],
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], arg(metavar="TYPE")] = "float32",
    round_to: Annotated[str, arg(metavar="KIND")] = "",
    shard_gigabytes: Annotated[float, arg(metavar="GB")] = 5.0,
    ignore_key: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME")] = (),
) -> None:
    """Write a model as a Hugging Face folder with its tokenizer, in the layout of Llama, Qwen2 or
    Qwen3.

    It exports models of a study, published checkpoints of those layouts, and GGUF files of the
    llama architecture. Transformers and vLLM load the folder. Reading it again gives the same
    model, bit for bit.

    Args:
        model: Model to write.
        out: Folder to write; new, empty, or an earlier export.
        dtype: Type of a published checkpoint's weights; those of a study are float32.
        round_to: Round matrices to what a GGUF quantisation keeps of them, such as Q4_0, to measure
            what that does to acceptance.
        shard_gigabytes: Largest size of a file of weights.
        ignore_key: Setting of a published checkpoint to ignore; may be given several times.
    """
    require(shard_gigabytes > 0, f"--shard-gigabytes is {shard_gigabytes:g}; it must be positive.")
    from sdsl_jax.checkpoints.interop import export_llama, rounded
    from sdsl_jax.checkpoints.loading import LoadOptions, load_model, require_ignored
    from sdsl_jax.data.tokenizer import hugging_face_json

    loaded = load_model(model, LoadOptions(dtype=dtype, ignore_keys=ignore_key))
    require_ignored(ignore_key, loaded)
    name = loaded.record.model_id
    require(
        loaded.head is None,
        f"{name} is a head on its target's hidden states, which no published layout holds: EAGLE-like heads have one block that "
        "reads embedding and features through one matrix, where this one adds features to the embeddings of a whole small model.",
    )
    require(
        not loaded.config.early_exit,
        f"{name} is an early exit, whose affine map before the last norm no published layout holds.",
    )
    params = rounded(loaded.params, round_to) if round_to else loaded.params
    content, end = hugging_face_json(loaded.tokenizer)
    folder = export_llama(
        loaded.model._replace(params=params),
        out,
        tokenizer=content,
        end_token=end,
        end_ids=loaded.tokenizer.end_ids,
        chat_template=getattr(loaded.tokenizer, "own_template", None),
        max_positions=loaded.longest or 32_768,
        shard_bytes=max(1, int(shard_gigabytes * 1e9)),
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    console = standard_console()
    for warning in loaded.warnings:
        say(console, f"warning: {warning}")
    say(
        console,
        f"{loaded.record.model_id}: {loaded.record.params_total:,} parameters, {size / 1e6:.1f} MB, written to {folder}",
    )
