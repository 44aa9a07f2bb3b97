"""A trained model as a self-contained folder: weights, architecture, tokenizer, record.

    model-<step>/
      params/          the weights (Orbax)
      tokenizer.json   of a BPE or a published model; bytes need none
      model.json       the architecture, the tokenizer, and the text the model was trained on
      record.json      the model's row of `models.csv`; written last, so a folder that has it is complete

Every file appears under its name only when it is whole.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.checkpoints import storage
from sdsl_jax.config import DataConfig, from_dict, to_dict
from sdsl_jax.counts import short_count
from sdsl_jax.data.study_tokenizer import AdoptedTokenizer
from sdsl_jax.data.tokenizer import (
    PUBLISHED,
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    fingerprint,
)
from sdsl_jax.decoding import Head, Model
from sdsl_jax.errors import SdslError, require
from sdsl_jax.models import ModelConfig, Params, abstract_params, count
from sdsl_jax.models.feature_head import HeadConfig, abstract_head, head_counts
from sdsl_jax.models.weights import store
from sdsl_jax.notebook import table_of
from sdsl_jax.processes import is_primary
from sdsl_jax.records import ModelRecord, read_json, write_json, write_text
from sdsl_jax.records.documents import from_json
from sdsl_jax.user_files import reading

# Version 1 has float32 weights. Version 2 has matrices in bfloat16. Versions 3 and 4 are the same
# for heads on hidden states, and 5 and 6 for those on their target's tables, which are not in the
# folder: the record's `teacher_digest` says which target that is.
FORMAT = "sdsl_jax model"
_VERSIONS = {n: "bfloat16" if n % 2 == 0 else "float32" for n in range(1, 7)}
_FIRST_OF_HEADS, _FIRST_ON_TABLES = 3, 5
PARAMS, RECORD, MODEL, TOKENIZER = "params", "record.json", "model.json", "tokenizer.json"
_MODELS = "model-*"


class LoadedModel(NamedTuple):
    """A model with everything needed to use it.

    Attributes:
      config: Architecture; of a head on hidden states, that of its body.
      params: Weights. Those of our own models are float32, also where the folder holds bfloat16.
      tokenizer: Tokenizer of the text the model was trained on.
      record: How the model was made: sizes, training tokens, losses.
      data: Training text and sequence length; None if unknown.
      folder: Folder or file the model was read from.
      warnings: What a reader should know about how the model was read, one sentence each.
      unknown_settings: Settings of a published checkpoint that this package does not know.
      ignored_settings: Settings of a published checkpoint that were ignored at the user's request.
      head: What of the architecture belongs to a head on its target's hidden states; None for a
        model that stands by itself.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    record: ModelRecord
    data: DataConfig | None
    folder: Path
    warnings: tuple[str, ...] = ()
    unknown_settings: tuple[str, ...] = ()
    ignored_settings: tuple[str, ...] = ()
    head: HeadConfig | None = None

    @property
    def longest(self) -> int:
        """Longest sequence the model was made for, in tokens; 0 if unknown."""
        return self.config.max_positions if self.data is None else self.data.sequence_length

    @property
    def model(self) -> Model:
        """The configuration and parameters, as the decoder takes them.

        Raises:
          SdslError: It is a head, which can do nothing without its target.
        """
        require(
            self.head is None,
            f"{self.record.model_id} is a head on the hidden states of its target; by itself it is no model.",
        )
        return Model(self.config, self.params)

    @property
    def draft(self) -> Model | Head:
        """What `speculate` takes as a draft: a model, or a head."""
        return self.model if self.head is None else Head(self.head, self.params)

    def _facts(self) -> dict[str, str]:
        config, record = self.config, self.record
        tokens = f"{short_count(record.train_tokens)} tokens" if record.train_tokens else "unknown"
        return {
            "parameters": f"{short_count(record.params_total)} "
            f"({short_count(record.params_nonembedding)} without embeddings)",
            "layers × width": f"{config.layers} × {config.width}",
            "vocabulary": f"{config.vocab_size:,}",
            "longest sequence": f"{self.longest:,}" if self.longest else "unknown",
            "trained on": tokens,
            "folder": str(self.folder),
        }

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}: {value}" for name, value in self._facts().items())
        return f"LoadedModel({self.record.model_id!r}, {facts})"

    def _repr_html_(self) -> str:
        return table_of(self.record.model_id, self._facts())


