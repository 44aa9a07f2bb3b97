"""How far ahead to guess with a draft at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from sdsl_jax.errors import require
from sdsl_jax.theory import (
    acceptance_from_tokens_per_round,
    optimal_lookahead,
    speedup,
    tokens_per_round,
)


def best_lookahead(
    cost: float,
    acceptance: float | None = None,
    acceptance_length: float | None = None,
    at_lookahead: int | None = None,
    verify_cost: float = 1.0,
) -> dict[str, Any]:
    """γ*, the best whole γ and what they give, as `sdsl lookahead --json` prints.

    Args:
      cost: d, of a draft step in target steps.
      acceptance: α in [0, 1); or instead of it
      acceptance_length: τ in [1, γ + 1), measured at
      at_lookahead: γ.
      verify_cost: v ≥ 1, in target steps.

    Raises:
      SdslError: a number is missing or out of range.
    """
    require(0 < cost < float("inf"), f"the cost of a draft step is {cost:g} target steps; it must be positive.")
    require(
        1 <= verify_cost < float("inf"),
        f"the cost of a verify pass is {verify_cost:g} target steps; it must be at least 1, for it does all that a step does.",
    )
    require(
        (acceptance is None) != (acceptance_length is None),
        "give either --acceptance, or --acceptance-length with --at-lookahead.",
    )
    require(
        acceptance is None or at_lookahead is None,
        "--at-lookahead belongs to --acceptance-length; an acceptance probability is that of any lookahead.",
    )
    with jax.enable_x64(True):
        if acceptance_length is not None:
            require(
                at_lookahead is not None and at_lookahead >= 1,
                "an acceptance length means nothing without the lookahead it was measured at: give --at-lookahead 1 or more.",
            )
            assert at_lookahead is not None
            require(
                1 <= acceptance_length < at_lookahead + 1,
                f"the acceptance length is {acceptance_length:g}; at lookahead {at_lookahead} it must be at least 1 and below "
                f"{at_lookahead + 1}.",
            )
            acceptance = float(acceptance_from_tokens_per_round(acceptance_length, at_lookahead))
        assert acceptance is not None
        require(0 <= acceptance < 1, f"the acceptance is {acceptance:g}; it must be at least 0 and below 1.")
        best = optimal_lookahead(acceptance, cost, verify_cost)
        whole = int(best.lookahead_integer)
        within = [whole, whole]
        if whole:
            floor = 0.99 * float(best.speedup_integer)

            def good(gamma: int) -> bool:
                return float(speedup(acceptance, float(gamma), cost, verify_cost)) >= floor

            # S rises up to the best whole lookahead and falls beyond it.
            within = [_first(good, 1, whole), _first(lambda g: not good(g), whole + 1, None) - 1]
        # S falls with d: the largest d at which some whole lookahead still pays, by bisection. At v = 1 it is α.
        break_even, too_dear = 0.0, 1.0
        for _ in range(50):
            middle = (break_even + too_dear) / 2
            pays = bool(optimal_lookahead(acceptance, middle, verify_cost).speculate)
            break_even, too_dear = (middle, too_dear) if pays else (break_even, middle)
        return {
            "acceptance": acceptance,
            "cost": cost,
            "verify_cost": verify_cost,
            "lookahead": float(best.lookahead),
            "lookahead_integer": whole,
            "lookahead_within_1pct": within,
            "tokens_per_round": float(tokens_per_round(acceptance, whole)),
            "speedup": float(best.speedup),
            "speedup_integer": float(best.speedup_integer),
            "speculate": bool(best.speculate),
            "break_even_cost": break_even,
        }


def _first(condition: Callable[[int], bool], low: int, high: int | None) -> int:
    """The smallest whole number from `low` on at which a condition holds, which holds from there on; up to `high` if given."""
    step = 1
    while high is None:
        if condition(low + step - 1):
            low, high = low + step // 2, low + step - 1
        step *= 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(middle) else (middle + 1, high)
    return low
