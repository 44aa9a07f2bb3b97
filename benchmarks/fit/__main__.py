"""`python -m benchmarks.fit [--json FILE] [--peer-python PATH]`: fits of a loss law, ours beside
scipy and `chinchilla`.

All are given 64 starts, and judged by one objective: Σ huber(ln L̂ − ln L), δ = 0.001. scipy's
L-BFGS-B runs over the log-sum-exp parametrisation of Hoffmann et al., unbounded, from starts of
their grid: with numerical gradients, as is customary, with the analytic one, and with tolerances
fit for an objective of 10⁻³ (scipy's own are absolute below 1). The package `chinchilla` (0.2.0)
runs BFGS in extended precision in a process of its own: `pip install chinchilla==0.2.0` into an
environment of its own, and --peer-python names its interpreter. Turns are interleaved; times are
medians, compilation apart.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.optimize

from benchmarks.child import ChildProcess
from benchmarks.fit.problem import (
    DELTA,
    TABLES,
    Losses,
    logs,
    objective,
    objective_and_gradient,
    published_starts,
)
from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.forms import LOSS_FORMS, loss_data
from sdsl_jax.fitting.solver import descend, fit, refit
from sdsl_jax.statistics import bootstrap_weights
from sdsl_jax.theory import coefficients

STARTS, BOOTSTRAPS, GOAL_SECONDS = 64, 1000, 3.0
# scipy contenders: (label, analytic gradient, options).
TIGHT = {"ftol": 1e-12, "gtol": 1e-8, "maxiter": 1000, "maxfun": 2000}
CONTENDERS: tuple[tuple[str, bool, dict[str, float]], ...] = (
    ("scipy, numerical gradient", False, {}),
    ("scipy, analytic gradient", True, {}),
    ("scipy, analytic and tight", True, TIGHT),
)
# Starts within this share of the best objective that any method found have reached it.
REACHED = 1e-3
# Resamples that scipy is timed on; its time for all is that times as many.
TIMED_RESAMPLES = 10


class Ours:
    """Fit and bootstrap of one table."""

    def __init__(self, table: Losses) -> None:
        self.form = LOSS_FORMS["chinchilla"]
        self.data = loss_data(table.params, table.tokens, table.loss)
        self.starts = jnp.asarray(self.form.starts(self.data, STARTS, np.random.default_rng(0)))
        self.ones = jnp.ones(len(table.loss))
        self.weights = jnp.asarray(bootstrap_weights(len(table.loss), BOOTSTRAPS, 0))

    def fit(self) -> Any:
        """The best of all starts."""
        self.best = jax.block_until_ready(
            fit(self.form.residuals, self.starts, self.data, self.ones, DELTA)
        )
        return self.best

    def bootstrap(self) -> Any:
        """All resamples, each from the two starts that `sdsl fit` gives them."""
        x = self.best.parameters
        around = jnp.stack([x, x.at[0].set(0.0)])
        return jax.block_until_ready(
            refit(self.form.residuals, around, self.data, self.weights, DELTA)
        )

    def ends(self) -> np.ndarray:
        """Objectives that the starts end at."""
        weights = np.ones((len(self.starts), len(self.ones)))
        return np.asarray(
            descend(self.form.residuals, self.starts, self.data, weights, DELTA).objective
        )

    def coefficients(self) -> np.ndarray:
        """E, A, B, a, b."""
        return np.asarray(
            [
                float(v)
                for v in coefficients(self.form.to_law(self.best.parameters, self.data)).values()
            ]
        )


def by_scipy(
    table: Losses, starts: np.ndarray, analytic: bool, options: dict[str, float]
) -> list[Any]:
    """L-BFGS-B from every start."""
    function = objective_and_gradient if analytic else objective
    return [
        scipy.optimize.minimize(
            function, start, args=(table,), jac=analytic or None, method="L-BFGS-B", options=options
        )
        for start in starts
    ]


def resamples(table: Losses, start: np.ndarray, analytic: bool, options: dict[str, float]) -> None:
    """The timed resamples, each from the optimum alone."""
    random = np.random.default_rng(0)
    for _ in range(TIMED_RESAMPLES):
        rows = random.integers(0, len(table.loss), len(table.loss))
        by_scipy(Losses(*(column[rows] for column in table)), start[None], analytic, options)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds, and what came of it."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def race(name: str, table: Losses, turns: int, peer: ChildProcess | None) -> dict[str, Any]:
    """All contenders on one table."""
    ours, starts = Ours(table), published_starts(STARTS)
    first_fit, first_bootstrap = timed(ours.fit)[0], timed(ours.bootstrap)[0]
    times: dict[str, list[float]] = {}
    ends: dict[str, list[Any]] = {}
    peers: dict[str, dict[str, Any]] = {}

    def take(label: str, work: Callable[[], Any]) -> Any:
        seconds, found = timed(work)
        times.setdefault(label, []).append(seconds)
        return found

    for turn in range(turns):
        take("ours", ours.fit)
        take("ours, bootstrap", ours.bootstrap)
        for label, analytic, options in CONTENDERS:
            ends[label] = take(label, functools.partial(by_scipy, table, starts, analytic, options))
            best = min(ends[label], key=lambda end: end.fun).x
            take(
                f"{label}, bootstrap", functools.partial(resamples, table, best, analytic, options)
            )
        for label, delta in (("chinchilla, its default", None), ("chinchilla, log Huber", DELTA)):
            if peer is not None and (turn == 0 or delta is not None):
                columns = {
                    "params": table.params.tolist(),
                    "tokens": table.tokens.tolist(),
                    "loss": table.loss.tolist(),
                }
                peers[label] = peer.ask("fit", **columns, delta=delta)
                times.setdefault(label, []).append(peers[label]["seconds"])
    lowest = min(float(ours.best.objective), *(end.fun for found in ends.values() for end in found))

    def reached(values: np.ndarray) -> float:
        return float((values <= lowest * (1 + REACHED)).mean())

    median = {label: statistics.median(values) for label, values in times.items()}
    rows = [
        {
            "method": "ours",
            "seconds": median["ours"],
            "bootstrap_seconds": median["ours, bootstrap"],
            "compile_seconds": first_fit - median["ours"],
            "bootstrap_compile_seconds": first_bootstrap - median["ours, bootstrap"],
            "starts_at_best": reached(ours.ends()),
            "coefficients": ours.coefficients().tolist(),
        }
    ]
    for label, found in ends.items():
        values = np.asarray([end.fun for end in found])
        best = found[int(np.argmin(values))].x
        rows.append(
            {
                "method": label,
                "seconds": median[label],
                "bootstrap_seconds": median[f"{label}, bootstrap"] * BOOTSTRAPS / TIMED_RESAMPLES,
                "bootstrap_extrapolated_from": TIMED_RESAMPLES,
                "starts_at_best": reached(values),
                "coefficients": [*np.exp(best[:3]).tolist(), *best[3:].tolist()],
            }
        )
    for label, answer in peers.items():
        rows.append(
            {"method": label, "seconds": median[label], "coefficients": answer["coefficients"]}
        )
    for row in rows:
        row["objective"] = objective(logs(np.asarray(row["coefficients"])), table)
        row["seconds_per_start"] = row["seconds"] / STARTS
        row["times_ours"] = row["seconds"] / median["ours"]
        if "bootstrap_seconds" in row:
            row["bootstrap_times_ours"] = row["bootstrap_seconds"] / median["ours, bootstrap"]
    return {"table": name, "rows": rows, "seconds_of_turns": times}


def main() -> None:
    """Prints the tables; writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PATH",
        help="of an environment that has chinchilla 0.2.0",
    )
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    found: dict[str, Any] = {
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "versions": f"python {platform.python_version()}, jax {jax.__version__}, scipy {scipy.__version__}",
        "load_before": os.getloadavg()[0],
        "starts": STARTS,
        "bootstraps": BOOTSTRAPS,
        "huber_delta": DELTA,
        "goal_seconds": GOAL_SECONDS,
    }
    peer: ChildProcess | None = ChildProcess(
        "benchmarks.fit.chinchilla_child", "the package chinchilla", python=arguments.peer_python
    )
    try:
        assert peer is not None
        found["peer"] = peer.ask("versions")
    except SdslError as error:
        found["peer"] = None
        print(
            f"chinchilla is left out: {error} Install it into an environment of its own and give --peer-python."
        )
        peer = None
    try:
        found["tables"] = [
            race(name, make(), arguments.turns, peer) for name, make in TABLES.items()
        ]
    finally:
        if peer is not None:
            peer.close()
    found["load_after"] = os.getloadavg()[0]
    found["finished"] = time.strftime("%Y-%m-%d")
    show(found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def show(found: dict[str, Any]) -> None:
    """The tables as text."""
    print(
        f"{found['device']}; {found['versions']}; load {found['load_before']:.1f} before, {found['load_after']:.1f} after"
    )
    for table in found["tables"]:
        print(f"\n{table['table']}; {STARTS} starts")
        print(
            f"{'':27s}{'objective':>12s}{'at best':>9s}{'seconds':>10s}{'× ours':>8s}"
            f"{'1,000 resamples':>17s}{'× ours':>8s}   E, A, B, a, b"
        )
        for row in table["rows"]:
            reached = f"{row['starts_at_best']:.0%}" if "starts_at_best" in row else "–"
            resampled, ratio = "–", "–"
            if "bootstrap_seconds" in row:
                resampled, ratio = (
                    f"{row['bootstrap_seconds']:.2f} s",
                    f"{row['bootstrap_times_ours']:.1f}",
                )
            values = ", ".join(f"{value:.4g}" for value in row["coefficients"])
            print(
                f"{row['method']:27s}{row['objective']:12.6g}{reached:>9s}{row['seconds']:10.3f}{row['times_ours']:8.1f}"
                f"{resampled:>17s}{ratio:>8s}   {values}"
            )
        ours = table["rows"][0]
        both = ours["seconds"] + ours["bootstrap_seconds"]
        compiling = ours["compile_seconds"] + ours["bootstrap_compile_seconds"]
        # The goal is one for 250 models.
        verdict = (
            f"; goal {GOAL_SECONDS:g} s: {'met' if both < GOAL_SECONDS else 'missed'}"
            * table["table"].startswith("simulated")
        )
        print(
            f"ours, both: {both:.2f} s, and {compiling:.1f} s of compilation the first time{verdict}"
        )


if __name__ == "__main__":
    main()
