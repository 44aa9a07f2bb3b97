"""Optimiser, train step, checkpoints, the loop and the ladder."""

from sdsl_jax.training.ladder import check_ladder, device_name, load_model, train_ladder
from sdsl_jax.training.loop import rung_seed

__all__ = ["check_ladder", "device_name", "load_model", "rung_seed", "train_ladder"]
