"""Speculative and autoregressive decoding as jitted loops over batched rows.

Both loops keep, for every row, a buffer of tokens and its length; caches hold what the models have
seen of it. A model's cache is right up to the last position that was fed with a token the row kept,
and everything later is overwritten before it is read, so nothing is ever copied back. Suffixes: B
rows, G largest lookahead, R rounds, V vocabulary, L token buffer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding.drafters import Drafter
from sdsl_jax.decoding.lookahead import LookaheadRule
from sdsl_jax.decoding.noise import Noise, round_noise, start_keys
from sdsl_jax.decoding.sampling import Sampling, draw, finite_logits, probabilities
from sdsl_jax.decoding.verification import VERIFICATIONS, Verdict, Verification
from sdsl_jax.errors import require
from sdsl_jax.models import KVCache, ModelConfig, forward

# Why a row stopped.
RUNNING, STOP_TOKEN, LENGTH = range(3)


class Events(NamedTuple):
    """What happened in each round of each row, [rows, rounds]; entries after a row's last round are
    zero.

    Attributes:
      start: position of the first token that the round emitted.
      proposed: drafts verified, γ; under a rule that may decline to draft it can be 0 in a round
        that took place. Near the end of a table of positions, those that the models can judge: what
        they say beyond it is neither kept nor counted.
      verified: drafts that verification kept, before anything was cut off at a stop.
      accepted: drafts kept and emitted: those after a stop do not count.
      emitted: tokens emitted: accepted + 1, unless the row stopped first; 0 where the row took no
        part.
      chance: `Verdict.chance`: its sum is what `verified` must equal on average, [rows, rounds,
        γ_max].
      stop_reason: why the row stopped in this round: 0 it did not, 1 a stop token, 2 its maximum
        length.
    """

    start: Int[Array, "B R"]
    proposed: Int[Array, "B R"]
    verified: Int[Array, "B R"]
    accepted: Int[Array, "B R"]
    emitted: Int[Array, "B R"]
    chance: Float[Array, "B R G"]
    stop_reason: Int[Array, "B R"]


class Blocks(NamedTuple):
    """The drafts of each round, and both distributions at each of their positions; zero where
    nothing was drafted.

    Attributes:
      drafts: drafted tokens.
      draft_probs: q that each was drawn from.
      target_probs: p at the same positions and at the one after the last.
    """

    drafts: Int[Array, "B R G"]
    draft_probs: Float[Array, "B R G V"]
    target_probs: Float[Array, "B R G+1 V"]


class Finite(NamedTuple):
    """Whether all logits that a run rests on were finite.

    Attributes:
      target: those of every position that was verified, or drawn from.
      draft: those behind every proposal.
    """

    target: Bool[Array, ""]
    draft: Bool[Array, ""]


class Decoded(NamedTuple):
    """The outcome of a decoding run.

    Attributes:
      tokens: prompts followed by what was emitted, int32 [B, L]; past a row's length there are
        zeros.
      lengths: tokens of each row, prompt included, int32 [B].
      prompt_lengths: tokens of each prompt, int32 [B].
      max_lengths: length at which each row had to stop, int32 [B].
      events: what happened in each round; None for the autoregressive loop.
      batch_rounds: rounds that the whole batch took: each as slow as its slowest row.
      blocks: drafts and distributions of every round, if they were asked for.
      finite: whether the logits were finite; None once that was checked.
      position_limit: positions that both models can tell apart, of each row; None without a table
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


class Requests(NamedTuple):
    """What is asked for, row by row.

    Attributes:
      prompts: ids, padded on the right.
      prompt_lengths: tokens of each prompt, at least 1.
      max_lengths: length at which each row stops, prompt included.
      keys: of each row.
      stop_tokens: ids after which a row stops.
    """

    prompts: Int[Array, "B P"]
    prompt_lengths: Int[Array, " B"]
    max_lengths: Int[Array, " B"]
    keys: Array
    stop_tokens: Int[Array, " S"]


