"""Runs the stages of a study, each only when its settings or inputs have changed."""

from sdsl_jax.study.run import run_study
from sdsl_jax.study.stages import STAGES, Study, versions

__all__ = ["STAGES", "Study", "run_study", "versions"]
