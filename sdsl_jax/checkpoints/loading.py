"""Loads any model: one of ours, a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sdsl_jax.checkpoints.identity import identity_of
from sdsl_jax.checkpoints.interop import open_checkpoint, open_gguf
from sdsl_jax.checkpoints.interop.settings import CONFIG
from sdsl_jax.checkpoints.model_folder import (
    MODEL,
    PARAMS,
    RECORD,
    LoadedModel,
    load_model_folder,
    open_model_folder,
)
from sdsl_jax.checkpoints.split import repeat_over, split_shardings
from sdsl_jax.checkpoints.storage import digest
from sdsl_jax.data import Dataset
from sdsl_jax.data.published import NO_TEMPLATE, PublishedTokenizer, chosen_template
from sdsl_jax.data.tokenizer import fingerprint
from sdsl_jax.errors import SdslError, require
from sdsl_jax.gguf_header import SUFFIX, is_gguf
from sdsl_jax.models import ModelConfig, Params, count
from sdsl_jax.models.weights import WeightStorage, store
from sdsl_jax.package_files import user_path
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import ModelRecord, read_table
from sdsl_jax.user_files import read_json_object, reading

_ADAPTER, _SNAPSHOTS = "adapter_config.json", "snapshots"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", SUFFIX)


class LoadOptions(NamedTuple):
    """How to read a published checkpoint.

    Attributes:
      dtype: Type of the weights.
      devices: Devices that share the weights (tensor parallelism).
      special_tokens: Whether texts get the special tokens that the tokenizer adds around them.
      chat_template: "none", "own" or a file; see `PublishedTokenizer.load`.
      ignore_keys: Settings to read as if the checkpoint's file did not have them.
      weights: How to store the matrices while decoding; see `models.weights`. Applies to our own
        models as well.
      repeated: Whether each of the devices holds all weights, as of a small draft whose target is
        split.
    """

    dtype: str = "float32"
    devices: int = 1
    special_tokens: bool = True
    chat_template: str = NO_TEMPLATE
    ignore_keys: tuple[str, ...] = ()
    weights: WeightStorage = "as-loaded"
    repeated: bool = False


# float32 on one device, with special tokens and without a template.
DEFAULT_OPTIONS = LoadOptions()


def load_model(
    path: str | Path, options: LoadOptions = DEFAULT_OPTIONS, progress: Progress | None = None
) -> LoadedModel:
    """Reads a trained model of ours, a Hugging Face folder or a GGUF file.

    Args:
      path: Path to the model's folder or GGUF file, also as "package:NAME/PATH". A model's name on a hub is refused with the
        command that downloads it.
      options: How to read a published checkpoint. Our own models are float32, and whole on each
        device; of the other options only `weights` applies to them.
      progress: Reports progress after every array of a published checkpoint.

    Raises:
      SdslError: The path holds no model, or the model is damaged.
    """
    path = _model_path(path)
    if is_published(path):
        return load_published(path, options, progress)
    own = with_weights(load_model_folder(path), options.weights)
    if options.devices > 1:
        own = own._replace(params=repeat_over(own.params, options.devices))
    return own


def architecture(path: str | Path, ignore_keys: tuple[str, ...] = ()) -> ModelConfig:
    """A model's architecture; nothing is read of its weights.

    Args:
      path: As of `load_model`.
      ignore_keys: As of `LoadOptions`.

    Raises:
      SdslError: The path holds no model, or its settings are not understood.
    """
    path = _model_path(path)
    if not is_published(path):
        return open_model_folder(path).config
    if is_gguf(path):
        return open_gguf(path, ignore_keys).checkpoint.config
    return open_checkpoint(path, ignore_keys).config


def open_model(path: str | Path) -> LoadedModel:
    """Any model without its weights: its `params` are None.

    The weights of a published model are read nevertheless, because its digest is that of what they
    are: once a process, unless its files change.

    Args:
      path: As of `load_model`.

    Raises:
      SdslError: The path holds no model, or the model is damaged.
    """
    path = _model_path(path)
    if is_published(path):
        return _opened(path, tuple(files_stamp(path)))
    return open_model_folder(path)


def _model_path(path: str | Path) -> Path:
    """Where a model is that a setting or an argument names."""
    path = user_path(path)
    require_model_path(path)
    return path


@functools.lru_cache(maxsize=8)
def _opened(path: Path, stamp: tuple[Any, ...]) -> LoadedModel:
    return load_published(path)._replace(params=None)


def files_stamp(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a published model, which change with it."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def with_weights(model: LoadedModel, storage: WeightStorage) -> LoadedModel:
    """A model of ours with its matrices stored in another type.

    It is another model, so its record has another name (`…@int8`) and digest, and no losses.
    """
    if storage == "as-loaded":
        return model
    params = store(model.params, storage)
    record = dataclasses.replace(
        _rounded_record(model.record, params, storage), params_digest=digest(params)
    )
    return model._replace(params=params, record=record)


def _rounded_record(record: ModelRecord, params: Params, storage: WeightStorage) -> ModelRecord:
    """The record of a model whose weights are rounded: its losses are not known."""
    names = [f.name for f in dataclasses.fields(record) if "loss_nats" in f.name]
    names += ["perplexity", "bits_per_byte", "validation_bits_per_byte"]
    unknown: dict[str, Any] = dict.fromkeys(names, math.nan)
    return dataclasses.replace(
        record,
        model_id=f"{record.model_id}@{storage}",
        weight_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        **unknown,
    )


def require_ignored(keys: tuple[str, ...], *models: LoadedModel) -> None:
    """Checks that every setting to ignore is in the file of one of these models.

    Raises:
      SdslError: A setting is in none of them; its name is probably misspelt.
    """
    ignored = {name for model in models for name in model.ignored_settings}
    strays = [key for key in keys if key not in ignored]
    require(
        not strays, f"--ignore-key names {', '.join(strays)}, which no file of these models holds."
    )


def load_published(
    path: Path, options: LoadOptions = DEFAULT_OPTIONS, progress: Progress | None = None
) -> LoadedModel:
    """Reads a published checkpoint.

    Its record holds the folder's name and the sizes. A folder does not say how the model was
    trained, so training tokens are 0 and losses NaN. `params_digest` is the identity of the whole
    model, see `identity`.

    Args:
      path: A Hugging Face folder or a .gguf file.
      options: How to read it.
      progress: Reports progress after every array.

    Raises:
      SdslError: The checkpoint is incomplete or damaged, its tokenizer has ids that its model
        lacks, or there are too few devices.
    """
    progress = progress or Silent()
    if is_gguf(path):
        opened = open_gguf(path, options.ignore_keys)
        checkpoint = opened.checkpoint
        # The file has no folder of settings beside it, so its own template comes from within.
        tokenizer = PublishedTokenizer(
            opened.tokenizer,
            special_tokens=options.special_tokens,
            end_ids=opened.end_ids,
            template=chosen_template(options.chat_template, opened.chat_template, path),
            own_template=opened.chat_template,
        )
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
        shardings = split_shardings(config, options.devices, options.repeated)
    progress.start(f"load {path.name}", 1)
    digests: dict[str, bytes] = {}
    params = checkpoint.load(options.dtype, shardings, progress.advance, digests, options.weights)
    if options.weights != "as-loaded":
        digests["weights"] = options.weights.encode()
    progress.finish()
    counts = count(config, config.max_positions / 2)
    record = ModelRecord(
        model_id=_model_name(path),
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
    if options.weights != "as-loaded":
        record = _rounded_record(record, params, options.weights)
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


def _model_name(path: Path) -> str:
    """The name of the folder or file; in a hub's cache, where folders are named by revision, that of
    the repository."""
    path = path.resolve()
    if path.parent.name == _SNAPSHOTS:
        return path.parent.parent.name.rsplit("--", 1)[-1]
    return path.name.removesuffix(SUFFIX)


def is_published(path: Path) -> bool:
    """Whether a path is a published checkpoint, rather than a model of ours."""
    return is_gguf(path) or (path / CONFIG).exists()


def require_model_path(path: Path) -> None:
    """Refuses paths that users often give in place of a model.

    Raises:
      SdslError: The path is a name on a hub, a hub's cache, a LoRA adapter, a file of weights
        outside its folder, or a folder of weights without config.json.
    """
    with reading(path, "path"):
        if not path.exists():
            require(
                not _HUB_ID.fullmatch(str(path)) or path.parent.exists(),
                f"{path} does not exist here; if it is a model's name on a hub, download it first (hf download {path} "
                "--local-dir DIR) and give the folder.",
            )
            return
        if path.is_file():
            require(
                is_gguf(path) or path.suffix not in (*_WEIGHTS, ".json"),
                f"{path} is one file of a model; give the folder that holds it and {CONFIG}.",
            )
            return
        if not path.is_dir():
            return
        _require_no_cache(path)
        if (path / _ADAPTER).exists():
            base = read_json_object(path / _ADAPTER).get("base_model_name_or_path")
            raise SdslError(
                f"the folder {path} holds an adapter ({_ADAPTER}) of {base or 'another model'}, which is not read; merge it into "
                "that model first (merge_and_unload of peft) and give the merged folder."
            )
        if any((path / name).exists() for name in (CONFIG, MODEL, PARAMS, RECORD)):
            return
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _WEIGHTS)
        if files:
            raise SdslError(
                f"the folder {path} holds {files[0]} but no {CONFIG}"
                + (
                    "; give the file itself."
                    if files and files[0].lower().endswith(SUFFIX)
                    else ", which says what model it is."
                )
            )


def _require_no_cache(path: Path) -> None:
    """Refuses a hub's cache, or a repository's folder in it."""
    if (path / _SNAPSHOTS).is_dir() and not (path / CONFIG).exists():
        within = sorted(p for p in (path / _SNAPSHOTS).iterdir() if p.is_dir())
        which = f": {', '.join(map(str, within[:4]))}" if within else ", of which it holds none"
        raise SdslError(
            f"{path} is a repository in the cache of a hub; give the folder of one revision in it{which}."
        )
    models = sorted(path.glob(f"models--*/{_SNAPSHOTS}/*"))
    if models:
        raise SdslError(
            f"{path} is the cache of a hub; give the folder of one model in it, such as {models[0]}."
        )


def load_recorded(record: ModelRecord, folder: Path) -> LoadedModel:
    """Loads the model that a row of a study's `models.csv` describes.

    Args:
      record: The row.
      folder: The study's folder, which `record.checkpoint` is relative to.

    Raises:
      SdslError: The row names no checkpoint, or the model is missing, damaged or another one.
    """
    require(
        record.checkpoint,
        f"the records in {folder} name no checkpoint of {record.model_id}; its weights are not known.",
    )
    loaded = load_model(folder / record.checkpoint)
    require(
        loaded.record.params_digest == record.params_digest,
        f"the model in {loaded.folder} is not the {record.model_id} of the records in {folder}: its digest differs.",
    )
    return loaded


def require_same_text(model: LoadedModel, dataset: Dataset, called: str) -> None:
    """Checks that a model reads the windows of a corpus.

    Args:
      model: The model.
      dataset: The corpus of a study.
      called: What messages call the model.

    Raises:
      SdslError: It has another tokenizer, or was trained on shorter sequences.
    """
    require(
        fingerprint(model.tokenizer) == fingerprint(dataset.tokenizer),
        f"{called} has another tokenizer ({model.tokenizer.kind}, {model.tokenizer.vocab_size} entries) than the study "
        f"({dataset.tokenizer.kind}, {dataset.tokenizer.vocab_size} entries); they must share one.",
    )
    require(
        model.longest >= dataset.sequence_length,
        f"{called} was trained on sequences of {model.longest} tokens; it must be at least data.sequence_length "
        f"({dataset.sequence_length}).",
    )


def load_other_models(
    folder: Path,
    setting: str,
    prefix: str,
    dataset: Dataset,
    study: Path,
    wanted: Callable[[ModelRecord], bool] = lambda record: True,
) -> tuple[list[ModelRecord], dict[str, Any]]:
    """Loads the models of another study's ladder, to measure them beside the study's own.

    Args:
      folder: Folder of the other study.
      setting: Setting that names it, for messages.
      prefix: Put before the models' names, to tell them from the study's own.
      dataset: The study's corpus, whose tokenizer the models must share.
      study: The study's folder, from which the records name the checkpoints.
      wanted: Which of the records to load; all by default.

    Returns:
      The models' records, and the models by name; heads among them as heads.

    Raises:
      SdslError: A model is missing or damaged, or has another tokenizer or a shorter context.
    """
    records: list[ModelRecord] = []
    models: dict[str, Any] = {}
    for record in read_table(folder / "records", "models"):
        if not wanted(record):
            continue
        loaded = load_recorded(record, folder)
        called = f"the {record.role} {record.model_id} of {setting} ({folder})"
        require_same_text(loaded, dataset, called)
        checkpoint = os.path.relpath(folder / record.checkpoint, study)
        records.append(
            dataclasses.replace(record, model_id=prefix + record.model_id, checkpoint=checkpoint)
        )
        models[prefix + record.model_id] = loaded.draft
    return records, models
