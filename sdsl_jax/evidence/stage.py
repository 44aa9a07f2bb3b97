"""The evidence stage: records in, `evidence.json` out, one entry for each question that was asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdsl_jax.evidence.inputs import Inputs

# What is asked of the records; None where they do not hold what the answer needs.
_QUESTIONS: dict[str, Callable[[Inputs], Any]] = {}


def gather(inputs: Inputs) -> dict[str, Any]:
    """Answers every question that the records can answer."""
    return {name: ask(inputs) for name, ask in _QUESTIONS.items()}
