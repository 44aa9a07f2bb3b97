"""Intervals for means of independent clusters and for medians, tests of paired differences, and a
score for counts of unequal coins. Numpy only."""

from __future__ import annotations

import math
import zlib
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate and the two ends of its confidence interval; NaN where they do not exist."""

    estimate: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, Any]:
        """The three columns of a table that hold it: `name`, `name_low` and `name_high`."""
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}

    def to_json(self) -> dict[str, float | None]:
        """An object of JSON."""
        return {key: float(x) if math.isfinite(x) else None for key, x in self._asdict().items()}

    def __format__(self, spec: str) -> str:
        """The estimate and half of its interval, such as "0.724 ± 0.013"."""
        if math.isnan(self.estimate):
            return "–"
        if math.isnan(self.low):
            return format(self.estimate, spec)
        return f"{self.estimate:{spec}} ± {(self.high - self.low) / 2:{spec}}"


def stream(seed: int, *purpose: str) -> np.random.Generator:
    """A source of random numbers for one purpose, independent of those for any other.

    Args:
      seed: Seed of the study.
      purpose: What the numbers are for, such as ("waves", "chinchilla").
    """
    return np.random.default_rng([seed, zlib.crc32("/".join(purpose).encode())])


def root_mean_square(values: np.ndarray) -> float:
    """√(mean of the squares)."""
    return float(np.sqrt(np.square(values).mean()))


def quantile_interval(
    draws: np.ndarray, confidence: float, method: Any = "linear"
) -> tuple[float, float]:
    """The interval that leaves the same share of draws out at either end.

    Args:
      draws: Independent draws of a number, such as those of a bootstrap.
      confidence: Share of the draws inside the interval.
      method: How to interpolate between draws; see `numpy.quantile`.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(draws), [tail, 1 - tail], method=method)
    return float(low), float(high)


