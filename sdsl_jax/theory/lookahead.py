r"""Throughput of speculative decoding, and the lookahead that maximises it, in closed form.

With i.i.d. acceptance probability α, lookahead γ, draft-step cost d and verify-pass cost v in target steps
(Leviathan et al., 2211.17192; arXiv 2603.11053):

    τ(α, γ) = (1 − α^(γ+1)) / (1 − α)          tokens per round
    S(α, γ) = τ / (γ·d + v)                    speed-up over autoregressive decoding

For constant v only c = d/v matters. Setting dS/dγ = 0 gives the Lambert-W form of the paper, whose argument underflows in
float32. It is equivalent to solving, for z > 1,

    z − ln z = Λ,    Λ = 1 + (1/c − 1)·k,    k = −ln α,

and then γ* = ln z / k − 1 and S* = k / (c·(1 − α)·z). Below, w = z − 1 and λ = Λ − 1 keep every digit near the branch
point z = 1. Everything is element-wise, differentiable and accurate in the precision of its inputs. docs/theory.md has
the derivation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.errors import require

Values = Float[Array, "*shape"] | Float[np.ndarray, "*shape"] | float

_NEWTON_STEPS = 6
_SERIES_TERMS = 14


def tokens_per_round(acceptance: Values, lookahead: Values) -> Array:
    """τ = (1 − α^(γ+1)) / (1 − α), for α in [0, 1) and γ ≥ 0; γ + 1 in the limit α → 1."""
    inside = (acceptance > 0) & (acceptance < 1)
    k = -jnp.log(jnp.where(inside, acceptance, 0.5))
    tau = jnp.expm1(-k * (lookahead + 1)) / jnp.expm1(-k)
    return jnp.where(inside, tau, jnp.where(acceptance <= 0, 1.0, lookahead + 1.0))


def speedup(acceptance: Values, lookahead: Values, draft_step: Values, verify_pass: Values = 1.0) -> Array:
    """S = τ / (γ·d + v), with costs in target steps; an acceptance of 0 or less counts as none."""
    return tokens_per_round(acceptance, lookahead) / (lookahead * draft_step + verify_pass)


def acceptance_from_tokens_per_round(tau: Values, lookahead: Values) -> Array:
    """The α whose `tokens_per_round` at this lookahead is τ, by bisection; the paper's inversion with τ = 1 + γ·TAR.

    τ at or below 1 gives 0, and at or above γ + 1 gives 1.
    """
    tau = jnp.asarray(tau)
    low, high = jnp.zeros_like(tau), jnp.ones_like(tau)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        too_low = tokens_per_round(middle, lookahead) < tau
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    alpha = jnp.where(tau <= 1, 0.0, jnp.where(tau >= lookahead + 1, 1.0, (low + high) / 2))
    return jnp.where(jnp.isnan(tau), jnp.nan, alpha)


def _w_minus_log1p(w: Array) -> Array:
    """w − ln(1 + w) without cancellation: with s = w/(2 + w), ln(1 + w) = 2·artanh(s), and w − 2s = s·w."""
    small = w < 0.5
    s = jnp.where(small, w, 0.0) / (2 + jnp.where(small, w, 0.0))
    square, tail = s * s, jnp.zeros_like(s)
    for n in range(_SERIES_TERMS, 0, -1):
        tail = square * (tail + 1 / (2 * n + 1))
    return jnp.where(small, s * jnp.where(small, w, 0.0) - 2 * s * tail, w - jnp.log1p(w))


@jax.custom_jvp
def solve_branch(lam: Array) -> Array:
    """The w > 0 with w − ln(1 + w) = λ, for λ > 0: w = −1 − W₋₁(−e^(−1−λ)). Its derivative is (1 + w)/w."""
    lam = jnp.asarray(lam)
    near = jnp.sqrt(2 * lam) + 2 * lam / 3
    far = lam + jnp.log1p(lam + jnp.log1p(lam))
    w = jnp.where(lam < 1, near, far)
    # Newton on a convex increasing function; both starts are within a few percent, and it converges quadratically.
    for _ in range(_NEWTON_STEPS):
        w = w - (_w_minus_log1p(w) - lam) * (1 + w) / w
    return w


@solve_branch.defjvp
def _solve_branch_jvp(primals, tangents):
    (lam,), (lam_dot,) = primals, tangents
    w = solve_branch(lam)
    return w, (1 + w) / w * lam_dot


class LookaheadOptimum(NamedTuple):
    """The best lookahead at given acceptance and cost.

    Attributes:
      lookahead: γ* ≥ 0, a real number; 0 where no γ > 0 beats plain decoding.
      speedup: S at γ*, 1/v of plain verification included; 1 where the lookahead is 0.
    """

    lookahead: Float[Array, "*shape"]
    speedup: Float[Array, "*shape"]


def optimal_lookahead(acceptance: Values, draft_step: Values, verify_pass: Values = 1.0) -> LookaheadOptimum:
    """γ* and S* in closed form, for real γ ≥ 0.

    γ* > 0 maximises S(γ) exactly when α·k/(1 − α) > c = d/v. With v > 1 that interior maximum may still lose against not
    speculating at all, which costs one target step a token; the optimum is then (0, 1), as it is for α ≤ 0.

    Args:
      acceptance: α < 1.
      draft_step: d > 0, in target steps.
      verify_pass: v > 0, in target steps; independent of γ.

    Raises:
      SdslError: an acceptance known at call time is 1 or more; under `jit`, where it is not, the limit α → 1 is
        returned, γ* = ∞ and S* = 1/d.
    """
    if not isinstance(acceptance, jax.core.Tracer):
        largest = float(jnp.max(jnp.asarray(acceptance)))
        require(largest < 1, f"the acceptance is {largest}; it must be below 1, or no finite lookahead is optimal.")
    alpha, cost = jnp.asarray(acceptance), jnp.asarray(draft_step) / verify_pass
    inside = (alpha > 0) & (alpha < 1)
    alpha_inside = jnp.where(inside, alpha, 0.5)
    k, miss = -jnp.log(alpha_inside), 1 - alpha_inside
    pays = inside & (alpha_inside * k > cost * miss)
    safe_cost = jnp.where(pays, cost, 0.5 * alpha_inside * k / miss)
    w = solve_branch((1 - safe_cost) / safe_cost * k)
    gamma = jnp.log1p(w) / k - 1
    best = k / (safe_cost * miss * (1 + w)) / verify_pass
    # For v ≤ 1 an interior maximum always beats 1, be it by less than the precision shows.
    pays = pays & ((jnp.asarray(verify_pass) <= 1) | (best > 1))
    certain = alpha >= 1
    gamma = jnp.where(certain, jnp.inf, jnp.where(pays, gamma, 0.0))
    return LookaheadOptimum(gamma, jnp.where(certain, 1 / (cost * verify_pass), jnp.where(pays, best, 1.0)))
