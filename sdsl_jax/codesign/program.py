"""Co-design as a constrained program: any choice of variables, objectives and constraints over one
differentiable `outcome`.

    minimise  Σ_k w_k · ln m_k(x)   subject to   ln(m_j(x)/limit_j) ≤ 0   and   lower ≤ x ≤ upper

The metrics m are positive numbers of an `Outcome`, so that logarithms make objective and
constraints free of units; x are logarithms of the variables (of 1 + γ for the lookahead).

`optimise` solves it from many starts at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.codesign.kkt import Box, Functions
from sdsl_jax.codesign.optimise import OPTIMIZERS, TOLERANCE, minimise, spread_starts
from sdsl_jax.config.codesign_problem import OptimizerConfig
from sdsl_jax.errors import require
from sdsl_jax.kept_programs import kept_program
from sdsl_jax.ranges import require_distinct, require_fields
from sdsl_jax.theory.arrays import Scalar, in_numpy, namespace, of_jax
from sdsl_jax.theory.hardware import Shape
from sdsl_jax.theory.serving import Design, Outcome, Serving, outcome

# What a designer may choose: the fields of `Design`, in words.
VARIABLES = {
    "draft_params": "draft size",
    "lookahead": "lookahead",
    "batch": "batch",
    "draft_tokens": "training tokens of the draft",
    "aspect_ratio": "aspect ratio of the draft",
    "target_params": "target size",
}
# Fields of `Outcome` that a designer may want to be small, in words. The least seconds per token are
# the most tokens per second.
METRICS = {
    "seconds_per_token": "seconds per token",
    "cost_per_million_tokens": "cost per million tokens",
    "latency_seconds": "latency of a request",
    "first_token_seconds": "time to the first token",
    "output_token_seconds": "time per output token of a request",
    "joules_per_token": "energy of a token",
    "total_cost": "cost of training the draft and serving the volume",
    "memory_bytes": "memory of a device",
    "training_flops": "training FLOPs of the draft",
    "training_cost": "training cost of the draft",
    "draft_loss": "loss of the draft",
    "target_loss": "loss of the target",
}
# Metrics in money, which mean nothing without a price.
PRICED = ("cost_per_million_tokens", "training_cost", "total_cost")
# Metrics of energy, which mean nothing without the power of a device.
POWERED = ("joules_per_token",)
# So many problems at a time: whatever their number, a single compilation serves them.
_PROBLEMS_TOGETHER = 16
_Tree = TypeVar("_Tree")


@dataclass(frozen=True)
class Program:
    """What to solve for; static, so that one compilation serves all inputs.

    Attributes:
      variables: Free fields of `Design`.
      objective: Metrics to be minimised, weighted by `ProgramInputs.weights`.
      constraints: Metrics that may not exceed `ProgramInputs.limits`.
      optimizer: One of `OPTIMIZERS`.
      steps: Updates between two changes of the multipliers.
      rounds: Changes of the multipliers; not used without constraints.
    """

    variables: tuple[str, ...] = ("draft_params", "lookahead")
    objective: tuple[str, ...] = ("seconds_per_token",)
    constraints: tuple[str, ...] = ()
    optimizer: str = "adam"
    steps: int = 200
    rounds: int = 10

    def __post_init__(self) -> None:
        """Raises `SdslError` for an unknown or repeated name, or a count below 1."""
        for what, options, *groups in (
            ("variable", VARIABLES, self.variables),
            ("metric", METRICS, self.objective, self.constraints),
            ("optimizer", OPTIMIZERS, (self.optimizer,)),
        ):
            for names in groups:
                for name in names:
                    require(
                        name in options,
                        f"unknown {what} {name!r}; known are {', '.join(options)}.",
                    )
                require_distinct(f"the list of {what}s", names, may_be_empty=True)
        require(
            self.variables and self.objective,
            "a program has at least one variable and one objective.",
        )
        require_fields("program", self, steps="[1, inf)", rounds="[1, inf)")


class ProgramInputs(NamedTuple):
    """The numbers of a program; a pytree, to be stacked for sweeps.

    Attributes:
      serving: What a design is judged by.
      fixed: Values of all fields that are no variables.
      lower: Lower bounds of the variables; other fields are ignored.
      upper: Upper bounds of the variables; other fields are ignored.
      weights: Weights of the objectives.
      limits: Limits of the constraints, each in the unit of its metric.
    """

    serving: Serving
    fixed: Design
    lower: Design
    upper: Design
    weights: Float[Array | np.ndarray, " K"] = np.ones(1)
    limits: Float[Array | np.ndarray, " J"] = np.ones(0)

    def fixed_at(self, name: str, value: float) -> ProgramInputs:
        """The inputs with one more quantity given, be it a variable or not."""
        ends = {
            end: getattr(self, end)._replace(**{name: value}) for end in ("fixed", "lower", "upper")
        }
        return self._replace(**ends)


class Solved(NamedTuple):
    """An optimum, and how well it satisfies the conditions of one (Karush, Kuhn and Tucker).

    Attributes:
      design: The best design found.
      outcome: What this design gives.
      objective: Σ w·ln m there.
      multipliers: Of each constraint, ≥ 0: the gain in the objective per e-fold of its limit.
      kkt_residual: Largest of: projected gradient of the Lagrangian, violation of a constraint,
        multiplier times slack.
      feasible: Whether every constraint holds, to 1e-6 of its limit.
      violation: Largest ln(m/limit); 0 where every constraint holds.
      starts_agreeing: Share of starts with as good an end.
      at_lower: Whether each variable rests on its lower bound.
      at_upper: Whether each variable rests on its upper bound.
      status: How the solver ended, a `SolverStatus`; see `optimise.Minimum`.
      path: Values of the variables at every step of the best start.
    """

    design: Design
    outcome: Outcome
    objective: Float[Array, ""]
    multipliers: Float[Array, " J"]
    kkt_residual: Float[Array, ""]
    feasible: Bool[Array, ""]
    violation: Float[Array, ""]
    starts_agreeing: Float[Array, ""]
    at_lower: Bool[Array, " V"]
    at_upper: Bool[Array, " V"]
    status: Int[Array, ""]
    path: Float[Array, "steps V"]


def coordinate(name: str, value: Scalar) -> Array:
    """ln x, or ln(1 + γ)."""
    value = jnp.asarray(value, jnp.result_type(float))
    return jnp.log1p(value) if name == "lookahead" else jnp.log(value)


def variable(name: str, coordinate: Array) -> Array:
    """The variable at a coordinate."""
    return jnp.expm1(coordinate) if name == "lookahead" else jnp.exp(coordinate)


def coordinates(program: Program, design: Design) -> Float[Array, " V"]:
    """Coordinates of a design's variables."""
    return jnp.stack([coordinate(name, getattr(design, name)) for name in program.variables])


