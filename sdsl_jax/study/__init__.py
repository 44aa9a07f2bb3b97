"""Runs the stages of a study, each only when its settings or inputs have changed."""

from sdsl_jax.study.plan import STAGES
from sdsl_jax.study.stages import versions
from sdsl_jax.study.study import Study, run_study
from sdsl_jax.study.summary import SummaryRow, summary

__all__ = ["STAGES", "Study", "SummaryRow", "run_study", "summary", "versions"]
