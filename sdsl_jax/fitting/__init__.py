"""Fits: tables and records to laws, with uncertainty."""

from sdsl_jax.fitting.conditions import GapFits, fit_gap_laws, local_acceptance
from sdsl_jax.fitting.dependence import DependenceFit, fit_dependence
from sdsl_jax.fitting.fits import AcceptanceFits, fit_acceptance, fit_loss
from sdsl_jax.fitting.law_files import FittedLaws, LoadedLaw, load_law
from sdsl_jax.fitting.law_fit import LawFit
from sdsl_jax.fitting.stage import fit_all

__all__ = [
    "AcceptanceFits",
    "DependenceFit",
    "FittedLaws",
    "GapFits",
    "LawFit",
    "LoadedLaw",
    "fit_acceptance",
    "fit_all",
    "fit_dependence",
    "fit_gap_laws",
    "fit_loss",
    "load_law",
    "local_acceptance",
]
