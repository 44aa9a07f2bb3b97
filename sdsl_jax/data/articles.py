"""Text that is held out by article: which split a document belongs to.

Rows of one article may lie far apart in a file, and several may hold the same text. Cut by position,
such a file holds out text that a model has been trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from sdsl_jax.config import DataConfig

# Characters of a document in which its article is looked for.
_HEAD = 1000


def article_split(config: DataConfig, text: str) -> str:
    """The split of a document: "train", "validation" or "test", by a hash of the name of its article
    and nothing else.

    Args:
      config: The corpus; `data.article` says what names an article.
      text: The document, or its first 1,000 characters.
    """
    name = article_name(config, text)
    # A document without a name is known by how it begins.
    digest = hashlib.sha256((text[:_HEAD] if name is None else name).encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if place < config.test_fraction:
        return "test"
    return "validation" if place < config.test_fraction + config.validation_fraction else "train"


def article_name(config: DataConfig, text: str) -> str | None:
    """The article that a document names; None if it names none.

    A group that holds nothing, or only blanks, names no article: many documents would share it.

    Args:
      config: The corpus; `data.article` says what names an article.
      text: The document, or its first 1,000 characters.
    """
    match = re.search(config.article, text[:_HEAD])
    return next((group for group in match.groups("") if group.strip()), None) if match else None


def beginning(pieces: Iterable[str]) -> tuple[str, Iterator[str]]:
    """The first characters of a text in pieces, and all of its pieces."""
    rest, taken = iter(pieces), list[str]()
    while sum(map(len, taken)) < _HEAD and (piece := next(rest, None)) is not None:
        taken.append(piece)
    return "".join(taken)[:_HEAD], chain(taken, rest)
