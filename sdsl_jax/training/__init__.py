"""Optimiser, train step, the loop and the ladder."""

from sdsl_jax.training.ladder import (
    check_ladder,
    read_records,
    train_ladder,
    train_rungs,
    write_records,
)
from sdsl_jax.training.rungs import plan_rungs, select

__all__ = [
    "check_ladder",
    "plan_rungs",
    "read_records",
    "select",
    "train_ladder",
    "train_rungs",
    "write_records",
]
