"""Lossless speculative decoding and the autoregressive baseline."""

from sdsl_jax.decoding.decode import autoregress, speculate
from sdsl_jax.decoding.loop import Decoded, Events, Model
from sdsl_jax.decoding.verification import overlap, probabilities, residual, verify_tokens

__all__ = [
    "Decoded",
    "Events",
    "Model",
    "autoregress",
    "overlap",
    "probabilities",
    "residual",
    "speculate",
    "verify_tokens",
]
