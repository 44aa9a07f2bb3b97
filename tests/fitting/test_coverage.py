"""Do 90 % intervals hold the truth in 90 % of tables? Simulations of a ladder of 8 sizes and 6 budgets, noise of .5 %.

A coverage that lies in [.85, .95] fails its check here with probability .005 at most, and at the coverages that were measured
(.89 to .94) with less than .003: under 3 % for all 15 checks together. The seeds are fixed, so that only a change of code or of
library can raise the alarm.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sdsl_jax.fitting.forms import LOSS_FORMS, loss_data
from sdsl_jax.fitting.inference import bootstrap_weights, covariance, profile_intervals, spread
from sdsl_jax.fitting.solver import fit, refit
from sdsl_jax.statistics import student_quantile
from sdsl_jax.theory import ChinchillaLaw, coefficients

pytestmark = pytest.mark.slow

TRUTH = ChinchillaLaw(E=1.2, A=12.0, B=60.0, a=0.35, b=0.4)
FORM = LOSS_FORMS["chinchilla"]
SIZES = np.geomspace(1e3, 3e5, 8).repeat(6)
BUDGETS = np.tile(np.geomspace(1e5, 2e7, 6), 8)
RUNGS = np.arange(8).repeat(6)
DELTA, NOISE = 1e-3, 0.005


def simulate(seed: int, correlation: float):
    """A table whose rows of one size share a part of their noise, and the fit of it."""
    random = np.random.default_rng(seed)
    own, shared = random.normal(size=len(SIZES)), random.normal(size=8)[RUNGS]
    noise = NOISE * (math.sqrt(1 - correlation) * own + math.sqrt(correlation) * shared)
    data = loss_data(SIZES, BUDGETS, np.asarray(TRUTH(SIZES, BUDGETS)) * np.exp(noise))
    starts = jnp.asarray(FORM.starts(data, 8, random))
    return data, fit(FORM.residuals, starts, data, jnp.ones(len(SIZES)), DELTA)


def bootstrap(data, best, weights):
    drawn = refit(FORM.residuals, best.parameters[None], data, jnp.asarray(weights), DELTA)
    draws = coefficients(jax.vmap(lambda x: FORM.to_law(x, data))(drawn))
    return np.quantile(np.stack(list(draws.values())), [0.05, 0.95], axis=1)


def coverage(intervals: list) -> np.ndarray:
    """How often each coefficient lies between the ends; intervals of [simulations, 2, coefficients]."""
    low, high = np.moveaxis(np.asarray(intervals), 1, 0)
    truth = np.asarray(jax.tree.leaves(TRUTH))
    return ((low <= truth) & (truth <= high)).sum(axis=0)


def meets(hits: int, count: int) -> bool:
    """Whether the 99 % interval of a coverage meets [.85, .95]."""
    found = scipy.stats.binomtest(int(hits), count).proportion_ci(0.99)
    return found.low <= 0.95 and found.high >= 0.85


def test_intervals_of_independent_noise_cover(x64):
    count = 400
    found: dict[str, list] = {"bootstrap": [], "profile": [], "covariance": []}
    quantile = student_quantile(0.95, len(SIZES) - 5)
    for seed in range(count):
        data, best = simulate(seed, 0.0)
        errors = np.sqrt(np.diag(covariance(FORM, best, data, DELTA)))
        centre = np.asarray(jax.tree.leaves(FORM.to_law(best.parameters, data)))
        profile = profile_intervals(FORM, best, data, DELTA, errors, 0.9)
        found["bootstrap"].append(bootstrap(data, best, bootstrap_weights(len(SIZES), 200, seed)))
        found["profile"].append(np.asarray([profile[name] for name in FORM.names()]).T)
        found["covariance"].append([centre - quantile * errors, centre + quantile * errors])
    shares = {kind: coverage(intervals) for kind, intervals in found.items()}
    print({kind: np.round(hits / count, 3).tolist() for kind, hits in shares.items()})
    for kind, hits in shares.items():
        assert all(meets(h, count) for h in hits), f"{kind}: {hits / count}"


def test_rows_of_one_run_are_not_independent(x64):
    """Half of the noise shared within a size: a bootstrap over rows hides it, one over rungs does not."""
    count = 150
    rows, rungs = [], []
    for seed in range(count):
        data, best = simulate(seed, 0.5)
        rows.append(bootstrap(data, best, bootstrap_weights(len(SIZES), 200, seed)))
        rungs.append(bootstrap(data, best, bootstrap_weights(8, 200, seed)[:, RUNGS]))
    by_rows, by_rungs = (coverage(found) for found in (rows, rungs))
    print(np.round(by_rows / count, 3), np.round(by_rungs / count, 3))
    sizes = [1, 3]  # A and a, which the sizes tell
    assert (by_rows[sizes] / count < 0.8).all()
    assert all(meets(h, count) for h in by_rungs)


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_the_two_moments_of_the_noise(noise):
    """δ far below the noise: the share of residuals within δ is a density, and the standard error that follows is right.

    For one mean of n normal values the error of a Huber fit is known, √(E ψ²/n)/P(|r| ≤ δ).
    """
    delta, n, random = 1e-3, 50, np.random.default_rng(0)
    found = []
    for _ in range(2000):
        moments = spread(noise * random.normal(size=n), 0, delta)
        found.append(math.sqrt(moments.score / n) / moments.slope)
    values = noise * random.normal(size=1_000_000)
    truth = math.sqrt(np.square(np.clip(values, -delta, delta)).mean() / n) / (np.abs(values) <= delta).mean()
    assert np.median(found) == pytest.approx(truth, rel=0.08)
