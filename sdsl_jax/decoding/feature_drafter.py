"""A head on the target's hidden states as drafter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdsl_jax.decoding.drafters import Model, Proposal, model_proposal, read_in_chunks
from sdsl_jax.decoding.sampling import Sampling
from sdsl_jax.models import KVCache, init_cache
from sdsl_jax.models.feature_head import (
    AnyHeadParams,
    FusionParams,
    HeadConfig,
    HeadOutputs,
    TableHeadParams,
    feed_hidden,
    head_outputs,
    later_logits,
    read_features,
    tables_of,
)


class Head(NamedTuple):
    """A head and its parameters, as `speculate` takes it. Of a head on its target's tables they may be
    its own alone: the tables then come from the target that it is used with, see `with_tables`."""

    config: HeadConfig
    params: AnyHeadParams | FusionParams


def with_tables(head: Head, target: Model) -> Head:
    """A head with what it takes from its target, if it takes anything.

    Raises:
      SdslError: It is made for a target of another architecture.
    """
    if not isinstance(head.params, FusionParams):
        return head
    tables = tables_of(head.config, target.config, target.params)
    return head._replace(params=TableHeadParams(head.params, tables))


class HeadState(NamedTuple):
    """State of a head while it drafts.

    Attributes:
      cache: Keys and values of its body.
      read: P·f of each position that the target has seen; what lies beyond is of rejected tokens.
      hidden: Its hidden state at the last token that it was fed.
    """

    cache: KVCache
    read: Float[Array, "B S D"]
    hidden: Float[Array, "B D"]


@dataclass(frozen=True)
class FeatureDrafter:
    """A head as drafter.

    While it drafts, its cache holds keys that its own hidden states went into. A verify pass brings
    the true features of the tokens that were kept, so the first draft of the next round feeds these
    tokens again: up to γ + 1 of them, where a plain draft feeds two.

    Attributes:
      config: Architecture.
      window: Tokens to feed again, the largest γ plus 1.
    """

    config: HeadConfig
    window: int

    shared_blocks = 0
    parts = 1

    @property
    def position_limit(self) -> int:
        """The limit of its body."""
        return self.config.body.position_limit

    @property
    def taps(self) -> tuple[int, ...]:
        """Blocks of the target that it reads."""
        return self.config.taps

    def start(
        self,
        params: AnyHeadParams,
        prompts: Int[Array, "B P"],
        capacity: int,
        features: Array | None = None,
    ) -> HeadState:
        """State after the prompts and the target's features of them."""
        assert features is not None
        B, P = prompts.shape
        D, dtype = self.config.body.width, params.read.dtype
        empty = HeadState(
            init_cache(self.config.body, B, capacity, dtype),
            jnp.zeros((B, capacity, D), dtype),
            jnp.zeros((B, D), dtype),
        )
        state = self.observe(params, empty, jnp.zeros(B, jnp.int32), features)
        positions = jnp.broadcast_to(jnp.arange(P)[None], (B, P))
        added = jnp.pad(state.read[:, : P - 1], ((0, 0), (1, 0), (0, 0)))
        out = head_outputs(self.config, params, prompts, added, positions, state.cache)
        return state._replace(cache=out.cache)

    def observe(
        self, params: AnyHeadParams, state: HeadState, start: Int[Array, " B"], features: Array
    ) -> HeadState:
        """Takes the target's features of the positions from `start` on. Those of rejected tokens are
        overwritten by the next verify pass before anything reads them."""
        at = start[:, None] + jnp.arange(features.shape[1])[None]
        rows = jnp.arange(len(start))[:, None]
        read = read_features(self.config, params, features.astype(params.read.dtype))
        return state._replace(read=state.read.at[rows, at].set(read, mode="drop"))

    def catch_up(
        self, params: AnyHeadParams, state: HeadState, tokens, lengths, behind: Array
    ) -> HeadState:
        """Reads all but the last `window` tokens, which `first` feeds. Plain rounds have shown it their
        features."""

        def read(state: HeadState, fed: Array, at: Array) -> HeadState:
            return state._replace(cache=self._read(params, state, lengths, fed, at).cache)

        return read_in_chunks(read, state, tokens, lengths - self.window, behind)

    def _read(
        self, params: AnyHeadParams, state: HeadState, lengths: Array, fed: Array, at: Array
    ) -> HeadOutputs:
        """Feeds tokens with the target's features of those before them."""
        before = jnp.take_along_axis(state.read, jnp.maximum(at - 1, 0)[..., None], axis=1)
        # The first token has no features before it. Beyond the row lies what may be no number at
        # all, which must not come near the values that attention multiplies by zero.
        known = (at >= 1) & (at < lengths[:, None])
        added = jnp.where(known[..., None], before, 0.0)
        return head_outputs(self.config, params, fed, added, at, state.cache, compact=True)

    def _proposal(self, logits: Float[Array, "B C"], sampling: Sampling) -> Proposal:
        return model_proposal(logits, sampling, self.config.body.readout_ids)

    def first(
        self, params: AnyHeadParams, state: HeadState, tokens, lengths, sampling: Sampling, asking
    ) -> tuple[Proposal, HeadState]:
        """Feeds the last `window` tokens of each row again, with the features of those before them."""
        begin = jnp.maximum(lengths - self.window, 0)
        at = begin[:, None] + jnp.arange(self.window)[None]
        fed = jnp.take_along_axis(tokens, jnp.minimum(at, tokens.shape[1] - 1), axis=1)
        out = self._read(params, state, lengths, fed, at)
        last = (lengths - 1 - begin)[:, None, None]
        logits, hidden = (
            jnp.take_along_axis(x, last, axis=1)[:, 0] for x in (out.logits, out.hidden)
        )
        return self._proposal(logits, sampling), HeadState(out.cache, state.read, hidden)

    def next(
        self,
        params: AnyHeadParams,
        state: HeadState,
        tokens,
        lengths,
        drawn,
        number,
        sampling,
        asking,
    ) -> tuple[Proposal, HeadState]:
        """Feeds the draft that was drawn, with the head's own hidden state in place of features. A
        parallel head makes the next draft from the hidden state of the round, as long as it has one."""
        if self.config.parallel:
            logits = later_logits(
                self.config, params, state.hidden[:, None], drawn[:, None], number + 1, compact=True
            )
            proposal = self._proposal(logits[:, 0], sampling)
            left = proposal.available & (number < self.config.parallel)
            return proposal._replace(available=left), state
        added = feed_hidden(params, state.hidden)[:, None]
        at = (lengths - 1 + number)[:, None]
        out = head_outputs(
            self.config, params, drawn[:, None], added, at, state.cache, compact=True
        )
        return (
            self._proposal(out.logits[:, 0], sampling),
            HeadState(out.cache, state.read, out.hidden[:, 0]),
        )
