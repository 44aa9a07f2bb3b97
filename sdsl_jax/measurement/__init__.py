"""Acceptance estimators, latency, and the stage that turns trained models into records."""

from sdsl_jax.measurement.stage import Measurements, clock, measure

__all__ = ["Measurements", "clock", "measure"]
