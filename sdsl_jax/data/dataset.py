"""Windows of tokens and batches of them; a batch is a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Int

from sdsl_jax.config import DataConfig
from sdsl_jax.data.corpus import Splits, load
from sdsl_jax.data.tokenizer import Tokenizer, make_tokenizer
from sdsl_jax.errors import require


@dataclass(frozen=True)
class Dataset:
    """A tokenised corpus.

    Attributes:
      splits: ids of "train", "validation" and "test", int32.
      bytes_per_token: mean UTF-8 bytes of a token in each split; nats per token over it and ln 2 is bits per byte.
      sequence_length: tokens that a model sees, T.
      digest: SHA-256 over all ids.
    """

    splits: dict[str, np.ndarray]
    bytes_per_token: dict[str, float]
    tokenizer: Tokenizer
    sequence_length: int
    digest: str

    def window_count(self, split: str) -> int:
        """Number of windows of T + 1 tokens in a split; neighbours share the token on their border."""
        return (len(self.splits[split]) - 1) // self.sequence_length

    def windows(self, split: str, count: int) -> Int[np.ndarray, "count T+1"]:
        """Windows spread evenly over a split, always the same ones; all of them if there are fewer than `count`."""
        available = self.window_count(split)
        index = np.unique(np.linspace(0, available - 1, min(count, available)).round().astype(int))
        starts = index * self.sequence_length
        return self.splits[split][starts[:, None] + np.arange(self.sequence_length + 1)]

    def batches(self, seed: int, batch_size: int) -> grain.MapDataset:
        """Training batches, int32 [batch_size, T + 1]: `batches(seed, n)[step]` depends on nothing but its arguments.

        Every window of the training split is seen once an epoch, in a new order each epoch.
        """
        source = _WindowSource(self.splits["train"], self.sequence_length)
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)


class _WindowSource:
    """Random access to the windows of a token array, in the form that Grain reads."""

    def __init__(self, tokens: np.ndarray, length: int):
        self._tokens, self._length = tokens, length

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._length

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self._length
        return self._tokens[start : start + self._length + 1]


def load_dataset(config: DataConfig) -> Dataset:
    """Reads, splits and tokenises the corpus.

    Raises:
      SdslError: the corpus cannot be read, or a split is shorter than one sequence.
    """
    texts: Splits = load(config)
    tokenizer = make_tokenizer(config, texts.train)
    splits, ratios, digest = {}, {}, hashlib.sha256()
    for name, text in texts._asdict().items():
        ids = tokenizer.encode(text) if text else np.zeros(0, np.int32)
        require(
            len(ids) > config.sequence_length,
            f"the {name} split of the corpus holds {len(ids)} tokens; it must hold more than data.sequence_length "
            f"({config.sequence_length}).",
        )
        splits[name], ratios[name] = ids, len(text.encode()) / len(ids)
        digest.update(ids.tobytes())
    return Dataset(splits, ratios, tokenizer, config.sequence_length, digest.hexdigest())