class _Rows(NamedTuple):
    """Rows in flight: what both loops carry."""

    tokens: Array
    lengths: Array
    done: Array


def _begin(requests: Requests, buffer: int) -> _Rows:
    tokens = jnp.zeros((requests.prompts.shape[0], buffer), jnp.int32)
    tokens = tokens.at[:, : requests.prompts.shape[1]].set(requests.prompts)
    # What pads a prompt is none of the row's tokens.
    tokens = jnp.where(jnp.arange(buffer) < requests.prompt_lengths[:, None], tokens, 0)
    return _Rows(tokens, requests.prompt_lengths, requests.prompt_lengths >= requests.max_lengths)


def emit(rows: _Rows, new: Array, count: Array, requests: Requests) -> tuple[_Rows, Array, Array]:
    """Appends the first `count` of the tokens `new` to each row that is not done, up to a stop.

    Returns the rows, the numbers of tokens emitted, and the reasons for stopping.
    """
    positions = jnp.arange(new.shape[1])
    room = requests.max_lengths - rows.lengths
    count = jnp.where(rows.done, 0, jnp.minimum(count, room))
    stops = (new[:, :, None] == requests.stop_tokens).any(-1) & (positions < count[:, None])
    stopped = stops.any(axis=1)
    count = jnp.where(stopped, jnp.argmax(stops, axis=1) + 1, count)
    reason = jnp.where(
        stopped, STOP_TOKEN, jnp.where((count == room) & ~rows.done, LENGTH, RUNNING)
    )
    # Tokens past the count go to a column beyond the buffer, which scatter drops.
    target = jnp.where(
        positions < count[:, None], rows.lengths[:, None] + positions, rows.tokens.shape[1]
    )
    tokens = rows.tokens.at[jnp.arange(new.shape[0])[:, None], target].set(new, mode="drop")
    return _Rows(tokens, rows.lengths + count, rows.done | (reason != RUNNING)), count, reason


def verify_rows(
    verification: Verification, drafts: Array, q: Array, p: Array, counts: Array, noise: Noise
) -> Verdict:
    """The verdict on every row."""
    return jax.vmap(VERIFICATIONS[verification])(
        drafts, q, p, counts, noise.uniforms, noise.residual
    )


class _Drafts(NamedTuple):
    """A round's drafts so far: tokens, where they came from, how many each row has, which rows may
    take more.

    `finite` says whether the logits behind every proposal so far were.
    """

    tokens: Array
    probs: Array
    counts: Array
    drafting: Array
    finite: Array


def _draft(
    drafter: Drafter,
    params: Any,
    state: Any,
    rows: _Rows,
    noise: Noise,
    rule,
    most: Array,
    how: Sampling,
):
    """Draws up to `most` drafts for each row, stopping a row where its rule or its drafter has enough."""

    def take(drafts: _Drafts, proposal, number) -> _Drafts:
        """Decides which rows go on, and only then draws."""
        asking = drafts.drafting & (number < most)
        going = asking & proposal.available & rule.goes_on(proposal.confidence)
        drawn = draw(proposal.probs, noise.drafts[:, number])
        return _Drafts(
            drafts.tokens.at[:, number].set(drawn),
            drafts.probs.at[:, number].set(proposal.probs),
            drafts.counts + going,
            going,
            drafts.finite & (proposal.finite | ~asking).all(),
        )

    def more(carry):
        number, drafts, state = carry
        proposal, state = drafter.next(
            params, state, rows.tokens, rows.lengths, drafts.tokens[:, number - 1], number, how
        )
        return number + 1, take(drafts, proposal, number), state

    B, G, V = noise.drafts.shape
    none = _Drafts(
        jnp.zeros((B, G), jnp.int32),
        jnp.zeros((B, G, V), jnp.float32),
        jnp.zeros(B, jnp.int32),
        ~rows.done,
        jnp.ones((), bool),
    )
    proposal, state = drafter.first(params, state, rows.tokens, rows.lengths, how)
    carry = (jnp.int32(1), take(none, proposal, 0), state)
    _, drafts, state = jax.lax.while_loop(
        lambda c: (c[1].drafting & (c[0] < most)).any(), more, carry
    )
    return drafts, state


