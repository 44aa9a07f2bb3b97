"""The evidence stage: records in, `evidence.json` out, one entry for each question that was asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdsl_jax.evidence.claims import claims, sensitivity
from sdsl_jax.evidence.clock import clock
from sdsl_jax.evidence.conditions import domain, temperature
from sdsl_jax.evidence.dependence import dependence
from sdsl_jax.evidence.estimators import estimators
from sdsl_jax.evidence.fit_quality import coverage, residuals
from sdsl_jax.evidence.holdout import holdout
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.evidence.law_comparison import acceptance_laws
from sdsl_jax.evidence.law_inputs import law_inputs
from sdsl_jax.evidence.same_data import same_data

# What is asked of the records; None where they do not hold what the answer needs.
_QUESTIONS: dict[str, Callable[[Inputs], Any]] = {
    "claims": claims,
    "holdout": holdout,
    "residuals": residuals,
    "coverage": coverage,
    "acceptance_laws": acceptance_laws,
    "law_inputs": law_inputs,
    "sensitivity": sensitivity,
    "dependence": dependence,
    "estimators": estimators,
    "temperature": temperature,
    "domain": domain,
    "same_data": same_data,
    "clock": clock,
}


def gather(inputs: Inputs) -> dict[str, Any]:
    """Answers every question that the records can answer."""
    return {name: ask(inputs) for name, ask in _QUESTIONS.items()}
