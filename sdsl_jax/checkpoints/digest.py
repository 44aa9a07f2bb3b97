"""A digest of large arrays that costs little beside reading them. Numpy only."""

from __future__ import annotations

import hashlib

import numpy as np

# Numbers of 64 bits in a row, and rows that are looked at together: they stay in a core's cache.
_ROW, _TOGETHER = 512, 256
# One odd random factor for each place in a row.
_FACTORS = np.frombuffer(
    hashlib.shake_256(b"sdsl_jax array digest").digest(8 * _ROW), "<u8"
).astype(np.uint64) | np.uint64(1)
# Sums modulo 2^64 see of a top bit only whether it changed an even number of times, so each is
# copied to a lower place first. 29 divides no type's size: numbers that lie side by side meet other
# bits of one another.
_SHIFT = np.uint64(29)


def array_digest(array: np.ndarray) -> bytes:
    """SHA-256 of an array's shape, type, and a sum of the numbers in each row of 4 kB, times a
    random factor for each place.

    SHA-256 of all bytes would take as long as reading them from a disk cache and converting them;
    these sums take a tenth. A change that is made without an eye to the factors, however regular it
    is, goes unseen by a sum with a probability of about 2^-29 at most. That tells models apart, and
    is no protection against somebody who wants two models to look alike. What is left behind the
    last whole row is digested byte by byte.

    Args:
      array: of any shape and type; best contiguous.
    """
    digest = hashlib.sha256(f"{array.shape} {array.dtype}\n".encode())
    # By way of bytes: types such as bfloat16 are none of numpy's own.
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = data.size // (8 * _ROW) * (8 * _ROW)
    rows = data[:whole].view(np.uint64).reshape(-1, _ROW)
    for begin in range(0, len(rows), _TOGETHER):
        part = rows[begin : begin + _TOGETHER]
        digest.update((part ^ (part >> _SHIFT)) @ _FACTORS)
    digest.update(data[whole:].tobytes())
    return digest.digest()
