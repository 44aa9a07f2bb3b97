"""Drafters: a model with its cache, or earlier n-grams of the text itself.

A drafter is a hashable value, static under `jit`, with pure functions of arrays. It returns
distributions; the loop draws from them and decides how often. Suffixes: B rows, L token buffer, V
vocabulary, C ids that a proposal has probabilities of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding.sampling import Sampling, finite_logits, over_all_ids, probabilities
from sdsl_jax.errors import require
from sdsl_jax.models import KVCache, ModelConfig, Params, forward, prefill

S = TypeVar("S")
T = TypeVar("T")

# Tokens of a pass that catches up.
_CATCH_UP = 16


class Model(NamedTuple):
    """A configuration and its parameters."""

    config: ModelConfig
    params: Params


def one_vocabulary(draft: Model, target: Model) -> tuple[Model, Model]:
    """The same two models with equally many logits; ids that a model has no row for get probability 0 from it."""
    size = max(draft.config.ids, target.config.ids)
    draft, target = (m._replace(config=with_logits(m.config, size)) for m in (draft, target))
    return draft, target


def with_logits(config: ModelConfig, size: int) -> ModelConfig:
    """The same architecture with so many logits."""
    return dataclasses.replace(config, logit_size=0 if size == config.vocab_size else size)


class Proposal(NamedTuple):
    """The distribution that the next draft of each row would come from.

    Attributes:
      probs: The distribution q; ignored in rows without a proposal.
      confidence: The drafter's largest probability before temperature and filters. (After them it
        would be 1 at temperature 0.)
      available: Whether there is a proposal.
      finite: Whether all logits behind it are finite.
      ids: The ids that `probs` are of, for a drafter that never proposes others: what it proposes
        then costs no work over the vocabulary. None for all V in order. Of equal ids in a row at
        most one has a probability.
    """

    probs: Float[Array, "B C"]
    confidence: Float[Array, " B"]
    available: Bool[Array, " B"]
    finite: Bool[Array, " B"]
    ids: Int[Array, "B C"] | None = None


def ids_of(ids: tuple[int, ...], rows: int) -> Int[Array, "B C"] | None:
    """The ids of a truncated readout for so many rows; None if there are none, which stands for all."""
    return jnp.broadcast_to(np.asarray(ids, np.int32)[None], (rows, len(ids))) if ids else None


def model_proposal(
    logits: Float[Array, "B C"], sampling: Sampling, ids: tuple[int, ...] = ()
) -> Proposal:
    """What a model's logits propose; `ids` are the ids that they are of, if not all."""
    logits = logits.astype(jnp.float32)
    # The largest of a softmax, without the others.
    confidence = jnp.exp(logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1))
    available = jnp.ones(logits.shape[0], bool)
    probs, of = probabilities(logits, sampling), ids_of(ids, len(logits))
    return Proposal(probs, confidence, available, finite_logits(logits), of)


def read_in_chunks(
    read: Callable[[S, Int[Array, "B T"], Int[Array, "B T"]], S],
    state: S,
    tokens: Int[Array, "B L"],
    ends: Int[Array, " B"],
    behind: Int[Array, ""],
) -> S:
    """Reads at least the last `behind` tokens of each row before `ends`, a chunk at a time.

    A chunk may reach beyond the end; what it writes there is written again before it is read.

    Args:
      read: Takes the state, tokens and their positions to the next state.
      state: The first state.
      tokens: Token buffer.
      ends: Position after the last token to read.
      behind: Tokens to read.
    """
    width = min(_CATCH_UP, tokens.shape[1])

    def chunk(carry: tuple[Array, S]) -> tuple[Array, S]:
        left, state = carry
        begin = jnp.clip(ends - left, 0, tokens.shape[1] - width)
        at = begin[:, None] + jnp.arange(width)[None]
        return left - width, read(state, jnp.take_along_axis(tokens, at, axis=1), at)

    return jax.lax.while_loop(lambda carry: carry[0] > 0, chunk, (behind, state))[1]


def run_if(needed: Bool[Array, ""], run: Callable[[S], tuple[T, S]], state: S) -> tuple[T, S]:
    """`run(state)` where it is needed; otherwise zeros, and the state as it is.

    A loop of at most one turn, since `lax.cond` would copy the caches in the state.
    """
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, state)[0])

    def once(carry: tuple[Array, T, S]) -> tuple[Array, T, S]:
        return jnp.zeros((), bool), *run(carry[2])

    return jax.lax.while_loop(lambda carry: carry[0], once, (needed, nothing, state))[1:]


def over_all(proposal: Proposal, V: int) -> Proposal:
    """The same proposal with probabilities of all ids."""
    if proposal.ids is None:
        return proposal
    return proposal._replace(probs=over_all_ids(proposal.probs, proposal.ids, V), ids=None)


def _widened(proposal: Proposal, C: int) -> Proposal:
    more = ((0, 0), (0, C - proposal.probs.shape[1]))
    assert proposal.ids is not None
    return proposal._replace(probs=jnp.pad(proposal.probs, more), ids=jnp.pad(proposal.ids, more))


