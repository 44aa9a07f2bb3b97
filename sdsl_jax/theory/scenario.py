"""From laws to the draft for a target: the design problem, its optimum, and how the optimum moves with everything in it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.bracketed import best_lookahead
from sdsl_jax.theory.costs import ParameterCost
from sdsl_jax.theory.hardware import CostModel, DeviceRound, HardwareCost
from sdsl_jax.theory.laws import AcceptanceLaw, LossLaw, ModelPoint
from sdsl_jax.theory.lookahead import optimal_lookahead_unchecked, tokens_per_round
from sdsl_jax.theory.optima import (
    DraftOptimum,
    check_acceptance,
    check_bounds,
    maximise_over_sizes,
    optimal_draft,
    optimal_draft_of_rounds,
)

# Target sizes on the grid of `smallest_target_that_pays`.
_TARGETS = 64


class DraftProblem(NamedTuple):
    """Which draft to train for one target: maximise S = τ(α(N), γ)/C(N, γ) over N and γ (arXiv
    2603.11053).

    A pytree whose leaves are coefficients, so that one compilation serves every target and every
    bootstrap draw.

    Attributes:
      loss_law: gives the loss of a draft of N parameters.
      draft_tokens: that the draft will be trained on.
      target: size and loss of the target.
      acceptance_law: from draft and target to α.
      cost: of a round, C(N, γ).
      bounds: smallest and largest N.
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
        alpha = self.acceptance(params)
        if isinstance(self.cost, HardwareCost):
            found = best_lookahead(
                alpha, self.cost.round_of(params), DeviceRound.cost, self.cost.lookahead_bounds
            )
            return jnp.where(alpha >= 1, jnp.inf, found)
        best = optimal_lookahead_unchecked(
            alpha, self.cost.draft_step(params), self.cost.verify_pass
        )
        # S falls on both sides of its maximum, so the best lookahead of at least one draft is that
        # maximum or 1.
        return jnp.maximum(best.lookahead, 1.0)

    def log_speedup(self, x: Float[Array, 2]) -> Array:
        """ln S at x = (ln N, ln(1 + γ)), the coordinates of a gradient method."""
        return jnp.log(self.speedup(jnp.exp(x[0]), jnp.expm1(x[1])))

    def optimum(self) -> DraftOptimum:
        """N* by a bracketed root, and γ* by its closed form or, at the costs of a device, by
        another bracketed root.

        Compiled once for all problems of the same kinds of laws and costs.

        Raises:
          ValueError: as `optimal_draft` does.
        """
        check_bounds(self.bounds)
        best = _optimum(self)
        check_acceptance(best)
        return best


@jax.jit
def _optimum(problem: DraftProblem) -> DraftOptimum:
    cost = problem.cost
    if isinstance(cost, HardwareCost):
        return optimal_draft_of_rounds(
            problem.acceptance,
            cost.draft_step,
            cost.round_of,
            DeviceRound.cost,
            problem.bounds,
            cost.lookahead_bounds,
        )
    return optimal_draft(problem.acceptance, cost.draft_step, problem.bounds, cost.verify_pass)


class Scenario(NamedTuple):
    """A target that does not have a draft yet, and the laws to choose one by.

    A pytree: differentiate with respect to the whole of it for the sensitivity to each of its
    numbers.

    Attributes:
      target_params: M, in the count of the laws.
      draft_tokens: D, that the draft will be trained on.
      target_tokens: D′, that the target was trained on.
      loss_law: L(N, D), for draft and target alike.
      acceptance_law: from draft and target to α.
      draft_overhead: c₀, cost of a draft step of any size in target steps, on top of N/M.
      smallest_draft: smallest N considered; the largest is M.
    """

    target_params: Scalar
    draft_tokens: Scalar
    target_tokens: Scalar
    loss_law: LossLaw
    acceptance_law: AcceptanceLaw
    draft_overhead: Scalar = 0.0
    smallest_draft: Scalar = 1e6

    def problem(self) -> DraftProblem:
        """The design problem of this target, at the paper's costs."""
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
        """N*, γ* and S*."""
        return self.problem().optimum()


class Sensitivities(NamedTuple):
    """Derivatives of ln N*, γ* and ln S* with respect to every number of a scenario, each in the shape of a scenario."""

    log_draft_params: Scenario
    lookahead: Scenario
    log_speedup: Scenario


@jax.jit
def sensitivities(scenario: Scenario) -> Sensitivities:
    """How the optimum moves with every number in it, by the implicit function theorem.

    An entry is ∂(ln N*)/∂θ and so on, for θ in its own unit: multiply by a standard error to see
    what it is worth.
    """

    def answer(given: Scenario) -> Array:
        best = given.optimum()
        return jnp.stack([jnp.log(best.params), best.lookahead, jnp.log(best.speedup)])

    rows = jax.jacrev(answer)(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), scenario)
    )
    return Sensitivities(*(jax.tree.map(lambda x, i=i: x[i], rows) for i in range(3)))


class Elasticities(NamedTuple):
    """d ln N*/d ln of target size, draft tokens and target tokens."""

    target_params: Float[Array, ""]
    draft_tokens: Float[Array, ""]
    target_tokens: Float[Array, ""]


