"""How far ahead to guess with a draft at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sdsl_jax.errors import require
from sdsl_jax.ranges import share_hint
from sdsl_jax.theory import (
    acceptance_from_tokens_per_round,
    optimal_lookahead,
    speedup,
    tokens_per_round,
)


class Counted(NamedTuple):
    """α from counts of accepted and proposed drafts.

    Attributes:
      acceptance: the α whose expected share of accepted drafts is the one that was counted.
      low: lower end of its 90% interval.
      high: upper end.
      rounds: proposed drafts over the lookahead.
    """

    acceptance: float
    low: float
    high: float
    rounds: float


# Two-sided 90% of a normal distribution.
_NORMAL_90 = 1.6448536269514722
INTERVAL_BASIS = "rounds taken as independent, every draft accepted with the same α; requests that differ make it wider than this"


def counted_acceptance(accepted: float, drafted: float, lookahead: int) -> Counted:
    """α from the counts that engines log, by inverting the expected tokens of a round, 1 +
    γ·accepted/drafted.

    The interval holds each α under which the counted mean lies within 1.645 standard errors of the
    expected one, with the variance of accepted drafts per round under that very α (a score
    interval), so that it stays within [0, 1] for small counts.

    Args:
      accepted: drafts that the target accepted, without the bonus tokens; a whole number of 0 or
        more.
      drafted: drafts that were proposed; a whole number of at least one round.
      lookahead: γ, drafts of a round.

    Raises:
      SdslError: a count is not whole or out of range, or all drafts were accepted.
    """
    for name, value in (("--accepted", accepted), ("--drafted", drafted)):
        require(
            value == math.floor(value) >= 0,
            f"{name} is {value:g}; it must be a whole number of drafts.",
        )
    require(
        accepted <= drafted,
        f"--accepted is {accepted:,.0f} and --drafted {drafted:,.0f}; accepted drafts are some of those proposed, without the "
        "bonus token of each round.",
    )
    require(
        drafted >= lookahead,
        f"--drafted is {drafted:,.0f}, less than one round of {lookahead} drafts; it counts all proposed drafts, not rounds.",
    )
    rounds = drafted / lookahead
    mean = accepted / rounds

    def excess(alpha: float, side: float) -> float:
        """How far the counted mean lies above the expected one, in multiples of side; falls with α."""
        expected, variance = _accepted_per_round(alpha, lookahead)
        return mean - expected - side * math.sqrt(variance / rounds)

    # Both ends have the estimate on one side, where the variance is that of an α at hand even if
    # nothing or all was accepted.
    estimate = _root(lambda a: excess(a, 0.0), 0.0, 1.0)
    low = _root(lambda a: excess(a, _NORMAL_90), 0.0, estimate)
    high = _root(lambda a: excess(a, -_NORMAL_90), estimate, 1.0)
    require(
        accepted < drafted,
        f"all {drafted:,.0f} drafts were accepted, which every α above {low:.4g} explains (95% confidence); count more rounds, "
        "or give --acceptance.",
    )
    return Counted(estimate, low, high, rounds)


def _accepted_per_round(alpha: float, lookahead: int) -> tuple[float, float]:
    """Mean and variance of the accepted drafts of a round: P(at least k) = α^k for k up to γ."""
    tails = [alpha**k for k in range(1, lookahead + 1)]
    mean = sum(tails)
    return mean, max(sum((2 * k - 1) * tail for k, tail in enumerate(tails, 1)) - mean**2, 0.0)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function falls from above 0 to 0 or below, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low


def break_even_verify_cost(acceptance: float, cost: float) -> float:
    """The largest verify cost at which some whole lookahead is no slower than plain decoding: max over γ ≥ 1 of τ(γ) − γ·d."""
    if acceptance <= cost:
        return 1 + acceptance - cost
    # Each draft more adds α^γ tokens and costs d.
    gamma = max(1, math.floor(math.log(cost) / math.log(acceptance)))
    return 1 + acceptance * (1 - acceptance**gamma) / (1 - acceptance) - gamma * cost


def best_lookahead(
    cost: float,
    acceptance: float | None = None,
    acceptance_length: float | None = None,
    at_lookahead: int | None = None,
    verify_cost: float = 1.0,
    accepted: float | None = None,
    drafted: float | None = None,
) -> dict[str, Any]:
    """γ*, the best whole γ and what they give, as `sdsl lookahead --json` prints.

    Args:
      cost: d, of a draft step in target steps.
      acceptance: α in [0, 1); or instead of it
      acceptance_length: τ in [1, γ + 1), measured at
      at_lookahead: γ.
      verify_cost: v ≥ 1, in target steps.
      accepted: drafts that were accepted, of those
      drafted: that were proposed, in rounds of `at_lookahead`: a third way to give α, with a 90%
        interval of α and γ.

    Raises:
      SdslError: a number is missing or out of range.
    """
    require(
        0 < cost < float("inf"),
        f"the cost of a draft step is {cost:g} target steps; it must be positive.",
    )
    require(
        1 <= verify_cost < float("inf"),
        f"the cost of a verify pass is {verify_cost:g} target steps; it must be at least 1, for it does all that a step does.",
    )
    counts = (accepted is not None) + (drafted is not None)
    require(
        counts != 1,
        "accepted drafts mean nothing without those proposed: give both --accepted and --drafted, with --at-lookahead.",
    )
    require(
        (acceptance is not None) + (acceptance_length is not None) + (counts == 2) == 1,
        "give either --acceptance, or --acceptance-length with --at-lookahead, or --accepted and --drafted with --at-lookahead.",
    )
    require(
        acceptance is None or at_lookahead is None,
        "--at-lookahead belongs to --acceptance-length or --accepted and --drafted; an acceptance probability is that of any "
        "lookahead.",
    )
    with jax.enable_x64(True):
        interval = None
        if accepted is not None and drafted is not None:
            require(
                at_lookahead is not None and 1 <= at_lookahead <= _LARGEST_COUNTED,
                f"counts mean nothing without the lookahead they were taken at: give --at-lookahead, 1 to {_LARGEST_COUNTED}.",
            )
            assert at_lookahead is not None
            interval = counted_acceptance(accepted, drafted, at_lookahead)
            acceptance = interval.acceptance
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
        require(
            0 <= acceptance < 1,
            f"the acceptance is {acceptance:g}; it must be at least 0 and below 1{share_hint(acceptance)}.",
        )
        best = optimal_lookahead(acceptance, cost, verify_cost)
        whole = int(best.lookahead_integer)
        within = [whole, whole]
        if whole:
            floor = 0.99 * float(best.speedup_integer)

            def good(gamma: int) -> bool:
                return float(speedup(acceptance, float(gamma), cost, verify_cost)) >= floor

            # S rises up to the best whole lookahead and falls beyond it.
            within = [_first(good, 1, whole), _first(lambda g: not good(g), whole + 1, None) - 1]
        # S falls with d: the largest d at which some whole lookahead still pays, by bisection. At v
        # = 1 it is α.
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
            "break_even_verify_cost": break_even_verify_cost(acceptance, cost),
            **(
                _of_counts(interval, cost, verify_cost, accepted, drafted, at_lookahead)
                if interval
                else {}
            ),
        }


# More drafts in a round than any engine proposes.
_LARGEST_COUNTED = 1024


def _of_counts(
    interval: Counted, cost: float, verify_cost: float, accepted: Any, drafted: Any, lookahead: Any
) -> dict[str, Any]:
    """What was counted, and the 90% intervals of α and of the best whole γ, which rises with α."""
    # At α = 1 no lookahead is the best one.
    ends = [
        int(optimal_lookahead(min(alpha, 1 - 1e-12), cost, verify_cost).lookahead_integer)
        for alpha in (interval.low, interval.high)
    ]
    return {
        "accepted": int(accepted),
        "drafted": int(drafted),
        "at_lookahead": lookahead,
        "accepted_share": accepted / drafted,
        "rounds": interval.rounds,
        "acceptance_interval_90": [interval.low, interval.high],
        "lookahead_interval_90": ends,
        "interval_basis": INTERVAL_BASIS,
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
