"""The tokenizer of a study: bytes, a BPE of its own, or that of a published model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as HuggingFaceTokenizer

from sdsl_jax.config import DataConfig, StudyConfig
from sdsl_jax.data.gguf_tokenizer import read_gguf_tokenizer
from sdsl_jax.data.published import TOKENIZER, PublishedTokenizer
from sdsl_jax.data.tokenizer import (
    PUBLISHED,
    BPETokenizer,
    ByteTokenizer,
    DocumentTokenizer,
    Tokenizer,
    fingerprint,
    read_tokenizer,
)
from sdsl_jax.errors import require
from sdsl_jax.gguf_header import is_gguf, read_header
from sdsl_jax.package_files import user_path


class AdoptedTokenizer(DocumentTokenizer):
    """The tokenizer of a published model as that of a study. Ids mean what they mean to the model.

    Texts get no special tokens around them, and special tokens that a text spells stay text. Only
    NUL ends a document: it becomes the first of the ids that end a text according to the model.

    Attributes:
      kind: "published", as of the model's own.
      vocab_size: One more than its largest id.
      end_ids: The id that ends a document.
    """

    kind = PUBLISHED

    def __init__(self, tokenizer: HuggingFaceTokenizer, end_id: int):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        super().__init__(tokenizer, end_id)
        self.vocab_size = max(self.tokens()) + 1

    @classmethod
    def load(cls, path: Path, end_id: int) -> AdoptedTokenizer:
        """Reads a file that `save` wrote.

        Raises:
          SdslError: The file is missing, or is not the JSON of a tokenizer with the id `end_id`.
        """
        tokenizer = read_tokenizer(path)
        require(
            tokenizer.id_to_token(end_id) is not None,
            f"the tokenizer {path} is damaged: it has no token {end_id}, which ends a document.",
        )
        return cls(tokenizer, end_id)


def adopt(model: str | Path) -> AdoptedTokenizer:
    """The tokenizer of a published model as that of a study. It is read once a process, unless its
    file changes.

    Args:
      model: A Hugging Face folder or a GGUF file, also as "package:NAME/PATH".

    Raises:
      SdslError: The path holds no published model, or its tokenizer cannot be read or names no
        token that ends a text.
    """
    path = user_path(model)
    gguf = path.exists() and is_gguf(path)
    file = path if gguf else path / TOKENIZER
    require(
        file.is_file(),
        f"data.tokenizer is {str(model)!r}; it must be 'bytes', 'bpe', a GGUF file, or the folder of a published model with a "
        f"{TOKENIZER}.",
    )
    status = file.stat()
    return _adopted(path, gguf, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _adopted(path: Path, gguf: bool, size: int, mtime_ns: int) -> AdoptedTokenizer:
    if gguf:
        read = read_gguf_tokenizer(path, read_header(path).settings)
        tokenizer, end_ids = read.tokenizer, read.end_ids
    else:
        published = PublishedTokenizer.load(path, special_tokens=False)
        tokenizer, end_ids = published.library, published.end_ids
    require(
        len(end_ids) > 0,
        f"the tokenizer of {path} names no token that ends a text, which a study needs between its documents.",
    )
    return AdoptedTokenizer(tokenizer, end_ids[0])


def adopted_fingerprint(config: DataConfig) -> list[str | int]:
    """What the ids of a corpus owe to a published tokenizer: its fingerprint, and the id that ends a
    document.

    Raises:
      SdslError: As `adopt`.
    """
    tokenizer = adopt(config.tokenizer)
    return [_fingerprint(tokenizer), *tokenizer.end_ids]


@functools.lru_cache(maxsize=4)
def _fingerprint(tokenizer: AdoptedTokenizer) -> str:
    return fingerprint(tokenizer)


def make_tokenizer(config: DataConfig, train_texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that the settings ask for. A BPE is trained on the training split alone.

    Raises:
      SdslError: The published model cannot be read, or the texts are too short for the BPE.
    """
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer == "bpe":
        return BPETokenizer.train(train_texts, config.vocab_size)
    return adopt(config.tokenizer)


def open_tokenizer(config: DataConfig, file: Path) -> Tokenizer:
    """The tokenizer of a corpus that was tokenised earlier.

    Args:
      config: The corpus.
      file: Where a BPE of its own was saved.

    Raises:
      SdslError: The file or the published model is missing or damaged.
    """
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    return BPETokenizer.load(file) if config.tokenizer == "bpe" else adopt(config.tokenizer)


def with_vocabulary(config: StudyConfig) -> StudyConfig:
    """The study with the `data.vocab_size` of the published tokenizer that it names; any other study
    as it is.

    Raises:
      SdslError: The published model cannot be read, or has a vocabulary of another size than the
        settings say.
    """
    data = config.data
    if not data.adopts_tokenizer:
        return config
    size = adopt(data.tokenizer).vocab_size
    require(
        data.vocab_size in (DataConfig.vocab_size, size),
        f"data.vocab_size is {data.vocab_size}; the tokenizer of {data.tokenizer} has {size} entries: leave it out.",
    )
    return dataclasses.replace(config, data=dataclasses.replace(data, vocab_size=size))
