"""From a real-valued optimum to a design that can be built: whole lookaheads and batches, and models that exist."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.codesign.program import Numbers, Solved, Task, box, coordinates, solve
from sdsl_jax.errors import require

# In this order: for a given lookahead some batch keeps the limits.
_WHOLE = ("lookahead", "batch")
# Of variables that adapt, in e-folds.
_LEARNING_RATE = 0.05


class Rounded(NamedTuple):
    """The best allowed neighbour of an optimum.

    Attributes:
      solved: the design and what it gives; infeasible where every neighbour violates a constraint.
      loss: what rounding costs: exp(change of the objective) − 1, the relative change of a metric
        of weight 1. Below 0 only where constraints are violated or the optimum was none.
    """

    solved: Solved
    loss: Float[Array, ""]


def _neighbours(
    name: str, value: float, low: float, high: float, allowed: Sequence[float] | None
) -> list[float]:
    """The nearest allowed values on either side, within the bounds."""
    if allowed is None:
        choices = np.unique(
            np.clip([np.floor(value), np.ceil(value)], np.ceil(low), np.floor(high))
        )
        choices = choices[(choices >= low) & (choices <= high)]
        require(len(choices), f"no whole {name} lies between {low:g} and {high:g}.")
        return [float(choice) for choice in choices]
    choices = np.sort(np.asarray(allowed, float))
    choices = choices[(choices >= low) & (choices <= high)]
    require(
        len(choices),
        f"no allowed {name} lies between {low:g} and {high:g}; allowed are {list(allowed)}.",
    )
    below, above = choices[choices <= value], choices[choices >= value]
    return sorted({*below[-1:].tolist(), *above[:1].tolist()})


def fixed_at(numbers: Numbers, name: str, value: float) -> Numbers:
    """The problem with one more quantity given, be it a variable or not."""
    return numbers._replace(
        **{
            part: getattr(numbers, part)._replace(**{name: value})
            for part in ("fixed", "lower", "upper")
        }
    )


def round_design(
    task: Task,
    numbers: Numbers,
    solved: Solved,
    allowed: Mapping[str, Sequence[float]] | None = None,
    solve_all: Callable[[Sequence[Numbers]], Sequence[Solved]] | None = None,
) -> Rounded:
    """Rounds lookahead and batch to whole numbers and other variables to what is allowed of them;
    the rest adapts.

    One variable after another is held at its neighbours below and above, the batch last, and those
    that are still free are optimised anew: next to a limit that binds, the optimum itself may have
    no neighbour that keeps it. The best feasible end is returned, or the one that violates least.

    Args:
      task: that was solved.
      numbers: of one problem.
      solved: its optimum.
      allowed: by the name of a variable, the values that it may take, such as sizes of drafts that
        exist, in non-embedding parameters. Lookahead and batch are whole unless named here;
        variables not named stay real.
      solve_all: solves several problems of the task; one after another, from where the optimum is,
        if None.

    Raises:
      SdslError: a name that is no variable of the task, or nothing allowed lies within the bounds
        of one.
    """
    allowed = dict(allowed or {})
    for name in allowed:
        require(
            name in task.variables,
            f"{name!r} is no variable of the task; those are {', '.join(task.variables)}.",
        )
    names = [name for name in allowed if name not in _WHOLE]
    names += [name for name in _WHOLE if name in task.variables]
    if solve_all is None:
        solve_all = functools.partial(_solve_from, task, solved)
    ends, found = [(numbers, solved)], [solved]
    for name in names:
        many = []
        for given, one in ends:
            ends_of = float(getattr(given.lower, name)), float(getattr(given.upper, name))
            values = _neighbours(
                name, float(getattr(one.design, name)), *ends_of, allowed.get(name)
            )
            many += [fixed_at(given, name, value) for value in values]
        found = list(solve_all(many))
        ends = list(zip(many, found))

    def rank(one: Solved) -> tuple[bool, float]:
        return not bool(one.feasible), float(one.objective if one.feasible else one.violation)

    best = min(found, key=rank)
    return Rounded(best, jnp.expm1(best.objective - solved.objective))


def _solve_from(task: Task, solved: Solved, many: Sequence[Numbers]) -> list[Solved]:
    found = []
    for numbers in many:
        within = box(task, numbers)
        # A variable whose bounds coincide has no width to start in.
        width = jnp.where(within.high > within.low, within.high - within.low, 1.0)
        start = jnp.clip((coordinates(task, solved.design) - within.low) / width, 0.0, 1.0)
        found.append(solve(task, numbers, start[None], _LEARNING_RATE))
    return found
