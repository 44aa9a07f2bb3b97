"""N-grams first, another draft where none matches: each row chooses in each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding.drafters import Drafter, Model, NgramDraft, Proposal, chosen, run_if
from sdsl_jax.decoding.feature_drafter import Head, with_tables
from sdsl_jax.decoding.nested_drafter import NestedDraft
from sdsl_jax.decoding.sampling import Sampling
from sdsl_jax.errors import require


class HybridDraft(NamedTuple):
    """N-grams with a draft to fall back on, as `speculate` takes them (`ngram-eagle` in vLLM's words).

    Attributes:
      ngrams: Which n-grams to look for. A row in which one occurs earlier is drafted by it.
      fallback: The draft of all other rows: a model, a head on the target's hidden states, or a
        nested draft.
      fallback_lookahead: The most drafts of the fallback in a round. N-grams cost no draft step, so
        they may draft further, up to the lookahead of the run; None for the same lookahead.
    """

    ngrams: NgramDraft
    fallback: Model | Head | NestedDraft
    fallback_lookahead: int | None = None

    @property
    def config(self) -> Any:
        """Architecture of the fallback."""
        return self.fallback.config

    @property
    def params(self) -> Any:
        """Parameters of the fallback."""
        return self.fallback.params


def bound(draft: Any, target: Model) -> Any:
    """A draft whose head, if it is one or falls back on one, has what it takes from its target.

    Raises:
      SdslError: The head is made for a target of another architecture.
    """
    if isinstance(draft, HybridDraft):
        return draft._replace(fallback=bound(draft.fallback, target))
    return with_tables(draft, target) if isinstance(draft, Head) else draft


class HybridState(NamedTuple):
    """State while it drafts.

    Attributes:
      source: The position that each row copies from; −1 where no n-gram occurs.
      fallback: State of the fallback.
      known: Leading tokens of each row that the fallback has been fed, drafts of the round included.
      by_fallback: Rows that the fallback drafts in this round.
    """

    source: Int[Array, " B"]
    fallback: Any
    known: Int[Array, " B"]
    by_fallback: Bool[Array, " B"]


@dataclass(frozen=True)
class HybridDrafter:
    """N-grams first, and a fallback where none matches.

    A row looks for its n-gram before anything is drawn, so its choice depends on the prefix alone and
    the output stays that of the target. q is the point mass of the n-gram or the fallback's own
    distribution, whichever the drafts came from.

    A round in which no row falls back costs no draft step. The fallback reads what it missed when a
    row needs it again. Where it runs, it runs for the whole batch and so knows every row.

    Attributes:
      ngrams: The n-grams.
      fallback: The other drafter.
      lookahead: The most drafts of the fallback in a round; None for no limit of its own.
    """

    ngrams: NgramDraft
    fallback: Drafter
    lookahead: int | None = None

    shared_blocks = 0
    parts = 2

    def __post_init__(self):
        require(
            self.lookahead is None or self.lookahead >= 1,
            f"the fallback's lookahead is {self.lookahead}; it must be at least 1.",
        )

    @property
    def taps(self) -> tuple[int, ...]:
        """What the fallback reads of the target."""
        return self.fallback.taps

    @property
    def position_limit(self) -> int:
        """The fallback's limit."""
        return self.fallback.position_limit

    def start(
        self,
        params: Any,
        prompts: Int[Array, "B P"],
        capacity: int,
        features: Float[Array, "B P F"] | None = None,
    ) -> HybridState:
        """State after the prompts, which the fallback sees."""
        rows, width = prompts.shape
        return HybridState(
            self.ngrams.start(None, prompts, capacity),
            self.fallback.start(params, prompts, capacity, features),
            # `first` takes off what a shorter prompt is padded with.
            jnp.full(rows, width, jnp.int32),
            jnp.zeros(rows, bool),
        )

    def observe(
        self, params: Any, state: HybridState, start: Array, features: Array
    ) -> HybridState:
        """Shows the fallback the features, in rounds that n-grams drafted as well."""
        fallback = self.fallback.observe(params, state.fallback, start, features)
        return state._replace(fallback=fallback)

    def catch_up(self, params: Any, state: HybridState, tokens, lengths, behind) -> HybridState:
        """Nothing changes: `first` knows what the fallback missed."""
        return state

    def first(
        self, params: Any, state: HybridState, tokens, lengths, sampling: Sampling, asking
    ) -> tuple[Proposal, HybridState]:
        """Looks for n-grams. If a row that asks has none, the fallback catches up and proposes."""
        copied, source = self.ngrams.first(None, state.source, tokens, lengths, sampling, asking)
        by_fallback = asking & ~copied.available
        # The last token of a row is never a draft, so nothing beyond it has been fed for good.
        known = jnp.minimum(state.known, lengths - 1)

        def catch_up_and_propose(fallback: Any) -> tuple[Proposal, Any]:
            # Every drafter feeds the last two tokens again. One that feeds more, as many as a round can
            # keep, makes up for keys that drafts of its last round have left.
            behind = (lengths - 2 - known).max()
            fallback = self.fallback.catch_up(params, fallback, tokens, lengths, behind)
            return self.fallback.first(params, fallback, tokens, lengths, sampling, by_fallback)

        needed = by_fallback.any()
        proposed, fallback = run_if(needed, catch_up_and_propose, state.fallback)
        known = jnp.where(needed, lengths, known)
        return (
            chosen(by_fallback, proposed, copied),
            HybridState(source, fallback, known, by_fallback),
        )

    def next(
        self, params: Any, state: HybridState, tokens, lengths, drawn, number, sampling, asking
    ) -> tuple[Proposal, HybridState]:
        """Copies on, and feeds the fallback what was drawn while a row that it drafts for asks."""
        copied, source = self.ngrams.next(
            None, state.source, tokens, lengths, drawn, number, sampling, asking
        )
        wanted = asking & state.by_fallback
        if self.lookahead is not None:
            wanted &= number < self.lookahead

        def propose(fallback: Any) -> tuple[Proposal, Any]:
            return self.fallback.next(
                params, fallback, tokens, lengths, drawn, number, sampling, wanted
            )

        needed = wanted.any()
        proposed, fallback = run_if(needed, propose, state.fallback)
        proposed = proposed._replace(
            available=proposed.available & wanted, finite=proposed.finite | ~wanted
        )
        return (
            chosen(state.by_fallback, proposed, copied),
            HybridState(source, fallback, state.known + needed, state.by_fallback),
        )

    def drafted_by(self, state: HybridState) -> Int[Array, " B"]:
        """1 in rows that the fallback drafts."""
        return state.by_fallback.astype(jnp.int32)
