"""Do 90% intervals hold the truth in 90% of tables? Simulations of a ladder of 8 sizes and 6
budgets, noise of 0.5%.

A coverage that lies in [0.85, 0.95] fails its check with probability 0.005 at most, and at the
coverages that were measured (0.89 to 0.945) with less than 0.003: under 3% for all 15 checks
together. The seeds are fixed, so that only a change of code or of library can raise the alarm.
"""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import coverage_child
import jax
import numpy as np
import pytest
import scipy.stats

from sdsl_jax.fitting.law_fit import spread

CHILD = Path(coverage_child.__file__)
pytestmark = pytest.mark.release


def simulated(
    count: int, correlation: float, sizes: int = 8, processes: int = 2
) -> dict[str, np.ndarray]:
    """How often each kind of interval holds each coefficient."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "PYTHONPATH": str(CHILD.parents[1])
    }
    ends = [count * i // processes for i in range(processes + 1)]
    children = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(first), str(end), str(correlation), str(sizes)],
            env=env | {"JAX_PLATFORMS": "cpu"},
            text=True,
            stdout=subprocess.PIPE,
        )
        for first, end in itertools.pairwise(ends)
    ]
    try:
        outputs = [child.communicate(timeout=900)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert all(child.returncode == 0 for child in children)
    parts = [json.loads(output) for output in outputs]
    truth = np.asarray(jax.tree.leaves(coverage_child.TRUTH))
    hits = {}
    for kind in parts[0]:
        low, high = np.moveaxis(
            np.concatenate([np.asarray(part[kind], float) for part in parts]), 1, 0
        )
        hits[kind] = ((low <= truth) & (truth <= high)).sum(axis=0)
    print(f"{count} tables, {sizes} sizes, correlation {correlation}")
    print({kind: np.round(h / count, 3).tolist() for kind, h in hits.items()})
    return hits


def meets(hits: int, count: int) -> bool:
    """Whether the 99% interval of a coverage meets [0.85, 0.95]."""
    found = scipy.stats.binomtest(int(hits), count).proportion_ci(0.99)
    return found.low <= 0.95 and found.high >= 0.85


def test_intervals_of_independent_noise_cover():
    count = 400
    hits = simulated(count, 0.0)
    for kind in ("rows", "profile", "covariance"):
        assert all(meets(h, count) for h in hits[kind]), f"{kind}: {hits[kind] / count}"


def test_rows_of_one_run_are_not_independent():
    """Half of the noise shared within a size: a bootstrap over rows hides it, one over rungs does not."""
    count = 200
    hits = simulated(count, 0.5)
    of_sizes = [1, 3]  # A and a, which only differences between sizes tell
    assert (hits["rows"][of_sizes] / count < 0.8).all()
    assert all(meets(h, count) for h in hits["rungs"])


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_the_two_moments_of_the_noise(noise):
    """δ far below the noise: the share of residuals within δ is a density, and the standard error
    that follows is right.

    For one mean of n normal values the error of a Huber fit is known, √(E ψ²/n) / P(|r| ≤ δ).
    """
    delta, n, random = 1e-3, 50, np.random.default_rng(0)
    found = []
    for _ in range(2000):
        moments = spread(noise * random.normal(size=n), 0, delta)
        found.append(math.sqrt(moments.score / n) / moments.slope)
    values = noise * random.normal(size=1_000_000)
    truth = (
        math.sqrt(np.square(np.clip(values, -delta, delta)).mean() / n)
        / (np.abs(values) <= delta).mean()
    )
    assert np.median(found) == pytest.approx(truth, rel=0.08)
