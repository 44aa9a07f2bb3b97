"""Co-design as a constrained program: any choice of variables, objectives and constraints over one differentiable `outcome`.

    minimise  Σ_k w_k · ln m_k(x)   subject to   ln(m_j(x)/limit_j) ≤ 0   and   lower ≤ x ≤ upper

The metrics m are positive numbers of an `Outcome`, so that logarithms make objective and constraints free of units; x are
logarithms of the variables (of 1 + γ for the lookahead).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdsl_jax.theory.serving import Design, Outcome, Serving

# Of what a designer may want little: fields of `Outcome`. Least seconds per token is most tokens per second.
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


@dataclass(frozen=True)
class Task:
    """What is solved for; static, so that one compilation serves every set of numbers.

    Attributes:
      variables: fields of `Design` that are free.
      objective: metrics that are to be small, weighted by `Numbers.weights`.
      constraints: metrics that may not exceed `Numbers.limits`.
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


class Numbers(NamedTuple):
    """The numbers of a task; a pytree, to be stacked for sweeps.

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
    weights: Float[Array, " K"] = jnp.ones(1)
    limits: Float[Array, " J"] = jnp.ones(0)


class Solved(NamedTuple):
    """An optimum, and how well it satisfies the conditions of one (Karush, Kuhn and Tucker).

    Attributes:
      design: the best design found.
      outcome: what it gives.
      objective: Σ w·ln m there.
      multipliers: of the constraints, ≥ 0: what the objective would gain per e-fold of the limit.
      kkt_residual: largest of: projected gradient of the Lagrangian, violation of a constraint, multiplier times slack.
      feasible: whether every constraint holds, to 1e-6 of its limit.
      starts_agreeing: share of starts whose end is as good.
      at_lower: of each variable, whether it rests on its bound.
      at_upper: of each variable, whether it rests on its bound.
      path: values of the variables at every step of the best start.
    """

    design: Design
    outcome: Outcome
    objective: Float[Array, ""]
    multipliers: Float[Array, " J"]
    kkt_residual: Float[Array, ""]
    feasible: Bool[Array, ""]
    starts_agreeing: Float[Array, ""]
    at_lower: Bool[Array, " V"]
    at_upper: Bool[Array, " V"]
    path: Float[Array, "steps V"]


def solve(task: Task, numbers: Numbers, starts: Float[Array, "S V"], learning_rate: Array | float) -> Solved:
    """The best of many starts; jitted, and to be `vmap`ped over numbers for sweeps and fronts."""
    raise NotImplementedError
