"""Windows of tokens and batches of them. A batch is a pure function of (seed, step)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from sdsl_jax.config import DataConfig
from sdsl_jax.data.corpus import sources
from sdsl_jax.data.shards import TokenArray, check_shard
from sdsl_jax.data.study_tokenizer import open_tokenizer
from sdsl_jax.data.tokenised import TOKENIZER, prepare, read_manifest, shards_of
from sdsl_jax.data.tokenizer import Tokenizer, fingerprint
from sdsl_jax.errors import require

# To read and digest so many bytes takes less than half a second.
_ALWAYS_CHECKED_BYTES = 1 << 28
_COUNTED_AT_ONCE = 1 << 24


def spread(available: int, count: int) -> Int[np.ndarray, " count"]:
    """Different numbers spread evenly over 0..available−1; all of them if there are fewer than `count`."""
    return np.unique(np.linspace(0, available - 1, min(count, available)).round().astype(int))


@dataclass(frozen=True)
class Text:
    """Tokens of one kind of text.

    Attributes:
      ids: Ids of the whole text.
      bytes_per_token: Mean UTF-8 bytes of a token. Nats per token over it and ln 2 gives bits per
        byte.
      sequence_length: Tokens that a model sees, T.
    """

    ids: TokenArray | Int[np.ndarray, " tokens"]
    bytes_per_token: float
    sequence_length: int

    @property
    def window_count(self) -> int:
        """Number of windows of T + 1 tokens. Neighbours share the token on their border."""
        return (len(self.ids) - 1) // self.sequence_length

    def windows(self, count: int) -> Int[np.ndarray, "count T+1"]:
        """Windows spread evenly over the text, always the same ones; all of them if there are fewer
        than `count`.
        """
        starts = spread(self.window_count, count) * self.sequence_length
        return self.ids[starts[:, None] + np.arange(self.sequence_length + 1)]


@dataclass(frozen=True)
class Dataset:
    """A tokenised corpus.

    Attributes:
      splits: Ids of "train", "validation" and "test", read as int32 from shards on disk.
      bytes_per_token: Mean UTF-8 bytes of a token in each split. Nats per token over it and ln 2
        gives bits per byte.
      tokenizer: Its tokenizer.
      sequence_length: Tokens that a model sees, T.
      digest: SHA-256 over the ids of every split. The same ids cut into other splits have another
        digest.
    """

    splits: dict[str, TokenArray]
    bytes_per_token: dict[str, float]
    tokenizer: Tokenizer
    sequence_length: int
    digest: str

    def text(self, split: str) -> Text:
        """One split."""
        return Text(self.splits[split], self.bytes_per_token[split], self.sequence_length)

    @cached_property
    def train_windows(self) -> WindowSource:
        """The windows of the training split by their numbers."""
        return WindowSource(self.text("train"))

    @cached_property
    def _by_frequency(self) -> Int[np.ndarray, " V"]:
        """All ids: those that end a document, then the others by their number in the training split,
        the most frequent first; of equals the smaller."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        train = self.splits["train"]
        for start in range(0, len(train), _COUNTED_AT_ONCE):
            part = train[start : start + _COUNTED_AT_ONCE]
            counts += np.bincount(part, minlength=len(counts))
        counts[[*self.tokenizer.end_ids]] = len(train) + 1
        return np.argsort(-counts, kind="stable")

    def frequent_ids(self, count: int) -> tuple[int, ...]:
        """The most frequent ids of the training split, ascending; those that end a document are
        always among them.

        Args:
          count: How many ids.

        Raises:
          SdslError: The vocabulary has no more ids than that.
        """
        size = self.tokenizer.vocab_size
        require(
            len(self.tokenizer.end_ids) < count < size,
            f"{count} ids are asked for as a readout, and the vocabulary has {size}; it must be more than the "
            f"{len(self.tokenizer.end_ids)} that end a document and fewer than all, which 0 stands for.",
        )
        return tuple(sorted(self._by_frequency[:count].tolist()))

    def batches(self, seed: int, batch_size: int, source: Any = None) -> grain.MapDataset:
        """Training batches, int32 [batch_size, T + 1]. `batches(seed, n)[step]` depends only on its
        arguments.

        Every window of the training split is seen once an epoch, in a new order each epoch.

        Args:
          seed: Seed of the order.
          batch_size: Windows in a batch.
          source: What stands for each window of the training split, by its number, if not its
            tokens. Batches then hold it, stacked.
        """
        source = self.train_windows if source is None else source
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)

    def seen_windows(self, seed: int, batch_size: int, steps: int) -> Int[np.ndarray, " windows"]:
        """Numbers of the training windows in the first batches of a seed, in order, each once."""
        order = self.batches(seed, batch_size, range(len(self.train_windows)))
        # From the first epoch on every window has been seen.
        steps = min(steps, -(-len(self.train_windows) // batch_size))
        return np.unique([order[step] for step in range(steps)])


class WindowSource:
    """Random access to the windows of a text, in the form that Grain reads."""

    def __init__(self, text: Text):
        self._text = text

    def __len__(self) -> int:
        return self._text.window_count

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self._text.sequence_length
        return self._text.ids[start : start + self._text.sequence_length + 1]


def load_dataset(config: DataConfig, *, note: Callable[[str], None] | None = None) -> Dataset:
    """Opens the tokenised corpus. Reads, splits and tokenises the text first unless an earlier
    start did.

    The digest of a shard is checked if the shard has changed since it was written, and always for a
    corpus of up to 256 MiB.

    Args:
      config: The corpus, its splits, its tokenizer and the length of its sequences.
      note: Receives a sentence when the corpus is tokenised, which may take long, and at every
        start one on each thing that may not be intended, such as files of a folder that are left
        out. Without it, the latter are Python warnings.

    Raises:
      SdslError: The corpus cannot be read, a shard is damaged, or a split is shorter than one
        sequence.
    """
    unheard: list[str] = []
    sources(config, note or unheard.append)
    folder = prepare(config, note=note or (lambda text: None))
    manifest = read_manifest(folder)
    for text in manifest["notes"]:
        (note or unheard.append)(text)
    for text in unheard:
        warnings.warn(text, stacklevel=2)
    tokenizer = open_tokenizer(config, folder / TOKENIZER)
    require(
        fingerprint(tokenizer) == manifest["tokenizer"]["fingerprint"],
        f"the tokenizer {folder / TOKENIZER} is damaged: it is not the one of the manifest beside it; delete the folder and the "
        "corpus is tokenised again.",
    )
    splits, ratios, dtype = {}, {}, np.dtype(manifest["dtype"])
    thorough = (
        dtype.itemsize * sum(split["tokens"] for split in manifest["splits"].values())
        <= _ALWAYS_CHECKED_BYTES
    )
    for name, split in manifest["splits"].items():
        require(
            split["tokens"] > config.sequence_length,
            f"the {name} split of the corpus holds {split['tokens']} tokens; it must hold more than data.sequence_length "
            f"({config.sequence_length}).",
        )
        shards = shards_of(split)
        for shard in shards:
            check_shard(folder / shard.file, shard, dtype, thorough)
        splits[name] = TokenArray(
            [folder / shard.file for shard in shards], [s.tokens for s in shards], dtype
        )
        ratios[name] = split["text_bytes"] / split["tokens"]
    return Dataset(splits, ratios, tokenizer, config.sequence_length, manifest["digest"])
