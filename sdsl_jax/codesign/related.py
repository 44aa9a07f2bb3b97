"""Problems that differ in their numbers alone, solved as one compiled program: neighbours, fronts, and draws of the laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.optimise import spread_starts
from sdsl_jax.codesign.program import Numbers, Solved, sweep
from sdsl_jax.codesign.serving_problem import Problem

# So many at a time: whatever their number, a single compilation serves them.
_TOGETHER = 16
# The most draws of the laws that an interval is taken over.
_DRAWS = 160


def solve_together(problem: Problem, many: Sequence[Numbers]) -> list[Solved]:
    """The optima of many problems of one task, a fixed number at a time."""
    found: list[Solved] = []
    optimizer = problem.config.optimizer
    starts = jnp.asarray(spread_starts(optimizer.starts, len(problem.task.variables)))
    for first in range(0, len(many), _TOGETHER):
        some = list(many[first : first + _TOGETHER])
        padded = some + [some[-1]] * (_TOGETHER - len(some))
        solved = jax.tree.map(np.asarray, sweep(problem.task, padded, starts, optimizer.learning_rate))
        found += [jax.tree.map(lambda x, i=i: x[i], solved) for i in range(len(some))]
    return found


def interval_90(problem: Problem) -> tuple[dict[str, Any] | None, str]:
    """90 % interval of the optimum over the draws of both laws, or why there is none."""
    laws = {"loss": problem.loss, "acceptance": problem.acceptance}
    without = [f"{kind} law {law.name}: {law.basis}" for kind, law in laws.items() if law.draws is None]
    if without:
        return None, "; ".join(without)
    count = min(_DRAWS, *(len(jax.tree.leaves(law.draws)[0]) for law in laws.values()))
    many = []
    for i in range(count):
        drawn = {f"{kind}_law": jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), law.draws) for kind, law in laws.items()}
        many.append(problem.numbers._replace(serving=problem.numbers.serving._replace(**drawn)))
    found = [one for one in solve_together(problem, many) if np.isfinite(one.objective)]
    joint = problem.loss.joint is not None and problem.loss.joint == problem.acceptance.joint
    basis = problem.loss.basis if joint else f"{problem.loss.basis}; {problem.acceptance.basis}; taken as independent"

    def ends(values: list[float]) -> list[float]:
        return [float(x) for x in np.quantile(values, [0.05, 0.95])]

    interval: dict[str, Any] = {
        name: ends([float(getattr(one.design, name)) for one in found])
        for name in problem.task.variables
        if name != "draft_params"
    }
    if "draft_params" in problem.task.variables:
        interval["draft_params"] = ends([problem.stated_size(one.design.draft_params, "draft") for one in found])
    interval["speedup"] = ends([float(one.outcome.speedup) for one in found])
    interval["acceptance"] = ends([float(one.outcome.acceptance) for one in found])
    return interval, f"{len(found)} draws of the laws: {basis}"