def box(program: Program, inputs: ProgramInputs) -> Box:
    """The bounds, as coordinates."""
    return Box(coordinates(program, inputs.lower), coordinates(program, inputs.upper))


def design_at(program: Program, inputs: ProgramInputs, x: Float[Array, " V"]) -> Design:
    """The design at given coordinates."""
    return inputs.fixed._replace(
        **{name: variable(name, x[i]) for i, name in enumerate(program.variables)}
    )


class Evaluated(NamedTuple):
    """Designs and what they give; all leaves have one shape, and `constraints` one more axis.

    Attributes:
      design: The designs.
      outcome: What they give.
      objective: Σ w·ln m.
      constraints: ln(m/limit).
    """

    design: Design
    outcome: Outcome
    objective: Float[Array, " *N"]
    constraints: Float[Array, "*N J"]

    @property
    def allowed(self) -> Bool[Array, " *N"]:
        """Whether every constraint holds."""
        return (self.constraints <= TOLERANCE).all(axis=-1)


def evaluate(
    program: Program, inputs: ProgramInputs, design: Design, draft: Shape | None = None
) -> Evaluated:
    """Objective and constraints of many designs.

    Args:
      program: Names the objective and the constraints.
      inputs: Their weights and limits, and what the designs are judged by.
      design: The designs; its leaves, and those of `draft`, broadcast to one shape.
      draft: Drafts of shapes of their own; members of the draft family if None.
    """
    given: Any = inputs.weights, inputs.limits, inputs.serving, design, draft
    if of_jax(given):
        return _traced_evaluation(program.objective, program.constraints, *given)
    with np.errstate(all="ignore"):
        return _evaluate(program.objective, program.constraints, *in_numpy(given))