def bootstrap_weights(groups: int, draws: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each bootstrap resample, [draws, groups]."""
    random = np.random.default_rng(seed)
    return random.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(float)


def resampled(labels: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Bootstrap weights of rows, [draws, rows]; rows that share a label are drawn together."""
    names, of = np.unique(labels, return_inverse=True)
    return bootstrap_weights(len(names), draws, seed)[:, of]


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else by its Cornish–Fisher
    expansion (Abramowitz & Stegun 26.7.5), which is off by less than 1% for the probabilities of 90%
    to 99% intervals.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    n = max(degrees, 1)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def ratio_error(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Linearised (jackknife-like) standard error of Σ numerators / Σ denominators over independent
    clusters; NaN for fewer than two clusters, or none with a weight."""
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    n, total = len(numerators), denominators.sum()
    if n < 2 or total <= 0:
        return math.nan
    residuals = numerators - numerators.sum() / total * denominators
    return math.sqrt(n / (n - 1) * np.square(residuals).sum()) / total


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, confidence: float) -> Interval:
    """Σ numerators / Σ denominators over independent clusters, with the linearised (jackknife-like)
    standard error.

    With equal denominators this is the mean of clusters with the usual t interval. A prompt is one
    cluster, so correlated positions within it do not shrink the interval.

    Args:
      numerators: One sum per cluster.
      denominators: Its weight; positive in total.
      confidence: Probability that the interval is to cover the ratio.
    """
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    n, total = len(numerators), denominators.sum()
    if total <= 0:
        return Interval(math.nan, math.nan, math.nan)
    ratio = numerators.sum() / total
    if n < 2:
        return Interval(float(ratio), math.nan, math.nan)
    half = student_quantile(0.5 + confidence / 2, n - 1) * ratio_error(numerators, denominators)
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


# Up to so many clusters all sign flips are counted; beyond, as many are drawn at random.
_EXACT_FLIPS = 14


def sign_flip_probability(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of Fisher's sign-flip test: how often independent clusters give a sum at least
    this far from 0 if each had either sign with equal chance.

    The test needs no normality and no equal variances, only that under the null hypothesis a
    cluster's difference has a symmetric distribution, as when two drafts are interchangeable. With up
    to 14 differences that are not 0 it is exact. With more, p = (1 + flips as extreme)/(1 + flips) of
    16,383 random ones, which is a valid p-value of at least 1/16,384.

    Args:
      differences: One for each cluster.
      seed: Seed of the random flips.
    """
    d = np.asarray(differences, float)
    d = d[d != 0]
    if not len(d):
        return 1.0
    # What rounding makes of a tie still counts as one.
    bar = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if len(d) <= _EXACT_FLIPS:
        bits = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1
        return float((np.abs((1 - 2 * bits) @ d) >= bar).mean())
    random, flips, extreme = np.random.default_rng(seed), 2**_EXACT_FLIPS - 1, 0
    at_a_time = max(1, 2**22 // len(d))
    for begin in range(0, flips, at_a_time):
        shape = min(at_a_time, flips - begin), len(d)
        signs = 1 - 2 * random.integers(0, 2, shape, dtype=np.int8)
        extreme += int((np.abs(signs @ d) >= bar).sum())
    return (1 + extreme) / (1 + flips)


def mcnemar_probability(only_one: int, only_other: int) -> float:
    """Two-sided p-value of McNemar's exact test of paired yes-or-no outcomes (McNemar 1947).

    Of the outcomes in which two differ, half favour each under the null hypothesis: p is twice the
    binomial tail at the smaller count, at most 1. Outcomes are taken as independent; where they come
    in clusters, p is too small, and `sign_flip_probability` over clusters is right.

    Args:
      only_one: Outcomes that only the first says yes to.
      only_other: Outcomes that only the second says yes to.
    """
    n, k = only_one + only_other, min(only_one, only_other)
    of_none = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(
        math.exp(of_none - math.lgamma(i + 1) - math.lgamma(n - i + 1)) for i in range(k + 1)
    )
    return min(1.0, 2 * tail)


# The saddlepoint is looked for between these logits; within chances of 1e-9 and 1 − 1e-9 it lies
# there.
_STEEPEST, _HALVINGS = 50.0, 60
# Below this variance the distribution is exact. It counts fewer than so many unlikely events, as
# more happen once in 1e70 times.
_FEW, _WINDOW = 1.0, 64


def poisson_binomial_score(successes: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """How far a number of successes is from what independent coins with different chances give, as
    a standard normal score.

    The score is z = Φ⁻¹(P(K < k) + P(K = k)/2) for K = Σ Bernoulli(chance), the Poisson-binomial
    distribution. Unlike (k − E K)/√Var K it has the right tails if few successes, or few failures,
    are expected: with an expectation of 0.05, a single success has a probability of 5% and a score
    of 1.9, but is 4.2 standard deviations out.

    If Var K < 1 the probabilities are exact. Otherwise P is taken, for 0 < k < T, from the
    saddlepoint approximation of Lugannani and Rice in Barndorff-Nielsen's form. With the cumulant
    function C(λ) = Σ ln(1 + p(e^λ − 1)) and C'(λ) = k,

        z = r + ln(u/r)/r,   r = sign(λ)·√(2(λk − C(λ))),   u = 2·tanh(λ/2)·√C''(λ),

    where this u, rather than λ√C'', accounts for the half of P(K = k) of an integer K. The tail's
    probability is then right to within about a tenth of itself. At both ends P(K = k) is a product
    and exact.

    Because half of P(K = k) is left out, P(z ≥ x) is at most twice the tail of a normal beyond x,
    for every x ≥ 0; likewise below.

    Args:
      successes: k, [...].
      chances: Chance of each coin, [..., T]; a coin with chance 0 changes nothing.

    Returns:
      The scores, [...].
    """
    k, p = np.asarray(successes, float), np.clip(np.asarray(chances, float), 1e-300, 1 - 1e-16)
    coins = (np.asarray(chances) > 0).sum(axis=-1)
    spread = (p * (1 - p)).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p, log_q = np.log(p), np.log1p(-p)
        logits = np.where(np.asarray(chances) > 0, log_p - log_q, -np.inf)
        low, high = np.full(k.shape, -_STEEPEST), np.full(k.shape, _STEEPEST)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = (1 / (1 + np.exp(-(logits + middle[..., None])))).sum(axis=-1) > k
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        tilt = (low + high) / 2
        tilted = 1 / (1 + np.exp(-(logits + tilt[..., None])))
        variance = (tilted * (1 - tilted)).sum(axis=-1)
        cumulant = np.logaddexp(log_q, logits + log_q + tilt[..., None]).sum(axis=-1)
        r = np.sign(tilt) * np.sqrt(2 * np.maximum(tilt * k - cumulant, 0))
        score = r + np.log(2 * np.tanh(tilt / 2) * np.sqrt(variance) / r) / r
        # Where r is near 0 both fractions lose their digits; Cornish and Fisher's first correction
        # serves there.
        x = (k - p.sum(axis=-1)) / np.sqrt(spread)
        skewness = (p * (1 - p) * (1 - 2 * p)).sum(axis=-1) / spread**1.5
        score = np.where(np.abs(r) < 0.02, x - skewness * (x**2 - 1) / 6, score)
    none, every = log_q.sum(axis=-1), np.where(np.asarray(chances) > 0, log_p, 0.0).sum(axis=-1)
    score = np.where(k <= 0, _lower_normal_score(none - math.log(2)), score)
    score = np.where(k >= coins, -_lower_normal_score(every - math.log(2)), score)
    # Beyond the window, where the saddlepoint serves, the score is huge.
    exact = (spread < _FEW) & (np.abs(k - (p > 0.5).sum(axis=-1)) < _WINDOW // 2)
    if exact.any():
        score[exact] = _score_of_few(k[exact], p[exact])
    return score


def _score_of_few(successes: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """The same score by convolution, if nearly every coin is certain: K − #{p > 1/2} counts the
    unlikely events.

    With coins that are nearly certain of both kinds, the saddlepoint would be between two of them,
    where no variance is left.
    """
    likely = chances > 0.5
    unlikely = np.where(likely, 1 - chances, chances)
    # Unlikely successes, and unlikely failures: [2, ..., window].
    mass = np.zeros((2, *successes.shape, _WINDOW))
    mass[..., 0] = 1
    for coin in range(chances.shape[-1]):
        chance = unlikely[..., coin] * np.stack([~likely[..., coin], likely[..., coin]])
        moved = chance[..., None] * mass
        mass -= moved
        mass[..., 1:] += moved[..., :-1]
    joint = mass[0][..., :, None] * mass[1][..., None, :]
    excess = np.subtract.outer(np.arange(_WINDOW), np.arange(_WINDOW))
    observed = (successes - likely.sum(axis=-1))[..., None, None]
    below, equal, above = (
        np.where(side, joint, 0).sum(axis=(-2, -1))
        for side in (excess < observed, excess == observed, excess > observed)
    )
    with np.errstate(divide="ignore"):
        score = _lower_normal_score(np.log(np.minimum(np.minimum(below, above) + equal / 2, 0.5)))
    return np.where(below < above, score, -score)


def _lower_normal_score(log_probability: np.ndarray) -> np.ndarray:
    """Φ⁻¹ of a probability of at most a half, given by its logarithm, however small."""
    found = np.asarray(log_probability, float)
    # −z²/2 − ln(|z|√2π) = ln P far out; twice through this from the first guess is enough where exp
    # would underflow.
    far = -np.sqrt(np.maximum(-2 * found, 1))
    for _ in range(3):
        far = -np.sqrt(np.maximum(-2 * (found + np.log(-far) + math.log(2 * math.pi) / 2), 1))
    near = [
        NormalDist().inv_cdf(min(max(math.exp(value), 1e-300), 0.5)) for value in np.ravel(found)
    ]
    return np.where(found < -600, far, np.reshape(near, found.shape))