@jax.jit
def optimum_with_elasticities(scenario: Scenario) -> tuple[DraftOptimum, Elasticities]:
    """The optimum, and the local exponents of N* in M, D and D′, by the implicit function theorem."""

    def log_size(logs: Array) -> tuple[Array, DraftOptimum]:
        m, d, d_target = jnp.exp(logs)
        best = scenario._replace(target_params=m, draft_tokens=d, target_tokens=d_target).optimum()
        return jnp.log(best.params), best

    sizes = (scenario.target_params, scenario.draft_tokens, scenario.target_tokens)
    logs = jnp.log(jnp.stack([jnp.asarray(s, jnp.result_type(float)) for s in sizes]))
    slopes, best = jax.grad(log_size, has_aux=True)(logs)
    return best, Elasticities(*slopes)


def elasticities(scenario: Scenario) -> Elasticities:
    """The local exponents of N* in M, D and D′, by the implicit function theorem."""
    return optimum_with_elasticities(scenario)[1]


class Flags(NamedTuple):
    """What an answer rests on that its laws do not cover. True means: read the answer with that in
    mind.

    Attributes:
      draft_loss_extrapolated: N* or D lies outside the loss law's range.
      target_loss_extrapolated: M or D′ lies outside the loss law's range.
      acceptance_extrapolated: draft or target lies outside the acceptance law's range.
      acceptance_not_positive: the law gives α ≤ 0 at N*, which counts as no acceptance at all.
      interval_extrapolated: an end of the 5% interval lies outside the range of one of the laws.
      acceptance_certain: the law gives α ≥ 1 at N* or at an end of its 5% interval: there is no
        optimum to speak of.
      at_bound: N* is the smallest or largest size considered.
    """

    draft_loss_extrapolated: Bool[Array, "*batch"]
    target_loss_extrapolated: Bool[Array, "*batch"]
    acceptance_extrapolated: Bool[Array, "*batch"]
    acceptance_not_positive: Bool[Array, "*batch"]
    interval_extrapolated: Bool[Array, "*batch"]
    acceptance_certain: Bool[Array, "*batch"]
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

    ends = optimum.indifference_5pct
    interval = [leaves(end) for end in ends for leaves in (leaves_loss_law, leaves_acceptance_law)]
    logs = jnp.log(optimum.params)
    margin = 1e-6 * jnp.abs(logs)
    return Flags(
        draft_loss_extrapolated=leaves_loss_law(optimum.params),
        target_loss_extrapolated=loss.about.outside(
            params=scenario.target_params, tokens=scenario.target_tokens
        ),
        acceptance_extrapolated=leaves_acceptance_law(optimum.params),
        acceptance_not_positive=optimum.acceptance <= 0,
        interval_extrapolated=interval[0] | interval[1] | interval[2] | interval[3],
        acceptance_certain=optimum.certain,
        at_bound=(logs - jnp.log(scenario.smallest_draft) <= margin)
        | (jnp.log(scenario.target_params) - logs <= margin),
    )


class PayingTarget(NamedTuple):
    """The smallest target for which speculation pays.

    Attributes:
      params: its size; infinite where none pays.
      certain: whether just below it the best draft has α ≥ 1: then the size is where an unbounded
        law becomes a probability, and not a break-even.
    """

    params: Float[Array, ""]
    certain: Bool[Array, ""]


def smallest_target_that_pays(scenario: Scenario, largest: Scalar = 1e13) -> PayingTarget:
    """The smallest target size above which some draft and some whole lookahead beat plain decoding.

    At v = 1 that is where max over N of α(N) − d(N) turns positive; drafts to which an unbounded
    law gives α ≥ 1 do not count. `scenario.target_params` is ignored; 64 sizes from just above
    `smallest_draft` to `largest` are considered, and then bisected.

    Raises:
      ValueError: `largest` is not above `smallest_draft`, as far as that is known at call time.
    """
    check_bounds((scenario.smallest_draft, largest))
    return _smallest_target_that_pays(scenario, largest)


@jax.jit
def _smallest_target_that_pays(scenario: Scenario, largest: Scalar) -> PayingTarget:
    def margin(log_m: Array) -> tuple[Array, Array]:
        problem = scenario._replace(target_params=jnp.exp(log_m)).problem()

        def advantage(x: Array) -> Array:
            alpha = problem.acceptance(jnp.exp(x))
            return jnp.where(alpha < 1, alpha - problem.cost.draft_step(jnp.exp(x)), -1.0)

        low, high = (jnp.log(b) for b in problem.bounds)
        peak = maximise_over_sizes(advantage, low, high)
        certain = (jax.vmap(problem.acceptance)(jnp.exp(peak.grid)) >= 1).any()
        return advantage(peak.x), certain

    low = jnp.log(jnp.asarray(scenario.smallest_draft, jnp.result_type(float)) * 1.01)
    grid = jnp.linspace(low, jnp.log(largest), _TARGETS)
    pays = jax.vmap(margin)(grid)[0] > 0
    # The last grid point at which it does not pay; above it, it does throughout.
    last = jnp.max(jnp.where(~pays, jnp.arange(_TARGETS), -1))

    def halve(_, ends):
        below, above = ends
        middle = (below + above) / 2
        enough = margin(middle)[0] > 0
        return jnp.where(enough, below, middle), jnp.where(enough, middle, above)

    ends = grid[jnp.maximum(last, 0)], grid[jnp.minimum(last + 1, _TARGETS - 1)]
    below, above = jax.lax.fori_loop(0, 40, halve, ends)
    size = jnp.where(
        last == _TARGETS - 1, jnp.inf, jnp.where(last < 0, jnp.exp(low), jnp.exp(above))
    )
    return PayingTarget(size, margin(below)[1] & jnp.isfinite(size))
