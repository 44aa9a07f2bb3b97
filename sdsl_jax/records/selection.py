"""Choosing among the rows of a table."""

from __future__ import annotations

from collections.abc import Iterable

from sdsl_jax.records.tables import ModelRecord


def longest_trained(models: Iterable[ModelRecord], role: str) -> list[ModelRecord]:
    """For every size of one role, the model that was trained longest; of several seeds the
    smallest. Sizes ascend.
    """
    best: dict[int, ModelRecord] = {}
    for model in models:
        rival = best.get(model.params_nonembedding)
        if model.role == role and (
            rival is None or (model.train_tokens, -model.seed) > (rival.train_tokens, -rival.seed)
        ):
            best[model.params_nonembedding] = model
    return [best[size] for size in sorted(best)]
