"""Acceptance, survival and tokens per round from the raw events of the live decoder."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.decoding import Decoded
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
      self_check: Σ(accepted − β)/√Σβ(1 − β) over tested drafts, β = Σ_v min(p_v, q_v); standard normal if the decoder is right.
    """

    per_test: Interval
    tar: Interval
    survival: list[Interval]
    tokens_per_round: Interval
    rounds: int
    tests: int
    self_check: float


def summarise(decoded: Decoded, max_lengths: np.ndarray, lookahead: int, confidence: float) -> DecodedStatistics:
    """Statistics of a run at one lookahead.

    Rounds that started with room for fewer than γ + 1 tokens cannot show all that they would have accepted; whether a
    round has room is known before it starts, so leaving those out of survival and τ biases nothing.

    Args:
      decoded: a run of `speculate` without stop tokens.
      max_lengths: the length at which each row stops, int [rows].
      lookahead: γ of the run.
      confidence: of the intervals.
    """
    assert decoded.events is not None
    events: Any = jax.tree.map(np.asarray, decoded.events)
    happened = events.proposed > 0
    rejected = happened & (events.emitted == events.accepted + 1) & (events.accepted < events.proposed)
    accepted = events.accepted.sum(axis=1)
    tested = accepted + rejected.sum(axis=1)
    full = happened & (events.start + lookahead + 1 <= max_lengths[:, None])
    full_rounds = full.sum(axis=1)
    survival = [
        ratio_interval((full & (events.accepted >= k)).sum(axis=1), full_rounds, confidence)
        for k in range(1, lookahead + 1)
    ]
    tau = ratio_interval((full * (events.accepted + 1)).sum(axis=1), full_rounds, confidence)
    beta = events.overlap
    spread = (beta * (1 - beta)).sum()
    return DecodedStatistics(
        per_test=ratio_interval(accepted, tested, confidence),
        tar=Interval(*(float(acceptance_from_tokens_per_round(value, lookahead)) for value in tau)),
        survival=survival,
        tokens_per_round=tau,
        rounds=int(full_rounds.sum()),
        tests=int(tested.sum()),
        self_check=float((accepted.sum() - beta.sum()) / math.sqrt(spread)) if spread > 0 else math.nan,
    )


def event_columns(decoded: Decoded) -> dict[str, np.ndarray]:
    """Raw events as columns, one entry per row and round that took place."""
    assert decoded.events is not None
    happened = np.asarray(decoded.events.proposed) > 0
    row, number = np.nonzero(happened)
    columns = {"row": row, "round": number}
    for name in ("start", "proposed", "accepted", "emitted", "stop_reason"):
        columns[name] = np.asarray(getattr(decoded.events, name))[happened]
    return columns