def chosen(rows: Bool[Array, " B"], one: Proposal, other: Proposal) -> Proposal:
    """One proposal in some rows, another in the others. One of fewer ids gets columns that have no
    probability; one of all V makes the other one of all V."""
    if one.ids is None or other.ids is None:
        V = (one if one.ids is None else other).probs.shape[1]
        one, other = (over_all(proposal, V) for proposal in (one, other))
    else:
        C = max(one.probs.shape[1], other.probs.shape[1])
        one, other = (_widened(proposal, C) for proposal in (one, other))

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, one, other)


class Drafter(Protocol):
    """Proposes drafts. Hashable and static under `jit`; parameters are passed in.

    A drafter that reads the target's hidden states names the blocks in `taps`. After the prompts
    and after every verify pass it is shown the features of what the target has seen.
    """

    @property
    def taps(self) -> tuple[int, ...]:
        """Blocks of the target whose outputs it reads, counted from 1; none for most drafters."""
        ...

    @property
    def shared_blocks(self) -> int:
        """Leading blocks of the target that its own pass stands for, see `SharingDrafter`; none for most
        drafters."""
        ...

    @property
    def parts(self) -> int:
        """Drafters that it chooses from in every row and round, see `ChoosingDrafter`; 1 for most
        drafters."""
        ...

    @property
    def position_limit(self) -> int:
        """Number of positions that it can tell apart, see `ModelConfig.position_limit`."""
        ...

    def start(
        self,
        params: Any,
        prompts: Int[Array, "B P"],
        capacity: int,
        features: Float[Array, "B P F"] | None = None,
    ) -> Any:
        """State after the prompts, with room for `capacity` positions. The target's features of the
        prompts come with its taps."""
        ...

    def observe(
        self, params: Any, state: Any, start: Int[Array, " B"], features: Float[Array, "B T F"]
    ) -> Any:
        """State after a verify pass over T tokens from position `start` on. What it shows of tokens
        that were rejected must not be used."""
        ...

    def catch_up(
        self,
        params: Any,
        state: Any,
        tokens: Int[Array, "B L"],
        lengths: Int[Array, " B"],
        behind: Int[Array, ""],
    ) -> Any:
        """State after rounds that the drafter was not asked about, which gave each row at most
        `behind` tokens; a call of `first` follows."""
        ...

    def first(
        self,
        params: Any,
        state: Any,
        tokens: Int[Array, "B L"],
        lengths: Int[Array, " B"],
        sampling: Sampling,
        asking: Bool[Array, " B"],
    ) -> tuple[Proposal, Any]:
        """The first proposal of a round, after `lengths` tokens of each row. Rows that are not asking
        ignore it."""
        ...

    def next(
        self,
        params: Any,
        state: Any,
        tokens: Int[Array, "B L"],
        lengths: Int[Array, " B"],
        drawn: Int[Array, " B"],
        number: Int[Array, ""],
        sampling: Sampling,
        asking: Bool[Array, " B"],
    ) -> tuple[Proposal, Any]:
        """The proposal after draft `number` of the round (counted from 1) was drawn; `tokens`, `lengths`
        and `asking` as in `first`."""
        ...


class SharingDrafter(Drafter, Protocol):
    """A drafter whose own pass stands for the first `shared_blocks` of the target."""

    def streams(
        self,
        params: Any,
        state: Any,
        lengths: Int[Array, " B"],
        drawn: Int[Array, " B"],
        number: Int[Array, ""],
    ) -> tuple[Float[Array, "B G+1 D"], Any]:
        """What leaves the shared blocks for the last token of each row and the drafts of the round, of
        which `drawn` is the last and has not been fed yet."""
        ...

    def shared_cache(self, state: Any) -> KVCache:
        """Keys and values of the shared blocks."""
        ...

    def with_shared_cache(self, state: Any, cache: KVCache) -> Any:
        """The state with other keys and values of the shared blocks."""
        ...


class ChoosingDrafter(Drafter, Protocol):
    """A drafter of several parts, one of which drafts each row in each round."""

    def drafted_by(self, state: Any) -> Int[Array, " B"]:
        """The number of the part that drafts each row in this round; 0 in rows that do not ask."""
        ...


