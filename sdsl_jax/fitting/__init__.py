"""Records to coefficients, with uncertainty."""

from sdsl_jax.fitting.conditions import GapFits, fit_gap_laws, local_acceptance
from sdsl_jax.fitting.dependence import DependenceFit, fit_dependence
from sdsl_jax.fitting.law_files import FittedLaws
from sdsl_jax.fitting.stage import fit_all, read_laws

__all__ = [
    "DependenceFit",
    "FittedLaws",
    "GapFits",
    "fit_all",
    "fit_dependence",
    "fit_gap_laws",
    "local_acceptance",
    "read_laws",
]
