"""How far the ways of measuring α lie apart, and whether the live decoder does what its probabilities say."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import jax
import numpy as np
from jax.scipy.special import gammaincc

from sdsl_jax.evidence.common import (
    BY_DRAFTS,
    clustered_mean,
    kolmogorov_p_value,
    standard_error,
    trunk,
)
from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.records import AcceptanceRecord, ExpectedRecord

_Pair = tuple[str, str]
# An α with its standard error, NaN if unknown.
_Value = tuple[float, float]


def estimators(inputs: Inputs) -> dict[str, Any] | None:
    """Mean differences of α between its estimators over pairs, and the decoder's self-checks
    against the standard normal.

    Returns None where no two estimators were measured on the same pair, and no self-check was made.
    """
    confidence = inputs.config.measure.confidence
    clusters = {model.model_id: trunk(model) for model in inputs.models}
    found = _values(inputs)
    samples = ("teacher_forced_samples", 0)
    wanted = [(("teacher_forced_text", 0), samples)]
    wanted += [(key, samples) for key in sorted(found) if key[0] == "expected_per_test"]
    wanted += [(key, samples) for key in sorted(found) if key[0] == "decoded_per_test"]
    wanted += [
        (("decoded_per_test", gamma), ("expected_per_test", gamma))
        for name, gamma in sorted(found)
        if name == "decoded_per_test"
    ]
    differences: list[dict[str, Any]] = []
    for first, second in wanted:
        one, other = found.get(first, {}), found.get(second, {})
        pairs = [pair for pair in one if pair in other and pair[0] in clusters]
        if not pairs:
            continue
        change = np.asarray([one[pair][0] - other[pair][0] for pair in pairs])
        row: dict[str, Any] = {
            "first": first[0],
            "second": second[0],
            "lookahead": first[1] or second[1],
        }
        row["difference"] = clustered_mean(
            change, [clusters[draft] for draft, _ in pairs], confidence
        )
        row |= {"smallest": float(change.min()), "largest": float(change.max())}
        row["standard_error_of_a_pair"] = _mean([one[pair][1] for pair in pairs])
        if second[0] == "expected_per_test":
            row |= _combined(change, [(one[pair][1], other[pair][1]) for pair in pairs])
        differences.append(row)
    self_check = _self_check(
        [z for z in inputs.self_checks.values() if z is not None and math.isfinite(z)]
    )
    if not differences and self_check is None:
        return None
    return {
        "differences": differences,
        "self_check": self_check,
        "n": max((row["difference"]["n"] for row in differences), default=0),
        "basis": "they differ by design, not by error: exact α averages Σ min(p, q) over every position of a text; a "
        "decoder tests only some. The token after a fully accepted block is a bonus and goes untested, and every round "
        "starts just after a rejection or a bonus, so tested positions are a selection: where acceptances cluster, "
        "hard positions are tested more often than they occur, the more so the shorter γ. Accepted per tested draft of "
        "the recursion over samples is the expectation of the decoder's at the same γ; their difference should be "
        "noise of the two sets of samples. Its z divides by both standard errors, as if independent; shared prompts "
        f"make it smaller, and pairs of a target, which share samples, move together. Intervals: {BY_DRAFTS}; the "
        "standard error of a pair shows the noise of samples that they leave out",
    }


def _values(inputs: Inputs) -> dict[tuple[str, int], dict[_Pair, _Value]]:
    """α with its standard error by estimator and lookahead, then by pair."""
    found: dict[tuple[str, int], dict[_Pair, _Value]] = {}
    for row in inputs.acceptance:
        if row.temperature == inputs.config.measure.temperature:
            value = row.alpha, _error(row.alpha_low, row.alpha_high, row.confidence, row.clusters)
            found.setdefault((row.estimator, row.lookahead), {})[_pair(row)] = value
    for each in inputs.expected:
        if each.temperature == inputs.config.measure.temperature and math.isfinite(
            each.accepted_per_test
        ):
            error = _error(
                each.accepted_per_test_low,
                each.accepted_per_test_high,
                each.confidence,
                each.samples,
            )
            found.setdefault(("expected_per_test", each.lookahead), {})[_pair(each)] = (
                each.accepted_per_test,
                error,
            )
    return found


def _pair(row: AcceptanceRecord | ExpectedRecord) -> _Pair:
    return row.draft_id, row.target_id


def _error(low: float, high: float, confidence: float, clusters: int) -> float:
    if clusters < 2 or not 0 < confidence < 1:
        return math.nan
    return standard_error(low, high, confidence, clusters)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _combined(change: np.ndarray, errors: list[tuple[float, float]]) -> dict[str, Any]:
    """Differences in combined standard errors."""
    error = np.hypot(*np.asarray(errors).T)
    z = change[error > 0] / error[error > 0]
    if not len(z):
        return {}
    return {
        "z_mean": float(z.mean()),
        "z_rms": float(np.sqrt(np.square(z).mean())),
        "z_largest": float(np.abs(z).max()),
    }


def _self_check(values: list[float]) -> dict[str, Any] | None:
    """Moments of the self-checks, and two tests of their being standard normal: Kolmogorov–Smirnov, and χ² of Σz²."""
    if not values:
        return None
    z, n = np.sort(np.asarray(values)), len(values)
    below = np.asarray([NormalDist().cdf(value) for value in z])
    distance = float(max((np.arange(1, n + 1) / n - below).max(), (below - np.arange(n) / n).max()))
    with jax.enable_x64(True):
        upper = float(gammaincc(n / 2, np.square(z).sum() / 2))
    return {
        "n": n,
        "mean": float(z.mean()),
        "deviation": float(z.std(ddof=1)) if n > 1 else math.nan,
        "largest": float(np.abs(z).max()),
        "kolmogorov_distance": distance,
        "kolmogorov_p": kolmogorov_p_value(distance, n),
        "chi_squared": float(np.square(z).sum()),
        "chi_squared_p": 2 * min(upper, 1 - upper),
        "basis": "each run of the decoder gives the normal score of its number of kept drafts among independent coins of chance "
        "β = Σ min(p, q), one for each tested draft; runs share no randomness. p-values: Kolmogorov–Smirnov against "
        "N(0, 1), and two-sided χ² of Σz² with n degrees of freedom",
    }