def _require_capacity(cache: Any, needed: int) -> None:
    """Writes beyond a cache's end would be clamped to other slots without a word."""
    for part in jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, KVCache)):
        if isinstance(part, KVCache):
            require(
                part.capacity >= needed,
                f"a cache has room for {part.capacity} positions; this run may write to {needed}.",
            )


@functools.partial(
    jax.jit,
    static_argnames=(
        "drafter",
        "target",
        "verification",
        "max_lookahead",
        "buffer",
        "max_rounds",
        "keep_distributions",
        "whole_rounds",
    ),
)
def speculative_loop(
    drafter: Drafter,
    target: ModelConfig,
    draft_params: Any,
    target_params: Any,
    requests: Requests,
    sampling: Sampling,
    rule: LookaheadRule,
    draft_state: Any,
    target_cache: KVCache,
    *,
    verification: Verification,
    max_lookahead: int,
    buffer: int,
    max_rounds: int,
    keep_distributions: bool,
    whole_rounds: bool = False,
) -> Decoded:
    """Rounds of draft steps, one verify pass and an emission, until every row is done;
    `decode.speculate` has the arguments.

    With `whole_rounds`, to be timed, they end before the first round that could stop a row or cut
    what it emits short.

    Caches hold the prompts and have room for `buffer` + `max_lookahead` + 1 positions, so that no
    write of a round that starts before the end can fall outside.
    """
    B, G, V = requests.prompts.shape[0], max_lookahead, target.ids
    every = jnp.arange(B)
    keys = start_keys(requests.keys, buffer)
    _require_capacity((draft_state, target_cache), buffer + G + 1)
    limit = min(target.position_limit, drafter.position_limit)
    # Only where a round can reach beyond it.
    limited = limit < buffer + G

    def round_(carry):
        rows, draft_state, target_cache, memory, events, blocks, finite, number = carry
        starts, active = rows.lengths, ~rows.done
        most = jnp.where(active, rule.most(memory, G), 0)
        noise = round_noise(keys, starts, G, V)
        drafts, draft_state = _draft(
            drafter, draft_params, draft_state, rows, noise, rule, most, sampling
        )

        last = starts - 1
        fed = jnp.concatenate([rows.tokens[every, last][:, None], drafts.tokens], axis=1)
        logits, target_cache = forward(
            target, target_params, fed, last[:, None] + jnp.arange(G + 1), target_cache
        )
        target_probs = probabilities(logits, sampling)
        verdict = verify_rows(
            verification, drafts.tokens, drafts.probs, target_probs, drafts.counts, noise
        )

        padded = jnp.concatenate([drafts.tokens, jnp.zeros((B, 1), jnp.int32)], axis=1)
        next_place = jnp.arange(G + 1) == verdict.accepted[:, None]
        new = jnp.where(next_place, verdict.next_token[:, None], padded)
        rows, emitted, reason = emit(rows, new, verdict.accepted + 1, requests)
        # Draft i is judged by logits at position start + i − 2.
        judged = jnp.minimum(drafts.counts, limit - starts + 1) if limited else drafts.counts
        verified = jnp.where(active, jnp.minimum(verdict.accepted, judged), 0)
        chance = jnp.where(active[:, None] & (jnp.arange(G) < judged[:, None]), verdict.chance, 0.0)
        used = active[:, None] & (jnp.arange(G + 1) <= drafts.counts[:, None])
        if limited:
            used &= last[:, None] + jnp.arange(G + 1) < limit
        finite = Finite(
            finite.target & (finite_logits(logits) | ~used).all(),
            finite.draft & drafts.finite,
        )
        memory = rule.learn(memory, jnp.minimum(verified + 1, judged), verified)
        happened = Events(
            start=jnp.where(active, starts, 0),
            proposed=judged,
            verified=verified,
            accepted=jnp.minimum(verified, emitted),
            emitted=emitted,
            chance=chance,
            stop_reason=reason,
        )
        events = jax.tree.map(
            lambda record, value: record.at[:, number].set(value), events, happened
        )
        if keep_distributions:
            drafted = jnp.arange(G + 1) < (judged + 1)[:, None]
            kept = Blocks(
                jnp.where(drafted[:, 1:], drafts.tokens, 0),
                jnp.where(drafted[:, 1:, None], drafts.probs, 0.0),
                jnp.where((drafted & active[:, None])[..., None], target_probs, 0.0),
            )
            blocks = jax.tree.map(
                lambda record, value: record.at[:, number].set(value), blocks, kept
            )
        return rows, draft_state, target_cache, memory, events, blocks, finite, number + 1

    R = max_rounds
    ints = jnp.zeros((B, R), jnp.int32)
    events = Events(ints, ints, ints, ints, ints, jnp.zeros((B, R, G), jnp.float32), ints)
    blocks = None
    if keep_distributions:
        blocks = Blocks(
            jnp.zeros((B, R, G), jnp.int32),
            jnp.zeros((B, R, G, V), jnp.float32),
            jnp.zeros((B, R, G + 1, V), jnp.float32),
        )
    carry = (
        _begin(requests, buffer),
        draft_state,
        target_cache,
        rule.start(B),
        events,
        blocks,
        Finite(jnp.ones((), bool), jnp.ones((), bool)),
        jnp.zeros((), jnp.int32),
    )

    def unfinished(carry):
        rows = carry[0]
        if whole_rounds:
            return (rows.lengths + G + 1 < requests.max_lengths).all()
        return ~rows.done.all()

    rows, _, _, _, events, blocks, finite, rounds = jax.lax.while_loop(unfinished, round_, carry)
    limits = jnp.full(B, limit, jnp.int32) if limited else None
    return Decoded(
        rows.tokens,
        rows.lengths,
        requests.prompt_lengths,
        requests.max_lengths,
        events,
        rounds,
        blocks,
        finite,
        limits,
    )