@dataclass(frozen=True)
class ModelDrafter:
    """A model as drafter; its state is its cache."""

    config: ModelConfig

    taps = ()
    shared_blocks = 0
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
    ) -> KVCache:
        """The cache after the prompts."""
        return prefill(self.config, params, prompts, capacity=capacity)

    def observe(self, params: Params, state: KVCache, start: Array, features: Array) -> KVCache:
        """Nothing changes."""
        return state

    def catch_up(self, params: Params, state: KVCache, tokens, lengths, behind) -> KVCache:
        """Reads all but the last two tokens, which `first` feeds."""

        def read(cache: KVCache, fed: Array, at: Array) -> KVCache:
            read = forward(self.config, params, fed, at, cache)[1]
            assert read is not None
            return read

        return read_in_chunks(read, state, tokens, lengths - 2, behind)

    def first(
        self, params: Params, state: KVCache, tokens, lengths, sampling: Sampling, asking
    ) -> tuple[Proposal, KVCache]:
        """Feeds the last two tokens of each row.

        After a full acceptance the draft has not seen its own last token yet, hence two; otherwise
        the first of them is written again unchanged. A row of a single token feeds it twice, to the
        same slot.
        """
        last = lengths - 1
        pair = jnp.stack([jnp.maximum(last - 1, 0), last], axis=1)
        fed = jnp.take_along_axis(tokens, pair, axis=1)
        logits, cache = forward(self.config, params, fed, pair, state, compact=True)
        assert cache is not None
        return model_proposal(logits[:, -1], sampling, self.config.readout_ids), cache

    def next(
        self, params: Params, state: KVCache, tokens, lengths, drawn, number, sampling, asking
    ) -> tuple[Proposal, KVCache]:
        """Feeds the draft that was drawn."""
        at = (lengths - 1 + number)[:, None]
        logits, cache = forward(self.config, params, drawn[:, None], at, state, compact=True)
        assert cache is not None
        return model_proposal(logits[:, 0], sampling, self.config.readout_ids), cache


@dataclass(frozen=True)
class NgramDraft:
    """Prompt look-up: copies what followed the latest earlier occurrence of the row's last tokens.

    A baseline that needs no training. Longer n-grams are tried first; a row whose last token is new
    proposes nothing. Copied tokens may be copied again, so a text in a cycle can be continued at any
    length. A proposal puts all of q on one token v, so it is accepted with probability p_v.

    Attributes:
      vocab_size: Vocabulary of the target.
      longest: Longest n-gram to look for.
      shortest: Shortest n-gram to trust.
    """

    vocab_size: int
    longest: int = 3
    shortest: int = 1

    def __post_init__(self):
        require(
            1 <= self.shortest <= self.longest,
            f"the n-grams run from {self.shortest} to {self.longest} tokens; they must satisfy 1 ≤ shortest ≤ longest.",
        )

    taps = ()
    shared_blocks = 0
    parts = 1

    @property
    def position_limit(self) -> int:
        """No limit in practice: a text may have any length."""
        return np.iinfo(np.int32).max

    def start(
        self, params: Any, prompts: Int[Array, "B P"], capacity: int, features: Array | None = None
    ) -> Int[Array, " B"]:
        """The position that each row copies from; −1 until `first` sets it."""
        return jnp.full(prompts.shape[0], -1, jnp.int32)

    def observe(self, params: Any, state: Array, start: Array, features: Array) -> Array:
        """Nothing changes."""
        return state

    def catch_up(self, params: Any, state: Array, tokens, lengths, behind) -> Array:
        """Nothing changes: every round looks at the text anew."""
        return state

    def first(
        self, params: Any, state: Array, tokens, lengths, sampling: Sampling, asking
    ) -> tuple[Proposal, Array]:
        """Looks for the occurrence to copy from."""
        source = jax.vmap(self.match)(tokens, lengths)
        return self._proposal(source, tokens, lengths, 0), source

    def next(
        self, params: Any, state: Array, tokens, lengths, drawn, number, sampling: Sampling, asking
    ) -> tuple[Proposal, Array]:
        """Moves on by one token, since the drawn token is the copied one."""
        return self._proposal(state, tokens, lengths, number), state

    def match(self, tokens: Int[Array, " L"], length: Int[Array, ""]) -> Int[Array, ""]:
        """Position after the latest earlier occurrence of the longest suffix that has one; −1 if none has."""
        at = jnp.arange(tokens.shape[0])
        # matching[n − 1, i]: the n tokens before position i are the row's last n.
        matching = [
            (jnp.roll(tokens, n) == tokens[jnp.maximum(length - n, 0)]) & (at >= n)
            for n in range(1, self.longest + 1)
        ]
        matches = jnp.cumprod(jnp.stack(matching), axis=0).astype(bool) & (at < length)[None]
        latest = jnp.where(matches, at[None], -1).max(axis=1)[self.shortest - 1 :]
        occurs = latest >= 0
        # The last entry that occurs belongs to the longest suffix.
        longest = latest.shape[0] - 1 - jnp.argmax(occurs[::-1])
        return jnp.where(occurs.any(), latest[longest], -1)

    def copied(
        self,
        source: Int[Array, " B"],
        tokens: Int[Array, "B L"],
        lengths: Int[Array, " B"],
        number: Int[Array, ""] | int,
    ) -> Int[Array, " B"]:
        """The token that a round copies after `number` others; any token where `source` is −1."""
        # Beyond the row's end come the tokens that this round has copied so far: the stretch from
        # the source on, over and over.
        at = jnp.where(source >= 0, source + number % jnp.maximum(lengths - source, 1), 0)
        return jnp.take_along_axis(tokens, at[:, None], axis=1)[:, 0]

    def _proposal(
        self, source: Array, tokens: Array, lengths: Array, number: Array | int
    ) -> Proposal:
        available = source >= 0
        copied = self.copied(source, tokens, lengths, number)[:, None]
        one = jnp.ones(len(source))
        return Proposal(one[:, None], one, available, jnp.ones_like(available), copied)
