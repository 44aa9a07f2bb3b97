"""Texts of other domains to measure on: a split of the study's own corpus, files, or files inside
an installed package.

A domain is read in bounded pieces and tokenised with the study's tokenizer. If it is larger than
`MOST_BYTES`, every k-th piece is taken, spread evenly over it; of a held-out domain, over what is
held out. More text would not improve a measurement on a few hundred windows.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from sdsl_jax.config import DataConfig, DomainConfig
from sdsl_jax.data.corpus import held_out_rows, identity
from sdsl_jax.data.dataset import Dataset, Text, spread
from sdsl_jax.data.documents import READERS, SEPARATOR, TextColumn, documents
from sdsl_jax.data.folders import kind_of, read_folder
from sdsl_jax.errors import SdslError, require
from sdsl_jax.package_files import PACKAGE, PackageMissing, package_files
from sdsl_jax.user_files import LARGEST_TEXT

VALIDATION = "validation"
# Of text that is tokenised: by the sizes of its files, or of what is held out.
MOST_BYTES = 1 << 24
_PIECE_CHARACTERS = 1 << 16
# Files of a package that are read as plain text.
_PLAIN = (".txt", ".py", ".md")
_NO_ARTICLES = DataConfig()


class SourceMissing(SdslError):
    """The file or package of a domain is missing."""


def domain_files(
    domain: DomainConfig, note: Callable[[str], None] = lambda text: None
) -> list[Path]:
    """The files of a domain in their order; none for a split of the study's corpus.

    Args:
      domain: The domain.
      note: Receives a sentence if files of a folder are left out.

    Raises:
      SourceMissing: The file, the folder or the package is missing.
      SdslError: The source has no such form, or there is no readable file.
    """
    if domain.source == VALIDATION:
        return []
    if domain.source.startswith(PACKAGE):
        files, kinds = _package_files(domain), (*_PLAIN, *READERS)
    else:
        path, kinds = Path(domain.source), tuple(READERS)
        if not os.path.exists(path):
            raise SourceMissing(
                f"the domain {domain.name!r} names {domain.source}, which does not exist."
            )
        if path.is_dir():
            folder = read_folder(path, kinds, f"{domain.name!r} domain folder")
            if folder.note:
                note(folder.note)
            return sorted(folder.files)
        files = [path]
    files = [file for file in files if kind_of(file) in kinds and file.is_file()]
    require(
        files,
        f"the domain {domain.name!r} names {domain.source}, which holds no file of the kinds "
        f"{', '.join(dict.fromkeys(kinds))}.",
    )
    return files


def _package_files(domain: DomainConfig) -> list[Path]:
    try:
        return package_files(domain.source)
    except SdslError as error:
        kind = SourceMissing if isinstance(error, PackageMissing) else SdslError
        raise kind(f"the domain {domain.name!r} cannot be read: {error}") from None


def domain_identity(domain: DomainConfig) -> list[list[str | int]]:
    """What tells the text of a domain from another at no cost: name, size and time of change of its
    files; empty if they are missing.
    """
    try:
        return [identity(str(file)) for file in domain_files(domain)]
    except SourceMissing:
        return []


def load_domain(
    domain: DomainConfig,
    dataset: Dataset,
    needed: int,
    note: Callable[[str], None] = lambda text: None,
    data: DataConfig = _NO_ARTICLES,
) -> Text:
    """The text of a domain, in the ids of the study's tokenizer.

    Args:
      domain: The domain.
      dataset: The study's corpus, for its tokenizer, sequence length and validation split.
      needed: Number of windows that the text must hold.
      note: Receives a sentence if files of a folder are left out.
      data: The study's corpus as the settings describe it, which says what of a domain is held out.

    Raises:
      SourceMissing: The file, the folder or the package is missing.
      SdslError: A file cannot be read, or the text is too short.
    """
    if domain.source == VALIDATION:
        text = dataset.text(VALIDATION)
    else:
        files = domain_files(domain, note)
        try:
            content = SEPARATOR.join(_chosen(files, domain, data))
        except SdslError as error:
            raise SdslError(f"the domain {domain.name!r} cannot be read: {error}") from None
        ids = dataset.tokenizer.encode(content)
        text = Text(ids, len(content.encode()) / max(1, len(ids)), dataset.sequence_length)
    require(
        text.window_count >= needed,
        f"the domain {domain.name!r} holds {len(text.ids)} tokens, {max(0, text.window_count)} sequences of "
        f"{text.sequence_length}; it must hold at least {needed}, one for each of measure.prompts.",
    )
    return text


def domain_prompts(
    domain: DomainConfig,
    dataset: Dataset,
    count: int,
    length: int,
    data: DataConfig = _NO_ARTICLES,
) -> Int[np.ndarray, "count length"]:
    """The first tokens of documents of a domain, spread evenly over those that are long enough; of a
    large domain, those of the pieces that `load_domain` takes.

    Args:
      domain: The domain, made of files.
      dataset: The study's corpus, for its tokenizer.
      count: Number of documents.
      length: Tokens of each.
      data: The study's corpus as the settings describe it, which says what of a domain is held out.

    Raises:
      SdslError: As `load_domain`, or too few documents are so long.
    """
    files = domain_files(domain)
    # A token has at most so many characters; the rest of a document need not be encoded.
    texts = (text[: 64 * length] for text in _chosen(files, domain, data))
    encoded = [ids for text in texts if len(ids := dataset.tokenizer.encode(text)) >= length]
    require(
        len(encoded) >= count,
        f"the domain {domain.name!r} holds {len(encoded)} documents of {length} tokens or more; {count} are needed.",
    )
    return np.stack([encoded[i][:length] for i in spread(len(encoded), count)]).astype(np.int32)


def _chosen(files: list[Path], domain: DomainConfig, data: DataConfig) -> Iterator[str]:
    """The documents, or every k-th piece of them: pieces that do not follow each other are documents of their own."""
    texts: Iterable[Iterable[str]]
    if domain.held_out:
        # Read twice rather than held in memory: how much is held out, no size of a file says.
        size = sum(len(text.encode()) for text in held_out_rows(files, data))
        texts = ((text,) for text in held_out_rows(files, data))
    else:
        size = sum(file.stat().st_size for file in files)
        texts = _limited(files, domain.text_column, LARGEST_TEXT * _every(size))
    if _every(size) == 1:
        yield from ("".join(pieces) for pieces in texts)
    else:
        yield from itertools.islice(
            (piece for pieces in texts for piece in _cut(pieces)), 0, None, _every(size)
        )


def _every(size: int) -> int:
    """k, of a text of so many bytes."""
    return max(1, math.ceil(size / MOST_BYTES))


def _limited(files: list[Path], column: TextColumn, most: int) -> Iterator[Iterable[str]]:
    """The documents of files, which together may be far more text than the sizes of the files say."""
    seen = 0

    def limited(pieces: Iterable[str]) -> Iterator[str]:
        nonlocal seen
        for piece in pieces:
            seen += len(piece)
            require(seen <= most, f"it holds more than {most:,} characters.")
            yield piece

    for file in files:
        yield from (limited(pieces) for pieces in _documents(file, column))


def _documents(file: Path, column: TextColumn) -> Iterable[Iterable[str]]:
    return documents(file, column, kind=".txt" if kind_of(file) in _PLAIN else "")


def _cut(pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        for begin in range(0, len(piece), _PIECE_CHARACTERS):
            yield piece[begin : begin + _PIECE_CHARACTERS]
