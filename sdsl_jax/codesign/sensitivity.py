"""How an optimum moves with everything it was computed from, by implicit differentiation of the conditions of an optimum."""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sdsl_jax.codesign.kkt import Point, field, free_components, free_rows
from sdsl_jax.codesign.program import (
    Program,
    ProgramInputs,
    Solved,
    as_arrays,
    box,
    coordinates,
    objective_and_constraints,
)
from sdsl_jax.theory.serving import Design, Serving, counted, shapes

_Tree = TypeVar("_Tree")


class DesignSensitivities(NamedTuple):
    """Elasticities of an optimum: d ln x*/d ln θ of each variable x, and d(objective)/d ln θ, for
    every number θ.

    0 where θ is 0 or infinite, and of variables that rest on a bound. Not a number where the
    optimum is not isolated: where a variable makes no difference, or more constraints bind than
    there are free variables.

    Attributes:
      variables: Elasticities of each variable, by its name, in the shape of what judges a design.
      objective: Slopes of Σ w·ln m, in the same shape: elasticities of the metric where there is
        one of weight 1.
      variables_fixed: As `variables`, with respect to the fixed fields of the design; 0 for
        variables.
      objective_fixed: As `objective`, with respect to the fixed fields of the design.
    """

    variables: dict[str, Serving]
    objective: Serving
    variables_fixed: dict[str, Design]
    objective_fixed: Design


def _elasticity(slope: Array, value: Array) -> Array:
    counts = jnp.isfinite(value) & (value != 0)
    return jnp.where(counts, slope * jnp.where(counts, value, 0.0), 0.0)


def _elasticities(slopes: _Tree, at: _Tree) -> _Tree:
    return jax.tree.map(_elasticity, slopes, at)


def sensitivities(program: Program, inputs: ProgramInputs, solved: Solved) -> DesignSensitivities:
    """Elasticities of the optimum, while the same bounds and constraints bind.

    With F the `field` of the conditions, A its slopes in z = (x, λ) (the identity in components
    that are held) and θ a number, A·dz/dθ = −∂F/∂θ in the free components. The objective's are
    ∂L/∂θ at fixed z (envelope theorem).

    Args:
      program: The program that was solved.
      inputs: What it was solved for.
      solved: Its optimum, which must be feasible.
    """
    inputs = as_arrays(inputs)
    variables, objective = _sensitivities(program, inputs, solved.design, solved.multipliers)
    structure = jax.tree.structure((inputs.serving, inputs.fixed))
    by_serving, by_fixed = zip(
        *(jax.tree.unflatten(structure, list(row)) for row in (*variables, objective))
    )
    return DesignSensitivities(
        variables=dict(zip(program.variables, by_serving)),
        objective=by_serving[-1],
        variables_fixed=dict(zip(program.variables, by_fixed)),
        objective_fixed=by_fixed[-1],
    )


@functools.partial(jax.jit, static_argnames="program")
def _sensitivities(
    program: Program, inputs: ProgramInputs, design: Design, multipliers: Array
) -> tuple[Array, Array]:
    """Elasticities of the variables, [V, P], and of the objective, [P], with respect to all P
    numbers in the order of their tree.

    One vector holds z and the numbers, so that one forward pass gives every slope: a program for
    vectors compiles in a fraction of the time of one with as many scalars.
    """
    leaves, structure = jax.tree.flatten((inputs.serving, inputs.fixed))
    point = Point(coordinates(program, design), multipliers)
    size, held = len(point.x), len(point.x) + len(multipliers)
    values = jnp.stack(leaves)

    def at(both: Array) -> tuple[tuple[Array, Array, Array], Array]:
        serving, fixed = jax.tree.unflatten(structure, list(both[held:]))
        here = Point(both[:size], both[size:held])
        functions = objective_and_constraints(
            program, inputs._replace(serving=serving, fixed=fixed)
        )
        residual, (f, g) = field(functions, here)
        return (residual, f, g), residual

    (slopes, f_slopes, g_slopes), residual = jax.jacfwd(at, has_aux=True)(
        jnp.concatenate([*point, values])
    )
    free = free_components(box(program, inputs), point, residual)
    moved = jnp.linalg.solve(
        free_rows(free, slopes[:, :held]), jnp.where(free[:, None], -slopes[:, held:], 0.0)
    )
    gained = f_slopes[held:] + multipliers @ g_slopes[:, held:]
    # From coordinates to logarithms of the variables: d ln γ = (1 + γ)/γ · d ln(1 + γ).
    gamma = jnp.asarray(design.lookahead)
    scale = jnp.stack(
        [
            (1 + gamma) / gamma if name == "lookahead" else jnp.ones_like(gamma)
            for name in program.variables
        ]
    )
    return _elasticity(scale[:, None] * moved[:size], values[None]), _elasticity(gained, values)


def of_stated_sizes(
    program: Program, inputs: ProgramInputs, solved: Solved, own: DesignSensitivities
) -> DesignSensitivities:
    """The same sensitivities, with sizes in the parameter count of the loss law instead of
    non-embedding parameters.

    With T the count of a model of size N and aspect ratio r, d ln T = ∂ln T/∂ln N·d ln N + ∂ln
    T/∂ln r·d ln r + direct terms, such as that of the vocabulary. A size on a bound stays there:
    bounds are of the stated size.
    """
    arguments = (as_arrays(inputs.serving), as_arrays(solved.design))
    variables, fixed = dict(own.variables), dict(own.variables_fixed)
    for i, role in enumerate(("draft", "target")):
        name = f"{role}_params"
        if name not in program.variables:
            continue
        at = program.variables.index(name)
        if bool(solved.at_lower[at] | solved.at_upper[at]):
            continue

        def size(arguments: tuple[Serving, Design], i: int = i) -> Array:
            return jnp.log(counted(shapes(*arguments)[i], arguments[0].loss_law))

        direct, by_design = _elasticities(jax.grad(size)(arguments), arguments)
        # What is fixed of the design moves the size by itself; what is not, as the optimum moves.
        held = by_design._replace(**dict.fromkeys(program.variables, jnp.zeros(())))
        for tables, before, total in (
            (variables, own.variables, direct),
            (fixed, own.variables_fixed, held),
        ):
            for other in program.variables:
                slope = getattr(by_design, other)
                total = jax.tree.map(
                    lambda t, moved, slope=slope: t + slope * moved, total, before[other]
                )
            tables[name] = total
    return own._replace(variables=variables, variables_fixed=fixed)
