"""Shards: arrays of ids as plain binary files of bounded size, read through memory maps."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdsl_jax.digests import file_sha256
from sdsl_jax.errors import SdslError, require


class Shard(NamedTuple):
    """One file of ids, little-endian.

    Attributes:
      file: Name of the file.
      tokens: Number of ids.
      mtime_ns: Its time of change when it was last known to be whole.
      sha256: SHA-256 of its bytes.
    """

    file: str
    tokens: int
    mtime_ns: int
    sha256: str


def id_type(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id: one, two or four bytes, little-endian."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


def write_shards(
    folder: Path,
    name: str,
    arrays: Iterable[np.ndarray],
    dtype: np.dtype,
    shard_tokens: int,
) -> list[Shard]:
    """Writes ids, given in arrays of any length, into files of `shard_tokens` ids each; the last
    file is shorter.
    """
    parts = itertools.groupby(_cut(arrays, shard_tokens), key=lambda numbered: numbered[0])
    return [
        _write(folder / f"{name}-{n:05d}.bin", (ids for _, ids in part), dtype) for n, part in parts
    ]


def _cut(arrays: Iterable[np.ndarray], size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Arrays that lie within one shard, each with the shard's number."""
    written = 0
    for ids in arrays:
        while len(ids):
            number, filled = divmod(written, size)
            part, ids = ids[: size - filled], ids[size - filled :]
            written += len(part)
            yield number, part


def _write(path: Path, arrays: Iterable[np.ndarray], dtype: np.dtype) -> Shard:
    tokens, digest = 0, hashlib.sha256()
    with open(path, "wb") as file:
        for ids in arrays:
            data = ids.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            tokens += len(ids)
        file.flush()
        os.fsync(file.fileno())
    return Shard(path.name, tokens, path.stat().st_mtime_ns, digest.hexdigest())


def check_shard(path: Path, shard: Shard, dtype: np.dtype, thorough: bool = False) -> None:
    """Checks that a shard is as it was written.

    Its size is always checked. Its digest, which needs all of its bytes, is checked if its time of
    change is not the one in the manifest (a copy, a flipped byte), or on request. A shard that is
    found whole gets that time again and is trusted from then on.

    Raises:
      SdslError: The shard is missing or damaged.
    """
    remedy = f"delete the folder {path.parent} and the corpus is tokenised again."
    try:
        status = path.stat()
        size = shard.tokens * dtype.itemsize
        require(
            status.st_size == size,
            f"the shard {path} is damaged: it has {status.st_size} bytes, not {size}; {remedy}",
        )
        if not thorough and status.st_mtime_ns == shard.mtime_ns:
            return
        require(
            file_sha256(path) == shard.sha256,
            f"the shard {path} is damaged: its SHA-256 is another; {remedy}",
        )
    except OSError as error:
        raise SdslError(f"the shard {path} cannot be read ({error.strerror}); {remedy}") from None
    with contextlib.suppress(
        OSError
    ):  # of another user, or on a file system that cannot be written to
        os.utime(path, ns=(status.st_atime_ns, shard.mtime_ns))


class TokenArray:
    """Ids of one split over all its shards. It has a length and is read in parts, like an int32
    array of one axis.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], dtype: np.dtype):
        self._made_of = (paths, counts, dtype)
        self._maps = [
            np.memmap(path, dtype, "r", shape=(count,)).view(np.ndarray)
            for path, count in zip(paths, counts)
        ]
        self._starts = [0, *itertools.accumulate(counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        """Ids at a number, a slice or an array of numbers, int32, copied out of the shards."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._range(start, stop) if step == 1 else self[np.arange(start, stop, step)]
        at = np.asarray(index, np.int64)
        at = np.where(at < 0, at + len(self), at)
        if at.size and not (at.min() >= 0 and at.max() < len(self)):
            raise IndexError(f"an index is outside the {len(self)} tokens of the split")
        ids, shards = (
            np.empty(at.shape, np.int32),
            np.searchsorted(self._starts, at, side="right") - 1,
        )
        for shard in np.unique(shards):
            inside = shards == shard
            ids[inside] = self._maps[shard][at[inside] - self._starts[shard]]
        return ids[()]

    def _range(self, start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.empty(0, np.int32)
        shards = range(bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1))
        parts = [
            self._maps[s][max(0, start - self._starts[s]) : stop - self._starts[s]] for s in shards
        ]
        return np.concatenate(parts, dtype=np.int32, casting="unsafe")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int32, copy=False)

    def __reduce__(
        self,
    ):  # another process maps the files anew instead of receiving what is in them
        return TokenArray, self._made_of
