"""The evidence stage: records in, `evidence.json` out, one entry for each question that was asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdsl_jax.evidence.claims import claims, sensitivity
from sdsl_jax.evidence.fit_quality import coverage, residuals
from sdsl_jax.evidence.holdout import holdout
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.evidence.law_comparison import acceptance_laws
from sdsl_jax.evidence.law_inputs import law_inputs

# What is asked of the records; None where they do not hold what the answer needs.
_QUESTIONS: dict[str, Callable[[Inputs], Any]] = {
    "residuals": residuals,
    "coverage": coverage,
    "acceptance_laws": acceptance_laws,
    "law_inputs": law_inputs,
    "sensitivity": sensitivity,
    "claims": claims,
    "holdout": holdout,
}


def gather(inputs: Inputs) -> dict[str, Any]:
    """Answers every question that the records can answer."""
    return {name: ask(inputs) for name, ask in _QUESTIONS.items()}
