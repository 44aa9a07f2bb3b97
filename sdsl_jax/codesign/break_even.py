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
      speedup: S over decoding with the target alone; 0 where every draft has an acceptance of 1 or
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
      smallest_batch: Smallest whole batch with S > 1: more than 1 where overheads make S rise with
        the batch. Infinite where no batch considered has S > 1.
      largest_batch: Largest whole batch with S > 1; 0 where no batch considered has S > 1, infinite
        where the largest considered still has.
      gapless: Whether all batches considered between the two have S > 1; true where none has.
      every_batch: Whether all batches considered have S > 1.
      target_params: Smallest target size above which S > 1, at the design's batch; 0 where all
        sizes considered have S > 1, infinite where the largest considered has not.
      at_design: The best speculation at the design's own batch and target.
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
    own draft size and lookahead are ignored.
    """
    target = jnp.asarray(design.target_params, jnp.result_type(float))
    sizes = jnp.exp(jnp.linspace(jnp.log(smallest_draft), jnp.log(target), _SIZES))
    lookaheads = jnp.arange(1, _LOOKAHEADS + 1, dtype=sizes.dtype)

    def judge(size: Array, lookahead: Array) -> Array:
        result = outcome(serving, design._replace(draft_params=size, lookahead=lookahead))
        return jnp.where(result.acceptance < 1, result.speedup, 0.0)

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

    The search considers 48 batches and bisects the gaps before the first and after the last that
    pay. Of 48 target sizes it bisects the gap below the first above which all pay. A change between
    two neighbours that both pay is not seen.

    Args:
      serving: What a design is judged by.
      design: Gives the target, batch, draft tokens and aspect ratio.
      smallest_draft: Smallest draft in non-embedding parameters; the largest is the target.
      largest_batch: Largest batch considered.
      largest_target: Largest target considered; the smallest is the smallest draft.

    Raises:
      SdslError: A bound is out of order.
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

    def bisect(paying: Array, failing: Array, pays, middle, turns: int) -> Array:
        """Narrows the gap between a value that pays and one that does not, and returns the former."""

        def halve(_, ends):
            at = middle(*ends)
            enough = pays(at)
            return jnp.where(enough, at, ends[0]), jnp.where(enough, ends[1], at)

        return jax.lax.fori_loop(0, turns, halve, (paying, failing))[0]

    count = len(batches)
    paid = jax.lax.map(lambda b: pays(batch=b), batches)
    first = jnp.min(jnp.where(paid, jnp.arange(count), count))
    last = jnp.max(jnp.where(paid, jnp.arange(count), -1))

    def edge(inside: Array, outside: Array, rounded) -> Array:
        """The last whole batch that pays on the way from a paying batch to its failing neighbour."""
        paying, failing = (batches[jnp.clip(i, 0, count - 1)] for i in (inside, outside))
        # Once the ends are neighbours the middle is the one that pays, and nothing changes any more.
        return bisect(
            paying, failing, lambda b: pays(batch=b), lambda x, y: rounded((x + y) / 2), 12
        )

    largest = edge(last, last + 1, jnp.floor)
    largest = jnp.where(last < 0, 0.0, jnp.where(last == count - 1, jnp.inf, largest))
    least = jnp.where(first == count, jnp.inf, edge(first, first - 1, jnp.ceil))
    gapless = (last < 0) | (paid.sum() == last - first + 1)

    targets = jnp.linspace(jnp.log(smallest), jnp.log(largest_target), _GRID)
    failed = ~jax.lax.map(lambda m: pays(target_params=jnp.exp(m)), targets)
    last = jnp.max(jnp.where(failed, jnp.arange(_GRID), -1))
    ends = targets[jnp.minimum(last + 1, _GRID - 1)], targets[jnp.maximum(last, 0)]
    size = bisect(*ends, lambda m: pays(target_params=jnp.exp(m)), lambda x, y: (x + y) / 2, 40)
    size = jnp.where(last < 0, 0.0, jnp.where(last == _GRID - 1, jnp.inf, jnp.exp(size)))
    return BreakEven(
        least, largest, gapless, paid.all(), size, best_speculation(serving, design, smallest)
    )
