"""What the records say for and against the laws: the numbers behind the report's section for sceptics."""

from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.evidence.stage import gather

__all__ = ["Inputs", "gather"]
