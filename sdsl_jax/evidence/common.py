"""What several questions share: means over drafts as clusters, tests, and how rows are found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.scipy.special import betainc
from jaxtyping import Bool

from sdsl_jax.records import AcceptanceRecord, ModelRecord
from sdsl_jax.statistics import ratio_interval, student_quantile

BY_DRAFTS = (
    "t interval over drafts as clusters: all pairs of a draft, at all its budgets, move together"
)


def trunk(model: ModelRecord) -> str:
    """The training run that a model is a budget of; budgets of one run are no independent models."""
    return f"{model.role}-{model.params_nonembedding}-s{model.seed}"


def clustered_mean(
    values: Sequence[float] | np.ndarray, clusters: Sequence[str], confidence: float
) -> dict[str, Any]:
    """Mean with a t interval over clusters; NaN ends where there is only one."""
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    found = ratio_interval(
        np.bincount(index, np.asarray(values, float)), np.bincount(index), confidence
    )
    return {
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "n": len(index),
        "clusters": int(index.max()) + 1,
    }


def standard_error(low: float, high: float, confidence: float, clusters: int) -> float:
    """Standard error behind a t interval over so many clusters."""
    return (high - low) / 2 / student_quantile(0.5 + confidence / 2, clusters - 1)


def student_p_value(t: float, degrees: int) -> float:
    """Two-sided p-value of Student's t."""
    with jax.enable_x64(True):
        return float(betainc(degrees / 2, 0.5, degrees / (degrees + t * t)))


def holm(p_values: Sequence[float] | np.ndarray, level: float) -> Bool[np.ndarray, " n"]:
    """Which hypotheses Holm's step-down procedure rejects; the chance of any false rejection is at
    most `level`.

    Valid under any dependence between the tests (Holm, 1979).
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    passed = p[order] <= level / (len(p) - np.arange(len(p)))
    rejected = np.zeros(len(p), bool)
    rejected[order[: len(p) if passed.all() else int(np.argmin(passed))]] = True
    return rejected


def kolmogorov_p_value(distance: float, n: int) -> float:
    """P-value of the Kolmogorov–Smirnov distance to a fully known distribution (Stephens, 1970)."""
    root = math.sqrt(n)
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series needs ever more terms, and the answer is 1 to many digits
        return 1.0
    return min(
        1.0,
        max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 60))),
    )


def by_pair(rows: Iterable[AcceptanceRecord]) -> dict[tuple[str, str], AcceptanceRecord]:
    """Rows by (draft, target); the last one wins."""
    return {(row.draft_id, row.target_id): row for row in rows}
