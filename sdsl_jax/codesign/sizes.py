"""Between the two counts of parameters: all of them, and those outside the embeddings."""

from __future__ import annotations

import math

from sdsl_jax.counts import short_count
from sdsl_jax.errors import require
from sdsl_jax.theory import ShapeRule
from sdsl_jax.theory.costs import layers_and_width

_HALVINGS = 80


def total_params(params: float, rule: ShapeRule) -> float:
    """N + tables·V·width(N): all parameters of the family member with N outside the embeddings."""
    width = float(layers_and_width(params, rule)[1])
    return params + float(rule.embedding_tables) * float(rule.vocab_size) * width


def non_embedding_params(total: float, rule: ShapeRule) -> float:
    """The N of the family member with so many parameters in all, by bisection: the count rises with
    N.

    Raises:
      SdslError: the embeddings alone would take all of it.
    """
    low, high = 0.0, math.log(total)
    require(
        total > total_params(1.0, rule),
        f"a model of {short_count(total)} parameters in all is smaller than its embeddings of "
        f"{short_count(float(rule.vocab_size))} tokens; give a larger size or a smaller vocabulary.",
    )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if total_params(math.exp(middle), rule) < total else (low, middle)
        )
    return math.exp((low + high) / 2)
