"""Optimiser, train step, checkpoints, the loop and the ladder."""

from sdsl_jax.training.ladder import check_ladder, device_name, load_model, train_ladder
from sdsl_jax.training.loop import rung_seed
from sdsl_jax.training.model_folder import LoadedModel, load_model_folder, write_model_folder

__all__ = [
    "LoadedModel",
    "check_ladder",
    "device_name",
    "load_model",
    "load_model_folder",
    "rung_seed",
    "train_ladder",
    "write_model_folder",
]