def _evaluate(
    objective: tuple[str, ...],
    constraints: tuple[str, ...],
    weights: Array,
    limits: Array,
    serving: Serving,
    design: Design,
    draft: Shape | None = None,
) -> Evaluated:
    xp = namespace(weights, limits, serving, design, draft)
    gives = outcome(serving, design, draft)
    shape = np.broadcast_shapes(*(np.shape(x) for x in jax.tree.leaves((gives, design))))
    gives, design = jax.tree.map(lambda x: xp.broadcast_to(x, shape), (gives, design))
    logs = xp.log(xp.stack([getattr(gives, n) for n in (*objective, *constraints)], axis=-1))
    limits = xp.log(xp.asarray(limits)).reshape(*[1] * len(shape), -1)
    metrics, limited = xp.split(logs, [len(objective)], axis=-1)
    return Evaluated(design, gives, metrics @ xp.asarray(weights), limited - limits)


_traced_evaluation = jax.jit(_evaluate, static_argnums=(0, 1))


def whole_lookaheads(program: Program, inputs: ProgramInputs) -> np.ndarray:
    """The whole lookaheads that are allowed: one where the lookahead is no variable."""
    if "lookahead" not in program.variables:
        return np.asarray([max(1.0, round(float(inputs.fixed.lookahead)))])
    low, high = float(inputs.lower.lookahead), float(inputs.upper.lookahead)
    return np.arange(math.ceil(low), math.floor(high) + 1, dtype=float)


def at_best_lookahead(
    program: Program, inputs: ProgramInputs, design: Design, draft: Shape | None = None
) -> Evaluated:
    """Each of R designs, leaves [R, 1], at the whole lookahead that is best for it among those
    within the constraints.

    A design that keeps no constraint at any lookahead is given the lookahead that is best without
    them. Drafts may have shapes of their own, leaves [R, 1] too.
    """
    every = design._replace(lookahead=whole_lookaheads(program, inputs)[None, :])
    table = evaluate(program, *in_numpy((inputs, every, draft)))
    eligible = np.where(table.allowed.any(axis=1, keepdims=True), table.allowed, True)
    best = np.argmin(np.where(eligible, table.objective, np.inf), axis=1)
    return jax.tree.map(lambda x: x[np.arange(len(best)), best], table)


def objective_and_constraints(program: Program, inputs: ProgramInputs) -> Functions:
    """Objective and constraints of coordinates: f = Σ w·ln m and g = ln(m/limit)."""

    @jax.jit  # traced once, however often it is differentiated and mapped
    def functions(x: Array) -> tuple[Array, Array]:
        here = evaluate(program, inputs, design_at(program, inputs, x))
        return here.objective, here.constraints

    return functions


def as_arrays(tree: _Tree) -> _Tree:
    """Every number as an array, so that one compilation serves plain numbers and arrays alike."""
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda v: v if isinstance(v, jax.Array) else np.asarray(v, dtype), tree)


def check(program: Program, inputs: ProgramInputs) -> None:
    """Raises `SdslError` for inputs that do not fit the program; only lengths are checked under
    `jit` or `vmap`.
    """
    for what, values, names in (
        ("weights", inputs.weights, program.objective),
        ("limits", inputs.limits, program.constraints),
    ):
        count = np.shape(values)[-1]
        require(
            count == len(names),
            f"there are {count} {what}; there must be one for each of: {', '.join(names)}.",
        )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(inputs)):
        return
    for name in program.variables:
        low, high = (np.asarray(getattr(ends, name)) for ends in (inputs.lower, inputs.upper))
        least, allowed = (1.0, "at least 1") if name == "lookahead" else (0.0, "positive")
        require(
            np.all((low >= least) & (low > 0) & (low <= high)),
            f"{name} is bounded by {low} and {high}; bounds must be {allowed} and in order.",
        )
    require(
        np.all(np.asarray(inputs.limits) > 0),
        f"limits are {inputs.limits}; each must be positive.",
    )
    hardware = inputs.serving.hardware
    for metrics, value, what, why in (
        (PRICED, hardware.price_per_hour, "price", "compare costs"),
        (POWERED, hardware.watts, "power", "compare energies"),
    ):
        require(
            {*program.objective, *program.constraints}.isdisjoint(metrics)
            or bool(np.all(np.asarray(value) > 0)),
            f"the {what} of a device is {value}; it must be positive to {why}.",
        )


