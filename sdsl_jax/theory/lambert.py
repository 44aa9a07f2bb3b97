r"""The Lambert W function on its real branches, and the form of its lower branch that single
precision can hold.

W is the inverse of W·e^W. On the lower branch, −W₋₁(−e^(−1−λ)) = 1 + w where w > 0 solves

    w − ln(1 + w) = λ,    λ > 0.

The closed form of the lookahead uses this equation: λ is an ordinary number, while e^(−1−λ)
underflows.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sdsl_jax.theory.arrays import Values

_HALLEY_STEPS = 3
_SERIES_TERMS = 14


def w_minus_log1p(w: Array) -> Array:
    """w − ln(1 + w) for w ≥ −1/2, without cancellation: with s = w/(2 + w), ln(1 + w) = 2·artanh(s), and w − 2s = s·w."""
    small = w < 0.5
    near = jnp.where(small, w, 0.0)
    s = near / (2 + near)
    square, tail = s * s, jnp.zeros_like(s)
    for n in range(_SERIES_TERMS, 0, -1):
        tail = square * (tail + 1 / (2 * n + 1))
    return jnp.where(small, s * near - 2 * s * tail, w - jnp.log1p(w))


# Compiled, since others differentiate it many times over: a compiled function is traced once.
@jax.jit
def solve_branch(lam: Values) -> Array:
    """The w > 0 with w − ln(1 + w) = λ, for λ > 0: w = −1 − W₋₁(−e^(−1−λ)). Its derivative is (1 + w)/w."""
    return _solve_branch(jnp.asarray(lam))


@jax.custom_jvp
def _solve_branch(lam: Array) -> Array:
    near = jnp.sqrt(2 * lam) + 2 * lam / 3
    far = lam + jnp.log1p(lam + jnp.log1p(lam))
    w = jnp.where(lam < 1, near, far)
    # Both starts are within a few percent, and Halley's steps converge cubically.
    for _ in range(_HALLEY_STEPS):
        newton = (w_minus_log1p(w) - lam) * (1 + w) / w
        w = w - newton / (1 - newton / (2 * w * (1 + w)))
    return w


@_solve_branch.defjvp
def _solve_branch_jvp(primals, tangents):
    (lam,), (lam_dot,) = primals, tangents
    w = _solve_branch(lam)
    return w, (1 + w) / w * lam_dot


@jax.custom_jvp
def _upper(x: Array) -> Array:
    """W₀ by Halley's steps on W·e^W = x (Corless et al., 1996)."""
    # Starts: a series in √(2(e·x + 1)) near the branch point, an asymptotic one for large x.
    root = jnp.sqrt(jnp.maximum(2 * (jnp.e * x + 1), 0.0))
    low = -1 + root - root**2 / 3 + 11 / 72 * root**3
    log = jnp.log(jnp.maximum(x, 3.0))
    w = jnp.where(x < 0, low, jnp.where(x < 3.0, jnp.log1p(x), log - jnp.log(log)))
    for _ in range(6):
        # Divided by e^W, so that nothing overflows.
        excess = w - x * jnp.exp(-w)
        one = 1 + w
        step = excess / (one - (w + 2) * excess / (2 * jnp.where(one == 0, 1.0, one)))
        w = w - jnp.where((one <= 0) | ~jnp.isfinite(step), 0.0, step)
    return w


@_upper.defjvp
def _upper_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    w = _upper(x)
    return w, jnp.exp(-w) / (1 + w) * x_dot


def lambertw(x: Values, branch: int = 0) -> Array:
    """A real branch of the Lambert W function: the W with W·e^W = x.

    Args:
      x: In [−1/e, ∞) for branch 0, in [−1/e, 0) for branch −1. The result is NaN outside, where
        `scipy.special.lambertw` is not real.
      branch: 0 for W ≥ −1, or −1 for W ≤ −1.

    Raises:
      ValueError: Another branch was asked for.
    """
    if branch not in (0, -1):
        raise ValueError(
            f"branch is {branch}; the Lambert W function is real on the branches 0 and -1 alone."
        )
    x = jnp.asarray(x, jnp.result_type(float))
    lowest = jnp.asarray(
        -1 / math.e * (1 + 2 * float(jnp.finfo(x.dtype).eps)), x.dtype
    )  # −1/e as callers round it
    if branch == 0:
        inside = x >= lowest
        return jnp.where(inside, _upper(jnp.where(inside, x, 0.0)), jnp.nan)
    inside = (x >= lowest) & (x < 0)
    lam = -1 - jnp.log(-jnp.where(inside, x, -0.25))
    at_branch_point = lam <= 0
    w = solve_branch(jnp.where(at_branch_point, 1.0, lam))
    return jnp.where(inside, jnp.where(at_branch_point, -1.0, -1 - w), jnp.nan)
