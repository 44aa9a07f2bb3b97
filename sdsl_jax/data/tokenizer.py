"""Text to ids and back: bytes, or a byte-level BPE trained on the training split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from sdsl_jax.config import DataConfig
from sdsl_jax.data.corpus import SEPARATOR
from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import read_text

END_OF_DOCUMENT = "<|endoftext|>"
# Ends a document in every one of our tokenizers: NUL among the bytes, the special token of a BPE.
END_ID = 0
# More than any vocabulary has.
_MOST_IDS = 1 << 24


class EncodedPrompt(NamedTuple):
    """A prompt in tokens.

    Attributes:
      ids: Ids of special tokens and text.
      lead: Number of ids before the text.
      cut: Whether the text was too long and lost its beginning.
    """

    ids: np.ndarray
    lead: int
    cut: bool


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer. In all of ours, id 0 (`END_ID`) ends a
    document.

    Attributes:
      kind: "bytes" or "bpe", as in `data.tokenizer`, or "published".
      vocab_size: Ids run from 0 to one less.
      end_ids: Ids that end a document.
    """

    kind: str
    vocab_size: int
    end_ids: tuple[int, ...]

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]; NUL becomes the end-of-document id."""
        ...

    def encode_prompt(self, text: str, longest: int) -> EncodedPrompt:
        """Ids of a prompt of at most `longest` tokens. A longer text keeps its last ids, after
        those that every prompt begins with.
        """
        ...

    def decode(self, ids: np.ndarray) -> str:
        """The text of some ids; bytes that form no character are replaced."""
        ...

    def tokens(self) -> dict[int, str]:
        """The token of each id, with bytes in the alphabet of byte-level BPE."""
        ...

    def special_ids(self) -> set[int]:
        """Ids that stand for no text."""
        ...

    def save(self, path: Path) -> None:
        """Writes the tokenizer to a file, if it needs one."""
        ...

    def text(self) -> str | None:
        """Content of the tokenizer's file; None if it needs none."""
        ...


def same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether ids mean the same to both tokenizers, which a draft needs to be of use. One may have
    more tokens than the other.

    Published models of one family often differ in special tokens, which were added or renamed
    later, and in how far their tables are padded. Special tokens of either are therefore ignored;
    their names do not affect losslessness.
    """
    special = a.special_ids() | b.special_ids()
    smaller, larger = sorted((a.tokens(), b.tokens()), key=len)
    shared = [number for number in smaller if number not in special]
    return bool(shared) and all(larger.get(number) == smaller[number] for number in shared)


def fingerprint(tokenizer: Tokenizer) -> str:
    """The kind of one of our tokenizers and the SHA-256 of its vocabulary and merges. Equal
    fingerprints map texts to the same ids.

    The file itself is not digested, because its form changes between versions of the library that
    writes it.
    """
    text = tokenizer.text()
    if text is None:
        return tokenizer.kind
    model = json.loads(text)["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    content = json.dumps([sorted(model["vocab"].items(), key=lambda item: item[1]), merges])
    return f"{tokenizer.kind}:{hashlib.sha256(content.encode()).hexdigest()}"


class ByteTokenizer:
    """One id per byte of UTF-8."""

    kind = "bytes"
    vocab_size = 256
    end_ids: tuple[int, ...] = (END_ID,)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [bytes]."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_prompt(self, text: str, longest: int) -> EncodedPrompt:
        """The last bytes of a text."""
        return _last(self.encode(text), longest)

    def decode(self, ids: np.ndarray) -> str:
        """The text of some ids."""
        return np.asarray(ids, np.uint8).tobytes().decode(errors="replace")

    def tokens(self) -> dict[int, str]:
        """The characters that byte-level BPE writes for bytes."""
        return _byte_alphabet()

    def special_ids(self) -> set[int]:
        """None: NUL is a byte."""
        return set()

    def save(self, path: Path) -> None:
        """Bytes need no file."""

    def text(self) -> None:
        """Bytes need no file."""


def _last(ids: np.ndarray, longest: int) -> EncodedPrompt:
    return EncodedPrompt(ids[-longest:], 0, len(ids) > longest)


def _byte_alphabet() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte: itself if it is visible in Latin-1,
    else the next one from 256 on.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in visible else next(others)) for byte in range(256)}


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library; what ours and published ones share."""

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        self._tokenizer = tokenizer

    def tokens(self) -> dict[int, str]:
        """The token of each id."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return {number: token for token, number in vocabulary.items()}

    def save(self, path: Path) -> None:
        """Writes the tokenizer's JSON."""
        self._tokenizer.save(str(path))

    def text(self) -> str:
        """The tokenizer's JSON."""
        return self._tokenizer.to_str(pretty=True)


