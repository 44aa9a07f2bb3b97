"""The designs around an optimum: in whole numbers, over draws of the laws, as good as it, and on fronts.

All of them are solved or evaluated many at a time, by programs that are compiled once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.laws import intervals_over_draws, law_draws
from sdsl_jax.codesign.program import (
    POWERED,
    PRICED,
    Program,
    ProgramInputs,
    Solved,
    at_best_lookahead,
    box,
    coordinates,
    evaluate,
    solve,
    solve_together,
)
from sdsl_jax.codesign.serving_problem import ServingProblem, Size
from sdsl_jax.errors import require
from sdsl_jax.records.documents import document
from sdsl_jax.theory.serving import Design, Outcome

# Points of a landscape: draft sizes and lookaheads. Draft sizes among which equally good ones are
# looked for.
_LANDSCAPE, _SIZES = (72, 64), 192
# The most draws of the laws that an interval is taken over.
_DRAWS = 160
# Lookahead and batch are rounded in this order: for a given lookahead some batch keeps the limits.
_WHOLE = ("lookahead", "batch")
# Of variables that adapt to rounding, in e-folds.
_LEARNING_RATE = 0.05


class Rounded(NamedTuple):
    """The best allowed neighbour of an optimum.

    Attributes:
      solved: The design and what it gives; infeasible where every neighbour violates a constraint.
      loss: The cost of rounding: exp(change of the objective) − 1, the relative change of a metric
        of weight 1. It is below 0 only where constraints are violated or the optimum was none.
    """

    solved: Solved
    loss: float


def round_design(
    program: Program,
    inputs: ProgramInputs,
    solved: Solved,
    allowed: Mapping[str, Sequence[float]] | None = None,
    solve_all: Callable[[Sequence[ProgramInputs]], Sequence[Solved]] | None = None,
) -> Rounded:
    """Rounds lookahead and batch to whole numbers, and other variables to what is allowed of them;
    the rest adapts.

    One variable after another is held at its neighbours below and above, the batch last, and those
    that are still free are optimised anew: next to a limit that binds, the optimum itself may have
    no neighbour that keeps it. The best feasible end is returned, or the one that violates least.

    Args:
      program: The program that was solved.
      inputs: Its numbers.
      solved: Its optimum.
      allowed: By the name of a variable, the values that it may take, such as sizes of drafts that
        exist, in non-embedding parameters. Lookahead and batch are whole unless named here;
        variables that are not named stay real.
      solve_all: Solves several problems of the program; one after another, from where the optimum
        is, if None.

    Raises:
      SdslError: a name is no variable of the program, or nothing allowed lies within the bounds of
        a variable.
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
    ends = [(inputs, solved)]
    for name in names:
        many = [
            before.fixed_at(name, value)
            for before, one in ends
            for value in _neighbours(
                name,
                float(getattr(one.design, name)),
                float(getattr(before.lower, name)),
                float(getattr(before.upper, name)),
                allowed.get(name),
            )
        ]
        ends = list(zip(many, solve_all(many)))

    def rank(one: Solved) -> tuple[bool, float]:
        return not one.feasible, float(one.objective if one.feasible else one.violation)

    best = min((one for _, one in ends), key=rank)
    return Rounded(best, float(np.expm1(best.objective - solved.objective)))


def _neighbours(
    name: str, value: float, low: float, high: float, allowed: Sequence[float] | None
) -> list[float]:
    """The nearest allowed values on either side, within the bounds; whole numbers if None."""
    if allowed is None:
        ends = np.clip([np.floor(value), np.ceil(value)], np.ceil(low), np.floor(high))
        what, choices = f"whole {name}", np.unique(ends)
    else:
        what, choices = f"allowed {name}", np.sort(np.asarray(allowed, float))
    choices = choices[(choices >= low) & (choices <= high)]
    among = "" if allowed is None else f"; allowed are {list(allowed)}"
    require(len(choices), f"no {what} lies between {low:g} and {high:g}{among}.")
    below, above = choices[choices <= value], choices[choices >= value]
    return sorted({*below[-1:].tolist(), *above[:1].tolist()})


