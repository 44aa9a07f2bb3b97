"""Lossless speculative decoding and the autoregressive baseline."""

from sdsl_jax.decoding.decode import autoregress, speculate
from sdsl_jax.decoding.decoded import Blocks, Decoded, Events
from sdsl_jax.decoding.drafters import Model, NgramDraft, one_vocabulary
from sdsl_jax.decoding.exit_drafter import EarlyExit
from sdsl_jax.decoding.feature_drafter import Head
from sdsl_jax.decoding.hybrid_drafter import HybridDraft
from sdsl_jax.decoding.lookahead import (
    ConfidenceThreshold,
    FixedLookahead,
    OnlineLookahead,
    SharedBudget,
)
from sdsl_jax.decoding.nested_drafter import NestedDraft, nested_draft
from sdsl_jax.decoding.sampling import Sampling, draw, probabilities
from sdsl_jax.decoding.verification import overlap, residual, verify_block, verify_tokens

__all__ = [
    "Blocks",
    "ConfidenceThreshold",
    "Decoded",
    "EarlyExit",
    "Events",
    "FixedLookahead",
    "Head",
    "HybridDraft",
    "Model",
    "NestedDraft",
    "NgramDraft",
    "OnlineLookahead",
    "Sampling",
    "SharedBudget",
    "autoregress",
    "draw",
    "nested_draft",
    "one_vocabulary",
    "overlap",
    "probabilities",
    "residual",
    "speculate",
    "verify_block",
    "verify_tokens",
]
