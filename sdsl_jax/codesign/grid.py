"""The best draft and whole lookahead by search on a grid: thousands of designs in milliseconds, and nothing to compile.

The gradient method (`program.solve`) is for any set of variables; a page that follows a slider needs
these two only. Both judge designs by `program.evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdsl_jax.codesign.laws import law_draws
from sdsl_jax.codesign.program import Evaluated, ProgramInputs, Solved, at_best_lookahead, evaluate
from sdsl_jax.codesign.serving_problem import ServingProblem
from sdsl_jax.statistics import quantile_interval
from sdsl_jax.theory.arrays import in_numpy
from sdsl_jax.theory.serving import Design, outcome

# Draft sizes of a search, and of a second one among those that are nearly as good as the best of
# them: its S is that of a fine grid to 5 digits.
_SIZES, _FINER = 96, 128
# The same of a change.
_SIZES_OF_A_MOVE, _FINER_OF_A_MOVE = 64, 24
# Objectives this near to the best one, a logarithm, may be better between the sizes of the first search.
_CLOSE = 1e-3
# Lookaheads that are tried first.
_NEAR = 16.0
# The most draws of the laws that an interval is taken over.
_DRAWS = 160
# A size of which the draws say little is looked at no further ahead than this.
_LEAST_AHEAD = 12


class GridOptimum(NamedTuple):
    """The best design of a grid.

    Attributes:
      solved: The best design that keeps every constraint, or the best without them where none does;
        what only the gradient method knows is not a number.
      sizes: Draft sizes, non-embedding parameters, [N].
      table: Every size at its best whole lookahead, leaves [N].
    """

    solved: Solved
    sizes: Float[np.ndarray, " N"]
    table: Evaluated


def search(problem: ServingProblem) -> GridOptimum:
    """The best draft size and whole lookahead, all else as the problem fixes it.

    Where the draft size is no variable, the one draft is looked at alone.
    """
    near = at_most(problem, _NEAR)
    found = _search(near)
    # S has one peak in γ, so a best lookahead below the last one that was tried is the best of all.
    reached = np.asarray(found.table.design.lookahead).max() >= near.inputs.upper.lookahead
    return _search(problem) if near is not problem and reached else found


def at_most(problem: ServingProblem, lookahead: float) -> ServingProblem:
    """The problem with no longer lookaheads than this one; itself where it has none."""
    if "lookahead" not in problem.program.variables:
        return problem
    upper = problem.inputs.upper
    if float(upper.lookahead) <= lookahead or float(problem.inputs.lower.lookahead) >= lookahead:
        return problem
    upper = upper._replace(lookahead=np.float64(lookahead))
    return replace(problem, inputs=problem.inputs._replace(upper=upper))


def _search(problem: ServingProblem) -> GridOptimum:
    low, high = draft_range(problem)
    sizes = np.geomspace(low, high, _SIZES) if low < high else np.asarray([low])
    table = _at_best_lookahead(problem, sizes)
    at = _best(table)
    if low < high:
        # Each γ has a peak of its own in N: all sizes that are nearly as good are looked at again.
        close = np.flatnonzero(table.objective <= table.objective[at] + _CLOSE)
        ends = sizes[max(close[0] - 1, 0)], sizes[min(close[-1] + 1, _SIZES - 1)]
        finer = np.geomspace(*ends, _FINER)[1:-1]
        more = _at_best_lookahead(problem, finer)
        order = np.argsort(sizes := np.concatenate([sizes, finer]))
        table = jax.tree.map(lambda x, y: np.concatenate([x, y])[order], table, more)
        sizes, at = sizes[order], _best(table)
    return GridOptimum(_solved(jax.tree.map(lambda x: x[at], table)), sizes, table)


def draft_range(problem: ServingProblem) -> tuple[float, float]:
    """Smallest and largest draft that is looked at, in non-embedding parameters."""
    if "draft_params" not in problem.program.variables:
        size = float(problem.inputs.fixed.draft_params)
        return size, size
    return float(problem.inputs.lower.draft_params), float(problem.inputs.upper.draft_params)


def _at_best_lookahead(problem: ServingProblem, sizes: np.ndarray) -> Evaluated:
    design = problem.inputs.fixed._replace(draft_params=sizes[:, None])
    return at_best_lookahead(problem.program, problem.inputs, design)


def _best(table: Evaluated) -> int:
    eligible = table.allowed if table.allowed.any() else np.ones(len(table.objective), bool)
    return int(np.argmin(np.where(eligible, table.objective, np.inf)))


def _solved(one: Evaluated) -> Solved:
    """A design of a grid in the form in which the gradient method gives one."""
    unknown: Any = np.float64(np.nan)
    none: Any = np.zeros(0, bool)
    limits: Any = one.constraints
    return Solved(
        design=one.design,
        outcome=one.outcome,
        objective=one.objective,
        multipliers=np.nan * limits,
        kkt_residual=unknown,
        feasible=one.allowed,
        violation=limits.max(initial=0.0),
        starts_agreeing=unknown,
        at_lower=none,
        at_upper=none,
        status=unknown,
        path=none,
    )


def speedup_interval(
    problem: ServingProblem, sizes: Float[np.ndarray, " N"], ahead: float, confidence: float = 0.9
) -> Float[np.ndarray, "2 N"] | None:
    """Interval of S of each draft size at the whole lookahead that is best for it, over the draws of
    both laws; None where they have none.

    Args:
      problem: The problem.
      sizes: Draft sizes, non-embedding parameters.
      ahead: About the longest lookahead of interest; each draw may look twice as far.
      confidence: Share of the draws that the interval covers.
    """
    draws = law_draws(problem.loss, problem.acceptance, _DRAWS)
    if not draws.count:
        return None
    laws = jax.tree.map(lambda x: np.asarray(x)[:, None, None], (draws.loss, draws.acceptance))
    serving = problem.inputs.serving._replace(loss_law=laws[0], acceptance_law=laws[1])
    longest = min(max(_LEAST_AHEAD, math.ceil(2 * ahead)), int(problem.inputs.upper.lookahead))
    design = problem.inputs.fixed._replace(
        draft_params=sizes[None, :, None], lookahead=np.arange(1.0, longest + 1)[None, None, :]
    )
    with np.errstate(all="ignore"):
        gives = outcome(*in_numpy((serving, design)))
    best = np.asarray(gives.speedup).max(axis=-1)
    return np.asarray([quantile_interval(column, confidence) for column in best.T]).T


class Move(NamedTuple):
    """How the choice moves with one change.

    Attributes:
      change: The change, in words.
      draft_params: Best draft size then, in the count of the loss law.
      lookahead: Best whole lookahead then.
      speedup: S then.
      feasible: Whether that design keeps every constraint.
    """

    change: str
    draft_params: float
    lookahead: int
    speedup: float
    feasible: bool


def moves(
    problem: ServingProblem, changed: Sequence[tuple[str, ServingProblem]], ahead: int = 64
) -> list[Move]:
    """The best design after each of several changes, one at a time.

    Args:
      problem: The problem.
      changed: Problems that are solved instead, and how they differ, in words. Their programs have
        the variables, objective and constraints of `problem`.
      ahead: The longest lookahead that is tried first; all are where one of the best is that long.
    """
    low, high = np.asarray([draft_range(one) for _, one in changed]).T
    share = np.linspace(0.0, 1.0, _SIZES_OF_A_MOVE) if (low < high).any() else np.zeros(1)
    sizes = low[:, None] * (high / low)[:, None] ** share
    everything = int(float(problem.inputs.upper.lookahead))
    most = min(ahead, everything)
    lookaheads = np.arange(1.0, most + 1)
    if "lookahead" not in problem.program.variables:
        lookaheads = np.asarray([float(problem.inputs.fixed.lookahead)])
    best = _best_of_each(problem, [one for _, one in changed], sizes[:, :, None], lookaheads)
    if most == max(int(one.design.lookahead) for one in best) < everything:
        return moves(problem, changed, everything)
    if len(share) > 1:
        # Between the neighbours of the best size, at its lookahead.
        own = np.asarray([float(one.design.draft_params) for one in best])
        step = (high / low) ** (share[1] - share[0])
        ends = np.maximum(own / step, low), np.minimum(own * step, high)
        finer = np.geomspace(*ends, _FINER_OF_A_MOVE, axis=1)
        at = np.asarray([float(one.design.lookahead) for one in best])
        best = _best_of_each(
            problem, [one for _, one in changed], finer[:, :, None], at[:, None, None]
        )
    return [
        Move(
            change,
            one.sizes.stated(found.design, "draft_params"),
            int(found.design.lookahead),
            float(found.outcome.speedup),
            bool(found.allowed),
        )
        for (change, one), found in zip(changed, best)
    ]


def _best_of_each(
    problem: ServingProblem,
    problems: Sequence[ServingProblem],
    sizes: Float[np.ndarray, "P N 1"],
    lookaheads: np.ndarray,
) -> list[Evaluated]:
    """The best design of each of P problems among draft sizes and lookaheads, in one evaluation."""
    inputs: Any = jax.tree.map(
        lambda *leaves: np.stack([np.asarray(x, float) for x in leaves]),
        *[in_numpy(one.inputs) for one in problems],
    )
    wide = jax.tree.map(lambda x: x[:, None, None], (inputs.serving, inputs.fixed))
    design = wide[1]._replace(draft_params=sizes, lookahead=lookaheads)
    # One matrix product weighs the metrics of all problems: their weights are the same.
    together = ProgramInputs(
        wide[0],
        inputs.fixed,
        inputs.lower,
        inputs.upper,
        inputs.weights[0],
        np.ones_like(inputs.limits[0]),
    )
    table = evaluate(problem.program, together, design)
    table = table._replace(constraints=table.constraints - np.log(inputs.limits)[:, None, None, :])
    designs = table.objective.shape[1] * table.objective.shape[2]
    best = []
    for i in range(len(problems)):
        row = jax.tree.map(lambda x, i=i: x[i].reshape(designs, *x.shape[3:]), table)
        at = _best(row)
        best.append(jax.tree.map(lambda x, at=at: x[at], row))
    return best


def with_serving(problem: ServingProblem, **changes: Any) -> ServingProblem:
    """The problem with other conditions to serve under."""
    serving = problem.inputs.serving._replace(**changes)
    return replace(problem, inputs=problem.inputs._replace(serving=serving))


def at_design(problem: ServingProblem, design: Design) -> ServingProblem:
    """The problem whose fixed design is this one, such as for a schedule of its draft."""
    return replace(problem, inputs=problem.inputs._replace(fixed=design))