def _solve_from(program: Program, solved: Solved, many: Sequence[ProgramInputs]) -> list[Solved]:
    """The optima of several problems, each from one start: the design of another optimum."""
    optima = []
    for inputs in many:
        within = box(program, inputs)
        # A variable whose bounds coincide has no width to start in.
        width = jnp.where(within.high > within.low, within.high - within.low, 1.0)
        start = jnp.clip((coordinates(program, solved.design) - within.low) / width, 0.0, 1.0)
        optima.append(solve(program, inputs, start[None], _LEARNING_RATE))
    return optima


class Interval(NamedTuple):
    """What the draws of the laws leave open; the device is taken as known.

    Attributes:
      values: 90% interval of each variable, of speed-up and acceptance, by name; sizes in the count
        of the loss law. None if the laws have no draws, or no draw has an optimum.
      basis: What the intervals are taken over, or why there are none.
      share_that_speculate: Draws with an optimum that is faster than the target alone, as a share
        of all; None without draws.
      share_left_out: Draws in which no design keeps the constraints, or α reaches 1, as a share of
        all; None without draws.
    """

    values: dict[str, list[float]] | None
    basis: str
    share_that_speculate: float | None = None
    share_left_out: float | None = None


def interval_90(problem: ServingProblem) -> Interval:
    """90% interval of the optimum over the draws of both laws, or why there is none."""
    draws = law_draws(problem.loss, problem.acceptance, _DRAWS)
    if not draws.count:
        return Interval(None, draws.basis)
    many = []
    for i in range(draws.count):
        loss, acceptance = jax.tree.map(lambda x, i=i: x[i], (draws.loss, draws.acceptance))
        serving = problem.inputs.serving._replace(loss_law=loss, acceptance_law=acceptance)
        many.append(problem.inputs._replace(serving=serving))
    solved = solve_together(problem.program, many, problem.config.optimizer)
    return _interval(problem, solved, draws.basis)


def _interval(problem: ServingProblem, draws: Sequence[Solved], basis: str) -> Interval:
    """The interval over solved draws, leaving out those without an optimum."""
    values = {
        name: [problem.sizes.stated(one.design, name) for one in draws]
        for name in problem.program.variables
    }
    for name in ("speedup", "acceptance"):
        values[name] = [float(getattr(one.outcome, name)) for one in draws]
    optima = [
        bool(one.feasible & np.isfinite(one.objective) & (one.outcome.acceptance < 1))
        for one in draws
    ]
    over = intervals_over_draws(values, values["speedup"], optima)
    said = (
        f"in none of {len(draws)} draws of the laws a design keeps the constraints at α < 1"
        if over.ends is None
        else f"{sum(optima)} draws; laws only, the device taken as known: {basis}"
    )
    return Interval(over.ends, said, over.share_that_speculate, over.share_without_optimum)


def sizes_within(
    problem: ServingProblem, best: Solved, losses: Sequence[float]
) -> list[list[float]]:
    """For each loss ε the draft sizes around the best one at which the objective loses at most ε.

    All else is as in the best design, but each size has its own best whole lookahead. With an
    objective of one metric of weight 1 in seconds, they are the drafts that keep 1 − ε of the
    speed. Sizes that break a constraint are not within.

    Args:
      problem: The problem that was solved, with draft size as a variable.
      best: The best design in whole numbers.
      losses: Shares, such as 0.01.

    Returns:
      Smallest and largest size for each loss, in the count of the loss law.
    """
    program, inputs, design = problem.program, problem.inputs, best.design
    size = float(design.draft_params)
    ends = float(inputs.lower.draft_params), float(inputs.upper.draft_params)
    sizes = np.union1d(np.geomspace(*ends, _SIZES), size)
    table = at_best_lookahead(program, inputs, design._replace(draft_params=sizes[:, None]))
    lost = np.where(table.allowed, -np.expm1(float(best.objective) - table.objective), np.inf)
    at = int(np.searchsorted(sizes, size))

    def end(side: Sequence[int], most: float) -> float:
        """The size at which the loss reaches `most`, on the way from the best one to a bound."""
        for inside, outside in itertools.pairwise(side):
            if lost[outside] > most:
                # Beyond a size that breaks a constraint there is nothing to interpolate to.
                share = (most - lost[inside]) / (lost[outside] - lost[inside])
                return float(sizes[inside] * (sizes[outside] / sizes[inside]) ** share)
        return float(sizes[side[-1]])

    sides = range(at, -1, -1), range(at, len(sizes))
    return [
        [
            problem.sizes.stated(design._replace(draft_params=end(side, loss)), "draft_params")
            for side in sides
        ]
        for loss in losses
    ]


