"""Co-design as a constrained program: any choice of variables, objectives and constraints over one
differentiable `outcome`.

    minimise  Σ_k w_k · ln m_k(x)   subject to   ln(m_j(x)/limit_j) ≤ 0   and   lower ≤ x ≤ upper

The metrics m are positive numbers of an `Outcome`, so that logarithms make objective and
constraints free of units; x are logarithms of the variables (of 1 + γ for the lookahead).

`optimise` solves it from many starts at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.codesign.kkt import Box, Functions
from sdsl_jax.codesign.optimise import OPTIMIZERS, minimise
from sdsl_jax.errors import require
from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.serving import Design, Outcome, Serving, outcome

# Of what a designer may want little: fields of `Outcome`. Least seconds per token is most tokens
# per second.
METRICS = (
    "seconds_per_token",
    "cost_per_million_tokens",
    "latency_seconds",
    "first_token_seconds",
    "total_cost",
    "memory_bytes",
    "training_flops",
    "training_cost",
    "draft_loss",
    "target_loss",
)
_Tree = TypeVar("_Tree")
_PRICED = {"cost_per_million_tokens", "training_cost", "total_cost"}


@dataclass(frozen=True)
class Program:
    """What is solved for; static, so that one compilation serves all inputs.

    Attributes:
      variables: fields of `Design` that are free.
      objective: metrics that are to be small, weighted by `ProgramInputs.weights`.
      constraints: metrics that may not exceed `ProgramInputs.limits`.
      optimizer: a key of `OPTIMIZERS`.
      steps: updates between two changes of the multipliers.
      rounds: changes of the multipliers; 1 where there are no constraints.
    """

    variables: tuple[str, ...] = ("draft_params", "lookahead")
    objective: tuple[str, ...] = ("seconds_per_token",)
    constraints: tuple[str, ...] = ()
    optimizer: str = "adam"
    steps: int = 200
    rounds: int = 10

    def __post_init__(self) -> None:
        """Raises `SdslError` for a name that is not known, or a count below 1."""
        for given, known, what in (
            (self.variables, Design._fields, "variable"),
            ((*self.objective, *self.constraints), METRICS, "metric"),
            ((self.optimizer,), tuple(OPTIMIZERS), "optimizer"),
        ):
            for name in given:
                require(name in known, f"unknown {what} {name!r}; known are {', '.join(known)}.")
        for name in ("variables", "objective", "constraints"):
            given = getattr(self, name)
            require(
                len(set(given)) == len(given),
                f"{name} are {', '.join(given)}; each may be named once.",
            )
        require(
            self.variables and self.objective,
            "a program has at least one variable and one objective.",
        )
        smallest = min(self.steps, self.rounds)
        require(
            smallest >= 1,
            f"steps and rounds are {self.steps} and {self.rounds}; both must be at least 1.",
        )


class ProgramInputs(NamedTuple):
    """The numbers of a program; a pytree, to be stacked for sweeps.

    Attributes:
      serving: what a design is judged by.
      fixed: the values of all that is not a variable.
      lower: smallest values of the variables; other fields are not looked at.
      upper: largest values.
      weights: of the objectives.
      limits: of the constraints, in the metric's own unit.
    """

    serving: Serving
    fixed: Design
    lower: Design
    upper: Design
    weights: Float[Array | np.ndarray, " K"] = np.ones(1)
    limits: Float[Array | np.ndarray, " J"] = np.ones(0)


class Solved(NamedTuple):
    """An optimum, and how well it satisfies the conditions of one (Karush, Kuhn and Tucker).

    Attributes:
      design: the best design found.
      outcome: what it gives.
      objective: Σ w·ln m there.
      multipliers: of the constraints, ≥ 0: what the objective would gain per e-fold of the limit.
      kkt_residual: largest of: projected gradient of the Lagrangian, violation of a constraint,
        multiplier times slack.
      feasible: whether every constraint holds, to 1e-6 of its limit.
      violation: largest of ln(m/limit), 0 where every constraint holds.
      starts_agreeing: share of starts whose end is as good.
      at_lower: of each variable, whether it rests on its bound.
      at_upper: of each variable, whether it rests on its bound.
      status: how the solver ended, a `SolverStatus`; see `optimise.Minimum`.
      path: values of the variables at every step of the best start.
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
    """Of a design's variables."""
    return jnp.stack([coordinate(name, getattr(design, name)) for name in program.variables])


