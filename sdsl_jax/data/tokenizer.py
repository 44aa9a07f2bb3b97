"""Text to ids and back: what a tokenizer is; bytes, and a byte-level BPE trained on the training
split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from sdsl_jax.data.corpus import SEPARATOR
from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import read_text

END_OF_DOCUMENT = "<|endoftext|>"
# Ends a document in the tokenizers that a study makes: NUL among the bytes, the special token of a BPE.
END_ID = 0
# Kind of the tokenizers of published models.
PUBLISHED = "published"
# More than any vocabulary has.
_MOST_IDS = 1 << 24


# Every pre-tokenizer cuts it in its own way, and every normaliser changes it: digits, contractions,
# white space, scripts.
PROBE = (
    "  The year 2024's 1,234,567.89 things: it'll DON'T\t\tstop—naïve Ünïcode \ufb01 ½ \u2163 e\u0301\r\n\n\n"
    "def f(x):\n        return {x_1: [-x**2]}  # != <|endoftext|> </s>\n"
    "北京 こんにちは 안녕 привет مرحبا हिन्दी ไทย \U0001f642\U0001f469\u200d\U0001f4bb   end  "
)


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
    """What the rest of the package needs of a tokenizer.

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
    """The kind of a tokenizer and the SHA-256 of what decides the ids of a text: of a BPE of ours its
    vocabulary and merges; of a published one its tokens, its rules and the ids of probes. Equal
    fingerprints map texts to the same ids.

    The file itself is not digested, because its form changes between versions of the library that
    writes it. Nor are special tokens around texts and chat templates, which are a user's choice.
    """
    text = tokenizer.text()
    if text is None:
        return tokenizer.kind
    if isinstance(tokenizer, LibraryTokenizer) and tokenizer.kind == PUBLISHED:
        tokens = sorted(tokenizer.tokens().items())
        # The probe begins with a space, beside which a prefix of one would go unseen.
        probed = [ids.tolist() for ids in tokenizer.encode_literal([PROBE, "a"])]
        parts = [tokens, rules(tokenizer), probed]
    else:
        model = json.loads(text)["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        parts = [sorted(model["vocab"].items(), key=lambda item: item[1]), merges]
    return f"{tokenizer.kind}:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def rules(tokenizer: Tokenizer) -> list[Any]:
    """How a tokenizer joins characters and which tokens it cuts out first; the same for one
    tokenizer, whichever program wrote its file.
    """
    text = tokenizer.text()
    values = {"model": {}, "added_tokens": []} if text is None else json.loads(text)
    model = values["model"]
    merges = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []
    ]
    scores = model["vocab"] if isinstance(model.get("vocab"), list) else []
    added = [
        [token[name] for name in ("content", "lstrip", "rstrip", "single_word")]
        for token in values["added_tokens"]
    ]
    return [bool(model.get("ignore_merges")), merges, scores, sorted(added)]


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

    @property
    def library(self) -> HuggingFaceTokenizer:
        """The library's own object."""
        return self._tokenizer

    def encode_literal(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [tokens], with nothing around it. Special tokens that a text
        spells, such as <|endoftext|>, stay text.
        """
        before = self._tokenizer.encode_special_tokens
        self._tokenizer.encode_special_tokens = True
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        self._tokenizer.encode_special_tokens = before
        return [np.asarray(each.ids, np.int32) for each in encoded]

    def tokens(self) -> dict[int, str]:
        """The token of each id."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return {number: token for token, number in vocabulary.items()}

    def save(self, path: Path) -> None:
        """Writes the tokenizer's JSON, without the blanks that would double its size."""
        self._tokenizer.save(str(path), pretty=False)

    def text(self) -> str:
        """The tokenizer's JSON."""
        return self._tokenizer.to_str(pretty=True)


class DocumentTokenizer(LibraryTokenizer):
    """A tokenizer of documents joined by NUL, which becomes the id that ends a document.

    NUL alone ends a document: a text about tokenizers may spell the token.

    Args:
      tokenizer: The library's tokenizer.
      end_id: Id that ends a document.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, end_id: int):
        super().__init__(tokenizer)
        self.end_ids: tuple[int, ...] = (end_id,)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]. NUL becomes the end-of-document id; special tokens spelled
        out stay text.
        """
        end = np.asarray(self.end_ids, np.int32)
        pieces = self.encode_literal(text.split(SEPARATOR))
        return np.concatenate([x for piece in pieces for x in (piece, end)][:-1])

    def encode_prompt(self, text: str, longest: int) -> EncodedPrompt:
        """The last ids of a text."""
        return _last(self.encode(text), longest)

    def decode(self, ids: np.ndarray) -> str:
        """The text of some ids, with NUL where a document ends, so that `encode` gives the ids of a
        text again.
        """
        ids, (end,) = np.asarray(ids, np.int64), self.end_ids
        parts = np.split(ids, np.flatnonzero(ids == end))
        texts = [part[part != end].tolist() for part in parts]
        return SEPARATOR.join(self._tokenizer.decode_batch(texts, skip_special_tokens=False))

    def special_ids(self) -> set[int]:
        """The end of a document, and the tokens that the file calls special."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {*self.end_ids, *(number for number, token in added if token.special)}


class BPETokenizer(DocumentTokenizer):
    """Byte-level BPE of the `tokenizers` library."""

    kind = "bpe"

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        super().__init__(tokenizer, END_ID)
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
