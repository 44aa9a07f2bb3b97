"""From laws to the draft for a target: the design problem, its optimum, and how the optimum moves with everything in it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdsl_jax.errors import require
from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.costs import ParameterCost
from sdsl_jax.theory.domain import check_function, check_numbers, known_numbers
from sdsl_jax.theory.hardware import CostModel
from sdsl_jax.theory.laws import AcceptanceLaw, LossLaw, ModelPoint
from sdsl_jax.theory.lookahead import best_log_speedup, tokens_per_round
from sdsl_jax.theory.optima import DraftOptimum, check_acceptance, check_bounds


class DraftProblem(NamedTuple):
    """Which draft to train for one target: maximise S = τ(α(N), γ)/C(N, γ) over N and γ (arXiv
    2603.11053).

    A pytree whose leaves are coefficients, so that one compilation serves every target and every
    bootstrap draw.

    Attributes:
      loss_law: Gives the loss of a draft of N parameters, in nats per token.
      draft_tokens: D, tokens that the draft will be trained on.
      target: Size and loss of the target.
      acceptance_law: Gives α of a draft and a target.
      cost: Gives the cost C(N, γ) of a round, in target steps.
      bounds: Smallest and largest N.
    """

    loss_law: LossLaw
    draft_tokens: Scalar
    target: ModelPoint
    acceptance_law: AcceptanceLaw
    cost: CostModel
    bounds: tuple[Scalar, Scalar]

    def acceptance(self, params: Scalar) -> Array:
        """α of a draft of `params` parameters."""
        draft = ModelPoint(params, self.loss_law(params, self.draft_tokens), self.draft_tokens)
        return self.acceptance_law(draft, self.target)

    def speedup(self, params: Scalar, lookahead: Scalar) -> Array:
        """S of a draft at a lookahead γ, real or whole, within the bounds of the cost model."""
        return tokens_per_round(self.acceptance(params), lookahead) / self.cost.round_cost(
            params, lookahead
        )

    def best_lookahead(self, params: Scalar) -> Array:
        """The best γ ≥ 1 for a draft of `params` parameters, a real number, whether or not it pays; infinite at α ≥ 1."""
        return self.cost.best_lookahead(self.acceptance(params), params)

    def log_speedup(self, x: Float[Array, 2]) -> Array:
        """ln S at x = (ln N, ln(1 + γ)), the coordinates of a gradient method."""
        return jnp.log(self.speedup(jnp.exp(x[0]), jnp.expm1(x[1])))

    def optimum(self) -> DraftOptimum:
        """N* by a bracketed root, and γ* by its closed form or, at the costs of a device, by
        another bracketed root.

        Compiled once for all problems of the same kinds of laws and costs.

        Raises:
          SdslError: As `optimal_draft` does.
        """
        check_bounds(self.bounds)
        best = _optimum(self)
        check_acceptance(best)
        return best


@jax.jit
def _optimum(problem: DraftProblem) -> DraftOptimum:
    return problem.cost.optimal_draft(problem.acceptance, problem.bounds)


class Scenario(NamedTuple):
    """A target that does not have a draft yet, and the laws to choose one by.

    A pytree: differentiate with respect to it for the sensitivity to each of its numbers.

    Attributes:
      target_params: M, in the parameter count of the laws.
      draft_tokens: D, tokens that the draft will be trained on.
      target_tokens: D′, tokens that the target was trained on.
      loss_law: L(N, D), for draft and target alike.
      acceptance_law: Gives α of a draft and a target.
      draft_overhead: c₀, cost of a draft step of any size in target steps, on top of N/M.
      smallest_draft: Smallest N considered; the largest is M.
    """

    target_params: Scalar
    draft_tokens: Scalar
    target_tokens: Scalar
    loss_law: LossLaw
    acceptance_law: AcceptanceLaw
    draft_overhead: Scalar = 0.0
    smallest_draft: Scalar = 1e6

    def check(self) -> None:
        """Raises `SdslError` for a number that is known and impossible, and for what is no law."""
        for name in ("target_params", "draft_tokens", "target_tokens", "smallest_draft"):
            check_numbers("(0, inf)", name, getattr(self, name))
        check_numbers("[0, inf)", "draft_overhead", self.draft_overhead)
        low, high = (
            known_numbers(n, getattr(self, n)) for n in ("smallest_draft", "target_params")
        )
        require(
            low is None or high is None or np.all(low < high),
            f"target_params is {high} and smallest_draft {low}; a draft must be smaller than its target.",
        )
        check_function(
            "loss_law", self.loss_law, "a law, such as theory.BESIROGLU or load_law(...).law"
        )
        check_function(
            "acceptance_law",
            self.acceptance_law,
            "a law, such as theory.PAPER_PLANE or load_law(...).law",
        )

    def problem(self) -> DraftProblem:
        """The design problem of this target, at the paper's costs.

        Raises:
          SdslError: A number is impossible, or a law is none.
        """
        self.check()
        return DraftProblem(
            loss_law=self.loss_law,
            draft_tokens=self.draft_tokens,
            target=ModelPoint(
                self.target_params, self.loss_law(self.target_params, self.target_tokens)
            ),
            acceptance_law=self.acceptance_law,
            cost=ParameterCost(self.target_params, self.draft_overhead),
            bounds=(self.smallest_draft, self.target_params),
        )

    def optimum(self) -> DraftOptimum:
        """N*, γ* and S*.

        Raises:
          SdslError: As `problem` and `DraftProblem.optimum`.
        """
        return self.problem().optimum()


class Sensitivities(NamedTuple):
    """Derivatives of ln N*, γ* and ln S* with respect to every number of a scenario, each in the shape of a scenario."""

    log_draft_params: Scenario
    lookahead: Scenario
    log_speedup: Scenario


def sensitivities(scenario: Scenario) -> Sensitivities:
    """How the optimum moves with every number in it, by the implicit function theorem.

    An entry is ∂(ln N*)/∂θ and so on, for θ in its own unit. Multiplied by a standard error of θ it
    gives a standard error of ln N*.

    Raises:
      SdslError: As `Scenario.problem`.
    """
    scenario.check()
    return _sensitivities(scenario)


@jax.jit
def _sensitivities(scenario: Scenario) -> Sensitivities:

    def optimum(scenario: Scenario) -> Array:
        best = scenario.optimum()
        return jnp.stack([jnp.log(best.params), best.lookahead, jnp.log(best.speedup)])

    rows = jax.jacrev(optimum)(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), scenario)
    )
    return Sensitivities(*(jax.tree.map(lambda x, i=i: x[i], rows) for i in range(3)))


# N* is a stationary point if a Newton step would move it by less than this share.
_FLAT = 1e-3


class Elasticities(NamedTuple):
    """d ln N*/d ln of target size, draft tokens and target tokens."""

    target_params: Float[Array, ""]
    draft_tokens: Float[Array, ""]
    target_tokens: Float[Array, ""]


def optimum_with_elasticities(scenario: Scenario) -> tuple[DraftOptimum, Elasticities]:
    """The optimum, and the local exponents of N* in M, D and D′, by the implicit function theorem.

    Raises:
      SdslError: As `Scenario.problem`.
    """
    scenario.check()
    return _optimum_with_elasticities(scenario)


@jax.jit
def _optimum_with_elasticities(scenario: Scenario) -> tuple[DraftOptimum, Elasticities]:
    best = scenario.optimum()

    def slope(x: Array, logs: Array) -> Array:
        """d/d ln N of what N* maximises, at ln N = x."""
        m, d, d_target = jnp.exp(logs)
        moved = scenario._replace(target_params=m, draft_tokens=d, target_tokens=d_target).problem()

        def height(x: Array) -> Array:
            n = jnp.exp(x)
            return best_log_speedup(moved.acceptance(n), moved.cost.draft_step(n))

        return jax.grad(height)(x)

    # The theorem in plain algebra, for the derivative of the root finders takes several times as long
    # to trace. Where the slope is not zero, N* is M, the smallest size, or a kink of the laws.
    sizes = (scenario.target_params, scenario.draft_tokens, scenario.target_tokens)
    logs = jnp.log(jnp.stack([jnp.asarray(s, jnp.result_type(float)) for s in sizes]))
    x = jnp.log(best.params)
    curvature, mixed = jax.jacfwd(slope, argnums=(0, 1))(x, logs)
    stationary = jnp.abs(slope(x, logs)) < _FLAT * jnp.abs(curvature)
    at_most = x > logs[0] - _FLAT
    fixed = jnp.where(at_most, jnp.array([1.0, 0.0, 0.0]), 0.0)
    return best, Elasticities(*jnp.where(stationary, -mixed / curvature, fixed))


def elasticities(scenario: Scenario) -> Elasticities:
    """The local exponents of N* in M, D and D′, by the implicit function theorem."""
    return optimum_with_elasticities(scenario)[1]


class Flags(NamedTuple):
    """What to keep in mind when reading an optimum; true where it applies.

    Attributes:
      draft_loss_extrapolated: N* or D lies outside the range of the loss law.
      target_loss_extrapolated: M or D′ lies outside the range of the loss law.
      acceptance_extrapolated: Draft or target lies outside the range of the acceptance law.
      acceptance_not_positive: The law gives α ≤ 0 at N*, which counts as no acceptance at all.
      interval_extrapolated: An end of the 5% interval lies outside the range of one of the laws.
      acceptance_saturates: The law gives α ≥ 1 at N* or at an end of its 5% interval, so there is
        no meaningful optimum.
      at_bound: N* is the smallest or largest size considered.
    """

    draft_loss_extrapolated: Bool[Array, "*batch"]
    target_loss_extrapolated: Bool[Array, "*batch"]
    acceptance_extrapolated: Bool[Array, "*batch"]
    acceptance_not_positive: Bool[Array, "*batch"]
    interval_extrapolated: Bool[Array, "*batch"]
    acceptance_saturates: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]


def flags(scenario: Scenario, optimum: DraftOptimum) -> Flags:
    """Where the optimum of a scenario leaves what its laws were fitted on."""
    loss, accept = scenario.loss_law, scenario.acceptance_law
    target_loss = loss(scenario.target_params, scenario.target_tokens)

    def leaves_loss_law(size: Array) -> Array:
        return loss.about.outside(params=size, tokens=scenario.draft_tokens)

    def leaves_acceptance_law(size: Array) -> Array:
        return accept.about.outside(
            draft_params=size,
            target_params=scenario.target_params,
            draft_loss=loss(size, scenario.draft_tokens),
            target_loss=target_loss,
        )

    low, high = optimum.indifference_5pct
    logs = jnp.log(optimum.params)
    margin = 1e-6 * jnp.abs(logs)
    return Flags(
        draft_loss_extrapolated=leaves_loss_law(optimum.params),
        target_loss_extrapolated=loss.about.outside(
            params=scenario.target_params, tokens=scenario.target_tokens
        ),
        acceptance_extrapolated=leaves_acceptance_law(optimum.params),
        acceptance_not_positive=optimum.acceptance <= 0,
        interval_extrapolated=leaves_loss_law(low)
        | leaves_loss_law(high)
        | leaves_acceptance_law(low)
        | leaves_acceptance_law(high),
        acceptance_saturates=optimum.saturates,
        at_bound=(logs - jnp.log(scenario.smallest_draft) <= margin)
        | (jnp.log(scenario.target_params) - logs <= margin),
    )
