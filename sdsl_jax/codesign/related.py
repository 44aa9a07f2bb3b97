"""Problems that differ in their numbers alone, solved as one compiled program: neighbours, fronts, and draws of the laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.laws import intervals_over_draws, law_draws
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
    draws = law_draws(problem.loss, problem.acceptance, _DRAWS)
    if not draws.count:
        return Interval(None, draws.basis)
    many = []
    for i in range(draws.count):
        loss, acceptance = jax.tree.map(lambda x, i=i: x[i], (draws.loss, draws.acceptance))
        serving = problem.inputs.serving._replace(loss_law=loss, acceptance_law=acceptance)
        many.append(problem.inputs._replace(serving=serving))
    return _interval(problem, solve_together(problem, many), draws.basis)


def _interval(problem: Problem, draws: Sequence[Solved], basis: str) -> Interval:
    """The interval over solved draws, those without an optimum left out."""

    def value(one: Solved, name: str) -> float:
        number = float(getattr(one.design, name))
        if name in ("draft_params", "target_params"):
            return problem.stated_size(
                number, name.partition("_")[0], float(one.design.aspect_ratio)
            )
        return number

    values = {name: [value(one, name) for one in draws] for name in problem.program.variables}
    for name in ("speedup", "acceptance"):
        values[name] = [float(getattr(one.outcome, name)) for one in draws]
    has_optimum = [_has_optimum(one) for one in draws]
    found = intervals_over_draws(values, values["speedup"], has_optimum)
    said = (
        f"in none of {len(draws)} draws of the laws a design keeps the constraints at α < 1"
        if found.ends is None
        else f"{sum(has_optimum)} draws; laws only, the device taken as known: {basis}"
    )
    shares = found.share_that_speculate, found.share_without_optimum
    return Interval(found.ends, said, len(draws), *shares)


def _has_optimum(one: Solved) -> bool:
    return (
        bool(one.feasible)
        and bool(np.isfinite(one.objective))
        and float(one.outcome.acceptance) < 1
    )