class Landscape(NamedTuple):
    """The design space over draft size and lookahead, all else as at the optimum.

    Attributes:
      draft_params: In the parameter count that `counted` names, [columns].
      lookahead: [rows].
      speedup: S, [rows, columns].
      allowed: Whether every constraint holds, [rows, columns].
      lost: Share of the objective that is lost against the optimum, [rows, columns].
      counted: "non_embedding" or "total".
    """

    draft_params: np.ndarray
    lookahead: np.ndarray
    speedup: np.ndarray
    allowed: np.ndarray
    lost: np.ndarray
    counted: str


def landscape(problem: ServingProblem, design: Design) -> Landscape:
    """The design space around an optimum, as wide as the draft size may go and as high as is of
    interest."""
    # Drafts of every size, where one was given too.
    inputs = problem.inputs
    inputs = inputs._replace(serving=inputs.serving._replace(draft_shape=None))
    low, high = (float(end.draft_params) for end in (inputs.lower, inputs.upper))
    if low == high:
        low, high = low / 30, low * 30
    columns = np.geomspace(low, high, _LANDSCAPE[0])
    highest = max(10.0, 2.5 * float(design.lookahead))
    rows = np.expm1(np.linspace(np.log(2.0), np.log1p(highest), _LANDSCAPE[1]))
    grid = design._replace(draft_params=columns[None, :], lookahead=rows[:, None])
    table = evaluate(problem.program, inputs, grid)
    best = evaluate(problem.program, inputs, design)
    sizes = problem.sizes.of(columns, "draft", float(design.aspect_ratio))
    return Landscape(
        getattr(sizes, problem.sizes.counted),
        rows,
        np.asarray(table.outcome.speedup),
        np.asarray(table.allowed),
        -np.expm1(best.objective - table.objective),
        problem.sizes.counted,
    )


def money(problem: ServingProblem, outcome: Outcome) -> dict[str, float | None]:
    """What costs money; None where no price is known."""
    return {name: getattr(outcome, name) if problem.priced else None for name in PRICED}


def energy(problem: ServingProblem, outcome: Outcome) -> dict[str, float | None]:
    """What is an energy; None where the power of a device is not known."""
    return {name: getattr(outcome, name) if problem.powered else None for name in POWERED}


@dataclass(frozen=True)
class FrontPoint:
    """The best design at one value of a quantity.

    Attributes:
      batch: Rows that are decoded together.
      draft_tokens: Training tokens of the draft.
      tokens_per_second: Tokens of all rows per second.
      latency_seconds: Seconds of a request, its prefill included.
      speedup: Speed-up S over the target alone.
      draft_params: Size of the draft.
      lookahead: Drafts per round.
      cost_per_million_tokens: In the unit of the price; null without one.
      training_cost: Of the draft, in the unit of the price.
      total_cost: Of training the draft and serving the volume.
    """

    batch: float
    draft_tokens: float
    tokens_per_second: float
    latency_seconds: float
    speedup: float
    draft_params: Size
    lookahead: float
    cost_per_million_tokens: float | None
    training_cost: float | None
    total_cost: float | None


def front(problem: ServingProblem, optima: Sequence[Solved]) -> list[FrontPoint]:
    """The designs that keep the constraints, of the optima at several values of one quantity."""
    points = []
    for one in optima:
        if one.feasible:
            design, gives = jax.tree.map(float, (one.design, one.outcome))
            size = problem.sizes.in_design(design, "draft_params")
            points.append(
                document(FrontPoint, design, gives, draft_params=size, **money(problem, gives))
            )
    return points
