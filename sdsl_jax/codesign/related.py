"""Problems that differ in their numbers alone, solved as one compiled program: neighbours, fronts, and draws of the laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.optimise import spread_starts
from sdsl_jax.codesign.program import ProgramInputs, Solved, sweep
from sdsl_jax.codesign.serving_problem import Problem

# So many at a time: whatever their number, a single compilation serves them.
_TOGETHER = 16
# The most draws of the laws that an interval is taken over.
_DRAWS = 160


def solve_together(problem: Problem, many: Sequence[ProgramInputs]) -> list[Solved]:
    """The optima of many problems of one program, a fixed number at a time."""
    found: list[Solved] = []
    optimizer = problem.config.optimizer
    starts = jnp.asarray(spread_starts(optimizer.starts, len(problem.program.variables)))
    for first in range(0, len(many), _TOGETHER):
        some = list(many[first : first + _TOGETHER])
        padded = some + [some[-1]] * (_TOGETHER - len(some))
        solved = jax.tree.map(
            np.asarray, sweep(problem.program, padded, starts, optimizer.learning_rate)
        )
        found += [jax.tree.map(lambda x, i=i: x[i], solved) for i in range(len(some))]
    return found


class Interval(NamedTuple):
    """What the draws of the laws leave open; the device is taken as known.

    Attributes:
      values: 90% interval of each variable, of speed-up and acceptance, by name; sizes in the count
        of the loss law. None if the laws have no draws, or none of them has an optimum.
      basis: what the intervals are taken over, or why there are none.
      draws: draws looked at.
      share_that_speculate: of all draws, those with an optimum that is faster than the target
        alone; None without draws.
      share_left_out: of all draws, those in which no design keeps the constraints, or α reaches 1;
        None without draws.
    """

    values: dict[str, list[float]] | None
    basis: str
    draws: int = 0
    share_that_speculate: float | None = None
    share_left_out: float | None = None


def interval_90(problem: Problem) -> Interval:
    """90% interval of the optimum over the draws of both laws, or why there is none."""
    laws = {"loss": problem.loss, "acceptance": problem.acceptance}
    without = [
        f"{kind} law {law.name}: {law.basis}" for kind, law in laws.items() if law.draws is None
    ]
    if without:
        return Interval(None, "; ".join(without))
    count = min(_DRAWS, *(len(jax.tree.leaves(law.draws)[0]) for law in laws.values()))
    many = []
    for i in range(count):
        drawn = {
            f"{kind}_law": jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), law.draws)
            for kind, law in laws.items()
        }
        many.append(problem.inputs._replace(serving=problem.inputs.serving._replace(**drawn)))
    return _interval(problem, solve_together(problem, many))


def _interval(problem: Problem, draws: Sequence[Solved]) -> Interval:
    """The interval over solved draws, those without an optimum left out."""
    found = [one for one in draws if _has_optimum(one)]
    left_out = 1 - len(found) / max(len(draws), 1)
    pays = sum(float(one.outcome.speedup) > 1 for one in found) / max(len(draws), 1)
    if not found:
        basis = f"in none of {len(draws)} draws of the laws a design keeps the constraints at α < 1"
        return Interval(None, basis, len(draws), pays, left_out)
    joint = problem.loss.joint is not None and problem.loss.joint == problem.acceptance.joint
    basis = (
        problem.loss.basis
        if joint
        else f"{problem.loss.basis}; {problem.acceptance.basis}; taken as independent"
    )

    def ends(values: list[float]) -> list[float]:
        return [float(x) for x in np.quantile(values, [0.05, 0.95])]

    def value(one: Solved, name: str) -> float:
        number = float(getattr(one.design, name))
        if name in ("draft_params", "target_params"):
            return problem.stated_size(
                number, name.partition("_")[0], float(one.design.aspect_ratio)
            )
        return number

    interval = {
        name: ends([value(one, name) for one in found]) for name in problem.program.variables
    }
    interval["speedup"] = ends([float(one.outcome.speedup) for one in found])
    interval["acceptance"] = ends([float(one.outcome.acceptance) for one in found])
    basis = f"{len(found)} draws; laws only, the device taken as known: {basis}"
    return Interval(interval, basis, len(draws), pays, left_out)


def _has_optimum(one: Solved) -> bool:
    return (
        bool(one.feasible)
        and bool(np.isfinite(one.objective))
        and float(one.outcome.acceptance) < 1
    )
