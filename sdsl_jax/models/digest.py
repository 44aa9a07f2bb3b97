"""A digest of large arrays that costs little beside reading them. Numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

# Numbers of 64 bits in a block, as rows and columns. Both are odd: a change of top bits alone, which sums modulo 2^64 see only
# by its parity, follows powers of two in all but contrived arrays, and is then odd in many rows or columns.
_ROWS, _COLUMNS = 127, 255
_BLOCK = _ROWS * _COLUMNS
# Blocks that one call of numpy sums: they stay in a core's cache between the two sums.
_TOGETHER = 4


def _parts(words: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(words) // _BLOCK * _BLOCK, _TOGETHER * _BLOCK):
        part = words[begin : begin + _TOGETHER * _BLOCK]
        yield part[: len(part) // _BLOCK * _BLOCK].reshape(-1, _ROWS, _COLUMNS)


def array_digest(array: np.ndarray) -> bytes:
    """SHA-256 of an array's shape, type, and the sums of its rows and columns, block by block.

    SHA-256 of all bytes would take as long as reading them from a disk cache and converting them; sums modulo 2^64 take a tenth.
    An array is cut into blocks of 127 × 255 numbers of 64 bits, whatever its type. Any change of one or two numbers of a block
    changes a sum, and so does moving numbers about; what escapes is a change that cancels in every row and in every column of
    every block. That tells models apart, and is no protection against somebody who wants two models to look alike. What is left
    behind the last whole block, or an array smaller than one, is digested byte by byte.

    Args:
      array: of any shape and type; best contiguous.
    """
    digest = hashlib.sha256(f"{array.shape} {array.dtype}\n".encode())
    # By way of bytes: types such as bfloat16 are none of numpy's own.
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words = data[: len(data) // 8 * 8].view(np.uint64)
    for blocks in _parts(words):
        digest.update(blocks.sum(axis=1))
        digest.update(blocks.sum(axis=2))
    digest.update(data[len(words) // _BLOCK * _BLOCK * 8 :].tobytes())
    return digest.digest()