class BPETokenizer(LibraryTokenizer):
    """Byte-level BPE of the `tokenizers` library."""

    kind = "bpe"
    end_ids: tuple[int, ...] = (END_ID,)

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        super().__init__(tokenizer)
        # NUL alone ends a document: a text about tokenizers may spell the symbol.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learns merges from one text or several, each of one or more documents joined by NUL.
        Deterministic.

        Only a count of each different word is kept, so the texts may be larger than memory.

        Raises:
          SdslError: The texts have too few different pairs for `vocab_size` entries.
        """
        tokenizer = HuggingFaceTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_DOCUMENT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        texts = [texts] if isinstance(texts, str) else texts
        tokenizer.train_from_iterator(
            (part for text in texts for part in text.split(SEPARATOR)), trainer
        )
        size = tokenizer.get_vocab_size()
        if size != vocab_size:
            raise SdslError(
                f"data.vocab_size is {vocab_size}; the training text yields a BPE of only {size} entries."
            )
        return cls(tokenizer)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]. NUL becomes the end-of-document id; the symbol spelled out
        stays text.
        """
        pieces = self._tokenizer.encode_batch(text.split(SEPARATOR))
        return np.concatenate(
            [x for p in pieces for x in (np.asarray(p.ids, np.int32), np.zeros(1, np.int32))][:-1]
        )

    def encode_prompt(self, text: str, longest: int) -> EncodedPrompt:
        """The last ids of a text."""
        return _last(self.encode(text), longest)

    def decode(self, ids: np.ndarray) -> str:
        """The text of some ids, with NUL where a document ends, so that `encode` gives the ids of a
        text again.
        """
        ids = np.asarray(ids, np.int64)
        parts = np.split(ids, np.flatnonzero(ids == END_ID))
        texts = [part[part != END_ID].tolist() for part in parts]
        return SEPARATOR.join(self._tokenizer.decode_batch(texts, skip_special_tokens=False))

    def special_ids(self) -> set[int]:
        """The end of a document."""
        return {END_ID}

    @classmethod
    def load(cls, path: Path) -> BPETokenizer:
        """Reads a file that `save` wrote.

        Raises:
          SdslError: The file is missing, or is not the JSON of such a tokenizer.
        """
        tokenizer = read_tokenizer(path)
        require(
            isinstance(tokenizer.model, models.BPE)
            and tokenizer.id_to_token(END_ID) == END_OF_DOCUMENT,
            f"the tokenizer {path} is damaged: it is not a BPE whose first token is {END_OF_DOCUMENT}.",
        )
        return cls(tokenizer)


def read_tokenizer(path: Path) -> HuggingFaceTokenizer:
    """Reads a tokenizer.json.

    Raises:
      SdslError: The file is missing, or is not the JSON of a tokenizer.
    """
    text = read_text(path, "tokenizer", newlines=False)
    try:
        tokenizer = HuggingFaceTokenizer.from_str(text)
        largest = max(tokenizer.get_vocab().values(), default=0)
    except BaseException as error:
        # The library raises bare exceptions for whatever is wrong with the JSON, and panics, which
        # are not even exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise SdslError(
            f"the tokenizer {path} is damaged: it is not the JSON of a tokenizer."
        ) from None
    # The library makes room for every id up to the largest, and ends the process where there is
    # none.
    require(largest < _MOST_IDS, f"the tokenizer {path} is damaged: it has the id {largest:,}.")
    return tokenizer


def hugging_face_json(tokenizer: Tokenizer) -> tuple[str, str | None]:
    """A tokenizer as the content of a tokenizer.json with the same ids, and the token in it that
    ends a document, if there is one.

    Bytes become a byte-level BPE without merges, whose tokens are the 256 bytes.
    """
    content = tokenizer.text()
    if content is not None:
        return content, tokenizer.tokens()[tokenizer.end_ids[0]] if tokenizer.end_ids else None
    converted = HuggingFaceTokenizer(
        models.BPE(vocab={token: byte for byte, token in tokenizer.tokens().items()}, merges=[])
    )
    converted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    converted.decoder = decoders.ByteLevel()
    return converted.to_str(pretty=True), tokenizer.tokens()[END_ID]


def make_tokenizer(config: DataConfig, train_texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that the settings ask for. A BPE is trained on the training split alone."""
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    return BPETokenizer.train(train_texts, config.vocab_size)
