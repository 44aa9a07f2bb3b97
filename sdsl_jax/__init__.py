"""Differentiable speculative-decoding scaling laws: train, measure, fit and co-design draft models in JAX."""

__version__ = "0.1.0"
