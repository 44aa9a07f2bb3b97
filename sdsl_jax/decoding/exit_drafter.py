"""An early exit of the target as drafter, whose blocks and keys serve the verify pass as well."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sdsl_jax.decoding.drafters import Model, Proposal, model_proposal, read_in_chunks
from sdsl_jax.decoding.sampling import Sampling
from sdsl_jax.models import KVCache, ModelConfig, Params, outputs, prefill

# What a draft may have otherwise than its target while its first blocks are the same.
_APART = ("layers", "tie_embeddings", "final_norm", "early_exit", "logit_size")


class EarlyExit(NamedTuple):
    """An early exit and its parameters, as `speculate` takes it to share its blocks with the target.

    Attributes:
      config: Architecture.
      params: Parameters, those of the shared blocks included.
      shared: Leading blocks that are the target's own.
    """

    config: ModelConfig
    params: Params
    shared: int


def shared_blocks(draft: Model, target: Model) -> int:
    """How many leading blocks of a draft are the target's own, bit by bit; 0 unless they read the
    same embedding and compute the same with it."""
    one, other = (
        {k: v for k, v in dataclasses.asdict(m.config).items() if k not in _APART}
        for m in (draft, target)
    )
    if one != other:
        return 0
    d, t = (nnx.to_pure_dict(model.params) for model in (draft, target))

    def same(a: object, b: object) -> bool:
        (x, of_x), (y, of_y) = jax.tree.flatten(a), jax.tree.flatten(b)
        return str(of_x) == str(of_y) and all(map(np.array_equal, x, y))

    names = ("embedding", "positions", "project_in")
    if not same({k: d[k] for k in names if k in d}, {k: t[k] for k in names if k in t}):
        return 0
    shared = 0
    for number in range(min(draft.config.layers, target.config.layers)):
        if not same(d["blocks"][number], t["blocks"][number]):
            break
        shared += 1
    return shared


class ExitState(NamedTuple):
    """State of an early exit while it drafts.

    Attributes:
      cache: Its keys and values, the shared ones first.
      streams: The residual stream after the shared blocks, of the last token of each row and of the
        drafts of the round after it.
    """

    cache: KVCache
    streams: Float[Array, "B G+1 D"]


@dataclass(frozen=True)
class ExitDrafter:
    """An early exit as drafter. It feeds every token once: the verify pass goes on from where the
    shared blocks left off, so what they made of the drafts is not made again.

    Attributes:
      config: Architecture.
      shared_blocks: Blocks that are the target's.
      window: Tokens of a verify pass, the largest γ plus 1.
    """

    config: ModelConfig
    shared_blocks: int
    window: int

    taps = ()
    parts = 1

    @property
    def position_limit(self) -> int:
        """The model's limit."""
        return self.config.position_limit

    def start(
        self,
        params: Params,
        prompts: Int[Array, "B P"],
        capacity: int,
        features: Array | None = None,
    ) -> ExitState:
        """State after the prompts."""
        cache = prefill(self.config, params, prompts, capacity=capacity)
        width = (len(prompts), self.window, self.config.width)
        return ExitState(cache, jnp.zeros(width, cache.keys[0].dtype))

    def observe(self, params: Params, state: ExitState, start: Array, features: Array) -> ExitState:
        """Nothing changes."""
        return state

    def catch_up(
        self, params: Params, state: ExitState, tokens, lengths, behind: Array
    ) -> ExitState:
        """Reads all but the last token, if it has blocks of its own: the target has fed the shared
        ones."""
        if self.config.layers == self.shared_blocks:
            return state

        def read(cache: KVCache, fed: Array, at: Array) -> KVCache:
            return outputs(self.config, params, fed, at, cache).cache

        cache = read_in_chunks(read, state.cache, tokens, lengths - 1, behind)
        return state._replace(cache=cache)

    def _feed(
        self, params: Params, state: ExitState, tokens: Array, at: Array, number: Array | int
    ) -> tuple[Array, ExitState]:
        out = outputs(
            self.config,
            params,
            tokens[:, None],
            at[:, None],
            state.cache,
            taps=(self.shared_blocks,),
            compact=True,
        )
        streams = state.streams.at[:, number].set(out.features[:, 0])  # type: ignore[index]
        return out.logits[:, 0], ExitState(out.cache, streams)

    def first(
        self, params: Params, state: ExitState, tokens, lengths, sampling: Sampling, asking
    ) -> tuple[Proposal, ExitState]:
        """Feeds the last token of each row; the drafts before it were all fed by then."""
        last = jnp.take_along_axis(tokens, (lengths - 1)[:, None], axis=1)[:, 0]
        logits, state = self._feed(params, state, last, lengths - 1, 0)
        return model_proposal(logits, sampling, self.config.readout_ids), state

    def next(
        self, params: Params, state: ExitState, tokens, lengths, drawn, number, sampling, asking
    ) -> tuple[Proposal, ExitState]:
        """Feeds the draft that was drawn."""
        logits, state = self._feed(params, state, drawn, lengths - 1 + number, number)
        return model_proposal(logits, sampling, self.config.readout_ids), state

    def streams(
        self, params: Params, state: ExitState, lengths: Array, drawn: Array, number: Array
    ) -> tuple[Float[Array, "B G+1 D"], ExitState]:
        """Feeds the last draft as well, and gives what the target's other blocks go on from."""
        _, state = self._feed(params, state, drawn, lengths - 1 + number, number)
        return state.streams, state

    def shared_cache(self, state: ExitState) -> KVCache:
        """Keys and values of the shared blocks."""
        return KVCache(*(part[: self.shared_blocks] for part in state.cache))

    def with_shared_cache(self, state: ExitState, cache: KVCache) -> ExitState:
        """The state with other keys and values of the shared blocks."""
        own = (part[self.shared_blocks :] for part in state.cache)
        return state._replace(cache=KVCache(*(a + b for a, b in zip(cache, own))))
