"""What a round of speculative decoding costs in FLOPs, by kind of draft."""

from __future__ import annotations

from collections.abc import Callable

from sdsl_jax.decoding import Head
from sdsl_jax.models import count
from sdsl_jax.models.feature_head import later_flops
from sdsl_jax.records import ModelRecord

# From a lookahead and the tokens that a round gives to the FLOPs of a round, in decoding steps of the target.
RoundCost = Callable[[int, float], float]


def round_cost(
    draft: ModelRecord, target: ModelRecord, head: Head | None = None, context: float = 0.0
) -> RoundCost:
    """The cost of a round; the verify pass counts as one step of the target, whatever its width.

    A model of its own takes γ steps: 1 + γ·c. A head feeds each of the τ tokens of a round once with
    the target's features, and γ − 1 drafts with its own hidden state (or, parallel, makes them from
    the last hidden state): 1 + τ·c₁ + (γ − 1)·c₂.

    Args:
      draft: Record of the draft.
      target: Record of the target.
      head: The head, if the draft is one.
      context: Mean tokens of context, for the head's later drafts.
    """
    step = draft.flops_per_token / target.flops_per_token
    if head is None:
        return lambda lookahead, tokens: 1 + lookahead * step
    later = later_flops(head.config, count(head.config.body, context)) / target.flops_per_token
    return lambda lookahead, tokens: 1 + tokens * step + (lookahead - 1) * later
