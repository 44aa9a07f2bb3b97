"""Records to coefficients, with uncertainty."""

from sdsl_jax.fitting.stage import FittedLaws, fit_all, read_laws

__all__ = ["FittedLaws", "fit_all", "read_laws"]
