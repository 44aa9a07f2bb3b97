"""Acceptance, survival and tokens per round from the raw events of the live decoder."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.decoding import Decoded, Events
from sdsl_jax.statistics import Interval, poisson_binomial_score, ratio_interval
from sdsl_jax.theory import acceptance_from_tokens_per_round

# How often a right decoder is warned about, of all measurements.
FALSE_ALARM = 1e-4
# What float32 sums of probabilities may be off by: no chance is nearer to 0 or 1 than this.
_ROUNDING = 1e-6


class DecodedStatistics(NamedTuple):
    """What a run of the decoder says about a pair at one lookahead; intervals take prompts as
    clusters.

    Attributes:
      per_test: accepted over tested drafts; a draft behind a rejection is not tested.
      tar: the α whose geometric formula gives the observed tokens per round (the paper's inversion
        of 1 + γ·TAR).
      survival: for k = 1..γ, the share of rounds whose first k drafts were all accepted.
      tokens_per_round: τ = 1 + Σ_k survival_k.
      rounds: rounds behind the last three.
      tests: drafts tested.
      self_check: how far the number of drafts kept lies from what the decoder's own probabilities
        give, as a standard normal score; see `self_check`.
    """

    per_test: Interval
    tar: Interval
    survival: list[Interval]
    tokens_per_round: Interval
    rounds: int
    tests: int
    self_check: float


def summarise(decoded: Decoded, lookahead: int, confidence: float) -> DecodedStatistics:
    """Statistics of a run at one fixed lookahead.

    Survival and τ are those of verification: a round counts what it kept, though its row stopped
    before the last of it was emitted. Otherwise the last rounds of rows would make every draft look
    worse. Rounds that reach beyond a table of positions are left out: where they start decides it,
    and not what they kept.

    Args:
      decoded: a run of `speculate`.
      lookahead: γ of the run.
      confidence: of the intervals.
    """
    assert decoded.events is not None
    events: Any = jax.tree.map(np.asarray, decoded.events)
    happened = events.emitted > 0
    rejected = (
        happened & (events.emitted == events.accepted + 1) & (events.accepted < events.proposed)
    )
    accepted = events.accepted.sum(axis=1)
    tested = accepted + rejected.sum(axis=1)
    whole = happened
    if decoded.position_limit is not None:
        whole = happened & (events.start + lookahead <= np.asarray(decoded.position_limit)[:, None])
    rounds = whole.sum(axis=1)
    survival = [
        ratio_interval((whole & (events.verified >= k)).sum(axis=1), rounds, confidence)
        for k in range(1, lookahead + 1)
    ]
    tau = ratio_interval(np.where(whole, events.verified + 1, 0).sum(axis=1), rounds, confidence)
    return DecodedStatistics(
        per_test=ratio_interval(accepted, tested, confidence),
        tar=Interval(*(float(acceptance_from_tokens_per_round(value, lookahead)) for value in tau)),
        survival=survival,
        tokens_per_round=tau,
        rounds=int(rounds.sum()),
        tests=int(tested.sum()),
        self_check=self_check(events),
    )


def self_check(events: Events) -> float:
    """Whether the number of drafts kept is one that the decoder's own probabilities give, as a
    standard normal score.

    Each tested draft is kept with a chance β that is known before it is drawn (`Verdict.expected_accepted`),
    whatever happened before: the number kept less Σβ is a martingale. The score is that of
    independent coins with these chances, `statistics.poisson_binomial_score`: right where hardly
    any draft is kept, and standard normal where many are.

    It sees the draws of the drafts, the tests, and the q and p behind them. It is blind to what
    comes after a rejection or a full acceptance, and to randomness that rounds share: those change
    which contexts are visited, not what happens there.

    Args:
      events: of a run, at any lookahead and with either verification.

    Returns:
      The score; NaN where nothing was left to chance.
    """
    verified, proposed, chance = (
        np.asarray(x) for x in (events.verified, events.proposed, events.expected_accepted)
    )
    tested = np.arange(chance.shape[-1]) < np.minimum(verified + 1, proposed)[..., None]
    chances, kept = chance[tested].astype(float), int(verified.sum())
    certain = (chances * (1 - chances)).sum() <= _ROUNDING * max(1, len(chances))
    if certain and abs(kept - chances.sum()) < 0.5:
        return math.nan
    return float(
        poisson_binomial_score(np.asarray(kept), np.clip(chances, _ROUNDING, 1 - _ROUNDING))
    )


def alarm_score(runs: int) -> float:
    """The score of a self-check from which on a warning is given, when the largest of several runs
    is looked at.

    A right decoder reaches it at most once in `1 / FALSE_ALARM` measurements, all runs of one
    together (Bonferroni): a score beyond x on either side is at most four times as probable as a
    normal one above x.

    Args:
      runs: of the decoder, one for each lookahead.
    """
    return NormalDist().inv_cdf(1 - FALSE_ALARM / (4 * runs))


def event_columns(decoded: Decoded) -> dict[str, np.ndarray]:
    """Raw events as columns, one entry per row and round that took place."""
    assert decoded.events is not None
    happened = np.asarray(decoded.events.emitted) > 0
    row, number = np.nonzero(happened)
    columns = {"row": row, "round": number}
    for name in ("start", "proposed", "verified", "accepted", "emitted", "stop_reason"):
        columns[name] = np.asarray(getattr(decoded.events, name))[happened]
    return columns