def box(program: Program, inputs: ProgramInputs) -> Box:
    """The bounds, as coordinates."""
    return Box(coordinates(program, inputs.lower), coordinates(program, inputs.upper))


def design_at(program: Program, inputs: ProgramInputs, x: Float[Array, " V"]) -> Design:
    """The design at given coordinates."""
    return inputs.fixed._replace(
        **{name: variable(name, x[i]) for i, name in enumerate(program.variables)}
    )


def objective_and_constraints(program: Program, inputs: ProgramInputs) -> Functions:
    """Objective and constraints of coordinates: f = Σ w·ln m and g = ln(m/limit)."""

    @jax.jit  # traced once, however often it is differentiated and mapped
    def evaluate(x: Array) -> tuple[Array, Array]:
        given = outcome(inputs.serving, design_at(program, inputs, x))
        logs = jnp.log(
            jnp.stack([getattr(given, name) for name in (*program.objective, *program.constraints)])
        )
        count = len(program.objective)
        return jnp.asarray(inputs.weights) @ logs[:count], logs[count:] - jnp.log(
            jnp.asarray(inputs.limits)
        )

    return evaluate


def as_arrays(tree: _Tree) -> _Tree:
    """Every number as an array, so that one compilation serves plain numbers and arrays alike."""
    kind = jnp.result_type(float)
    return jax.tree.map(lambda v: v if isinstance(v, jax.Array) else np.asarray(v, kind), tree)


def check(program: Program, inputs: ProgramInputs) -> None:
    """Raises `SdslError` for inputs that do not fit the program, as far as they are known (not under `jit` or `vmap`)."""
    for name, given, wanted in (
        ("weights", inputs.weights, program.objective),
        ("limits", inputs.limits, program.constraints),
    ):
        found = np.shape(given)[-1]
        require(
            found == len(wanted),
            f"there are {found} {name}; there must be one for each of: {', '.join(wanted)}.",
        )

    def known(*values: object) -> bool:
        return not any(isinstance(v, jax.core.Tracer) for v in values)

    for name in program.variables:
        low, high = getattr(inputs.lower, name), getattr(inputs.upper, name)
        least = 1.0 if name == "lookahead" else 0.0
        if known(low, high):
            inside = (
                (np.asarray(low) >= least)
                & (np.asarray(low) > 0)
                & (np.asarray(low) <= np.asarray(high))
            )
            allowed = "at least 1" if least else "positive"
            require(
                np.all(inside),
                f"{name} is bounded by {low} and {high}; bounds must be {allowed} and in order.",
            )
    if known(inputs.limits):
        require(
            np.all(np.asarray(inputs.limits) > 0),
            f"limits are {inputs.limits}; each must be positive.",
        )
    price = inputs.serving.hardware.price_per_hour
    if _PRICED & {*program.objective, *program.constraints} and known(price):
        require(
            np.all(np.asarray(price) > 0),
            f"the price of a device is {price}; it must be positive to compare costs.",
        )


def solve(
    program: Program,
    inputs: ProgramInputs,
    starts: Float[Array | np.ndarray, "S V"],
    learning_rate: Array | float,
) -> Solved:
    """The best of many starts; jitted, and to be `vmap`ped over inputs for sweeps.

    The solver descends the coordinates ln x, and ln(1 + γ) for the lookahead: see
    `optimise.minimise`.

    Args:
      program: static; one compilation serves all inputs.
      inputs: what changes from problem to problem.
      starts: points of the unit cube, as of `spread_starts`.
      learning_rate: initial step size, in e-folds of the variables.

    Raises:
      SdslError: inputs or starts do not fit the program, as far as they are known.
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
        outcome=outcome(inputs.serving, design),
        **common | {"path": jnp.stack(path, axis=-1)},
    )


@functools.partial(jax.jit, static_argnames="program")
def _sweep(program: Program, inputs: ProgramInputs, starts: Array, learning_rate: Array) -> Solved:
    return jax.vmap(lambda one: solve(program, one, starts, learning_rate))(inputs)


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
