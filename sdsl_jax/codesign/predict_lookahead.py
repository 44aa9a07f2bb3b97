"""How far ahead a draft at hand should guess."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sdsl_jax.errors import require
from sdsl_jax.kept_programs import kept_program
from sdsl_jax.notebook import table_of
from sdsl_jax.ranges import share_hint
from sdsl_jax.records.documents import to_json
from sdsl_jax.theory import acceptance_from_tokens_per_round, tokens_per_round
from sdsl_jax.theory.lookahead import check_domain, optimal_lookahead_unchecked

_optimum = kept_program(optimal_lookahead_unchecked)
# Two-sided 90% of a normal distribution.
_NORMAL_90 = 1.6448536269514722
# More drafts in a round than any engine proposes.
_LARGEST_LOOKAHEAD = 1024


@dataclass(frozen=True)
class CountedAcceptance:
    """α from counts of accepted and proposed drafts.

    Attributes:
      acceptance: The α whose expected share of accepted drafts is the counted share.
      low: Lower end of its 90% interval.
      high: Upper end.
      rounds: Proposed drafts over the lookahead.
    """

    acceptance: float
    low: float
    high: float
    rounds: float


def counted_acceptance(accepted: float, drafted: float, lookahead: int) -> CountedAcceptance:
    """α from the counts that engines log, by inverting the expected tokens of a round, 1 +
    γ·accepted/drafted.

    The interval holds each α under which the counted mean lies within 1.645 standard errors of the
    expected one, with the variance of accepted drafts per round under that very α (a score
    interval), so that it stays within [0, 1] for small counts.

    Args:
      accepted: Drafts that the target accepted, without the bonus tokens; a whole number of 0 or
        more.
      drafted: Drafts that were proposed; a whole number of at least one round.
      lookahead: γ, drafts of a round.

    Raises:
      SdslError: A count is not whole or out of range, or all drafts were accepted.
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
    return CountedAcceptance(estimate, low, high, rounds)


def _accepted_per_round(alpha: float, lookahead: int) -> tuple[float, float]:
    """Mean and variance of the accepted drafts of a round: P(at least k) = α^k for k up to γ."""
    tails = [alpha**k for k in range(1, lookahead + 1)]
    mean = sum(tails)
    return mean, max(sum((2 * k - 1) * tail for k, tail in enumerate(tails, 1)) - mean**2, 0.0)


def _root(falling: Callable[[float], float], low: float, high: float, turns: int = 60) -> float:
    """Where a function falls from above 0 to 0 or below, by bisection."""
    for _ in range(turns):
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


@dataclass(frozen=True)
class LookaheadCounts:
    """What was counted, and the 90% intervals that follow from it.

    Attributes:
      accepted: Drafts that the target accepted.
      drafted: Drafts that were proposed.
      at_lookahead: Drafts per round while they were counted.
      accepted_share: Accepted over proposed.
      rounds: Proposed drafts over the lookahead.
      acceptance_interval_90: Interval of α.
      lookahead_interval_90: Interval of the best whole γ, which rises with α.
      interval_basis: What the intervals assume.
    """

    accepted: int
    drafted: int
    at_lookahead: int
    accepted_share: float
    rounds: float
    acceptance_interval_90: list[float]
    lookahead_interval_90: list[int]
    interval_basis: str


