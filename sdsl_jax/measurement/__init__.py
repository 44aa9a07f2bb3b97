"""Acceptance estimators, latency, and the stages that turn trained models into records."""

from sdsl_jax.measurement.conditions import Conditions, check_conditions, measure_conditions
from sdsl_jax.measurement.stage import Measurements, clock, measure

__all__ = ["Conditions", "Measurements", "check_conditions", "clock", "measure", "measure_conditions"]
