"""Optimiser, train step, checkpoints, the loop and the ladder."""

from sdsl_jax.training.evaluation import device_name
from sdsl_jax.training.ladder import (
    Outcome,
    check_ladder,
    load_model,
    read_records,
    train_ladder,
    train_rungs,
    write_records,
)
from sdsl_jax.training.loop import rung_seed
from sdsl_jax.training.model_folder import LoadedModel, load_model_folder, write_model_folder
from sdsl_jax.training.processes import initialise_distributed, is_primary
from sdsl_jax.training.published import Reading, load_any_model, load_published
from sdsl_jax.training.rungs import plan_rungs, select

__all__ = [
    "LoadedModel",
    "Outcome",
    "Reading",
    "check_ladder",
    "device_name",
    "initialise_distributed",
    "is_primary",
    "load_any_model",
    "load_model",
    "load_model_folder",
    "load_published",
    "plan_rungs",
    "read_records",
    "rung_seed",
    "select",
    "train_ladder",
    "train_rungs",
    "write_model_folder",
    "write_records",
]
