"""How an optimum moves with everything it was computed from, by implicit differentiation of the conditions of an optimum."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdsl_jax.codesign.kkt import Point, field, free_components, free_rows, solve_small
from sdsl_jax.codesign.program import (
    VARIABLES,
    Program,
    ProgramInputs,
    Solved,
    as_arrays,
    box,
    coordinates,
    objective_and_constraints,
)
from sdsl_jax.codesign.serving_problem import ServingProblem
from sdsl_jax.kept_programs import kept_program
from sdsl_jax.theory.serving import Design, Serving, counted, shapes

# By the path of a number within `Serving`.
_QUANTITIES = {
    "hardware.pass_seconds": "overhead per pass",
    "hardware.layer_seconds": "overhead per layer",
    "hardware.token_seconds": "overhead per token",
    "hardware.matrix_seconds": "overhead per layer of several tokens",
    "hardware.wide_seconds": "overhead per layer of several tokens of a row",
    "hardware.logit_seconds": "drawing per token and vocabulary entry",
    "hardware.cache_slowdown": "speed of caches against weights",
    "hardware.bytes_per_second": "memory bandwidth",
    "hardware.flops_per_second": "arithmetic throughput",
    "hardware.round_seconds": "overhead per round",
    "hardware.link_bytes_per_second": "bandwidth between devices",
    "hardware.link_seconds": "latency between devices",
    "hardware.memory_bytes": "memory of a device",
    "hardware.price_per_hour": "price of a device",
    "hardware.watts": "power of a device",
    "loss_law.E": "irreducible loss E",
    "loss_law.A": "scale A of size in the loss law",
    "loss_law.B": "scale B of data in the loss law",
    "loss_law.a": "exponent a of size in the loss law",
    "loss_law.b": "exponent b of data in the loss law",
    "loss_law.N_c": "scale N_c of size in the loss law",
    "loss_law.D_c": "scale D_c of data in the loss law",
    "loss_law.alpha_N": "exponent α_N of size in the loss law",
    "loss_law.alpha_D": "exponent α_D of data in the loss law",
    "acceptance_law.level": "level of the acceptance law",
    "acceptance_law.slope": "slope of the acceptance law in the loss gap",
    "acceptance_law.draft_slope": "slope of the acceptance law in the draft's loss",
    "acceptance_law.target_slope": "slope of the acceptance law in the target",
    "acceptance_law.A": "slope A of the acceptance law in the draft's perplexity",
    "acceptance_law.B": "slope B of the acceptance law in the target's perplexity",
    "acceptance_law.C": "constant C of the acceptance law",
    "acceptance_law.scale": "scale of the acceptance law",
    "acceptance_law.exponent": "exponent of draft size in the acceptance law",
    "acceptance_law.target_exponent": "exponent of target size in the acceptance law",
    "acceptance_law.params_slope": "slope of the acceptance law in draft size",
    "acceptance_law.tokens_slope": "slope of the acceptance law in the draft's data",
    "draft_family.aspect_ratio": "aspect ratio of the draft's family",
    "draft_family.vocab_size": "vocabulary of the draft",
    "draft_family.kv_share": "key-value share of the draft",
    "draft_shape.params": "draft size outside embeddings",
    "draft_shape.layers": "layers of the draft",
    "draft_shape.width": "width of the draft",
    "draft_shape.query_width": "width of the draft's queries",
    "draft_shape.kv_width": "width of the draft's keys and values",
    "draft_shape.vocab_size": "vocabulary of the draft",
    "target_family.aspect_ratio": "aspect ratio of the target",
    "target_family.vocab_size": "vocabulary of the target",
    "target_family.kv_share": "key-value share of the target",
    "target_family.experts": "experts of the target",
    "target_family.active_experts": "active experts of the target",
    "target_tokens": "training tokens of the target",
    "draft_params": "draft size outside embeddings",
    "target_params": "target size outside embeddings",
    "context": "context",
    "prompt_tokens": "tokens of a prompt",
    "new_tokens": "new tokens of a request",
    "precision.weight_bytes": "bytes of a weight of the target",
    "precision.cache_bytes": "bytes of a cache element of the target",
    "draft_precision.weight_bytes": "bytes of a weight of the draft",
    "draft_precision.cache_bytes": "bytes of a cache element of the draft",
    "devices": "devices",
    "draft_devices": "devices of the draft",
    "aspect_penalty": "penalty on the draft's shape",
    "volume_tokens": "tokens to be served",
    "training_utilisation": "utilisation in training",
    "prefill_share": "share of prefills here",
}

# Elasticities below this are rounding errors of 0, and do not order what they belong to.
_ROUNDING = 1e-12


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
    variables: Any
    objective: Any
    variables, objective = _sensitivities(program, inputs, solved.design, solved.multipliers)
    if not isinstance(objective, jax.core.Tracer):
        variables, objective = np.asarray(variables), np.asarray(objective)
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


@functools.partial(kept_program, static_argnums=(0,))
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
    moved = solve_small(
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
    variables, fixed = dict(own.variables), dict(own.variables_fixed)
    sizes = jax.tree.map(np.asarray, _size_elasticities(inputs.serving, solved.design))
    for role, (direct, by_design) in zip(("draft", "target"), sizes):
        name = f"{role}_params"
        if name not in program.variables:
            continue
        at = program.variables.index(name)
        if bool(solved.at_lower[at] | solved.at_upper[at]):
            continue
        # What is fixed of the design moves the size by itself; what is not, as the optimum moves.
        held = by_design._replace(**dict.fromkeys(program.variables, 0.0))
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


@kept_program
def _size_elasticities(serving: Serving, design: Design) -> list[tuple[Serving, Design]]:
    """d ln T/d ln θ of the stated sizes T of draft and target, for every number θ."""
    arguments = serving, design

    def logs(arguments: tuple[Serving, Design]) -> Array:
        law = arguments[0].loss_law
        return jnp.log(jnp.stack([counted(shape, law) for shape in shapes(*arguments)]))

    slopes = jax.jacrev(logs)(arguments)
    return [
        jax.tree.map(lambda slope, value, i=i: _elasticity(slope[i], value), slopes, arguments)
        for i in range(2)
    ]


@dataclass(frozen=True)
class Sensitivity:
    """How the choice moves with one number that it depends on.

    Attributes:
      quantity: The number, in words.
      path: The number within `Serving`, or of the design.
      elasticity: d ln of each variable / d ln of the number; null where the optimum is not
        isolated.
      elasticity_of_objective: d(objective) / d ln of the number.
      logarithms_per_standard_error: Change of ln of each variable for one published standard
        error; null where none is published.
    """

    quantity: str
    path: str
    elasticity: dict[str, float | None]
    elasticity_of_objective: float | None
    logarithms_per_standard_error: dict[str, float | None] | None


def ranked_sensitivities(problem: ServingProblem, solved: Solved) -> list[Sensitivity] | None:
    """Elasticities of all variables and of the objective by every number that either depends on,
    what matters most first.

    They are ranked by the largest elasticity among the variables, or by that of the objective where
    all rest on bounds. None where no design keeps the constraints: there is no optimum to move.
    """
    if not solved.feasible:
        return None
    program = problem.program
    moves = sensitivities(program, problem.inputs, solved)
    moves = of_stated_sizes(program, problem.inputs, solved, moves)
    tables = {
        name: _flat(moves.variables[name]) | _flat(moves.variables_fixed[name])
        for name in program.variables
    }
    gains = _flat(moves.objective) | {
        name: value
        for name, value in _flat(moves.objective_fixed).items()
        if name not in program.variables
    }
    # Nobody has 1% more embedding tables, a roofline of another corner, or more than all of the
    # prefills. Experts are whole, and only a target with several has more of them.
    fixed = ("embedding_tables", "sharpness", "prefill_share", "overlapped", "expert_params")
    of_target = "target_family." if problem.config.target.experts > 1 else "none"
    gains = {
        path: value
        for path, value in gains.items()
        if not path.endswith(fixed) and (not path.endswith("experts") or path.startswith(of_target))
    }
    on_bounds = bool(np.all(np.asarray(solved.at_lower) | np.asarray(solved.at_upper)))
    errors = {
        f"{kind}_law.{name}": error / abs(float(getattr(law, name)))
        for kind, law in (("loss", problem.loss.law), ("acceptance", problem.acceptance.law))
        for name, error in law.about.standard_error
    }

    def weight(path: str) -> float:
        values = [gains[path]] if on_bounds else [table[path] for table in tables.values()]
        largest = max(abs(v) if np.isfinite(v) else 0.0 for v in values)
        return largest if largest > _ROUNDING else 0.0

    def scaled(path: str, by: float) -> dict[str, float | None]:
        return {name: _number(by * table[path]) for name, table in tables.items()}

    return [
        Sensitivity(
            _QUANTITIES.get(path)
            or VARIABLES.get(path)
            or path.replace("_", " ").replace(".", ", "),
            path,
            scaled(path, 1.0),
            _number(gains[path]),
            scaled(path, errors[path]) if path in errors else None,
        )
        for path in sorted(gains, key=weight, reverse=True)
        if any(abs(values[path]) > 0 for values in (*tables.values(), gains))
    ]


def _flat(tree: Any) -> dict[str, float]:
    """Leaves by their dotted paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"".join(str(part) for part in path).lstrip("."): float(value) for path, value in leaves}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
