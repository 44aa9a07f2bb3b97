r"""Throughput of speculative decoding, and the lookahead that maximises it, in closed form.

With i.i.d. acceptance probability α, lookahead γ, draft-step cost d and verify-pass cost v in
target steps (Leviathan et al., 2211.17192; arXiv 2603.11053):

    τ(α, γ) = (1 − α^(γ+1)) / (1 − α)          tokens per round
    S(α, γ) = τ / (γ·d + v)                    speed-up over autoregressive decoding

For constant v only c = d/v matters. Setting dS/dγ = 0 gives the Lambert-W form of the paper, whose
argument underflows in float32. It is equivalent to solving, for z > 1,

    z − ln z = Λ,    Λ = 1 + (1/c − 1)·k,    k = −ln α,

and then γ* = ln z / k − 1 and S* = k / (c·(1 − α)·z). Below, w = z − 1 and λ = Λ − 1 keep every
digit near the branch point z = 1. All functions are element-wise, differentiable and accurate
in the precision of their inputs. docs/theory.md has the derivation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdsl_jax.errors import require
from sdsl_jax.ranges import share_hint
from sdsl_jax.theory.arrays import Values, namespace
from sdsl_jax.theory.domain import check_numbers, known_numbers
from sdsl_jax.theory.lambert import solve_branch, w_minus_log1p


def tokens_per_round(acceptance: Values, lookahead: Values) -> Array:
    """τ = (1 − α^(γ+1)) / (1 − α), for γ ≥ 0; 1 for α ≤ 0, and γ + 1 for α ≥ 1."""
    xp = namespace(acceptance, lookahead)
    acceptance = xp.asarray(acceptance)
    inside = (acceptance > 0) & (acceptance < 1)
    k = -xp.log(xp.where(inside, acceptance, 0.5))
    tau = xp.expm1(-k * (lookahead + 1)) / xp.expm1(-k)
    return xp.where(inside, tau, xp.where(acceptance <= 0, 1.0, lookahead + 1.0))


def speedup(
    acceptance: Values, lookahead: Values, draft_step: Values, verify_pass: Values = 1.0
) -> Array:
    """S = τ / (γ·d + v), the speed-up over the target alone.

    Args:
      acceptance: Acceptance probability α ≤ 1; 0 or less, which a law may give, counts as none.
        This and the others may be numbers, arrays or lists.
      lookahead: Drafted tokens per round γ ≥ 0, whole or not.
      draft_step: Cost d ≥ 0 of a draft step, in target steps.
      verify_pass: Cost v > 0 of a verify pass, in target steps.

    Raises:
      SdslError: A value is outside its range. Under `jit`, where no value is known, nothing is
        checked.
    """
    check_numbers("[-inf, 1]", "the acceptance", acceptance)
    check_numbers("[0, inf)", "the lookahead", lookahead)
    check_numbers("[0, inf)", "the cost of a draft step in target steps", draft_step)
    check_numbers("(0, inf)", "the cost of a verify pass in target steps", verify_pass)
    alpha, gamma, step, verify = (
        x if isinstance(x, float | int) else jnp.asarray(x)
        for x in (acceptance, lookahead, draft_step, verify_pass)
    )
    return tokens_per_round(alpha, gamma) / (gamma * step + verify)


@jax.jit
def acceptance_from_tokens_per_round(tau: Values, lookahead: Values) -> Array:
    """The α whose `tokens_per_round` at this lookahead is τ, by bisection; the paper's inversion
    with τ = 1 + γ·TAR.

    A τ of 1 or below gives 0, and one of γ + 1 or above gives 1. Derivatives are those of the
    implicit function.

    Args:
      tau: Tokens per round.
      lookahead: Drafted tokens per round, γ.
    """
    tau, gamma = (x.astype(jnp.result_type(float)) for x in jnp.broadcast_arrays(tau, lookahead))
    inside = (tau > 1) & (tau < gamma + 1)
    target, gamma = jnp.where(inside, tau, 1.5), jnp.where(inside, gamma, 1.0)

    def excess(alpha: Array) -> Array:
        return tokens_per_round(alpha, gamma) - target

    def bisect(function, start):
        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            too_low = function(middle) < 0
            return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

        low, high = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(start), jnp.ones_like(start)))
        return (low + high) / 2

    # Element by element, so that the linearised function is a diagonal.
    alpha = jax.lax.custom_root(
        excess, jnp.full_like(target, 0.5), bisect, lambda g, y: y / g(jnp.ones_like(y))
    )
    outside = jnp.where(jnp.isnan(tau), jnp.nan, jnp.where(tau <= 1, 0.0, 1.0))
    return jnp.where(inside, alpha, outside)


class _Interior(NamedTuple):
    """The stationary point over γ > 0. Where there is none, that of a cost that has one, to keep gradients finite."""

    inside: Array  # 0 < α < 1
    pays: Array  # the stationary point exists
    threshold: Array  # α·k/(1 − α), the cost below which it does
    lookahead: Array
    speedup: Array


@jax.jit
def _interior(alpha: Array, step: Array, verify: Array) -> _Interior:
    inside = (alpha > 0) & (alpha < 1)
    a = jnp.where(inside, alpha, 0.5)
    threshold = a * -jnp.log(a) / (1 - a)
    pays = inside & (threshold > step / verify)
    step = jnp.where(pays, step, 0.5 * threshold * verify)
    return _Interior(
        inside,
        pays,
        threshold,
        _stationary_lookahead(a, step / verify),
        _best_speedup(a, step, verify),
    )


def _branch(alpha: Array, cost: Array) -> tuple[Array, Array, Array]:
    k = -jnp.log(alpha)
    lam = (1 - cost) / cost * k
    return k, lam, solve_branch(lam)


def _stationary_lookahead(alpha: Array, cost: Array) -> Array:
    k, _, w = _branch(alpha, cost)
    return jnp.log1p(w) / k - 1


@jax.custom_jvp
def _best_speedup(alpha: Array, step: Array, verify: Array) -> Array:
    """S* = k / (c·(1 − α)·z)/v."""
    k, _, w = _branch(alpha, step / verify)
    return k / (step * (1 - alpha) * (1 + w))


@_best_speedup.defjvp
def _best_speedup_jvp(primals, tangents):
    """By the envelope theorem: the partial derivatives of ln τ(α, γ) − ln(γ·d + v) at γ = γ*.

    Differentiating the closed form instead would lose every digit of ∂S*/∂d at small d, the
    difference of two terms of 1/d.
    """
    alpha, step, verify = primals
    alpha_dot, step_dot, verify_dot = tangents
    best = _best_speedup(alpha, step, verify)
    k, lam, w = _branch(alpha, step / verify)
    gamma, miss = jnp.log1p(w) / k - 1, 1 - alpha
    # ∂ln τ/∂α = 1/(1 − α) − ln z/(kαw). Near α = 1 both terms are large; by ln z = w − λ they are
    # regrouped.
    small = jnp.where(alpha > 0.5, miss, 0.5)
    regrouped = (w_minus_log1p(-small) - k * miss) / (miss * k * alpha) + lam / (k * alpha * w)
    by_acceptance = jnp.where(alpha > 0.5, regrouped, 1 / miss - jnp.log1p(w) / (k * alpha * w))
    relative = by_acceptance * alpha_dot - (gamma * step_dot + verify_dot) / (gamma * step + verify)
    return best, best * relative


def best_log_speedup(acceptance: Values, draft_step: Values, verify_pass: Values = 1.0) -> Array:
    """ln S* where some γ > 0 beats γ → 0, and elsewhere a continuous measure of how far it is from
    that.

    A search over draft sizes climbs this function: unlike S* itself, which is 1 wherever speculation
    does not pay, it has no plateau. Where α·k/(1 − α) > c it is ln S* (possibly negative if v > 1),
    elsewhere α·k/(1 − α) − c − ln v, with α in place of α·k/(1 − α) for α ≤ 0. At α ≥ 1 it is its
    limit, −ln d.
    """
    alpha, step, verify = (jnp.asarray(x) for x in (acceptance, draft_step, verify_pass))
    interior = _interior(alpha, step, verify)
    short = jnp.where(interior.inside, interior.threshold, alpha) - step / verify - jnp.log(verify)
    return jnp.where(
        alpha >= 1, -jnp.log(step), jnp.where(interior.pays, jnp.log(interior.speedup), short)
    )


class LookaheadOptimum(NamedTuple):
    """The best lookahead at given acceptance and cost.

    Attributes:
      lookahead: γ* ≥ 0, a real number; 0 where no γ > 0 beats plain decoding.
      speedup: S at γ*; 1 where the lookahead is 0.
      lookahead_integer: Best integer lookahead; 0 where none beats plain decoding.
      speedup_integer: S at the best integer lookahead; 1 where that is 0.
      speculate: Whether some integer lookahead is faster than plain decoding.
    """

    lookahead: Float[Array, "*shape"]
    speedup: Float[Array, "*shape"]
    lookahead_integer: Float[Array, "*shape"]
    speedup_integer: Float[Array, "*shape"]
    speculate: Bool[Array, "*shape"]


def check_domain(acceptance: Values, draft_step: Values, verify_pass: Values) -> None:
    """Raises `SdslError` for values without an optimum, where they are known at call time (not under `jit`)."""
    alpha = known_numbers("the acceptance", acceptance)
    if alpha is not None:
        largest = float(alpha.max())
        require(
            largest < 1,
            f"the acceptance is {largest:g}; it must be below 1, or no finite lookahead is optimal{share_hint(largest)}.",
        )
    step = known_numbers("the cost of a draft step", draft_step)
    if step is not None:
        smallest = float(step.min())
        require(
            smallest > 0,
            f"the cost of a draft step is {smallest:g} target steps; it must be positive.",
        )
    verify = known_numbers("the cost of a verify pass", verify_pass)
    if verify is not None:
        smallest = float(verify.min())
        require(
            smallest >= 1,
            f"the cost of a verify pass is {smallest:g} target steps; it must be at least 1, for it does all that a step does.",
        )


def optimal_lookahead(
    acceptance: Values, draft_step: Values, verify_pass: Values = 1.0
) -> LookaheadOptimum:
    """γ* and S* in closed form for real γ ≥ 0, and the best integer γ.

    γ* > 0 maximises S(γ) exactly when α·k/(1 − α) > c = d/v. With v > 1 that interior maximum may
    still lose against not speculating at all, which costs one target step a token; the optimum is
    then (0, 1), as it is for α ≤ 0. S has a single maximum over γ, so the best integer γ ≥ 1 is
    next to γ*. For v = 1 an integer lookahead pays exactly if α > c.

    The derivatives of the real optimum exist to every order inside either region; at the boundary
    γ* is continuous and S* once differentiable.

    Args:
      acceptance: Acceptance probability α < 1.
      draft_step: Cost d > 0 of a draft step, in target steps.
      verify_pass: Cost v ≥ 1 of a verify pass, in target steps; independent of γ.

    Raises:
      SdslError: A value is outside its range. Under `jit`, where no value is known, α ≥ 1 gives
        the limit α → 1: γ* = ∞ and S* = 1/d.
    """
    check_domain(acceptance, draft_step, verify_pass)
    return optimal_lookahead_unchecked(acceptance, draft_step, verify_pass)


@jax.jit
def optimal_lookahead_unchecked(
    acceptance: Values, draft_step: Values, verify_pass: Values
) -> LookaheadOptimum:
    """`optimal_lookahead` as it is under `jit`: α ≥ 1 gives its limit."""
    alpha, step, verify = jnp.broadcast_arrays(
        *(jnp.asarray(x) for x in (acceptance, draft_step, verify_pass))
    )
    interior = _interior(alpha, step, verify)
    gamma, best = interior.lookahead, interior.speedup
    # At v = 1 an interior maximum always beats 1, be it by less than the precision shows.
    pays = interior.pays & ((verify <= 1) | (best > 1))
    saturates = alpha >= 1

    peak = jax.lax.stop_gradient(jnp.where(interior.pays, gamma, 0.0))
    below, above = jnp.maximum(jnp.floor(peak), 1.0), jnp.maximum(jnp.ceil(peak), 1.0)
    at_below, at_above = speedup(alpha, below, step, verify), speedup(alpha, above, step, verify)
    whole, at_whole = jnp.where(at_above > at_below, above, below), jnp.maximum(at_above, at_below)
    # At v = 1 this is S(1) > 1, written so that rounding cannot turn it round.
    speculate = saturates | jnp.where(verify == 1, alpha > step, at_whole > 1)
    limit = 1 / step
    return LookaheadOptimum(
        lookahead=jnp.where(saturates, jnp.inf, jnp.where(pays, gamma, 0.0)),
        speedup=jnp.where(saturates, limit, jnp.where(pays, best, 1.0)),
        lookahead_integer=jnp.where(saturates, jnp.inf, jnp.where(speculate, whole, 0.0)),
        speedup_integer=jnp.where(saturates, limit, jnp.where(speculate, at_whole, 1.0)),
        speculate=speculate,
    )
