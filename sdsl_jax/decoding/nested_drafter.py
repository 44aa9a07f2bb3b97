"""A nested draft as drafter: each row chooses in each round how much of it to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdsl_jax.decoding.drafters import (
    Model,
    Proposal,
    chosen,
    model_proposal,
    read_in_chunks,
    run_if,
)
from sdsl_jax.decoding.sampling import Sampling
from sdsl_jax.errors import require
from sdsl_jax.models import KVCache, ModelConfig, Params, forward, prefill
from sdsl_jax.models.cuts import cut, leading


class NestedDraft(NamedTuple):
    """Two slices of a nested draft, as `speculate` takes them, and when the smaller one is enough.

    Attributes:
      small: The smaller slice, which looks at every round first.
      large: The larger slice.
      threshold: Confidence of the smaller slice, its largest probability of the next token before
        temperature and filters, from which on it drafts the round itself.
    """

    small: Model
    large: Model
    threshold: float

    @property
    def config(self) -> ModelConfig:
        """Architecture of the larger slice."""
        return self.large.config

    @property
    def params(self) -> NestedParams:
        """Parameters of both slices."""
        return NestedParams(self.small.params, self.large.params, jnp.float32(self.threshold))


def nested_draft(whole: Model, slice_config: ModelConfig, threshold: float) -> NestedDraft:
    """A nested draft that drafts by a slice or as a whole.

    Args:
      whole: The nested draft.
      slice_config: Architecture of the slice.
      threshold: Confidence from which on the slice drafts a round itself.

    Raises:
      SdslError: It is no slice of the whole.
    """
    config, params = cut(whole.config, whole.params, leading(slice_config))
    require(
        config == slice_config,
        "the slice differs from the nested draft in more than its layers, width, heads and hidden units.",
    )
    return NestedDraft(Model(config, params), whole, threshold)


class NestedParams(NamedTuple):
    """Parameters of both slices, and the threshold."""

    small: Params
    large: Params
    threshold: Float[Array, ""]


class NestedState(NamedTuple):
    """State while it drafts.

    Attributes:
      small: Keys and values of the smaller slice.
      large: Those of the larger one, up to the tokens that it has seen.
      seen: Tokens of each row that the larger slice has seen.
      by_large: Rows that the larger slice drafts for in this round.
    """

    small: KVCache
    large: KVCache
    seen: Int[Array, " B"]
    by_large: Array


@dataclass(frozen=True)
class NestedDrafter:
    """Two slices of a nested draft as drafter.

    The choice is made from the smaller slice's distribution before anything is drawn from it, so it
    depends on the prefix alone, and the output stays that of the target. The smaller slice reads the
    tokens that each round kept. When a row chooses the larger one, it first reads the tokens it
    skipped, `window` at a time. A slice is left out where no row chose it.

    Attributes:
      small: Architecture of the smaller slice.
      large: Architecture of the larger one.
      window: Tokens of a pass that catches up, the largest γ plus 1.
    """

    small: ModelConfig
    large: ModelConfig
    window: int

    taps = ()
    shared_blocks = 0
    parts = 2

    @property
    def position_limit(self) -> int:
        """The limit of both."""
        return min(self.small.position_limit, self.large.position_limit)

    def start(
        self,
        params: NestedParams,
        prompts: Int[Array, "B P"],
        capacity: int,
        features: Array | None = None,
    ) -> NestedState:
        """State after the prompts, which both slices see."""
        rows = len(prompts)
        # What a shorter prompt is padded with is written again before it is read.
        return NestedState(
            prefill(self.small, params.small, prompts, capacity=capacity),
            prefill(self.large, params.large, prompts, capacity=capacity),
            jnp.full(rows, prompts.shape[1], jnp.int32),
            jnp.zeros(rows, bool),
        )

    def observe(
        self, params: NestedParams, state: NestedState, start: Array, features: Array
    ) -> NestedState:
        """Nothing changes."""
        return state

    def catch_up(
        self, params: NestedParams, state: NestedState, tokens, lengths, behind: Array
    ) -> NestedState:
        """The smaller slice reads all but the last `window` tokens, which `first` feeds. The larger one
        reads what it skipped when a row chooses it."""

        def read(cache: KVCache, fed: Array, at: Array) -> KVCache:
            read = forward(self.small, params.small, fed, at, cache)[1]
            assert read is not None
            return read

        small = read_in_chunks(read, state.small, tokens, lengths - self.window, behind)
        return state._replace(small=small)

    def first(
        self, params: NestedParams, state: NestedState, tokens, lengths, sampling: Sampling, asking
    ) -> tuple[Proposal, NestedState]:
        """Chooses the slice of each row, and lets the larger one catch up where it was chosen."""
        last = lengths - 1

        def read(config: ModelConfig, own: Params, cache: Any, begin: Array) -> tuple[Array, Any]:
            """A window of tokens; the logits after the last token, where that lies in it."""
            at = begin[:, None] + jnp.arange(self.window)[None]
            # What lies beyond a row is written again before anything reads it.
            fed = jnp.take_along_axis(tokens, jnp.minimum(at, tokens.shape[1] - 1), axis=1)
            logits, cache = forward(config, own, fed, at, cache, compact=True)
            index = jnp.clip(last - begin, 0, self.window - 1)[:, None, None]
            return jnp.take_along_axis(logits, index, axis=1)[:, 0], cache

        # A round keeps no more tokens than a window holds.
        begin = jnp.maximum(lengths - self.window, 0)
        logits, small = read(self.small, params.small, state.small, begin)
        proposal = model_proposal(logits, sampling, self.small.readout_ids)
        by_large = asking & (proposal.confidence < params.threshold)
        # The last token is always fed again: its logits are what the first draft comes from.
        seen = jnp.minimum(state.seen, last)

        def catch_up(carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
            seen, cache, found = carry
            reading = by_large & (seen < lengths)
            begin = jnp.where(reading, seen, last)
            here, cache = read(self.large, params.large, cache, begin)
            found = jnp.where(reading[:, None], here, found)
            moved = jnp.minimum(begin + self.window, lengths)
            return jnp.where(reading, moved, seen), cache, found

        seen, large, found = jax.lax.while_loop(
            lambda carry: (by_large & (carry[0] < lengths)).any(),
            catch_up,
            (seen, state.large, jnp.zeros_like(logits)),
        )
        both = (model_proposal(found, sampling, self.large.readout_ids), proposal)
        return chosen(by_large, *both), NestedState(small, large, seen, by_large)

    def next(
        self,
        params: NestedParams,
        state: NestedState,
        tokens,
        lengths,
        drawn,
        number,
        sampling,
        asking,
    ) -> tuple[Proposal, NestedState]:
        """Feeds the draft that was drawn to the slice that each row chose."""
        at, fed = (lengths - 1 + number)[:, None], drawn[:, None]

        def run(config: ModelConfig, own: Params, cache: KVCache, rows: Array) -> Any:
            def step(cache: KVCache) -> Any:
                logits, written = forward(config, own, fed, at, cache, compact=True)
                return logits[:, 0], written

            return run_if((asking & rows).any(), step, cache)

        of_small, small = run(self.small, params.small, state.small, ~state.by_large)
        of_large, large = run(self.large, params.large, state.large, state.by_large)
        both = (
            model_proposal(logits, sampling, config.readout_ids)
            for config, logits in ((self.large, of_large), (self.small, of_small))
        )
        return chosen(state.by_large, *both), NestedState(small, large, state.seen, state.by_large)

    def drafted_by(self, state: NestedState) -> Int[Array, " B"]:
        """1 in rows that the larger slice drafts."""
        return state.by_large.astype(jnp.int32)
