"""Seeds that are made of what a number belongs to."""

from __future__ import annotations

import hashlib


def derive_seed(*belongs_to: object) -> int:
    """A 31-bit seed made of what its random numbers belong to, never of the order of work."""
    return int.from_bytes(hashlib.sha256(repr(belongs_to).encode()).digest()[:4]) >> 1
