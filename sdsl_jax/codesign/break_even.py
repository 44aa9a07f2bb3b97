"""At which batches speculation pays, and from which target size on."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdsl_jax.errors import require
from sdsl_jax.theory.arrays import Scalar
from sdsl_jax.theory.serving import Design, Serving, outcome

_SIZES, _LOOKAHEADS, _GRID = 48, 32, 48


class Speculation(NamedTuple):
    """The fastest speculation on a grid of draft sizes and whole lookaheads.

    Attributes:
      speedup: S, over decoding with the target alone; 0 where every draft has an acceptance of 1 or
        more.
      draft_params: N, the best of 48 sizes evenly spaced in ln N.
      lookahead: γ, the best of 1 to 32.
    """

    speedup: Float[Array, ""]
    draft_params: Float[Array, ""]
    lookahead: Float[Array, ""]


class BreakEven(NamedTuple):
    """Where speculation starts and stops to pay. Numbers are never NaN for finite inputs.

    Attributes:
      smallest_batch: smallest whole batch with S > 1: more than 1 where overheads make S rise with
        the batch. Infinite where no batch considered has it.
      largest_batch: largest whole batch with S > 1; 0 where no batch considered has it, infinite
        where the largest considered still has.
      gapless: whether all batches considered between the two have S > 1; true where none has.
      every_batch: whether all batches considered have S > 1.
      target_params: smallest target size above which S > 1, at the design's batch; 0 where all that
        are considered have it, infinite where the largest considered has not.
      at_design: the best speculation at the design's own batch and target.
    """

    smallest_batch: Float[Array, ""]
    largest_batch: Float[Array, ""]
    gapless: Bool[Array, ""]
    every_batch: Bool[Array, ""]
    target_params: Float[Array, ""]
    at_design: Speculation


@jax.jit
def best_speculation(serving: Serving, design: Design, smallest_draft: Scalar) -> Speculation:
    """The fastest speculation for a design's target and batch, by brute force over 48 sizes up to
    the target's and γ of 1 to 32.

    Drafts to which an unbounded law gives an acceptance of 1 or more do not count. The design's
    draft size and lookahead are not looked at.
    """
    target = jnp.asarray(design.target_params, jnp.result_type(float))
    sizes = jnp.exp(jnp.linspace(jnp.log(smallest_draft), jnp.log(target), _SIZES))
    lookaheads = jnp.arange(1, _LOOKAHEADS + 1, dtype=sizes.dtype)

    def judge(size: Array, lookahead: Array) -> Array:
        given = outcome(serving, design._replace(draft_params=size, lookahead=lookahead))
        return jnp.where(given.acceptance < 1, given.speedup, 0.0)

    table = jax.vmap(jax.vmap(judge, (None, 0)), (0, None))(sizes, lookaheads)
    row, column = jnp.unravel_index(jnp.argmax(table), table.shape)
    return Speculation(table[row, column], sizes[row], lookaheads[column])


def break_even(
    serving: Serving,
    design: Design,
    smallest_draft: Scalar = 1e6,
    largest_batch: int = 4096,
    largest_target: Scalar = 1e13,
) -> BreakEven:
    """The batches from and up to which speculation pays, and the target size at which it starts to.

    48 batches (48 target sizes) are considered, and the gaps before the first and behind the last
    that pay (before the first above which all pay) are bisected, so that a return of the pay
    between two of them is not seen.

    Args:
      serving: what a design is judged by.
      design: its target, batch, draft tokens and aspect ratio count.
      smallest_draft: in non-embedding parameters; the largest is the target.
      largest_batch: that is considered.
      largest_target: that is considered; the smallest is the smallest draft.

    Raises:
      SdslError: a bound is out of order.
    """
    require(largest_batch >= 1, f"the largest batch is {largest_batch}; it must be at least 1.")
    ordered = 0 < smallest_draft < largest_target
    require(
        ordered,
        f"sizes run from {smallest_draft:g} to {largest_target:g}; they must be positive and rising.",
    )
    batches = np.geomspace(1, largest_batch, _GRID).round()
    return _break_even(
        serving,
        design,
        smallest_draft,
        jnp.asarray(batches, jnp.result_type(float)),
        largest_target,
    )


@jax.jit
def _break_even(
    serving: Serving, design: Design, smallest: Scalar, batches: Array, largest_target: Scalar
) -> BreakEven:
    def pays(**changed: Array) -> Array:
        return best_speculation(serving, design._replace(**changed), smallest).speedup > 1

    def bisect(paying: Array, not_paying: Array, pays, middle, turns: int) -> tuple[Array, Array]:
        def halve(_, ends):
            at = middle(*ends)
            enough = pays(at)
            return jnp.where(enough, at, ends[0]), jnp.where(enough, ends[1], at)

        return jax.lax.fori_loop(0, turns, halve, (paying, not_paying))

    count = len(batches)
    paid = jax.lax.map(lambda b: pays(batch=b), batches)
    last = jnp.max(jnp.where(paid, jnp.arange(count), -1))
    first = jnp.min(jnp.where(paid, jnp.arange(count), count))
    # Once the ends are neighbours the middle is the one that pays, and nothing changes any more.
    ends = batches[jnp.maximum(last, 0)], batches[jnp.minimum(last + 1, count - 1)]
    largest, _ = bisect(
        *ends, lambda b: pays(batch=b), lambda low, high: jnp.floor((low + high) / 2), 12
    )
    largest = jnp.where(last < 0, 0.0, jnp.where(last == count - 1, jnp.inf, largest))
    ends = batches[jnp.minimum(first, count - 1)], batches[jnp.maximum(first - 1, 0)]
    least, _ = bisect(
        *ends, lambda b: pays(batch=b), lambda high, low: jnp.ceil((low + high) / 2), 12
    )
    least = jnp.where(first == count, jnp.inf, least)
    gapless = (last < 0) | (paid.sum() == last - first + 1)

    targets = jnp.linspace(jnp.log(smallest), jnp.log(largest_target), _GRID)
    failed = ~jax.lax.map(lambda m: pays(target_params=jnp.exp(m)), targets)
    last = jnp.max(jnp.where(failed, jnp.arange(_GRID), -1))
    ends = targets[jnp.minimum(last + 1, _GRID - 1)], targets[jnp.maximum(last, 0)]
    size, _ = bisect(*ends, lambda m: pays(target_params=jnp.exp(m)), lambda a, b: (a + b) / 2, 40)
    size = jnp.where(last < 0, 0.0, jnp.where(last == _GRID - 1, jnp.inf, jnp.exp(size)))
    return BreakEven(
        least, largest, gapless, paid.all(), size, best_speculation(serving, design, smallest)
    )
