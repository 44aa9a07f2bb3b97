"""Acceptance, survival and tokens per round from the raw events of the live decoder."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.decoding import Decoded, Events
from sdsl_jax.statistics import Interval, ratio_interval
from sdsl_jax.theory import acceptance_from_tokens_per_round


class DecodedStatistics(NamedTuple):
    """What a run of the decoder says about a pair at one lookahead; intervals take prompts as clusters.

    Attributes:
      per_test: accepted over tested drafts; a draft behind a rejection is not tested.
      tar: the α whose geometric formula gives the observed tokens per round (the paper's inversion of 1 + γ·TAR).
      survival: for k = 1..γ, the share of rounds whose first k drafts were all accepted.
      tokens_per_round: τ = 1 + Σ_k survival_k.
      rounds: rounds behind the last three.
      tests: drafts tested.
      self_check: how far the number of drafts kept lies from its expectation, in standard errors; standard normal if the decoder
        is right. Under token verification Σ(accepted − β)/√Σβ(1 − β) over tested drafts, β = Σ_v min(p_v, q_v).
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

    Survival and τ are those of verification: a round counts what it kept, though its row stopped before the last of it was
    emitted. Otherwise the last rounds of rows would make every draft look worse.

    Args:
      decoded: a run of `speculate`.
      lookahead: γ of the run.
      confidence: of the intervals.
    """
    assert decoded.events is not None
    events: Any = jax.tree.map(np.asarray, decoded.events)
    happened = events.emitted > 0
    rejected = happened & (events.emitted == events.accepted + 1) & (events.accepted < events.proposed)
    accepted = events.accepted.sum(axis=1)
    tested = accepted + rejected.sum(axis=1)
    rounds = happened.sum(axis=1)
    survival = [
        ratio_interval((happened & (events.verified >= k)).sum(axis=1), rounds, confidence)
        for k in range(1, lookahead + 1)
    ]
    tau = ratio_interval((events.verified + happened).sum(axis=1), rounds, confidence)
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
    """Σ(verified − Σ chance)/√Σ spread: asymptotically standard normal, whatever the lookahead, if the decoder is right.

    It sees the draws of the drafts, the tests, and the q and p behind them. It is blind to what comes after a rejection or a
    full acceptance, and to randomness that rounds share: those change which contexts are visited, not what happens there.

    Returns:
      The statistic; NaN where nothing was left to chance.
    """
    surplus = np.asarray(events.verified, float).sum() - np.asarray(events.chance, float).sum()
    spread = np.asarray(events.spread, float).sum()
    # Rounding alone leaves about 1e-7 a draft.
    return float(surplus / math.sqrt(spread)) if spread > 1e-6 * max(1, np.asarray(events.proposed).sum()) else math.nan


def event_columns(decoded: Decoded) -> dict[str, np.ndarray]:
    """Raw events as columns, one entry per row and round that took place."""
    assert decoded.events is not None
    happened = np.asarray(decoded.events.emitted) > 0
    row, number = np.nonzero(happened)
    columns = {"row": row, "round": number}
    for name in ("start", "proposed", "verified", "accepted", "emitted", "stop_reason"):
        columns[name] = np.asarray(getattr(decoded.events, name))[happened]
    return columns
