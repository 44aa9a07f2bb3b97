"""`python -m benchmarks.codesign [--json FILE] [--turns 5] [--starts 16]`: our constrained programs
beside scipy's optimisers.

All solve the same programs in the same coordinates and box, from the same starts, with one
objective: the compiled functions of `sdsl_jax.codesign.program`, which scipy calls one point at a
time. scipy's SLSQP, trust-constr and (where nothing is constrained) L-BFGS-B run with derivatives
from jax, and with their own finite differences; all at their default tolerances. Ours runs one
problem, and a sweep of 64 of them as one program. Turns are interleaved; times are medians,
compilation apart. A start has reached the optimum if it is feasible, and its objective within 1e-6
of the best that any method found.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.optimize
from rich.console import Console
from rich.table import Table

from benchmarks.codesign.problems import PROGRAMS, inputs
from sdsl_jax.codesign import Program, solve, spread_starts, sweep
from sdsl_jax.codesign.program import box, objective_and_constraints

SWEEP = 64
REACHED = FEASIBLE = 1e-6
LEARNING_RATE = 0.1


class Scipy:
    """One program as scipy takes it."""

    def __init__(self, program: Program, starts: np.ndarray) -> None:
        given = inputs(program)
        both, within = objective_and_constraints(program, given), box(program, given)
        self.low, self.high = np.asarray(within.low), np.asarray(within.high)
        self.starts = self.low + starts * (self.high - self.low)
        self.constrained = bool(program.constraints)
        self.values = jax.jit(both)
        self._objective = jax.jit(lambda x: both(x)[0])
        self._constraints = jax.jit(lambda x: both(x)[1])
        self._objective_and_slope = jax.jit(jax.value_and_grad(lambda x: both(x)[0]))
        self._slopes = jax.jit(jax.jacfwd(lambda x: both(x)[1]))

    def objective(self, x: np.ndarray) -> float:
        """F of one point."""
        return float(self._objective(x))

    def objective_and_slope(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """F of one point, and its gradient."""
        value, slope = self._objective_and_slope(x)
        return float(value), np.asarray(slope)

    def constraints(self, x: np.ndarray) -> np.ndarray:
        """G of one point, ≤ 0 where it holds."""
        return np.asarray(self._constraints(x))

    def slopes(self, x: np.ndarray) -> np.ndarray:
        """The Jacobian of g."""
        return np.asarray(self._slopes(x))

    def solve(self, method: str, derivatives: bool) -> list[Any]:
        """From every start."""
        settings: dict[str, Any] = {
            "method": method,
            "bounds": scipy.optimize.Bounds(self.low, self.high, True),
        }
        if self.constrained and method == "SLSQP":
            rows: dict[str, Any] = {"type": "ineq", "fun": lambda x: -self.constraints(x)}
            settings["constraints"] = rows | (
                {"jac": lambda x: -self.slopes(x)} if derivatives else {}
            )
        elif self.constrained:
            slopes: Any = self.slopes if derivatives else "2-point"
            settings["constraints"] = scipy.optimize.NonlinearConstraint(
                self.constraints, -np.inf, 0.0, jac=slopes
            )
        function: Any = self.objective_and_slope if derivatives else self.objective
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [
                scipy.optimize.minimize(function, start, jac=derivatives or None, **settings)
                for start in self.starts
            ]

    def judge(self, x: np.ndarray) -> float:
        """The objective where the point is feasible, infinity where it is not."""
        f, g = self.values(np.clip(x, self.low, self.high))
        return float(f) if np.max(g, initial=-np.inf) <= FEASIBLE else float("inf")


def race(name: str, program: Program, count: int, turns: int, console: Console) -> dict[str, Any]:
    """All contenders on one program."""
    console.print(f"{name} ...", highlight=False)
    starts = spread_starts(count, len(program.variables))
    peer = Scipy(program, starts)
    one = inputs(program)
    many = [inputs(program, context) for context in np.geomspace(512, 16384, SWEEP)]
    methods = ("SLSQP", "trust-constr", *(() if program.constraints else ("L-BFGS-B",)))
    work: dict[str, Callable[[], Any]] = {
        "ours": lambda: jax.block_until_ready(
            solve(program, one, jnp.asarray(starts), LEARNING_RATE)
        ),
        "ours, a sweep of 64": lambda: jax.block_until_ready(
            sweep(program, many, jnp.asarray(starts), LEARNING_RATE)
        ),
    }
    for method in methods:
        for derivatives in (True, False):
            label = (
                f"scipy {method}, {'derivatives of jax' if derivatives else 'finite differences'}"
            )
            work[label] = functools.partial(peer.solve, method, derivatives)
    times: dict[str, list[float]] = {label: [] for label in work}
    ends: dict[str, Any] = {}
    for _ in range(turns + 1):  # the first turn compiles
        for label, run in work.items():
            began = time.perf_counter()
            ends[label] = run()
            times[label].append(time.perf_counter() - began)
    objectives = {
        label: [peer.judge(end.x) for end in ends[label]]
        for label in work
        if label.startswith("scipy")
    }
    lowest = min(
        float(ends["ours"].objective), *(value for found in objectives.values() for value in found)
    )
    seconds = {label: statistics.median(values[1:]) for label, values in times.items()}
    rows = []
    for label in work:
        row: dict[str, Any] = {
            "method": label,
            "seconds": seconds[label],
            "first_seconds": times[label][0],
        }
        if label == "ours":
            row |= {
                "above_best": float(ends[label].objective) - lowest,
                "starts_at_best": float(ends[label].starts_agreeing),
            }
            row |= {"kkt_residual": float(ends[label].kkt_residual)}
        elif label in objectives:
            values = np.asarray(objectives[label])
            row |= {
                "above_best": float(values.min()) - lowest,
                "starts_at_best": float((values <= lowest + REACHED).mean()),
            }
        else:
            row |= {
                "seconds": seconds[label] / SWEEP,
                "kkt_residual": float(ends[label].kkt_residual.max()),
            }
            row |= {"starts_at_best": float(ends[label].starts_agreeing.mean())}
        row["times_ours"] = row["seconds"] / seconds["ours"]
        rows.append(row)
    return {
        "task": name,
        "variables": program.variables,
        "constraints": program.constraints,
        "rows": rows,
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The tables."""
    console.print(
        f"{found['device']}; {found['versions']}; load {found['load_before']:.1f} to {found['load_after']:.1f}"
    )
    for program in found["tasks"]:
        table = Table(title=f"{program['task']}; {found['starts']} starts", title_justify="left")
        for column in (
            "method",
            "seconds a problem",
            "× ours",
            "starts at the optimum",
            "best, above the lowest",
            "first call, s",
        ):
            table.add_column(column, justify="left" if column == "method" else "right")
        for row in program["rows"]:
            above = f"{row['above_best']:.1e}" if "above_best" in row else "–"
            table.add_row(
                row["method"],
                f"{row['seconds']:.4f}",
                f"{row['times_ours']:.2f}",
                f"{row['starts_at_best']:.0%}",
                above,
                f"{row['first_seconds']:.1f}",
            )
        console.print(table)


def main() -> None:
    """Prints the tables; writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--starts", type=int, default=16)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    console = Console(width=None if os.isatty(1) else 130)
    found: dict[str, Any] = {
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        "versions": f"python {platform.python_version()}, jax {jax.__version__}, scipy {scipy.__version__}",
        "load_before": os.getloadavg()[0],
        "starts": arguments.starts,
        "sweep": SWEEP,
    }
    found["tasks"] = [
        race(name, program, arguments.starts, arguments.turns, console)
        for name, program in PROGRAMS.items()
    ]
    found["load_after"] = os.getloadavg()[0]
    found["finished"] = time.strftime("%Y-%m-%d")
    show(found, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
