"""Optimiser, train step, checkpoints, the loop and the ladder."""

from sdsl_jax.training.ladder import device_name, load_model, train_ladder

__all__ = ["device_name", "load_model", "train_ladder"]