def write_model_folder(
    folder: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    record: ModelRecord,
    data: DataConfig,
    head: HeadConfig | None = None,
) -> None:
    """Writes a model to `folder`. The folder counts as complete once everything is in it.

    All processes of a distributed program must call it.

    Args:
      folder: Folder to write; created if missing. Parts of another model in it are replaced.
      config: Architecture.
      params: Weights, float32, or with their matrices in bfloat16.
      tokenizer: Tokenizer.
      record: The model's record, with the digest of the weights.
      data: Training text and sequence length.
      head: The head that the model is the body of, if it is one.

    Raises:
      SdslError: The folder cannot be written.
    """
    storage.save(folder / PARAMS, params, {"model_id": record.model_id})
    if is_primary():
        matrices = {x.dtype.name for x in jax.tree.leaves(params) if x.ndim == 2}
        first = 1
        if head is not None:
            first = _FIRST_ON_TABLES if head.on_tables else _FIRST_OF_HEADS
        version = first + ("bfloat16" in matrices)
        _describe(folder, config, tokenizer, data, version, head)
        write_json(folder / RECORD, dataclasses.asdict(record))


def _describe(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    data: DataConfig,
    version: int,
    head: HeadConfig | None,
) -> None:
    """Writes the files that make a folder of weights self-describing: the tokenizer, then
    model.json.

    Raises:
      SdslError: The folder cannot be written.
    """
    text = tokenizer.text()
    if text is not None:
        write_text(folder / TOKENIZER, text)
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": version,
        "architecture": config.description(),
        "tokenizer": {
            "kind": tokenizer.kind,
            "file": None if text is None else TOKENIZER,
            "fingerprint": fingerprint(tokenizer),
        },
        # Where the corpus is kept differs between machines.
        "data": to_dict(dataclasses.replace(data, shards="")),
    }
    if tokenizer.kind == PUBLISHED:
        description["tokenizer"]["end_id"] = tokenizer.end_ids[0]
    if head is not None:
        description["head"] = {k: v for k, v in head.description().items() if k != "body"}
    write_json(folder / MODEL, description)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a finished model with a readable record."""
    if not (folder / PARAMS).is_dir() or not (folder / MODEL).exists():
        return False
    try:
        read_record(folder / RECORD)
    except SdslError:
        return False
    return True


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a finished model whose weights are as they were written."""
    return is_complete(folder) and storage.damage(folder / PARAMS) is None


def read_record(path: Path) -> ModelRecord:
    """The record in a model's folder.

    Raises:
      SdslError: The file is missing, or is not the record of a model.
    """
    return from_json(ModelRecord, read_json(path), f"the record file {path}")


def find_model_folder(path: Path) -> Path:
    """The model folder that a path means: the folder itself, the `params` in it, or a rung's folder
    with a single model.

    Raises:
      SdslError: The path does not exist, holds no model, or holds several.
    """
    require(path.exists(), f"the model folder {path} does not exist.")
    require(
        path.is_dir(),
        f"{path} is a file; give the folder of a model, checkpoints/<rung>/model-<step>.",
    )
    if path.name == PARAMS and not (path / PARAMS).exists():
        path = path.parent
    if any((path / name).exists() for name in (PARAMS, RECORD, MODEL)):
        return path
    within = sorted(
        (p for p in path.glob(_MODELS) if p.is_dir()), key=lambda p: (len(p.name), p.name)
    )
    require(
        len(within) <= 1,
        f"the folder {path} holds {len(within)} models; name one of them: {', '.join(p.name for p in within)}.",
    )
    require(
        within,
        f"the folder {path} holds no model; give a folder that a study made, <study>/checkpoints/<rung>/model-<step>, or a "
        "published one with config.json.",
    )
    return within[0]


def load_model_folder(path: Path) -> LoadedModel:
    """Loads a trained model and everything needed to use it. Checks the weights against their
    recorded digest.

    Args:
      path: The model's folder, the `params` in it, or a rung's folder with a single model.

    Raises:
      SdslError: The path does not mean a single model, or a part of it is missing, damaged or of a
        later version.
    """
    opened = open_model_folder(path)
    config, head = opened.config, opened.head
    like = abstract_head(head) if head else abstract_params(config)
    if stored_weights(opened.folder) == "bfloat16":
        like = jax.eval_shape(lambda params: store(params, "bfloat16"), like)
    params = storage.restore_params(opened.folder / PARAMS, like, opened.record.params_digest)
    return opened._replace(params=jax.tree.map(lambda x: x.astype(np.float32), params))


