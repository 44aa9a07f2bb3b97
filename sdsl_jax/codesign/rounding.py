"""From a real-valued optimum to a design that can be built: whole lookaheads and batches, and models that exist."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.codesign.program import Numbers, Solved, Task, box, coordinates, solve
from sdsl_jax.errors import require

_WHOLE = ("lookahead", "batch")


class Rounded(NamedTuple):
    """The best allowed neighbour of an optimum.

    Attributes:
      solved: the design and what it gives; infeasible where every neighbour violates a constraint.
      loss: what rounding costs: exp(change of the objective) − 1, the relative change of a metric of weight 1. Below 0 only
        where constraints are violated or the optimum was none.
    """

    solved: Solved
    loss: Float[Array, ""]


def _neighbours(name: str, value: float, low: float, high: float, allowed: Sequence[float] | None) -> list[float]:
    """The nearest allowed values on either side, within the bounds."""
    if allowed is None:
        choices = np.unique(np.clip([np.floor(value), np.ceil(value)], np.ceil(low), np.floor(high)))
        choices = choices[(choices >= low) & (choices <= high)]
        require(len(choices), f"no whole {name} lies between {low:g} and {high:g}.")
        return [float(choice) for choice in choices]
    choices = np.sort(np.asarray(allowed, float))
    choices = choices[(choices >= low) & (choices <= high)]
    require(len(choices), f"no allowed {name} lies between {low:g} and {high:g}; allowed are {list(allowed)}.")
    below, above = choices[choices <= value], choices[choices >= value]
    return sorted({*below[-1:].tolist(), *above[:1].tolist()})


def round_design(
    task: Task,
    numbers: Numbers,
    solved: Solved,
    allowed: Mapping[str, Sequence[float]] | None = None,
    learning_rate: Array | float = 0.05,
) -> Rounded:
    """Rounds lookahead and batch to whole numbers and other variables to what is allowed of them; the rest adapts.

    For each combination of neighbours below and above, the variables that stay real are optimised anew, starting from where they
    were. The best feasible one is returned.

    Args:
      task: that was solved.
      numbers: of one problem.
      solved: its optimum.
      allowed: by the name of a variable, the values that it may take, such as sizes of drafts that exist, in non-embedding
        parameters. Lookahead and batch are whole unless named here; variables not named stay real.
      learning_rate: of the variables that adapt.

    Raises:
      SdslError: a name that is no variable of the task, or nothing allowed lies within the bounds of one.
    """
    allowed = dict(allowed or {})
    for name in allowed:
        require(name in task.variables, f"{name!r} is no variable of the task; those are {', '.join(task.variables)}.")
    names = [name for name in task.variables if name in allowed or name in _WHOLE]
    choices = [
        _neighbours(
            name,
            float(getattr(solved.design, name)),
            float(getattr(numbers.lower, name)),
            float(getattr(numbers.upper, name)),
            allowed.get(name),
        )
        for name in names
    ]
    within = box(task, numbers)
    # A variable whose bounds coincide has no width to start in.
    width = jnp.where(within.high > within.low, within.high - within.low, 1.0)
    start = ((coordinates(task, solved.design) - within.low) / width)[None]

    def pinned(values: Sequence[float]) -> Solved:
        by_name = dict(zip(names, values))
        lower, upper = numbers.lower._replace(**by_name), numbers.upper._replace(**by_name)
        return solve(task, numbers._replace(lower=lower, upper=upper), start, learning_rate)

    def rank(found: Solved) -> tuple[bool, float]:
        return not found.feasible, float(found.objective if found.feasible else found.violation)

    best = min((pinned(values) for values in itertools.product(*choices)), key=rank)
    return Rounded(best, jnp.expm1(best.objective - solved.objective))
