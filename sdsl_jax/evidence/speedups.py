"""Speed-ups of trained drafts in FLOPs, measured without a clock, and what acting on predicted acceptance would have lost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sdsl_jax.records import ExpectedRecord, ModelRecord
from sdsl_jax.theory import speedup


class Measured(NamedTuple):
    """What every draft gives one target at every lookahead: S = τ/(γ·d + 1), d the ratio of FLOPs
    per token (2603.11053).

    Attributes:
      drafts: the drafts.
      cost: d of each.
      lookaheads: every γ that τ is known at.
      speedup: S, [drafts, lookaheads].
    """

    drafts: list[ModelRecord]
    cost: np.ndarray
    lookaheads: np.ndarray
    speedup: np.ndarray

    @property
    def best(self) -> float:
        """The best S of any draft and lookahead, or plain decoding."""
        return max(1.0, float(self.speedup.max()))

    def at(self, draft: int, lookahead: int) -> float:
        """S of a draft at a lookahead; 1 at 0, which is plain decoding; the largest known lookahead stands for any beyond."""
        if lookahead < 1:
            return 1.0
        return float(self.speedup[draft, np.argmin(np.abs(self.lookaheads - lookahead))])

    def choice(self, acceptance: np.ndarray) -> tuple[int, int]:
        """The draft and lookahead that predicted acceptances ask for, under independent acceptance; lookahead 0 is plain."""
        alpha = np.clip(acceptance, 0.0, 1 - 1e-6)[:, None]
        predicted = np.asarray(
            speedup(alpha, self.lookaheads[None].astype(float), self.cost[:, None])
        )
        draft, column = np.unravel_index(np.argmax(predicted), predicted.shape)
        return int(draft), int(self.lookaheads[column]) if predicted[draft, column] > 1 else 0

    def regret(self, draft: int, lookahead: int) -> float:
        """Share of the best measured S that a choice forgoes."""
        return 1 - self.at(draft, lookahead) / self.best


def measured_speedups(
    drafts: list[ModelRecord], expected: list[ExpectedRecord], target: ModelRecord
) -> Measured | None:
    """Every draft that was measured with a target at the same lookaheads; None if there is none.

    Args:
      drafts: candidates.
      expected: expected tokens per round.
      target: the target.
    """
    tau: dict[str, dict[int, float]] = {}
    for row in expected:
        if row.target_id == target.model_id:
            tau.setdefault(row.draft_id, {})[row.lookahead] = row.tokens_per_round
    drafts = [m for m in drafts if m.model_id in tau and m.flops_per_token > 0]
    if not drafts or not target.flops_per_token > 0:
        return None
    lookaheads = sorted(set.intersection(*(set(tau[m.model_id]) for m in drafts)))
    if not lookaheads:
        return None
    cost = np.asarray([m.flops_per_token / target.flops_per_token for m in drafts])
    values = np.asarray([[tau[m.model_id][g] for g in lookaheads] for m in drafts])
    return Measured(
        drafts, cost, np.asarray(lookaheads), values / (np.asarray(lookaheads) * cost[:, None] + 1)
    )
