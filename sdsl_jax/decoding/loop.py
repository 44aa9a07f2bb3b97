"""Speculative and autoregressive decoding as jitted loops over batched rows.

Both loops keep, for every row, a buffer of tokens and its length; caches hold what the models have seen of it. A model's
cache is right up to the last position that was fed with a token the row kept, and everything later is overwritten before
it is read, so nothing is ever copied back. Suffixes: B rows, G largest lookahead, V vocabulary, L token buffer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.decoding.verification import overlap, probabilities, sample, verify_tokens
from sdsl_jax.models import KVCache, ModelConfig, Params, forward, init_cache

# Streams of randomness within a round: one for the accept tests, one for the token after them, and one for each draft.
_ACCEPT, _RESIDUAL, _FIRST_DRAFT = range(3)

# Why a row stopped.
RUNNING, STOP_TOKEN, LENGTH = range(3)


class Model(NamedTuple):
    """A configuration and its parameters."""

    config: ModelConfig
    params: Params


class Events(NamedTuple):
    """What happened in each round of each row, [rows, rounds]; entries after a row's last round are zero.

    Attributes:
      start: position of the first token that the round emitted.
      proposed: drafts verified, γ; 0 where the row took no part.
      accepted: drafts kept and emitted, not counting any after a stop.
      emitted: tokens emitted: accepted + 1, unless the row stopped first.
      overlap: Σ_v min(p_v, q_v) at each drafted position that was tested, [rows, rounds, γ_max]; 0 elsewhere.
      stop_reason: why the row stopped in this round: 0 it did not, 1 a stop token, 2 its maximum length.
    """

    start: Int[Array, "B R"]
    proposed: Int[Array, "B R"]
    accepted: Int[Array, "B R"]
    emitted: Int[Array, "B R"]
    overlap: Float[Array, "B R G"]
    stop_reason: Int[Array, "B R"]


class Decoded(NamedTuple):
    """The outcome of a decoding run.

    Attributes:
      tokens: prompts followed by what was emitted, int32 [B, L]; past a row's length there are zeros.
      lengths: tokens of each row, prompt included, int32 [B].
      prompt_lengths: tokens of each prompt, int32 [B].
      events: what happened in each round; None for the autoregressive loop.
      batch_rounds: rounds that the whole batch took: each as slow as its slowest row.
    """

    tokens: Int[Array, "B L"]
    lengths: Int[Array, " B"]
    prompt_lengths: Int[Array, " B"]
    events: Events | None
    batch_rounds: Int[Array, ""]


def row_keys(seed: int, rows: Int[np.ndarray, " B"]) -> Array:
    """One key per row, made of the seed and the row's own number: a row decodes alike alone and in any batch."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.asarray(rows, jnp.uint32))


def _round_keys(row_keys_B: Array, starts_B: Array) -> Array:
    """One key per row for the round that starts at a position; what it decides is keyed by (row, start, stream)."""
    return jax.vmap(jax.random.fold_in)(row_keys_B, starts_B)


class _Rows(NamedTuple):
    """Rows in flight: what both loops carry."""

    tokens: Array
    lengths: Array
    done: Array


def _emit(rows: _Rows, new: Array, count: Array, max_lengths: Array, stop_tokens: Array) -> tuple[_Rows, Array, Array]:
    """Appends the first `count` of the tokens `new` to each row that is not done, up to a stop.

    Returns the rows, the numbers of tokens emitted, and the reasons for stopping.
    """
    positions = jnp.arange(new.shape[1])
    room = max_lengths - rows.lengths
    count = jnp.where(rows.done, 0, jnp.minimum(count, room))
    stops = (new[:, :, None] == stop_tokens).any(-1) & (positions < count[:, None])
    stopped = stops.any(axis=1)
    count = jnp.where(stopped, jnp.argmax(stops, axis=1) + 1, count)
    reason = jnp.where(stopped, STOP_TOKEN, jnp.where((count == room) & ~rows.done, LENGTH, RUNNING))
    # Tokens past the count go to a column beyond the buffer, which scatter drops.
    target = jnp.where(positions < count[:, None], rows.lengths[:, None] + positions, rows.tokens.shape[1])
    tokens = rows.tokens.at[jnp.arange(new.shape[0])[:, None], target].set(new, mode="drop")
    return _Rows(tokens, rows.lengths + count, rows.done | (reason != RUNNING)), count, reason


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def prefill(model: ModelConfig, params: Params, tokens: Array, *, capacity: int) -> KVCache:
    """A cache that has seen every prompt. Padding is seen as well, and overwritten before anything can attend to it.

    Compiled apart from the loops, so that the many pairs of a study share it.
    """
    _, cache = forward(model, params, tokens, cache=init_cache(model, tokens.shape[0], capacity))
    assert cache is not None
    return cache


def _pad(tokens: Array, width: int) -> Array:
    return jnp.zeros((tokens.shape[0], width), jnp.int32).at[:, : tokens.shape[1]].set(tokens)


