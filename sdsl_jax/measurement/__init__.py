"""Acceptance estimators, latency, and the stages that turn trained models into records."""

from sdsl_jax.measurement.clock_stage import Timed, clock, time_study
from sdsl_jax.measurement.conditions import Conditions, check_conditions, measure_conditions
from sdsl_jax.measurement.stage import Measurements, measure

__all__ = [
    "Conditions",
    "Measurements",
    "Timed",
    "check_conditions",
    "clock",
    "measure",
    "measure_conditions",
    "time_study",
]
