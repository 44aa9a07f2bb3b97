"""What test_coverage.py runs in processes of its own, with all passes of the compiler: here the
arithmetic takes the time.

    coverage_child.py FIRST END CORRELATION SIZES

A ladder of SIZES sizes and 6 budgets, from tables of seed FIRST up to END, rows of one size sharing
a share CORRELATION of their variance. Prints as JSON, for each kind of interval, [simulations, 2,
coefficients].
"""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.fitting.forms import LOSS_FORMS, LossData, loss_data
from sdsl_jax.fitting.law_fit import covariance, profile_intervals
from sdsl_jax.fitting.solver import Fit, fit, refit
from sdsl_jax.statistics import bootstrap_weights, student_quantile
from sdsl_jax.theory import ChinchillaLaw, coefficients

TRUTH = ChinchillaLaw(E=1.2, A=12.0, B=60.0, a=0.35, b=0.4)
FORM = LOSS_FORMS["chinchilla"]
BUDGETS, DELTA, NOISE, DRAWS = 6, 1e-3, 0.005, 200


def simulate(seed: int, correlation: float, sizes: int) -> tuple[LossData, Fit]:
    """A table, and the fit of it."""
    random = np.random.default_rng(seed)
    params = np.geomspace(1e3, 3e5, sizes).repeat(BUDGETS)
    tokens = np.tile(np.geomspace(1e5, 2e7, BUDGETS), sizes)
    own, shared = random.normal(size=len(params)), random.normal(size=sizes).repeat(BUDGETS)
    noise = NOISE * (math.sqrt(1 - correlation) * own + math.sqrt(correlation) * shared)
    data = loss_data(params, tokens, np.asarray(TRUTH(params, tokens)) * np.exp(noise))
    starts = jnp.asarray(FORM.starts(data, 8, random))
    return data, fit(FORM.residuals, starts, data, jnp.ones(len(params)), DELTA)


def bootstrap(data: LossData, best: Fit, weights: np.ndarray) -> list:
    drawn = refit(FORM.residuals, best.parameters[None], data, jnp.asarray(weights), DELTA)
    draws = coefficients(jax.vmap(lambda x: FORM.to_law(x, data))(drawn.parameters))
    return np.quantile(np.stack(list(draws.values())), [0.05, 0.95], axis=1).tolist()


def intervals(seed: int, correlation: float, sizes: int) -> dict[str, list]:
    data, best = simulate(seed, correlation, sizes)
    n = sizes * BUDGETS
    found = {"rows": bootstrap(data, best, bootstrap_weights(n, DRAWS, seed))}
    if correlation > 0:
        rungs = bootstrap_weights(sizes, DRAWS, seed).repeat(BUDGETS, axis=1)
        found["rungs"] = bootstrap(data, best, rungs)
    else:
        errors = np.sqrt(np.diag(covariance(FORM, best, data, DELTA)))
        half = student_quantile(0.95, n - len(errors)) * errors
        centre = np.asarray(jax.tree.leaves(FORM.to_law(best.parameters, data)))
        ends = profile_intervals(FORM, best, data, DELTA, errors, 0.9).ends
        found["covariance"] = np.stack([centre - half, centre + half]).tolist()
        found["profile"] = np.asarray([ends[name] for name in FORM.names()]).T.tolist()
    return found


if __name__ == "__main__":
    first, end, correlation, sizes = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]),
        int(sys.argv[4]),
    )
    with jax.enable_x64(True):
        made = [intervals(seed, correlation, sizes) for seed in range(first, end)]
    print(json.dumps({kind: [row[kind] for row in made] for kind in made[0]}))