@functools.partial(jax.jit, static_argnames=("draft", "target", "max_lookahead", "buffer", "max_rounds"))
def speculative_loop(
    draft: ModelConfig,
    target: ModelConfig,
    draft_params: Any,
    target_params: Any,
    prompts: Array,
    prompt_lengths: Array,
    max_lengths: Array,
    keys: Array,
    temperature: Array,
    stop_tokens: Array,
    lookahead: Array,
    draft_cache: KVCache,
    target_cache: KVCache,
    *,
    max_lookahead: int,
    buffer: int,
    max_rounds: int,
) -> Decoded:
    """Rounds of draft steps, one verify pass and an emission, until every row is done; `decode.speculate` has the arguments.

    Both caches hold the prompts and have room for `buffer` + `max_lookahead` + 1 positions, so that no write of a round that
    starts before the end can fall outside.
    """
    B, G, V = prompts.shape[0], max_lookahead, target.vocab_size
    every = jnp.arange(B)

    def draft_step(fed_BW, positions_BW, cache, round_keys, number):
        """Feeds tokens to the draft and draws the round's draft of this number from what follows the last of them."""
        logits, cache = forward(draft, draft_params, fed_BW, positions_BW, cache)
        probs = probabilities(logits[:, -1], temperature)
        drawn = jax.vmap(lambda k, q: sample(jax.random.fold_in(k, _FIRST_DRAFT + number), q))(round_keys, probs)
        return drawn, probs, cache

    def round_(carry):
        rows, draft_cache, target_cache, events, number = carry
        last = rows.lengths - 1
        # The first draft step is two tokens wide: after a full acceptance the draft has not seen its own last token yet.
        # A row of a single token feeds it twice, to the same slot.
        pair = jnp.stack([jnp.maximum(last - 1, 0), last], axis=1)
        round_keys = _round_keys(keys, rows.lengths)
        drawn, probs, draft_cache = draft_step(rows.tokens[every[:, None], pair], pair, draft_cache, round_keys, 0)
        drafts = jnp.zeros((B, G), jnp.int32).at[:, 0].set(drawn)
        draft_probs = jnp.zeros((B, G, V), jnp.float32).at[:, 0].set(probs)

        def more(i, state):
            drafts, draft_probs, cache = state
            drawn, probs, cache = draft_step(drafts[:, i - 1, None], (last + i)[:, None], cache, round_keys, i)
            return drafts.at[:, i].set(drawn), draft_probs.at[:, i].set(probs), cache

        drafts, draft_probs, draft_cache = jax.lax.fori_loop(1, lookahead, more, (drafts, draft_probs, draft_cache))

        fed = jnp.concatenate([rows.tokens[every, last][:, None], drafts], axis=1)
        logits, target_cache = forward(target, target_params, fed, last[:, None] + jnp.arange(G + 1), target_cache)
        target_probs = probabilities(logits, temperature)

        def verify(key, d, q, p):
            accept_key, residual_key = jax.random.fold_in(key, _ACCEPT), jax.random.fold_in(key, _RESIDUAL)
            return verify_tokens(d, q, p, lookahead, accept_key, residual_key)

        verdict = jax.vmap(verify)(round_keys, drafts, draft_probs, target_probs)
        new = jnp.concatenate([drafts, jnp.zeros((B, 1), jnp.int32)], axis=1)
        new = new.at[every, verdict.accepted].set(verdict.next_token)
        active, starts = ~rows.done, rows.lengths
        rows, emitted, reason = _emit(rows, new, verdict.accepted + 1, max_lengths, stop_tokens)
        accepted = jnp.minimum(verdict.accepted, emitted)
        tested = jnp.arange(G) < jnp.minimum(jnp.minimum(verdict.accepted + 1, lookahead), emitted)[:, None]
        happened = Events(
            start=jnp.where(active, starts, 0),
            proposed=jnp.where(active, lookahead, 0),
            accepted=accepted,
            emitted=emitted,
            overlap=jnp.where(tested, overlap(target_probs[:, :-1], draft_probs), 0.0),
            stop_reason=reason,
        )
        events = jax.tree.map(lambda record, value: record.at[:, number].set(value), events, happened)
        return rows, draft_cache, target_cache, events, number + 1

    ints = jnp.zeros((B, max_rounds), jnp.int32)
    events = Events(ints, ints, ints, ints, jnp.zeros((B, max_rounds, G), jnp.float32), ints)
    carry = (
        _Rows(_pad(prompts, buffer), prompt_lengths, prompt_lengths >= max_lengths),
        draft_cache,
        target_cache,
        events,
        jnp.zeros((), jnp.int32),
    )
    rows, _, _, events, rounds = jax.lax.while_loop(lambda carry: ~carry[0].done.all(), round_, carry)
    return Decoded(rows.tokens, rows.lengths, prompt_lengths, events, rounds)


@functools.partial(jax.jit, static_argnames=("target", "buffer"))
def autoregressive_loop(
    target: ModelConfig,
    target_params: Any,
    prompts: Array,
    prompt_lengths: Array,
    max_lengths: Array,
    keys: Array,
    temperature: Array,
    stop_tokens: Array,
    cache: KVCache,
    *,
    buffer: int,
) -> Decoded:
    """One token a step until every row is done; `decode.autoregress` has the arguments."""
    every = jnp.arange(prompts.shape[0])

    def step(carry):
        rows, cache, number = carry
        last = rows.lengths - 1
        logits, cache = forward(target, target_params, rows.tokens[every, last][:, None], last[:, None], cache)
        probs = probabilities(logits[:, 0], temperature)
        drawn = jax.vmap(sample)(_round_keys(keys, rows.lengths), probs)
        rows, _, _ = _emit(rows, drawn[:, None], jnp.ones_like(last), max_lengths, stop_tokens)
        return rows, cache, number + 1

    carry = (
        _Rows(_pad(prompts, buffer), prompt_lengths, prompt_lengths >= max_lengths),
        cache,
        jnp.zeros((), jnp.int32),
    )
    rows, _, rounds = jax.lax.while_loop(lambda carry: ~carry[0].done.all(), step, carry)
    return Decoded(rows.tokens, rows.lengths, prompt_lengths, None, rounds)
