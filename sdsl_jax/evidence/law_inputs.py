"""Which count of parameters and which measure of loss the laws should look at: decided by what they did not see."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.evidence.law_comparison import left_out_predictions
from sdsl_jax.fitting.acceptance import pair_table
from sdsl_jax.fitting.loss import fit_loss_law, loss_table
from sdsl_jax.records import ModelRecord

_COUNTS = {
    "non-embedding parameters": "params_nonembedding",
    "total parameters": "params_total",
    "FLOPs per token": "flops_per_token",
}
# Perplexities of the plane: exp of nats per token, or 2 to the bits per byte; on the test split or
# the validation split.
_LOSSES = {
    "nats per token, test": "loss_nats",
    "bits per byte, test": "bits_per_byte",
    "nats per token, validation": "validation_loss_nats",
}


def law_inputs(inputs: Inputs) -> dict[str, Any] | None:
    """Held-out errors of the same laws given other counts and other losses.

    Counts are judged by laws that look at sizes (the power law, the log-linear length, and the loss
    law on its largest size), losses by laws that look at losses (the planes and the gap). Left out
    are draft sizes, all budgets and seeds at once.
    """
    if not inputs.has_pairs:
        return None
    by_count = []
    for name, column in _COUNTS.items():
        if all(getattr(m, column) > 0 for m in inputs.models):
            row: dict[str, Any] = {"input": name}
            for law in ("power_law", "log_linear_length"):
                row[law] = _left_out_drafts(inputs, law, inputs.models, column, "loss_nats")
            row["loss_law_largest_size"] = _largest_size(inputs, column)
            by_count.append(row)
    by_loss = []
    for name, column in _LOSSES.items():
        if all(np.isfinite(getattr(m, column)) for m in inputs.models):
            # 2^bits is exp of bits·ln 2: the plane exponentiates what it is given.
            scale = np.log(2) if column == "bits_per_byte" else 1.0
            models = [
                dataclasses.replace(m, loss_nats=scale * getattr(m, column)) for m in inputs.models
            ]
            row = {"input": name}
            for law in ("affine_plane", "logit_plane", "logit_gap"):
                row[law] = _left_out_drafts(inputs, law, models, "params_nonembedding", "loss_nats")
            by_loss.append(row)
    if not by_count and not by_loss:
        return None

    def best(rows: list[dict[str, Any]]) -> dict[str, str]:
        keys = [k for k in (rows[0] if rows else {}) if k != "input" and rows[0][k] is not None]
        return {k: rows[int(np.argmin([row[k] for row in rows]))]["input"] for k in keys}

    return {
        "by_count": by_count,
        "by_loss": by_loss,
        "best_count": best(by_count),
        "best_loss": best(by_loss),
        "basis": "root mean square error of α on left-out draft sizes; of ln loss on the largest size, from a loss law fitted to "
        "all smaller models. With one tokenizer bits per byte are nats per token times a constant: only the plane in "
        "perplexities can tell them apart",
    }


def _left_out_drafts(
    inputs: Inputs, law: str, models: list[ModelRecord], params: str, loss: str
) -> float:
    table = pair_table(models, inputs.acceptance, inputs.config.fit.estimator, params, loss)
    errors = left_out_predictions(law, table, table.draft_sizes, inputs) - table.alpha
    return float(np.sqrt(np.square(errors).mean()))


def _largest_size(inputs: Inputs, column: str) -> float | None:
    """Error of ln loss on the largest size, by a law fitted to all others."""
    models = [m for m in inputs.models if not m.epochs > inputs.config.fit.max_epochs]
    largest = max(m.params_nonembedding for m in models)
    rest = [m for m in models if m.params_nonembedding < largest]
    table = loss_table(rest, column)
    if len(rest) < 7 or len(set(table.params)) < 3 or len(set(table.tokens)) < 2:
        return None
    config = dataclasses.replace(inputs.config.fit, bootstrap=20)
    fit = fit_loss_law(table, config, np.ones((1, len(rest))), inputs.config.seed, config.loss_law)
    out = loss_table([m for m in models if m.params_nonembedding == largest], column)
    errors = np.log(np.asarray(fit.law(out.params, out.tokens), float) / out.loss)
    return float(np.sqrt(np.square(errors).mean()))
