"""Fixtures of the decoder's tests."""

import functools

import jax
import pytest

from sdsl_jax.decoding import loop


@pytest.fixture
def fresh_loop(monkeypatch):
    """The loop as a new function, for a test that replaces one of its pieces: nothing that was traced
    before is used, and nothing that is traced now stays."""
    original = loop.speculative_loop.__wrapped__

    @functools.wraps(original)
    def copy(*args, **kwargs):
        return original(*args, **kwargs)

    fresh = jax.jit(copy, static_argnames=loop.STATIC_ARGUMENTS)
    monkeypatch.setattr(loop, "speculative_loop", fresh)
