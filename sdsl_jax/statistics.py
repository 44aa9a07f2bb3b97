"""Intervals for means of independent clusters, and for medians. Numpy only."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate and the two ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t by its Cornish–Fisher expansion (Abramowitz & Stegun 26.7.5).

    Off by less than 1 % from 3 degrees of freedom on, for the probabilities of 90 % to 99 % intervals.
    """
    z = NormalDist().inv_cdf(probability)
    n = max(degrees, 1)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, confidence: float) -> Interval:
    """Σ numerators / Σ denominators over independent clusters, with the linearised (jackknife-like) standard error.

    With equal denominators this is the mean of clusters with the usual t interval; clusters keep what happens within a
    prompt together, so that correlated positions do not shrink the interval.

    Args:
      numerators: one sum per cluster.
      denominators: its weight, positive in total.
      confidence: probability that the interval is to cover.
    """
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    n, total = len(numerators), denominators.sum()
    if total <= 0:
        return Interval(math.nan, math.nan, math.nan)
    ratio = numerators.sum() / total
    if n < 2:
        return Interval(float(ratio), math.nan, math.nan)
    residuals = numerators - ratio * denominators
    error = math.sqrt(n / (n - 1) * np.square(residuals).sum()) / total
    half = student_quantile(0.5 + confidence / 2, n - 1) * error
    return Interval(float(ratio), float(ratio - half), float(ratio + half))


def mean_interval(values: np.ndarray, confidence: float) -> Interval:
    """Mean of independent values with its t interval."""
    return ratio_interval(values, np.ones(len(values)), confidence)


def median_interval(values: np.ndarray, confidence: float) -> Interval:
    """Median with the distribution-free interval between two order statistics (normal approximation of the binomial)."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half) - 1), min(n - 1, math.ceil(n / 2 + half))
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[high]))
