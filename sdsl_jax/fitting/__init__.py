"""Fits: tables and records to laws, with uncertainty."""

from typing import TYPE_CHECKING

from sdsl_jax.lazy_names import lazy_names

if TYPE_CHECKING:
    from sdsl_jax.fitting.acceptance_fits import DomainFits, LengthFits, fit_domains, fit_lengths
    from sdsl_jax.fitting.conditions import GapFits, fit_gap_laws, local_acceptance
    from sdsl_jax.fitting.dependence import DependenceFit, fit_dependence
    from sdsl_jax.fitting.fits import AcceptanceFits, fit_acceptance, fit_loss
    from sdsl_jax.fitting.law_files import FittedLaws, LoadedLaw, load_law
    from sdsl_jax.fitting.law_fit import LawFit
    from sdsl_jax.fitting.stage import fit_all

__all__ = [
    "AcceptanceFits",
    "DependenceFit",
    "DomainFits",
    "FittedLaws",
    "GapFits",
    "LawFit",
    "LengthFits",
    "LoadedLaw",
    "fit_acceptance",
    "fit_all",
    "fit_dependence",
    "fit_domains",
    "fit_gap_laws",
    "fit_lengths",
    "fit_loss",
    "load_law",
    "local_acceptance",
]

__getattr__ = lazy_names(
    __name__,
    {
        "acceptance_fits": (
            "DomainFits",
            "LengthFits",
            "fit_domains",
            "fit_lengths",
        ),
        "conditions": (
            "GapFits",
            "fit_gap_laws",
            "local_acceptance",
        ),
        "dependence": (
            "DependenceFit",
            "fit_dependence",
        ),
        "fits": (
            "AcceptanceFits",
            "fit_acceptance",
            "fit_loss",
        ),
        "law_files": (
            "FittedLaws",
            "LoadedLaw",
            "load_law",
        ),
        "law_fit": ("LawFit",),
        "stage": ("fit_all",),
    },
)
