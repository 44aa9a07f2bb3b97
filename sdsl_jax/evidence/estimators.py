"""How far the ways of measuring α lie apart, and whether the live decoder does what its probabilities say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import jax
import numpy as np
from jax.scipy.special import gammaincc

from sdsl_jax.evidence.common import (
    BY_DRAFTS,
    Mean,
    Sparse,
    clustered_mean,
    kolmogorov_p_value,
    standard_error,
    training_run,
)
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.records import AcceptanceRecord, ExpectedRecord
from sdsl_jax.statistics import root_mean_square

_Pair = tuple[str, str]
# An α with its standard error, NaN if unknown.
_Value = tuple[float, float]


@dataclass(frozen=True)
class EstimatorDifference(Sparse):
    """Mean difference of α between two estimators over the pairs that both measured.

    Only a difference that should be noise has z.

    Attributes:
      first: estimator
      second: estimator that is subtracted
      lookahead: γ of the first, or else of the second; 0 where neither has one
      difference: mean difference
      smallest: smallest difference of a pair
      largest: largest difference of a pair
      standard_error_of_a_pair: mean standard error of the first estimator
      z_mean: mean difference in combined standard errors
      z_rms: root mean square of the same
      z_largest: largest size of the same
    """

    first: str
    second: str
    lookahead: int
    difference: Mean
    smallest: float
    largest: float
    standard_error_of_a_pair: float
    z_mean: float | None = None
    z_rms: float | None = None
    z_largest: float | None = None


@dataclass(frozen=True)
class SelfCheck:
    """Self-checks of the decoder over all runs, which should be standard normal.

    Attributes:
      n: runs
      mean: mean score
      deviation: standard deviation of the scores
      largest: largest size of a score
      kolmogorov_distance: Kolmogorov–Smirnov distance to the standard normal
      kolmogorov_p: its p-value
      chi_squared: sum of squared scores
      chi_squared_p: its two-sided p-value
      basis: how the numbers were computed
    """

    n: int
    mean: float
    deviation: float
    largest: float
    kolmogorov_distance: float
    kolmogorov_p: float
    chi_squared: float
    chi_squared_p: float
    basis: str


@dataclass(frozen=True)
class Estimators:
    """Whether the ways of measuring α agree.

    Attributes:
      differences: differences between estimators
      self_check: self-checks of the decoder
      n: most pairs of a difference
      basis: how the numbers were computed
    """

    differences: list[EstimatorDifference]
    self_check: SelfCheck | None
    n: int
    basis: str


def estimators(records: StudyRecords) -> Estimators | None:
    """Mean differences of α between its estimators over pairs, and the decoder's self-checks
    against the standard normal.

    Returns None where no two estimators were measured on the same pair, and no self-check was made.
    """
    clusters = {model.model_id: training_run(model) for model in records.models}
    values = _values(records)
    samples = ("teacher_forced_samples", 0)
    by_lookahead = {
        name: [key for key in sorted(values) if key[0] == name]
        for name in ("expected_per_test", "decoded_per_test")
    }
    comparisons = [
        (("teacher_forced_text", 0), samples),
        *((key, samples) for keys in by_lookahead.values() for key in keys),
        *((key, ("expected_per_test", key[1])) for key in by_lookahead["decoded_per_test"]),
    ]
    differences = []
    for first, second in comparisons:
        one, other = values.get(first, {}), values.get(second, {})
        pairs = [pair for pair in one if pair in other and pair[0] in clusters]
        if not pairs:
            continue
        change = np.asarray([one[pair][0] - other[pair][0] for pair in pairs])
        errors = np.asarray([(one[pair][1], other[pair][1]) for pair in pairs])
        of = [clusters[draft] for draft, _ in pairs]
        differences.append(
            EstimatorDifference(
                first[0],
                second[0],
                first[1] or second[1],
                clustered_mean(change, of, records.config.measure.confidence),
                float(change.min()),
                float(change.max()),
                float(errors[:, 0].mean()),
                *(_combined(change, errors) if second[0] == "expected_per_test" else ()),
            )
        )
    scores = records.self_checks.values()
    self_check = _self_check([z for z in scores if z is not None and math.isfinite(z)])
    if not differences and self_check is None:
        return None
    return Estimators(
        differences=differences,
        self_check=self_check,
        n=max((row.difference.n for row in differences), default=0),
        basis="they differ by design, not by error: exact α averages Σ min(p, q) over every position of a text; a "
        "decoder tests only some. The token after a fully accepted block is a bonus and goes untested, and every round "
        "starts just after a rejection or a bonus, so tested positions are a selection: where acceptances cluster, "
        "hard positions are tested more often than they occur, the more so the shorter γ. Accepted per tested draft of "
        "the recursion over samples is the expectation of the decoder's at the same γ; their difference should be "
        "noise of the two sets of samples. Its z divides by both standard errors, as if independent; shared prompts "
        f"make it smaller, and pairs of a target, which share samples, move together. Intervals: {BY_DRAFTS}; the "
        "standard error of a pair shows the noise of samples that they leave out",
    )


def _values(records: StudyRecords) -> dict[tuple[str, int], dict[_Pair, _Value]]:
    """α with its standard error by estimator and lookahead, then by pair."""
    values: dict[tuple[str, int], dict[_Pair, _Value]] = {}

    def add(row: AcceptanceRecord | ExpectedRecord, name: str, *error: float) -> None:
        if row.temperature == records.config.measure.temperature and math.isfinite(error[0]):
            alpha, low, high, confidence, clusters = error
            known = clusters >= 2 and 0 < confidence < 1
            scatter = standard_error(low, high, confidence, int(clusters)) if known else math.nan
            pair = row.draft_id, row.target_id
            values.setdefault((name, row.lookahead), {})[pair] = alpha, scatter

    for row in records.acceptance:
        ends = row.alpha_low, row.alpha_high
        add(row, row.estimator, row.alpha, *ends, row.confidence, row.clusters)
    for each in records.expected:
        ends = each.accepted_per_test_low, each.accepted_per_test_high
        alpha = each.accepted_per_test
        add(each, "expected_per_test", alpha, *ends, each.confidence, each.samples)
    return values


def _combined(change: np.ndarray, errors: np.ndarray) -> tuple[float, ...]:
    """Mean, root mean square and largest size of differences in combined standard errors."""
    error = np.hypot(*errors.T)
    z = change[error > 0] / error[error > 0]
    if not len(z):
        return ()
    return float(z.mean()), root_mean_square(z), float(np.abs(z).max())


def _self_check(values: list[float]) -> SelfCheck | None:
    """Moments of the self-checks, and two tests of their being standard normal: Kolmogorov–Smirnov, and χ² of Σz²."""
    if not values:
        return None
    z, n = np.sort(np.asarray(values)), len(values)
    below = np.asarray([NormalDist().cdf(value) for value in z])
    distance = float(max((np.arange(1, n + 1) / n - below).max(), (below - np.arange(n) / n).max()))
    with jax.enable_x64(True):
        upper = float(gammaincc(n / 2, np.square(z).sum() / 2))
    return SelfCheck(
        n=n,
        mean=float(z.mean()),
        deviation=float(z.std(ddof=1)) if n > 1 else math.nan,
        largest=float(np.abs(z).max()),
        kolmogorov_distance=distance,
        kolmogorov_p=kolmogorov_p_value(distance, n),
        chi_squared=float(np.square(z).sum()),
        chi_squared_p=2 * min(upper, 1 - upper),
        basis="each run of the decoder gives the normal score of its number of kept drafts among independent coins of chance "
        "β = Σ min(p, q), one for each tested draft; runs share no randomness. p-values: Kolmogorov–Smirnov against "
        "N(0, 1), and two-sided χ² of Σz² with n degrees of freedom",
    )
