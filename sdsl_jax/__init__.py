"""Differentiable speculative-decoding scaling laws: train, measure, fit and co-design draft models.

What users call is here, and loaded when it is first asked for:

- theory: `optimal_lookahead`, `optimal_draft`, `speedup`, `Scenario`
- laws: `load_law`, `fit_loss`, `fit_acceptance`
- models: `load_model`, `speculate`, `measure_pair`
- answers: `Problem`, `run_study`
- errors: `SdslError`, raised for every request that cannot be carried out
"""

from typing import TYPE_CHECKING

from sdsl_jax.lazy_names import lazy_names

if TYPE_CHECKING:
    from sdsl_jax.checkpoints.loading import load_model
    from sdsl_jax.codesign.problem import Problem
    from sdsl_jax.errors import SdslError
    from sdsl_jax.fitting.fits import fit_acceptance, fit_loss
    from sdsl_jax.fitting.law_files import load_law
    from sdsl_jax.measurement.measured_pair import measure_pair, speculate
    from sdsl_jax.study import run_study
    from sdsl_jax.theory import Scenario, optimal_draft, optimal_lookahead, speedup

__version__ = "0.1.0"
__all__ = [
    "Problem",
    "Scenario",
    "SdslError",
    "fit_acceptance",
    "fit_loss",
    "load_law",
    "load_model",
    "measure_pair",
    "optimal_draft",
    "optimal_lookahead",
    "run_study",
    "speculate",
    "speedup",
]

__getattr__ = lazy_names(
    __name__,
    {
        "checkpoints.loading": ("load_model",),
        "codesign.problem": ("Problem",),
        "errors": ("SdslError",),
        "fitting.fits": ("fit_acceptance", "fit_loss"),
        "fitting.law_files": ("load_law",),
        "measurement.measured_pair": ("measure_pair", "speculate"),
        "study": ("run_study",),
        "theory": ("Scenario", "optimal_draft", "optimal_lookahead", "speedup"),
    },
)


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*own, *__all__})
