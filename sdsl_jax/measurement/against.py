"""Two drafts of one target on the same samples: which is accepted more often, and is it more than
chance?

A target's sample is easy or hard for every draft alike. Scored on the same samples, two drafts share
that part of the noise, and the difference of their α is far better known than either α.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdsl_jax.measurement.pair import ExactAcceptance, PairSettings
from sdsl_jax.measurement.replay import ExpectedRounds
from sdsl_jax.seeds import derive_seed
from sdsl_jax.statistics import (
    Interval,
    mcnemar_probability,
    ratio_error,
    ratio_interval,
    sign_flip_probability,
    student_quantile,
)

# Why an n-gram draft cannot be one of the two.
NO_ALPHA = (
    "--against compares the exact α of two models, and n-grams have none; measure each by itself."
)
# A difference counts as one that a measurement shows if four of five such measurements show it.
_POWER, _SMALL_DIFFERENCE = NormalDist().inv_cdf(0.8), 0.01
# Rounding moves a probability by less than this.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TvDifference:
    """Total variation to the target, TV = 1 − Σ_v min(p_v, q_v), of A minus that of B, token by token.

    Attributes:
      draft_nearer: share of tokens at which A is nearer to the target
      against_nearer: share of tokens at which B is nearer
      equal: share of tokens at which both are equally far, up to rounding
      quantiles: 5%, 50% and 95% quantiles of TV(A) − TV(B) over the tokens
      by_position: mean of TV(A) − TV(B) at the first, second, … token after the prompts; below 0
        where A is nearer, and null where no row has that token
    """

    draft_nearer: float
    against_nearer: float
    equal: float
    quantiles: list[float]
    by_position: list[float]


@dataclass(frozen=True)
class GreedyAgreement:
    """At how many tokens the most probable token of a draft is that of the target.

    Attributes:
      both: of A and of B
      only_draft: of A alone
      only_against: of B alone
      neither: of none of the two
      mcnemar_p: McNemar's exact test of the two counts in which the drafts differ, two-sided; it
        takes tokens as independent, and tokens of one prompt are not: the sign-flip test is over
        prompts
    """

    both: int
    only_draft: int
    only_against: int
    neither: int
    mcnemar_p: float


@dataclass(frozen=True)
class ExpectedTokens:
    """Tokens per round that token verification is expected to give, from the same samples.

    Attributes:
      lookahead: drafts per round, γ
      draft: τ of A
      against: τ of B
      difference: τ(A) − τ(B), paired; prompts are the clusters
    """

    lookahead: int
    draft: Interval
    against: Interval
    difference: Interval

    @classmethod
    def of(
        cls, draft: ExpectedRounds, against: ExpectedRounds, confidence: float
    ) -> ExpectedTokens:
        """Compares two drafts at one lookahead: prompt i moves τ(A) − τ(B) by its residual of A minus
        that of B."""
        a, b = draft.tokens_per_round, against.tokens_per_round
        moved = draft.residuals - against.residuals
        # The moves add up to 0. With weights that add up to 1, this is the interval of their sum.
        _, low, high = ratio_interval(moved, np.full(len(moved), 1 / len(moved)), confidence)
        change = a.estimate - b.estimate
        return cls(draft.lookahead, a, b, Interval(change, change + low, change + high))


@dataclass(frozen=True)
class DraftComparison:
    """The draft (A) and another one (B), on the same samples of the target.

    Attributes:
      alpha: α of A
      alpha_against: α of B
      difference: α(A) − α(B), paired; prompts are the clusters
      standard_error: of the paired difference; null for a single prompt
      unpaired_standard_error: of the difference if each draft had as many samples of its own
      pairing_gain: how many times as many prompts an unpaired comparison would need; null if the two
        never differ
      sign_flip_p: two-sided p-value of a sign-flip test over prompts
      prompts: number of prompts
      tokens: number of compared tokens
      detectable_difference: difference that four of five such measurements would show, in that their
        interval leaves out 0
      prompts_for_0_01: prompts with which four of five measurements would show a difference of 0.01;
        null for a single prompt
      tv: TV(A) − TV(B), token by token
      greedy: counts of agreement and McNemar's test; null unless the temperature is 0
      expected: tokens per round of both drafts at each lookahead
      answer: the comparison in words
    """

    alpha: Interval
    alpha_against: Interval
    difference: Interval
    standard_error: float
    unpaired_standard_error: float
    pairing_gain: float
    sign_flip_p: float
    prompts: int
    tokens: int
    detectable_difference: float
    prompts_for_0_01: int | None
    tv: TvDifference
    greedy: GreedyAgreement | None
    expected: list[ExpectedTokens]
    answer: str


class PairedDifference(NamedTuple):
    """The difference of two ratios over the same clusters.

    Attributes:
      difference: Σ(a − b)/Σ w, with the interval that either ratio has.
      error: Its standard error.
      unpaired_error: Standard error if the two came from different clusters.
      sign_flip: p-value of the sign-flip test over clusters.
    """

    difference: Interval
    error: float
    unpaired_error: float
    sign_flip: float

    @classmethod
    def of(
        cls,
        one: Float[np.ndarray, " clusters"],
        other: Float[np.ndarray, " clusters"],
        weights: Int[np.ndarray, " clusters"],
        confidence: float,
        seed: int = 0,
    ) -> PairedDifference:
        """Compares two sums of each cluster.

        Args:
          one: Sum of each cluster, such as the overlaps of its tokens.
          other: The same of what it is compared with.
          weights: Weight of each cluster, such as its number of tokens.
          confidence: Confidence of the interval.
          seed: Seed of the random sign flips.
        """
        apart = math.hypot(ratio_error(one, weights), ratio_error(other, weights))
        return cls(
            ratio_interval(one - other, weights, confidence),
            ratio_error(one - other, weights),
            apart,
            sign_flip_probability(one - other, seed),
        )


def compare_drafts(
    draft: ExactAcceptance, against: ExactAcceptance, settings: PairSettings
) -> DraftComparison:
    """Compares two drafts that were scored on the same samples of one target.

    α(A) − α(B) = Σ(a_i − b_i)/Σ n_i over prompts i, with overlaps summed over the n_i tokens of a
    prompt. The interval is that of either α, `statistics.ratio_interval`, of the differences.

    Args:
      draft: Exact acceptance of A.
      against: Exact acceptance of B, on the same samples.
      settings: As both were measured.
    """
    weights, prompts = draft.overlap.positions, len(draft.counted)
    one, other = (each.overlap.acceptance[0] for each in (draft, against))
    seed = derive_seed("pair", settings.seed, "sign flips")
    paired = PairedDifference.of(one, other, weights, settings.confidence, seed)
    shown = student_quantile(0.5 + settings.confidence / 2, prompts - 1) + _POWER
    detectable = shown * paired.error
    needed = None
    if not math.isnan(detectable):  # an interval takes two prompts
        needed = max(2, math.ceil(prompts * (detectable / _SMALL_DIFFERENCE) ** 2))
    expected = [
        ExpectedTokens.of(a, b, settings.confidence)
        for a, b in zip(draft.expected(settings), against.expected(settings))
        if a.lookahead in settings.lookaheads
    ]
    greedy = None
    if float(settings.sampling.temperature) == 0:
        greedy = _agreement(*_tokens(draft, against))
    return DraftComparison(
        alpha=draft.alpha,
        alpha_against=against.alpha,
        difference=paired.difference,
        standard_error=paired.error,
        unpaired_standard_error=paired.unpaired_error,
        pairing_gain=(paired.unpaired_error / paired.error) ** 2 if paired.error else math.nan,
        sign_flip_p=paired.sign_flip,
        prompts=prompts,
        tokens=draft.positions,
        detectable_difference=detectable,
        prompts_for_0_01=needed,
        tv=_tv_difference(draft, against),
        greedy=greedy,
        expected=expected,
        answer=_answer(paired.difference, draft.alpha, against.alpha, prompts, needed),
    )


def _tokens(
    draft: ExactAcceptance, against: ExactAcceptance
) -> tuple[Float[np.ndarray, " tokens"], Float[np.ndarray, " tokens"]]:
    """The overlaps of both drafts at every compared token, in one order."""
    a, b = draft.overlap.by_position, against.overlap.by_position
    assert a is not None
    assert b is not None
    compared = np.arange(a.shape[-1]) < draft.counted[:, None]
    return a[0][compared], b[0][compared]


def _agreement(a: np.ndarray, b: np.ndarray) -> GreedyAgreement:
    """Counts from overlaps at temperature 0, which are 1 where the largest logits agree and else 0."""
    one, other = a > 0.5, b > 0.5
    only = int((one & ~other).sum()), int((~one & other).sum())
    return GreedyAgreement(
        int((one & other).sum()), *only, int((~one & ~other).sum()), mcnemar_probability(*only)
    )


def _tv_difference(draft: ExactAcceptance, against: ExactAcceptance) -> TvDifference:
    a, b = _tokens(draft, against)
    # TV(A) − TV(B) is the overlap of B minus that of A.
    change = b - a
    place = np.nonzero(np.arange(draft.counted.max()) < draft.counted[:, None])[1]
    counts = np.bincount(place)
    return TvDifference(
        float((change < -_ROUNDING).mean()),
        float((change > _ROUNDING).mean()),
        float((np.abs(change) <= _ROUNDING).mean()),
        [float(q) for q in np.quantile(change, [0.05, 0.5, 0.95])],
        [float(x) for x in np.bincount(place, change) / counts],
    )


def _answer(
    difference: Interval, alpha: Interval, against: Interval, prompts: int, needed: int | None
) -> str:
    """Which draft is accepted more often, if the interval tells."""
    if needed is None:
        return (
            f"one prompt gives no interval for the difference of {difference.estimate:+.3f} in α; use "
            "more prompts"
        )
    half = (difference.high - difference.low) / 2
    if half == 0 and difference.estimate == 0:
        return "the two drafts are accepted alike at every token"
    # Two digits of the interval, and at least three decimals.
    digits = f".{max(3, 1 - math.floor(math.log10(half))) if half > 0 else 3}f"
    values = f"{alpha.estimate:{digits}} of A, {against.estimate:{digits}} of B"
    if difference.low <= 0 <= difference.high:
        enough = (
            f"{prompts:,} prompts, as here, show"
            if needed <= prompts
            else f"about {needed:,} prompts would show"
        )
        return (
            f"the difference A − B in α is within the noise: {difference:{digits}} ({values}); {enough} a difference of "
            f"{_SMALL_DIFFERENCE:g} four times out of five"
        )
    better, worse = ("A", "B") if difference.estimate > 0 else ("B", "A")
    size = f"{abs(difference.estimate):{digits}} ± {half:{digits}}"
    return f"{better}'s α is {size} higher than {worse}'s: {values}"