def solve(
    program: Program,
    inputs: ProgramInputs,
    starts: Float[Array | np.ndarray, "S V"],
    learning_rate: Array | float,
) -> Solved:
    """The best of many starts, which descend ln x, and ln(1 + γ) for the lookahead; see
    `optimise.minimise`.

    Args:
      program: Static; one compilation serves all inputs.
      inputs: What changes from problem to problem.
      starts: Points of the unit cube, as of `spread_starts`.
      learning_rate: Initial step size, in e-folds of the variables.

    Raises:
      SdslError: Inputs or starts do not fit the program.
    """
    check(program, inputs)
    width = np.shape(starts)[-1]
    require(
        width == len(program.variables),
        f"starts have {width} columns; the program has {len(program.variables)} variables.",
    )
    return _solve(program, as_arrays(inputs), *as_arrays((starts, learning_rate)))


@functools.partial(jax.jit, static_argnames="program")
def _solve(program: Program, inputs: ProgramInputs, starts: Array, learning_rate: Array) -> Solved:
    end = minimise(
        objective_and_constraints(program, inputs),
        box(program, inputs),
        starts,
        learning_rate,
        optimizer=program.optimizer,
        steps=program.steps,
        rounds=program.rounds if program.constraints else 1,
    )
    design = design_at(program, inputs, end.x)
    for i, name in enumerate(program.variables):
        # The exponential of a logarithm is not quite the number.
        low, high = getattr(inputs.lower, name), getattr(inputs.upper, name)
        inside = getattr(design, name)
        value = jnp.where(end.at_lower[i], low, jnp.where(end.at_upper[i], high, inside))
        design = design._replace(**{name: value})
    path = [variable(name, end.path[:, i]) for i, name in enumerate(program.variables)]
    common = {name: value for name, value in end._asdict().items() if name in Solved._fields}
    return Solved(
        design=jax.tree.map(lambda v: jnp.asarray(v, end.x.dtype), design),
        outcome=evaluate(program, inputs, design).outcome,
        **common | {"path": jnp.stack(path, axis=-1)},
    )


@functools.partial(kept_program, static_argnums=(0,))
def _sweep(program: Program, inputs: ProgramInputs, starts: Array, learning_rate: Array) -> Solved:
    return jax.vmap(lambda one: _solve(program, one, starts, learning_rate))(inputs)


def sweep(
    program: Program,
    many: Sequence[ProgramInputs],
    starts: Float[Array | np.ndarray, "S V"],
    learning_rate: Array | float,
) -> Solved:
    """The optima of many problems, solved as one compiled program; every leaf of the result has the
    problems as its first axis.

    Args:
      program: As of `solve`.
      many: The inputs of each problem; their laws must be of the same kinds and sources.
      starts: As of `solve`.
      learning_rate: As of `solve`.

    Raises:
      SdslError: As `solve`, or there is no problem.
    """
    require(len(many) > 0, "a sweep of 0 problems; it must have at least one.")
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(as_arrays, many))
    check(program, stacked)
    return _sweep(program, stacked, *as_arrays((starts, learning_rate)))


def solve_together(
    program: Program, many: Sequence[ProgramInputs], optimizer: OptimizerConfig
) -> list[Solved]:
    """The optima of many problems of one program, a fixed number at a time."""
    starts = spread_starts(optimizer.starts, len(program.variables))
    optima: list[Solved] = []
    for first in range(0, len(many), _PROBLEMS_TOGETHER):
        some = list(many[first : first + _PROBLEMS_TOGETHER])
        padded = some + [some[-1]] * (_PROBLEMS_TOGETHER - len(some))
        solved = jax.tree.map(np.asarray, sweep(program, padded, starts, optimizer.learning_rate))
        optima += [jax.tree.map(lambda x, i=i: x[i], solved) for i in range(len(some))]
    return optima
