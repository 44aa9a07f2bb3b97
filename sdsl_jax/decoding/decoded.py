"""What a decoding run returns. Suffixes: B rows, G largest lookahead, R rounds, V vocabulary, L token
buffer.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Events(NamedTuple):
    """What happened in each round of each row, [rows, rounds]; entries after a row's last round are
    zero.

    Attributes:
      start: Position of the first token that the round emitted.
      proposed: Drafts verified, γ. It can be 0 in a round that took place, under a rule that may
        decline to draft. Near the end of a table of positions, only drafts that both models can
        judge count as proposed, and only those are kept.
      verified: Drafts that verification kept, before anything was cut off at a stop.
      accepted: Drafts kept and emitted. Drafts after a stop do not count.
      emitted: Tokens emitted: accepted + 1 unless the row stopped first; 0 where the row took no
        part.
      expected_accepted: `Verdict.expected_accepted` of each draft, [rows, rounds, γ_max]. Its sum is
        what `verified` must equal on average.
      stop_reason: Why the row stopped in this round: 0 it did not, 1 a stop token, 2 its maximum
        length.
      drafted_by: Which part of the draft drafted: 0 the n-grams of a hybrid draft or the smaller
        slice of a nested one, 1 the other part. Only a round with a 1 in a row of the batch ran that
        part. None for a draft of one part.
    """

    start: Int[Array, "B R"]
    proposed: Int[Array, "B R"]
    verified: Int[Array, "B R"]
    accepted: Int[Array, "B R"]
    emitted: Int[Array, "B R"]
    expected_accepted: Float[Array, "B R G"]
    stop_reason: Int[Array, "B R"]
    drafted_by: Int[Array, "B R"] | None = None


class Blocks(NamedTuple):
    """The drafts of each round and both distributions at their positions; zero where nothing was
    drafted.

    Attributes:
      drafts: Drafted tokens.
      draft_probs: q, the distribution that each was drawn from.
      target_probs: p at the same positions and at the one after the last.
    """

    drafts: Int[Array, "B R G"]
    draft_probs: Float[Array, "B R G V"]
    target_probs: Float[Array, "B R G+1 V"]


class Finite(NamedTuple):
    """Whether all logits that a run depends on were finite.

    Attributes:
      target: Logits at every position that was verified or drawn from.
      draft: Logits behind every proposal.
    """

    target: Bool[Array, ""]
    draft: Bool[Array, ""]


class Decoded(NamedTuple):
    """The outcome of a decoding run.

    Attributes:
      tokens: Prompts followed by the emitted tokens, int32 [B, L]; zeros past a row's length.
      lengths: Tokens in each row, prompt included, int32 [B].
      prompt_lengths: Tokens in each prompt, int32 [B].
      max_lengths: Length at which each row had to stop, int32 [B].
      events: What happened in each round; None for the autoregressive loop.
      batch_rounds: Rounds of the whole batch, each as slow as its slowest row.
      blocks: Drafts and distributions of every round, if they were asked for.
      finite: Whether the logits were finite; None once that was checked.
      position_limit: Positions of each row that both models can tell apart; None without a table
        of positions.
    """

    tokens: Int[Array, "B L"]
    lengths: Int[Array, " B"]
    prompt_lengths: Int[Array, " B"]
    max_lengths: Int[Array, " B"]
    events: Events | None
    batch_rounds: Int[Array, ""]
    blocks: Blocks | None = None
    finite: Finite | None = None
    position_limit: Int[Array, " B"] | None = None
