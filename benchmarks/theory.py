"""`python -m benchmarks.theory [--json]`: optimal drafts per second, beside the paper's own way on
the same targets.

The paper searches a grid of draft sizes for each target and takes γ* from the Lambert W function.
The loop here does that with scipy, a Python loop over targets and vectorised over the grid, and
then polishes the best point by scipy's bounded Brent search to the accuracy that the closed form
has. Ours solves all targets in one compiled call, indifference intervals included.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, Scenario

DRAFT_TOKENS, TARGET_TOKENS = 180e9, 3e12
GRID = 1000


def negative_log_speedup(x: np.ndarray, m: float) -> np.ndarray:
    """−ln S* in numpy, by the paper's Lambert form; 0 where no lookahead pays."""
    law, plane = BESIROGLU, PAPER_PLANE

    def perplexity(n, d):
        return np.exp(law.E + law.A * n**-law.a + law.B * d**-law.b)

    n = np.exp(x)
    c = n / m
    alpha = plane.A * perplexity(n, DRAFT_TOKENS) + plane.B * perplexity(m, TARGET_TOKENS) + plane.C
    inside = np.clip(alpha, 1e-9, 1 - 1e-9)
    log_alpha = np.log(inside)
    with np.errstate(all="ignore"):
        gamma = (
            1 + scipy.special.lambertw(-(inside ** (1 / c - 1)) / np.e, -1).real
        ) / log_alpha - 1 / c
    gamma = np.where(np.isfinite(gamma) & (gamma > 0) & (alpha > 0), gamma, 0.0)
    return -np.log((1 - inside ** (gamma + 1)) / (1 - inside) / (gamma * c + 1))


def by_scipy(targets: np.ndarray, polish: bool) -> np.ndarray:
    """N* of each target: grid search, and Brent's method around its best point."""
    found = []
    for m in targets:
        grid = np.linspace(np.log(1e6), np.log(m), GRID)
        best = int(np.argmin(negative_log_speedup(grid, m)))
        if polish:
            ends = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
            options = {"xatol": 1e-10}
            x = scipy.optimize.minimize_scalar(
                negative_log_speedup, bounds=ends, args=(m,), method="bounded", options=options
            ).x
        else:
            x = grid[best]
        found.append(np.exp(x))
    return np.array(found)


@jax.jit
def by_jax(targets: jax.Array) -> tuple[jax.Array, ...]:
    """N*, S* and both intervals of all targets at once."""

    def one(m):
        best = Scenario(m, DRAFT_TOKENS, TARGET_TOKENS, BESIROGLU, PAPER_PLANE).optimum()
        return best.params, best.speedup, *best.indifference_1pct, *best.indifference_5pct

    return jax.vmap(one)(targets)


def _solve_all(sizes: jax.Array) -> object:
    return jax.block_until_ready(by_jax(sizes))


def seconds(work: Callable[[], object], repetitions: int) -> float:
    """Median wall-clock seconds, the first run aside."""
    work()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--targets", type=int, default=100_000, help="for ours; scipy loops over 200 of them"
    )
    arguments = parser.parse_args()
    few = np.geomspace(1e9, 1e12, 200)
    rows: list[dict[str, Any]] = []
    for name, work in (
        ("scipy loop, grid alone", lambda: by_scipy(few, False)),
        ("scipy loop, grid and Brent", lambda: by_scipy(few, True)),
    ):
        rows.append({"method": name, "targets": len(few), "seconds": seconds(work, 3)})
    many = np.geomspace(1e9, 1e12, arguments.targets)
    truth = by_scipy(few, True)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            sizes = jnp.asarray(many)
            duration = seconds(functools.partial(_solve_all, sizes), 7)
            error = float(
                np.max(np.abs(np.asarray(by_jax(jnp.asarray(few))[0], float) / truth - 1))
            )
        precision = "float64" if x64 else "float32"
        name = f"one vmapped call, {precision}, with intervals"
        rows.append(
            {"method": name, "targets": len(many), "seconds": duration, "largest_difference": error}
        )
    for row in rows:
        row["solves_per_second"] = row["targets"] / row["seconds"]
        row["ratio"] = row["solves_per_second"] / (rows[1]["targets"] / rows[1]["seconds"])
    result = {
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "versions": f"python {platform.python_version()}, jax {jax.__version__}, scipy {scipy.__version__}",
        "rows": rows,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['device']}; {result['versions']}")
    for row in rows:
        difference = (
            f", N* within {row['largest_difference']:.0e} of scipy's"
            if "largest_difference" in row
            else ""
        )
        print(
            f"{row['method']:45s} {row['solves_per_second']:12,.0f} solves/s  {row['ratio']:8.1f}×  "
            f"({row['targets']:,} in {row['seconds']:.2f} s{difference})"
        )


if __name__ == "__main__":
    main()