@functools.partial(jax.jit, static_argnames=("target", "buffer"))
def autoregressive_loop(
    target: ModelConfig,
    target_params: Any,
    requests: Requests,
    sampling: Sampling,
    cache: KVCache,
    *,
    buffer: int,
) -> Decoded:
    """One token a step until every row is done; `decode.autoregress` has the arguments."""
    every = jnp.arange(requests.prompts.shape[0])
    keys = start_keys(requests.keys, buffer)
    _require_capacity(cache, buffer)

    def step(carry):
        rows, cache, finite, number = carry
        last = rows.lengths - 1
        logits, cache = forward(
            target, target_params, rows.tokens[every, last][:, None], last[:, None], cache
        )
        probs = probabilities(logits[:, 0], sampling)
        noise = round_noise(keys, rows.lengths, 0, target.ids)
        drawn = draw(probs, noise.residual)
        finite &= (finite_logits(logits[:, 0]) | rows.done).all()
        rows, _, _ = emit(rows, drawn[:, None], jnp.ones_like(last), requests)
        return rows, cache, finite, number + 1

    carry = (_begin(requests, buffer), cache, jnp.ones((), bool), jnp.zeros((), jnp.int32))
    rows, _, finite, rounds = jax.lax.while_loop(lambda carry: ~carry[0].done.all(), step, carry)
    return Decoded(
        rows.tokens,
        rows.lengths,
        requests.prompt_lengths,
        requests.max_lengths,
        None,
        rounds,
        finite=Finite(finite, jnp.ones((), bool)),
    )