@dataclass(frozen=True)
class RunningLookahead:
    """What a given lookahead gives, and what it loses against the best one.

    Attributes:
      lookahead: γ, drafts per round.
      tokens_per_round: τ at this γ.
      speedup: S = τ/(γ·d + v) at this γ.
      pays: Whether S is above 1.
      break_even_acceptance: The α at which S is 1: speculation pays above it; 1 where it pays at
        no α below 1.
      ceiling: S as α → 1, (γ + 1)/(γ·d + v).
      loss: Share of the best whole lookahead's S that this γ loses; plain decoding counts as γ = 0.
    """

    lookahead: int
    tokens_per_round: float
    speedup: float
    pays: bool
    break_even_acceptance: float
    ceiling: float
    loss: float

    @classmethod
    def of(
        cls, lookahead: int, acceptance: float, cost: float, verify_cost: float, best: float
    ) -> RunningLookahead:
        """The answer on one lookahead.

        Args:
          lookahead: γ.
          acceptance: α.
          cost: d.
          verify_cost: v.
          best: S at the best whole lookahead.
        """
        tau = float(tokens_per_round(np.float64(acceptance), lookahead))
        steps = lookahead * cost + verify_cost
        return cls(
            lookahead=lookahead,
            tokens_per_round=tau,
            speedup=tau / steps,
            pays=tau > steps,
            # 1 where even γ + 1 tokens of a round take fewer than its steps.
            break_even_acceptance=float(acceptance_from_tokens_per_round(steps, lookahead)),
            ceiling=(lookahead + 1) / steps,
            loss=max(0.0, 1 - tau / steps / best),
        )


