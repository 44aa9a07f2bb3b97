"""Answers from laws alone, published ones by name and fitted ones from a file. Nothing is trained.

The mathematics is in `theory`; here laws are looked up, questions checked, and answers put into words.
"""

from sdsl_jax.prediction.drafts import predict
from sdsl_jax.prediction.laws import LoadedLaw, acceptance_law, loss_law
from sdsl_jax.prediction.lookahead import best_lookahead
from sdsl_jax.prediction.targets import Target, targets_from_csv

__all__ = [
    "LoadedLaw",
    "Target",
    "acceptance_law",
    "best_lookahead",
    "loss_law",
    "predict",
    "targets_from_csv",
]
