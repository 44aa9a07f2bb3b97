"""A published checkpoint as a model that can be measured: weights, tokenizer, and what its folder says about it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import jax

from sdsl_jax.checkpoints.identity import identity_of
from sdsl_jax.checkpoints.interop import (
    GGUF,
    is_gguf,
    is_published,
    open_checkpoint,
    open_gguf,
    require_model_path,
)
from sdsl_jax.checkpoints.interop.gguf import SUFFIX
from sdsl_jax.checkpoints.layout import make_layout
from sdsl_jax.checkpoints.model_folder import LoadedModel, load_model_folder
from sdsl_jax.config import ParallelConfig
from sdsl_jax.data.published import NO_TEMPLATE, PublishedTokenizer, chosen_template
from sdsl_jax.errors import require
from sdsl_jax.models import abstract_params, count
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import ModelRecord


class LoadOptions(NamedTuple):
    """How published checkpoints are read.

    Attributes:
      dtype: of the weights.
      devices: that the weights are split over.
      special_tokens: whether texts get what the tokenizer adds around them.
      chat_template: "none", "own" or a file; see `PublishedTokenizer.load`.
      ignore_keys: settings that are read as if a checkpoint's file did not have them.
    """

    dtype: str = "float32"
    devices: int = 1
    special_tokens: bool = True
    chat_template: str = NO_TEMPLATE
    ignore_keys: tuple[str, ...] = ()


# float32 on one device, with special tokens and without a template.
DEFAULT_OPTIONS = LoadOptions()


def load_model(
    path: str | Path, options: LoadOptions = DEFAULT_OPTIONS, progress: Progress | None = None
) -> LoadedModel:
    """Reads a trained model of ours, a Hugging Face folder or a GGUF file.

    Args:
      path: Path to the model's folder or GGUF file. A model's name on a hub is refused with the
        command that downloads it.
      options: How to read a published checkpoint. Our own models keep the type they were saved in
        and load onto one device.
      progress: Reports progress after every array of a published checkpoint.

    Raises:
      SdslError: The path holds no model, or the model is damaged.
    """
    path = Path(path)
    require_model_path(path)
    if is_published(path):
        return load_published(path, options, progress)
    return load_model_folder(path)


def require_ignored(keys: tuple[str, ...], *models: LoadedModel) -> None:
    """Raises `SdslError` if a setting that a user vouches for stands in no file of these models: its name is misspelt."""
    ignored = {name for model in models for name in model.ignored_settings}
    strays = [key for key in keys if key not in ignored]
    require(
        not strays, f"--ignore-key names {', '.join(strays)}, which no file of these models holds."
    )


def load_published(
    path: Path, options: LoadOptions = DEFAULT_OPTIONS, progress: Progress | None = None
) -> LoadedModel:
    """Reads a published checkpoint.

    Its record has the folder's name and the sizes; what a folder does not say, training tokens and
    losses, is 0 and not a number. Its `params_digest` is the identity of the whole model, see
    `identity`.

    Args:
      path: a folder, or a .gguf file.
      options: how.
      progress: told after every array.

    Raises:
      SdslError: the checkpoint is incomplete or damaged, its tokenizer has ids that its model
        lacks, or there are fewer devices.
    """
    progress = progress or Silent()
    if is_gguf(path):
        opened = open_gguf(path, options.ignore_keys)
        checkpoint, tokenizer = opened.checkpoint, gguf_tokenizer(opened, options)
    else:
        tokenizer = PublishedTokenizer.load(
            path, special_tokens=options.special_tokens, chat_template=options.chat_template
        )
        checkpoint = open_checkpoint(path, options.ignore_keys)
    config = checkpoint.config
    require(
        tokenizer.vocab_size <= config.vocab_size,
        f"the tokenizer of {path} has ids up to {tokenizer.vocab_size - 1}; the model has only {config.vocab_size} rows.",
    )
    shardings = None
    if options.devices > 1:
        there = len(jax.devices())
        require(
            options.devices <= there,
            f"the weights are to be split over {options.devices} devices; there {'is' if there == 1 else 'are'} {there}.",
        )
        layout = make_layout(ParallelConfig(fsdp=options.devices), jax.devices())
        shardings = layout.state_shardings(abstract_params(config))
    progress.start(f"load {path.name}", 1)
    digests: dict[str, bytes] = {}
    params = checkpoint.load(options.dtype, shardings, progress.advance, digests)
    progress.finish()
    counts = count(config, config.max_positions / 2)
    record = ModelRecord(
        model_id=_name(path),
        role="",
        params_nonembedding=counts.nonembedding,
        params_total=counts.total,
        train_tokens=0,
        seed=0,
        loss_nats=math.nan,
        perplexity=math.nan,
        params_digest=identity_of(config, digests, tokenizer),
        layers=config.layers,
        width=config.width,
        flops_per_token=counts.flops_per_token,
        weight_bytes=counts.weight_bytes,
    )
    return LoadedModel(
        config,
        params,
        tokenizer,
        record,
        None,
        path,
        warnings=(*checkpoint.warnings, *tokenizer.warnings),
        unknown_settings=checkpoint.unknown_settings,
        ignored_settings=checkpoint.ignored_settings,
    )


def _name(path: Path) -> str:
    """The folder's name; in the cache of a hub, where folders are called by their revision, that of the repository."""
    path = path.resolve()
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rsplit("--", 1)[-1]
    return path.name.removesuffix(SUFFIX)


def gguf_tokenizer(opened: GGUF, options: LoadOptions) -> PublishedTokenizer:
    """The tokenizer of a GGUF file; it has no file of settings beside it, so a template of its own comes from within."""
    return PublishedTokenizer(
        opened.tokenizer,
        special_tokens=options.special_tokens,
        end_ids=opened.end_ids,
        template=chosen_template(
            options.chat_template, opened.chat_template, opened.checkpoint.folder
        ),
        own_template=opened.chat_template,
    )
