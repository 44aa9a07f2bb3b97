"""At which batches speculation pays, and from which target size on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.errors import require
from sdsl_jax.theory.arrays import Scalar, in_numpy, namespace, of_jax
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

    speedup: Float[Array, "*shape"]
    draft_params: Float[Array, "*shape"]
    lookahead: Float[Array, "*shape"]


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

    smallest_batch: float
    largest_batch: float
    gapless: bool
    every_batch: bool
    target_params: float
    at_design: Speculation


@dataclass(frozen=True)
class PayingBatches:
    """The batches at which speculation pays, memory aside.

    Attributes:
      pays_at_some_batch: Whether any batch considered pays.
      smallest_batch: Smallest batch that pays.
      largest_batch: Largest batch that pays; null if none does or all do.
      pays_between_them: Whether all batches between the two pay.
      pays_at_every_batch: Whether every batch considered pays.
      largest_batch_considered: Largest batch that was looked at.
    """

    pays_at_some_batch: bool
    smallest_batch: int | None
    largest_batch: int | None
    pays_between_them: bool
    pays_at_every_batch: bool
    largest_batch_considered: int

    @classmethod
    def of(cls, batches: np.ndarray, pays: np.ndarray) -> PayingBatches:
        """By whether each of some rising batches pays, both [batches]."""
        at = np.flatnonzero(pays)
        some = bool(at.size)
        return cls(
            some,
            round(float(batches[at[0]])) if some else None,
            round(float(batches[at[-1]])) if some and at[-1] < len(batches) - 1 else None,
            not some or bool(at[-1] - at[0] + 1 == at.size),
            bool(np.all(pays)),
            round(float(batches[-1])),
        )

    @property
    def batches(self) -> str:
        """The batches at which some draft pays, in words."""
        low, high, considered = (
            self.smallest_batch,
            self.largest_batch,
            self.largest_batch_considered,
        )
        if not self.pays_at_some_batch:
            return f"no batch up to {considered}"
        if self.pays_at_every_batch:
            return f"every batch up to {considered}"
        if low == high:
            return f"a batch of {low} alone"
        if low == 1:
            text = f"batches up to {high or considered}"
        else:
            end = f"to {high}" if high else f"on, as far as {considered}"
            text = f"batches from {low} {end}"
        return text if self.pays_between_them else text + ", though not at all of them"


def best_speculation(serving: Serving, design: Design, smallest_draft: Scalar) -> Speculation:
    """The fastest speculation for a design's target and batch, by brute force over 48 sizes up to
    the target's and γ of 1 to 32.

    Drafts to which an unbounded law gives an acceptance of 1 or more do not count. The design's
    own draft size and lookahead are ignored.

    Args:
      serving: What a design is judged by.
      design: A design, or many: its leaves broadcast to the shape of the result.
      smallest_draft: Smallest draft in non-embedding parameters.
    """
    given = serving, design, smallest_draft
    return _traced_speculation(*given) if of_jax(given) else _best_speculation(*in_numpy(given))


def _best_speculation(serving: Serving, design: Design, smallest_draft: Scalar) -> Speculation:
    xp = namespace(serving, design, smallest_draft)
    rows = Design(*(xp.asarray(leaf, float)[..., None, None] for leaf in design))
    target = xp.asarray(design.target_params, float)
    ends = xp.log(xp.full_like(target, smallest_draft)), xp.log(target)
    sizes = xp.exp(xp.linspace(*ends, _SIZES, axis=-1))[..., None]
    lookaheads = xp.arange(1, _LOOKAHEADS + 1, dtype=sizes.dtype)
    lookaheads = lookaheads.reshape(*[1] * (sizes.ndim - 1), -1)
    gives = outcome(serving, rows._replace(draft_params=sizes, lookahead=lookaheads))
    table = xp.where(gives.acceptance < 1, gives.speedup, 0.0)
    flat = table.reshape(*table.shape[:-2], -1)
    best = xp.argmax(flat, axis=-1)
    sizes = xp.broadcast_to(sizes, table.shape).reshape(flat.shape)

    def at_best(values: Array) -> Array:
        return xp.take_along_axis(values, best[..., None], axis=-1)[..., 0]

    return Speculation(
        at_best(flat), at_best(sizes), xp.asarray(1 + best % _LOOKAHEADS, sizes.dtype)
    )


_traced_speculation = jax.jit(_best_speculation)


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
    serving, design = in_numpy((serving, design))

    def pays(**changed: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            best = best_speculation(serving, design._replace(**changed), smallest_draft)
        return np.asarray(best.speedup) > 1

    def edge(
        paying: float,
        failing: float,
        pays: Callable[[float], np.ndarray],
        middle: Callable[[float], float],
        turns: int,
    ) -> float:
        """The last value that pays on the way from one that does to one that does not."""
        for _ in range(turns):
            at = middle((paying + failing) / 2)
            paying, failing = (at, failing) if pays(at) else (paying, at)
        return paying

    def whole_edge(inside: int, outside: int, rounded: Callable[[float], float]) -> float:
        """The last whole batch that pays on the way from a paying batch to its failing neighbour."""
        # Once the ends are neighbours the middle is the one that pays, and nothing changes any more.
        ends = batches[inside], batches[outside]
        return edge(*ends, lambda b: pays(batch=np.asarray(b)), rounded, 12)

    batches = np.geomspace(1, largest_batch, _GRID).round()
    paid = pays(batch=batches)
    first, last = np.flatnonzero(paid)[[0, -1]] if paid.any() else (_GRID, -1)
    least, largest = np.inf, 0.0
    if paid.any():
        least = whole_edge(first, first - 1, np.ceil) if first else batches[0]
        largest = np.inf if last == _GRID - 1 else whole_edge(last, last + 1, np.floor)

    targets = np.linspace(np.log(smallest_draft), np.log(largest_target), _GRID)
    failed = np.flatnonzero(~pays(target_params=np.exp(targets)))
    size = 0.0
    if failed.size:
        beyond = failed[-1] + 1
        size = np.inf
        if beyond < _GRID:
            ends = targets[beyond], targets[beyond - 1]
            size = np.exp(edge(*ends, lambda m: pays(target_params=np.exp(m)), lambda m: m, 40))
    with np.errstate(all="ignore"):
        here = best_speculation(serving, design, smallest_draft)
    gapless = not paid.any() or paid.sum() == last - first + 1
    return BreakEven(
        float(least), float(largest), bool(gapless), bool(paid.all()), float(size), here
    )