@dataclass(frozen=True, repr=False)
class LookaheadAnswer:
    """How far ahead a draft at hand should guess, and what that gives.

    Attributes:
      acceptance: α, probability that a draft token is accepted.
      cost: Cost d of a draft step, in target steps.
      verify_cost: Cost v of a verify pass, in target steps.
      lookahead: γ*, a real number; 0 where speculation does not pay.
      lookahead_integer: Best whole γ (num_speculative_tokens); 0 where none pays.
      lookahead_within_1pct: Whole γ that lose at most 1% of S.
      tokens_per_round: τ at the best whole γ.
      speedup: S at γ*.
      speedup_integer: S at the best whole γ.
      speculate: Whether a whole lookahead beats plain decoding.
      break_even_cost: Largest d at which a whole lookahead pays.
      break_even_verify_cost: Largest v at which a whole lookahead pays.
      counts: Counts of an engine's log; their keys stand beside these.
      verify_cost_assumed: Whether v = 1 was assumed.
      target_tps: Tokens per second of the target, if d follows from two speeds.
      draft_tps: Tokens per second of the draft, likewise.
      running: What the lookahead in use gives, if there is one.
    """

    acceptance: float
    cost: float
    verify_cost: float
    lookahead: float
    lookahead_integer: int
    lookahead_within_1pct: list[int]
    tokens_per_round: float
    speedup: float
    speedup_integer: float
    speculate: bool
    break_even_cost: float
    break_even_verify_cost: float
    counts: LookaheadCounts | None
    verify_cost_assumed: bool
    target_tps: float | None = None
    draft_tps: float | None = None
    running: RunningLookahead | None = None

    def to_json(self) -> dict[str, Any]:
        """As `sdsl lookahead --json` prints it."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = to_json(getattr(self, f.name))
            values |= (value or {}) if f.name == "counts" else {f.name: value}
        return values

    def _facts(self) -> dict[str, str]:
        low, high = self.lookahead_within_1pct
        facts = {
            "α": f"{self.acceptance:.3f}",
            "best γ": f"{self.lookahead_integer} (γ* = {self.lookahead:.2f})",
            "γ within 1%": f"{low} – {high}",
            "tokens per round": f"{self.tokens_per_round:.2f}",
            "speed-up": f"{self.speedup_integer:.3f}×",
            "pays up to d": f"{self.break_even_cost:.3f}",
        }
        if self.running is not None:
            facts[f"speed-up at γ = {self.running.lookahead}"] = f"{self.running.speedup:.3f}×"
        return facts

    def __repr__(self) -> str:
        if not self.speculate:
            return f"LookaheadAnswer(speculation does not pay at α = {self.acceptance:.3f})"
        facts = self._facts()
        return f"LookaheadAnswer(γ {facts['best γ']}, speed-up {facts['speed-up']})"

    def _repr_html_(self) -> str:
        """The main numbers as a table, for notebooks."""
        return table_of("How far ahead to guess", self._facts())


def best_lookahead(
    cost: float | None = None,
    acceptance: float | None = None,
    acceptance_length: float | None = None,
    at_lookahead: int | None = None,
    verify_cost: float | None = None,
    accepted: float | None = None,
    drafted: float | None = None,
    *,
    lookahead: int | None = None,
    target_tps: float | None = None,
    draft_tps: float | None = None,
) -> LookaheadAnswer:
    """γ*, the best whole γ and what they give; and what the γ in use gives, if there is one.

    α comes from one of three sources: `acceptance`; or `acceptance_length` measured at
    `at_lookahead`; or the counts `accepted` and `drafted` at `at_lookahead`, which also give 90%
    intervals of α and γ.

    Args:
      cost: d, of a draft step in target steps; or give both speeds.
      acceptance: α in [0, 1).
      acceptance_length: τ in [1, γ + 1), mean tokens per round with the bonus token.
      at_lookahead: γ (num_speculative_tokens) at which τ or the counts were measured.
      verify_cost: v ≥ 1, in target steps; 1 if None.
      accepted: Drafts that were accepted, without bonus tokens.
      drafted: Drafts that were proposed.
      lookahead: γ in use, 1 to 1024.
      target_tps: Tokens per second of the target alone.
      draft_tps: Tokens per second of the draft alone; d = target_tps/draft_tps.

    Raises:
      SdslError: A number is missing or out of range.
    """
    cost = _cost(cost, target_tps, draft_tps)
    require(
        lookahead is None or 1 <= lookahead <= _LARGEST_LOOKAHEAD,
        f"--lookahead is {lookahead}; it must be the drafts of a round that you run, 1 to {_LARGEST_LOOKAHEAD}.",
    )
    assumed, verify_cost = verify_cost is None, 1.0 if verify_cost is None else verify_cost
    _check_costs(cost, verify_cost)
    with jax.enable_x64(True):
        acceptance, counted = _acceptance(
            acceptance, acceptance_length, at_lookahead, accepted, drafted
        )
        check_domain(acceptance, cost, verify_cost)
        best = _optimum(acceptance, cost, verify_cost)
        whole = int(best.lookahead_integer)
        within = [whole, whole]
        if whole:
            floor = 0.99 * float(best.speedup_integer)

            def good(gamma: int) -> bool:
                tokens = float(tokens_per_round(np.float64(acceptance), gamma))
                return tokens / (gamma * cost + verify_cost) >= floor

            # S rises up to the best whole lookahead and falls beyond it.
            within = [_first(good, 1, whole), _first(lambda g: not good(g), whole + 1, None) - 1]

        # S falls with d: the largest d at which some whole lookahead still pays. At v = 1 it is α.
        def pays(d: float) -> float:
            return 1.0 if _optimum(acceptance, d, verify_cost).speculate else 0.0

        counts = None
        if counted is not None and accepted is not None and drafted and at_lookahead is not None:
            # At α = 1 no lookahead is the best one.
            ends = [
                _optimum(min(alpha, 1 - 1e-12), cost, verify_cost).lookahead_integer
                for alpha in (counted.low, counted.high)
            ]
            counts = LookaheadCounts(
                accepted=int(accepted),
                drafted=int(drafted),
                at_lookahead=at_lookahead,
                accepted_share=accepted / drafted,
                rounds=counted.rounds,
                acceptance_interval_90=[counted.low, counted.high],
                lookahead_interval_90=[int(end) for end in ends],
                interval_basis="rounds taken as independent, every draft accepted with the same α; requests that differ make it "
                "wider than this",
            )
        speedup = float(best.speedup_integer)
        return LookaheadAnswer(
            acceptance=acceptance,
            cost=cost,
            verify_cost=verify_cost,
            lookahead=float(best.lookahead),
            lookahead_integer=whole,
            lookahead_within_1pct=within,
            tokens_per_round=float(tokens_per_round(np.float64(acceptance), whole)),
            speedup=float(best.speedup),
            speedup_integer=speedup,
            speculate=bool(best.speculate),
            break_even_cost=_root(pays, 0.0, 1.0, turns=50),
            break_even_verify_cost=break_even_verify_cost(acceptance, cost),
            counts=counts,
            verify_cost_assumed=assumed,
            target_tps=target_tps,
            draft_tps=draft_tps,
            running=None
            if lookahead is None
            else RunningLookahead.of(lookahead, acceptance, cost, verify_cost, speedup),
        )


def _check_costs(cost: float, verify_cost: float) -> None:
    require(
        0 < cost < float("inf"),
        f"the cost of a draft step is {cost:g} target steps; it must be positive and finite.",
    )
    require(
        1 <= verify_cost < float("inf"),
        f"the cost of a verify pass is {verify_cost:g} target steps; it must be at least 1, for it does all that a step does.",
    )


def _cost(cost: float | None, target_tps: float | None, draft_tps: float | None) -> float:
    """d, as it is given or from the speeds of both models."""
    require(
        (target_tps is None) == (draft_tps is None),
        "one speed says nothing of the cost of a draft step: give both --target-tps and --draft-tps.",
    )
    require(
        (cost is None) != (target_tps is None),
        "give either --cost, or --target-tps and --draft-tps, from which the cost follows.",
    )
    if target_tps is not None and draft_tps is not None:
        for name, speed in (("--target-tps", target_tps), ("--draft-tps", draft_tps)):
            require(
                0 < speed < math.inf,
                f"{name} is {speed:g} tokens per second; it must be positive and finite.",
            )
        cost = target_tps / draft_tps
    assert cost is not None
    return cost


def _acceptance(
    acceptance: float | None,
    acceptance_length: float | None,
    at_lookahead: int | None,
    accepted: float | None,
    drafted: float | None,
) -> tuple[float, CountedAcceptance | None]:
    """α from the one source that is given, and its interval where that is counts."""
    counted = None
    require(
        (accepted is None) == (drafted is None),
        "accepted drafts mean nothing without those proposed: give both --accepted and --drafted, with --at-lookahead.",
    )
    require(
        (acceptance, acceptance_length, accepted).count(None) == 2,
        "give either --acceptance, or --acceptance-length with --at-lookahead, or --accepted and --drafted with --at-lookahead.",
    )
    require(
        acceptance is None or at_lookahead is None,
        "--at-lookahead belongs to --acceptance-length or --accepted and --drafted; an acceptance probability is that of any "
        "lookahead.",
    )
    gamma = at_lookahead or 0
    if accepted is not None and drafted is not None:
        require(
            1 <= gamma <= _LARGEST_LOOKAHEAD,
            f"counts mean nothing without the lookahead they were taken at: give --at-lookahead, 1 to {_LARGEST_LOOKAHEAD}.",
        )
        counted = counted_acceptance(accepted, drafted, gamma)
        acceptance = counted.acceptance
    elif acceptance_length is not None:
        require(
            gamma >= 1,
            "an acceptance length means nothing without the lookahead it was measured at: give --at-lookahead 1 or more.",
        )
        require(
            1 <= acceptance_length < gamma + 1,
            f"the acceptance length is {acceptance_length:g}; at lookahead {gamma} it must be at least 1 and below {gamma + 1}.",
        )
        acceptance = float(acceptance_from_tokens_per_round(acceptance_length, gamma))
    assert acceptance is not None
    require(
        0 <= acceptance < 1,
        f"the acceptance is {acceptance:g}; it must be at least 0 and below 1{share_hint(acceptance)}.",
    )
    return acceptance, counted


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


@dataclass(frozen=True)
class MeasuredLookahead:
    """The best lookahead by survival that was measured up to some position.

    Attributes:
      cost: Cost d of a draft step, in target steps.
      verify_cost: Cost v of a verify pass, in target steps.
      measured: K, the last position that was measured.
      speedups: S at γ = 0 … K, with τ = 1 + S_1 + … + S_γ; 1 at γ = 0.
      lookahead_integer: Best γ of 0 … K; 0 where none beats plain decoding.
      lookahead_interval_90: Its range over draws of the counts; None if they are unknown.
      speedup_integer: S at the best γ.
      break_even_cost: Largest d at which some γ of 1 … K pays; 0 if none does.
      tail_acceptance: Acceptance assumed at the positions behind K.
      extrapolated_lookahead: Best γ under that assumption; at most K if no further draft would pay.
      extrapolated_speedup: S there.
    """

    cost: float
    verify_cost: float
    measured: int
    speedups: list[float]
    lookahead_integer: int
    lookahead_interval_90: list[int] | None
    speedup_integer: float
    break_even_cost: float
    tail_acceptance: float
    extrapolated_lookahead: int
    extrapolated_speedup: float


# Draws of the counts behind the range of the best lookahead.
_COUNT_DRAWS = 1000


def best_measured_lookahead(
    survival: Sequence[float],
    tail_acceptance: float,
    cost: float,
    verify_cost: float = 1.0,
    tested: Sequence[float] | None = None,
) -> MeasuredLookahead:
    """The best whole lookahead by S(γ) = (1 + S_1 + … + S_γ)/(γ·d + v), exactly up to the last
    measured position.

    Args:
      survival: S_1 … S_K.
      tail_acceptance: Acceptance of every further draft, for the extrapolation behind K.
      cost: d > 0, of a draft step in target steps.
      verify_cost: v ≥ 1, in target steps, at every γ.
      tested: Drafts tested at each position, for the range of the best γ; less where rounds are not
        independent.

    Raises:
      SdslError: A number is out of range.
    """
    _check_costs(cost, verify_cost)
    share = np.asarray(survival, float)
    require(
        share.size > 0
        and bool(np.all((share >= 0) & (share <= 1) & (np.diff(share, prepend=1.0) <= 0))),
        "survival must hold at least one position, lie in [0, 1] and never rise.",
    )

    def speedups(share: np.ndarray) -> np.ndarray:
        gamma = np.arange(share.shape[-1] + 1)
        tau = np.cumsum(np.concatenate([np.ones_like(share[..., :1]), share], axis=-1), axis=-1)
        return np.where(gamma > 0, tau / (gamma * cost + verify_cost), 1.0)

    known = speedups(share)
    best = int(np.argmax(known))
    interval = None
    if tested is not None:
        before = np.concatenate([[1.0], share[:-1]])
        n = np.asarray(tested, float)
        p = np.divide(share, before, out=np.zeros_like(share), where=before > 0)
        draws = np.random.default_rng(0).beta(
            n * p + 0.5, n * (1 - p) + 0.5, size=(_COUNT_DRAWS, len(share))
        )
        bests = speedups(np.cumprod(draws, axis=1)).argmax(axis=1)
        interval = [int(x) for x in np.quantile(bests, [0.05, 0.95], method="nearest")]
    # A draft more pays as long as it adds more than d·S tokens; a tail below 1 ends that.
    tail = min(tail_acceptance, 1 - 1e-9)
    further = share[-1] * tail ** np.arange(1, _LARGEST_LOOKAHEAD)
    longer = speedups(np.concatenate([share, further]))
    return MeasuredLookahead(
        cost=cost,
        verify_cost=verify_cost,
        measured=len(share),
        speedups=[float(x) for x in known],
        lookahead_integer=best,
        lookahead_interval_90=interval,
        speedup_integer=float(known[best]),
        break_even_cost=max(
            0.0, float(np.max((1 + np.cumsum(share) - verify_cost) / np.arange(1, len(share) + 1)))
        ),
        tail_acceptance=tail_acceptance,
        extrapolated_lookahead=int(np.argmax(longer)),
        extrapolated_speedup=float(np.max(longer)),
    )
