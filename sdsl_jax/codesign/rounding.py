"""From a real-valued optimum to a design that can be built: whole lookaheads and batches, and models that exist."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.codesign.program import Program, ProgramInputs, Solved, box, coordinates, solve
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


def fixed_at(inputs: ProgramInputs, name: str, value: float) -> ProgramInputs:
    """The problem with one more quantity given, be it a variable or not."""
    return inputs._replace(
        **{
            part: getattr(inputs, part)._replace(**{name: value})
            for part in ("fixed", "lower", "upper")
        }
    )


def round_design(
    program: Program,
    inputs: ProgramInputs,
    solved: Solved,
    allowed: Mapping[str, Sequence[float]] | None = None,
    solve_all: Callable[[Sequence[ProgramInputs]], Sequence[Solved]] | None = None,
) -> Rounded:
    """Rounds lookahead and batch to whole numbers and other variables to what is allowed of them;
    the rest adapts.

    One variable after another is held at its neighbours below and above, the batch last, and those
    that are still free are optimised anew: next to a limit that binds, the optimum itself may have
    no neighbour that keeps it. The best feasible end is returned, or the one that violates least.

    Args:
      program: that was solved.
      inputs: of one problem.
      solved: its optimum.
      allowed: by the name of a variable, the values that it may take, such as sizes of drafts that
        exist, in non-embedding parameters. Lookahead and batch are whole unless named here;
        variables not named stay real.
      solve_all: solves several problems of the program; one after another, from where the optimum is,
        if None.

    Raises:
      SdslError: a name that is no variable of the program, or nothing allowed lies within the bounds
        of one.
    """
    allowed = dict(allowed or {})
    for name in allowed:
        require(
            name in program.variables,
            f"{name!r} is no variable of the program; those are {', '.join(program.variables)}.",
        )
    names = [name for name in allowed if name not in _WHOLE]
    names += [name for name in _WHOLE if name in program.variables]
    if solve_all is None:
        solve_all = functools.partial(_solve_from, program, solved)
    ends, found = [(inputs, solved)], [solved]
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


def _solve_from(program: Program, solved: Solved, many: Sequence[ProgramInputs]) -> list[Solved]:
    found = []
    for inputs in many:
        within = box(program, inputs)
        # A variable whose bounds coincide has no width to start in.
        width = jnp.where(within.high > within.low, within.high - within.low, 1.0)
        start = jnp.clip((coordinates(program, solved.design) - within.low) / width, 0.0, 1.0)
        found.append(solve(program, inputs, start[None], _LEARNING_RATE))
    return found
