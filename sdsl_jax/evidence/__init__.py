"""What the records of a study say for and against the laws: the numbers behind the report's section for sceptics."""

from sdsl_jax.evidence.predictions import Predictions, forecast
from sdsl_jax.evidence.stage import Evidence, gather
from sdsl_jax.evidence.study_records import OptimumRow, StudyRecords

__all__ = ["Evidence", "OptimumRow", "Predictions", "StudyRecords", "forecast", "gather"]
