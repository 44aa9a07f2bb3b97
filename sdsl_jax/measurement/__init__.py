"""How much of a draft a target accepts, how fast both run, and the stages that turn trained models
into records.

`speculate` decodes prompts and `measure_pair` measures a pair; both take loaded models or paths.
"""

from sdsl_jax.measurement.clock_stage import Timed, clock_pair, time_study
from sdsl_jax.measurement.conditions import Conditions, check_conditions, measure_conditions
from sdsl_jax.measurement.measured_pair import (
    MeasuredPair,
    Speculation,
    measure_pair,
    speculate,
)
from sdsl_jax.measurement.race import race_study
from sdsl_jax.measurement.stage import Measurements, measure_study

__all__ = [
    "Conditions",
    "MeasuredPair",
    "Measurements",
    "Speculation",
    "Timed",
    "check_conditions",
    "clock_pair",
    "measure_conditions",
    "measure_pair",
    "measure_study",
    "race_study",
    "speculate",
    "time_study",
]