def open_model_folder(path: Path) -> LoadedModel:
    """A trained model without its weights: its `params` are None.

    Args:
      path: As of `load_model_folder`.

    Raises:
      SdslError: As `load_model_folder`, but for damaged weights.
    """
    folder = find_model_folder(Path(path))
    missing = [name for name in (RECORD, PARAMS, MODEL) if not (folder / name).exists()]
    require(
        not missing, f"the model folder {folder} is incomplete: it lacks {' and '.join(missing)}."
    )
    values = _read_description(folder)
    with reading(folder, "model folder"):
        config = _part(ModelConfig, values["architecture"], folder, "architecture")
        data = _part(DataConfig, values["data"], folder, "data")
        tokenizer = _load_tokenizer(folder, values["tokenizer"])
        head = _head(values, config, folder)
        counts = count(config, 0)
        total = (head_counts(head, counts) if head else counts).total
    # The table of a published target may have more rows than its tokenizer has ids.
    more = head is not None and head.on_tables
    require(
        tokenizer.vocab_size == config.vocab_size
        or (more and tokenizer.vocab_size < config.vocab_size),
        f"the model folder {folder} is damaged: its tokenizer has {tokenizer.vocab_size} entries, its model "
        f"{config.vocab_size}.",
    )
    record = read_record(folder / RECORD)
    # Orbax would say so too, but at length.
    require(
        record.params_total == total,
        f"the model folder {folder} is damaged: {MODEL} describes {total} parameters, and {RECORD} {record.params_total}.",
    )
    return LoadedModel(config, None, tokenizer, record, data, folder, head=head)


def stored_weights(path: Path) -> str:
    """Type that the matrices of a trained model are stored in: "float32" or "bfloat16".

    Raises:
      SdslError: The path does not mean a single model, or its description is missing or damaged.
    """
    return _VERSIONS[_read_description(find_model_folder(path))["version"]]


def _head(values: dict[str, Any], config: ModelConfig, folder: Path) -> HeadConfig | None:
    """The head that a folder describes, if it does."""
    if values["version"] < _FIRST_OF_HEADS:
        return None
    part = values.get("head")
    try:
        assert isinstance(part, dict)
        taps, parallel = tuple(map(int, part["taps"])), int(part.get("parallel", 0))
        on_tables = bool(part.get("on_tables", False))
        return HeadConfig(config, int(part["target_width"]), taps, parallel, on_tables)
    except (AssertionError, KeyError, TypeError, ValueError, SdslError):
        raise SdslError(f"the file {folder / MODEL} is damaged: its head is {part!r}.") from None


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / MODEL
    values = read_json(path, keys=("format", "version", "architecture", "tokenizer", "data"))
    require(
        values["format"] == FORMAT,
        f"the file {path} has the format {values['format']!r}; it must be {FORMAT!r}.",
    )
    require(
        values["version"] in _VERSIONS,
        f"the file {path} has the format version {values['version']!r}; this version of sdsl_jax reads 1 to 6.",
    )
    return values


def _part(cls: type, values: Any, folder: Path, name: str) -> Any:
    try:
        return from_dict(cls, values, name)
    except SdslError as error:
        raise SdslError(f"the file {folder / MODEL} is damaged: {error}") from None


def _load_tokenizer(folder: Path, values: Any) -> Tokenizer:
    path, kind = folder / MODEL, values.get("kind") if isinstance(values, dict) else values
    require(
        kind in ("bytes", "bpe", PUBLISHED),
        f"the file {path} is damaged: its tokenizer is of the kind {kind!r}, which must be 'bytes', 'bpe' or {PUBLISHED!r}.",
    )
    if kind == "bytes":
        return ByteTokenizer()
    require(
        (folder / TOKENIZER).exists(),
        f"the model folder {folder} is incomplete: it lacks {TOKENIZER}, its vocabulary.",
    )
    tokenizer: Tokenizer
    if kind == PUBLISHED:
        end_id = values.get("end_id")
        require(
            isinstance(end_id, int) and end_id >= 0,
            f"the file {path} is damaged: its tokenizer has the end_id {end_id!r}.",
        )
        tokenizer = AdoptedTokenizer.load(folder / TOKENIZER, end_id)
    else:
        tokenizer = BPETokenizer.load(folder / TOKENIZER)
    require(
        fingerprint(tokenizer) == values.get("fingerprint"),
        f"the tokenizer {folder / TOKENIZER} is not the one that {path} was written with; it was changed or damaged.",
    )
    return tokenizer
