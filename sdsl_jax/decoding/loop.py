"""Speculative and autoregressive decoding as jitted loops over batched rows.

Both loops keep a buffer of tokens and a length for every row. The models' caches hold what they have
seen of it. A cache is valid up to the last position that was fed with a token the row kept;
everything later is overwritten before it is read, so nothing is ever copied back. Suffixes: B rows,
G largest lookahead, R rounds, V vocabulary, C ids of a proposal, L token buffer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdsl_jax.decoding.decoded import Blocks, Decoded, Events, Finite
from sdsl_jax.decoding.drafters import ChoosingDrafter, Drafter, Proposal, SharingDrafter
from sdsl_jax.decoding.lookahead import Candidates, LookaheadRule
from sdsl_jax.decoding.noise import Noise, round_noise
from sdsl_jax.decoding.sampling import Sampling, draw, finite_logits, over_all_ids, probabilities
from sdsl_jax.decoding.verification import VERIFICATIONS, Verdict, Verification
from sdsl_jax.errors import require
from sdsl_jax.models import KVCache, ModelConfig, outputs

# Why a row stopped.
RUNNING, STOP_TOKEN, LENGTH = range(3)


class Requests(NamedTuple):
    """The rows to decode.

    Attributes:
      prompts: Token ids, padded on the right.
      prompt_lengths: Tokens in each prompt, at least 1.
      max_lengths: Length at which each row stops, prompt included.
      keys: Random key of each row.
      stop_tokens: Ids after which a row stops.
    """

    prompts: Int[Array, "B P"]
    prompt_lengths: Int[Array, " B"]
    max_lengths: Int[Array, " B"]
    keys: Array
    stop_tokens: Int[Array, " S"]


class _Rows(NamedTuple):
    """The rows as far as they are decoded; part of the state of both loops."""

    tokens: Array
    lengths: Array
    done: Array


def _begin(requests: Requests, buffer: int) -> _Rows:
    tokens = jnp.zeros((requests.prompts.shape[0], buffer), jnp.int32)
    tokens = tokens.at[:, : requests.prompts.shape[1]].set(requests.prompts)
    # Padding is not part of a row.
    tokens = jnp.where(jnp.arange(buffer)[None] < requests.prompt_lengths[:, None], tokens, 0)
    return _Rows(tokens, requests.prompt_lengths, requests.prompt_lengths >= requests.max_lengths)


def emit(rows: _Rows, new: Array, count: Array, requests: Requests) -> tuple[_Rows, Array, Array]:
    """Appends the first `count` of the tokens `new` to each row that is not done, up to a stop.

    Returns:
      The rows, the numbers of tokens emitted, and the reasons for stopping.
    """
    positions = jnp.arange(new.shape[1])[None]
    room = requests.max_lengths - rows.lengths
    count = jnp.where(rows.done, 0, jnp.minimum(count, room))
    stops = (new[:, :, None] == requests.stop_tokens[None, None]).any(-1) & (
        positions < count[:, None]
    )
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
    verification: Verification,
    drafts: Array,
    q: Array,
    p: Array,
    counts: Array,
    noise: Noise,
    ids: Array | None = None,
) -> Verdict:
    """The verdict on every row; `ids` are those that q is of, where they are not all."""
    return jax.vmap(VERIFICATIONS[verification])(
        drafts, q, p, counts, noise.uniforms, noise.residual, ids
    )


class _PlainStep(NamedTuple):
    """One token of each row that is not done: the rows, the target's cache and the features of its
    taps after it, its distribution, tokens emitted, and whether all logits of running rows are
    finite."""

    rows: _Rows
    cache: KVCache
    features: Array | None
    probs: Float[Array, "B V"]
    emitted: Int[Array, " B"]
    finite: Bool[Array, ""]


def _plain_step(
    target: ModelConfig,
    params: Any,
    rows: _Rows,
    cache: KVCache,
    requests: Requests,
    sampling: Sampling,
    taps: tuple[int, ...] = (),
) -> _PlainStep:
    """Draws a token from the target, with the noise of a round without drafts."""
    last = rows.lengths - 1
    fed = rows.tokens[jnp.arange(len(last)), last][:, None]
    logits, cache, features = outputs(target, params, fed, last[:, None], cache, taps=taps)
    probs = probabilities(logits[:, 0], sampling)
    drawn = draw(probs, round_noise(requests.keys, rows.lengths, 0, target.ids).residual)
    finite = (finite_logits(logits[:, 0]) | rows.done).all()
    rows, emitted, _ = emit(rows, drawn[:, None], jnp.ones_like(last), requests)
    return _PlainStep(rows, cache, features, probs, emitted, finite)


class _Drafts(NamedTuple):
    """A round's drafts so far.

    Attributes:
      tokens: Drafted tokens.
      probs: Distribution that each was drawn from.
      ids: The ids that it is of, see `Proposal`.
      counts: Drafts of each row.
      survival: Product of the confidences of each row's drafts.
      drafting: Rows that may take more.
      finite: Whether the logits behind every proposal so far were finite.
    """

    tokens: Int[Array, "B G"]
    probs: Float[Array, "B G C"]
    ids: Int[Array, "B G C"] | None
    counts: Int[Array, " B"]
    survival: Float[Array, " B"]
    drafting: Bool[Array, " B"]
    finite: Bool[Array, ""]


class _DraftState(NamedTuple):
    """State of the loop over the draft steps of a round."""

    number: Int[Array, ""]
    drafts: _Drafts
    drafter: Any


def _draft(
    drafter: Drafter,
    params: Any,
    state: Any,
    rows: _Rows,
    noise: Noise,
    rule: LookaheadRule,
    max_drafts: Int[Array, " B"],
    sampling: Sampling,
) -> tuple[_Drafts, Any, Int[Array, ""]]:
    """Draws up to `max_drafts` drafts for each row; a row stops earlier where its rule or its
    drafter says so.

    Returns:
      The drafts, the drafter's state after them, and the number of proposals.
    """

    def asking_for(drafts: _Drafts, number: Array | int) -> Array:
        return drafts.drafting & (number < max_drafts)

    def add_draft(drafts: _Drafts, proposal: Proposal, number: Array | int) -> _Drafts:
        """Decides first which rows draft on, and draws after that."""
        asking = asking_for(drafts, number)
        survival = drafts.survival * proposal.confidence
        candidates = Candidates(
            asking & proposal.available,
            proposal.confidence,
            survival,
            drafts.counts,
            jnp.asarray(number),
            max_drafts,
        )
        going = candidates.asking & rule.keep_drafting(candidates, G)
        drawn = draw(proposal.probs, noise.draft(number, proposal.ids), proposal.ids)
        return _Drafts(
            drafts.tokens.at[:, number].set(drawn),
            drafts.probs.at[:, number].set(proposal.probs),
            None if drafts.ids is None else drafts.ids.at[:, number].set(proposal.ids),
            drafts.counts + going,
            survival,
            going,
            drafts.finite & (proposal.finite | ~asking).all(),
        )

    def draft_step(s: _DraftState) -> _DraftState:
        last = s.drafts.tokens[:, s.number - 1]
        asking = asking_for(s.drafts, s.number)
        proposal, state = drafter.next(
            params, s.drafter, rows.tokens, rows.lengths, last, s.number, sampling, asking
        )
        return _DraftState(s.number + 1, add_draft(s.drafts, proposal, s.number), state)

    B, G = noise.uniforms.shape
    proposal, state = drafter.first(
        params, state, rows.tokens, rows.lengths, sampling, ~rows.done & (max_drafts > 0)
    )
    C = proposal.probs.shape[1]
    empty = _Drafts(
        jnp.zeros((B, G), jnp.int32),
        jnp.zeros((B, G, C), jnp.float32),
        None if proposal.ids is None else jnp.zeros((B, G, C), jnp.int32),
        jnp.zeros(B, jnp.int32),
        jnp.ones(B),
        ~rows.done,
        jnp.ones((), bool),
    )

    def unfinished(s: _DraftState) -> Array:
        left = asking_for(s.drafts, s.number).any()
        return left if rule.budget is None else left & (s.drafts.counts.sum() < rule.budget)

    end = jax.lax.while_loop(
        unfinished,
        draft_step,
        _DraftState(jnp.int32(1), add_draft(empty, proposal, 0), state),
    )
    return end.drafts, end.drafter, end.number


def _require_capacity(cache: Any, needed: int) -> None:
    """Raises `SdslError` if a cache is too small: writes beyond its end would silently go to other
    slots."""
    for part in jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, KVCache)):
        if isinstance(part, KVCache) and part.keys:
            require(
                part.capacity >= needed,
                f"a cache has room for {part.capacity} positions; this run may write {needed}.",
            )


class _DecodeState(NamedTuple):
    """State of the speculative loop.

    Attributes:
      rows: The rows.
      drafter: The drafter's state.
      target_cache: Keys and values of the target, without those of shared blocks.
      rule_memory: What the rule remembers.
      events: What happened so far.
      blocks: Drafts and distributions so far, if they are kept.
      finite: Whether all logits so far were finite.
      rounds: Rounds so far.
      behind: Plain rounds since the drafter was last asked; None if the rule never pauses.
    """

    rows: _Rows
    drafter: Any
    target_cache: KVCache
    rule_memory: Any
    events: Events
    blocks: Blocks | None
    finite: Finite
    rounds: Int[Array, ""]
    behind: Int[Array, ""] | None


def _completed(events: Events, rows: _Rows, requests: Requests) -> Events:
    """The events with where each round started and why each row stopped, from the tokens emitted."""
    emitted = events.emitted
    ends = requests.prompt_lengths[:, None] + jnp.cumsum(emitted, axis=1)
    last_token = rows.tokens[jnp.arange(len(rows.lengths)), rows.lengths - 1]
    stopped = (last_token[:, None] == requests.stop_tokens[None]).any(axis=1)
    reason = jnp.where(rows.done, jnp.where(stopped, STOP_TOKEN, LENGTH), RUNNING)[:, None]
    last_round = (emitted > 0) & (ends == rows.lengths[:, None])
    return events._replace(
        start=jnp.where(emitted > 0, ends - emitted, 0),
        stop_reason=jnp.where(last_round, reason, RUNNING),
    )


# What a trace of `speculative_loop` is of.
STATIC_ARGUMENTS = (
    "drafter",
    "target",
    "verification",
    "max_lookahead",
    "buffer",
    "max_rounds",
    "keep_distributions",
    "whole_rounds",
)


@functools.partial(jax.jit, static_argnames=STATIC_ARGUMENTS)
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
    """Runs rounds of draft steps, one verify pass and an emission until every row is done. A round in
    which the rule lets no row draft is one plain step of the target instead.

    `decode.speculate` describes the arguments. With `whole_rounds`, for timing, the loop ends before
    the first round that could stop a row or cut its tokens short.

    Caches hold the prompts and have room for `buffer` + `max_lookahead` + 1 positions, so that no
    round that starts before the end writes outside.
    """
    B, G, V = requests.prompts.shape[0], max_lookahead, target.ids
    every = jnp.arange(B)
    places = jnp.arange(G + 1)[None]
    _require_capacity((draft_state, target_cache), buffer + G + 1)
    limit = min(target.position_limit, drafter.position_limit)
    # Whether a round can reach beyond it.
    limited = limit < buffer + G

    def record(history: Any, now: Any, number: Array) -> Any:
        # A scatter of one row takes several times as long.
        return jax.tree.map(
            lambda values, new: jax.lax.dynamic_update_index_in_dim(values, new, number, axis=1),
            history,
            now,
        )

    def drafts_allowed(s: _DecodeState) -> Array:
        return jnp.where(s.rows.done, 0, rule.max_drafts(s.rule_memory, G))

    def decode_round(s: _DecodeState) -> _DecodeState:
        rows = s.rows
        starts, active, last = rows.lengths, ~rows.done, rows.lengths - 1
        noise = round_noise(requests.keys, starts, G, V)
        drafter_state = s.drafter
        if s.behind is not None:
            drafter_state = drafter.catch_up(
                draft_params, drafter_state, rows.tokens, starts, s.behind
            )
        drafts, drafter_state, proposals = _draft(
            drafter, draft_params, drafter_state, rows, noise, rule, drafts_allowed(s), sampling
        )
        drafted_by = None
        if drafter.parts > 1:
            drafted_by = cast(ChoosingDrafter, drafter).drafted_by(drafter_state)

        fed = jnp.concatenate([rows.tokens[every, last][:, None], drafts.tokens], axis=1)
        stream = None
        if drafter.shared_blocks:
            newest = drafts.tokens[:, proposals - 1]
            sharing = cast(SharingDrafter, drafter)
            stream, drafter_state = sharing.streams(
                draft_params, drafter_state, starts, newest, proposals
            )
        logits, target_cache, features = outputs(
            target,
            target_params,
            fed,
            last[:, None] + places,
            s.target_cache,
            taps=drafter.taps,
            stream_BTD=stream,
            first_block=drafter.shared_blocks,
        )
        assert target_cache is not None
        if features is not None:
            drafter_state = drafter.observe(draft_params, drafter_state, last, features)
        target_probs = probabilities(logits, sampling)
        verdict = verify_rows(
            verification,
            drafts.tokens,
            drafts.probs,
            target_probs,
            drafts.counts,
            noise,
            drafts.ids,
        )

        padded = jnp.concatenate([drafts.tokens, jnp.zeros((B, 1), jnp.int32)], axis=1)
        next_place = places == verdict.accepted[:, None]
        new = jnp.where(next_place, verdict.next_token[:, None], padded)
        rows, emitted, reason = emit(rows, new, verdict.accepted + 1, requests)
        # Draft i is judged by logits at position start + i − 2.
        judged = jnp.minimum(drafts.counts, limit - starts + 1) if limited else drafts.counts
        verified = jnp.where(active, jnp.minimum(verdict.accepted, judged), 0)
        counts = active[:, None] & (places[:, :G] < judged[:, None])
        used = active[:, None] & (places <= drafts.counts[:, None])
        if limited:
            used &= last[:, None] + places < limit
        finite = Finite(
            s.finite.target & (finite_logits(logits) | ~used).all(),
            s.finite.draft & drafts.finite,
        )
        memory = rule.update(s.rule_memory, jnp.minimum(verified + 1, judged), verified)
        happened = Events(
            start=jnp.where(active, starts, 0),
            proposed=judged,
            verified=verified,
            accepted=jnp.minimum(verified, emitted),
            emitted=emitted,
            expected_accepted=jnp.where(counts, verdict.expected_accepted, 0.0),
            stop_reason=reason,
            drafted_by=drafted_by,
        )
        blocks = s.blocks
        if keep_distributions:
            q = drafts.probs if drafts.ids is None else over_all_ids(drafts.probs, drafts.ids, V)
            drafted = places < (judged + 1)[:, None]
            kept = Blocks(
                jnp.where(drafted[:, 1:], drafts.tokens, 0),
                jnp.where(drafted[:, 1:, None], q, 0.0),
                jnp.where((drafted & active[:, None])[..., None], target_probs, 0.0),
            )
            blocks = record(blocks, kept, s.rounds)
        return _DecodeState(
            rows,
            drafter_state,
            target_cache,
            memory,
            record(s.events, happened, s.rounds),
            blocks,
            finite,
            s.rounds + 1,
            None if s.behind is None else jnp.zeros_like(s.behind),
        )

    def plain_round(s: _DecodeState) -> _DecodeState:
        """A round without drafts as one step of the target; the drafter rests."""
        assert s.behind is not None
        starts, active, at, n = s.rows.lengths, ~s.rows.done, s.rounds, drafter.shared_blocks
        state, cache = s.drafter, s.target_cache
        sharing = cast(SharingDrafter, drafter)
        if n:
            cache = KVCache(*(a + b for a, b in zip(sharing.shared_cache(state), cache)))
        step = _plain_step(
            target, target_params, s.rows, cache, requests, sampling, taps=drafter.taps
        )
        if n:
            state = sharing.with_shared_cache(state, KVCache(*(part[:n] for part in step.cache)))
        if step.features is not None:
            state = drafter.observe(draft_params, state, starts - 1, step.features)
        # What drafts do is zero without them, and `_completed` adds the rest: on a CPU every array
        # that is written takes time in the step of a small model.
        events = s.events._replace(emitted=record(s.events.emitted, step.emitted, at))
        blocks = s.blocks
        if blocks is not None:
            p = jnp.where(active[:, None], step.probs, 0.0)[:, None]
            p = jnp.pad(p, ((0, 0), (0, G), (0, 0)))
            blocks = blocks._replace(target_probs=record(blocks.target_probs, p, at))
        none = jnp.zeros_like(starts)
        return _DecodeState(
            step.rows,
            state,
            KVCache(*(part[n:] for part in step.cache)),
            rule.update(s.rule_memory, none, none),
            events,
            blocks,
            s.finite._replace(target=s.finite.target & step.finite),
            at + 1,
            s.behind + 1,
        )

    def unfinished(s: _DecodeState) -> Array:
        if whole_rounds:
            return (s.rows.lengths + G + 1 < requests.max_lengths).all()
        return ~s.rows.done.all()

    def rounds_of_one_kind(s: _DecodeState) -> _DecodeState:
        """Rounds that draft, then plain ones. `lax.cond` would copy the caches in every round."""

        def drafts(s: _DecodeState) -> Array:
            return unfinished(s) & drafts_allowed(s).any()

        def pauses(s: _DecodeState) -> Array:
            return unfinished(s) & ~drafts_allowed(s).any()

        s = jax.lax.while_loop(drafts, decode_round, s)
        return jax.lax.while_loop(pauses, plain_round, s)

    R = max_rounds
    ints = jnp.zeros((B, R), jnp.int32)
    events = Events(
        *(ints, ints, ints, ints, ints, jnp.zeros((B, R, G), jnp.float32), ints),
        drafted_by=ints if drafter.parts > 1 else None,
    )
    blocks = None
    if keep_distributions:
        blocks = Blocks(
            jnp.zeros((B, R, G), jnp.int32),
            jnp.zeros((B, R, G, V), jnp.float32),
            jnp.zeros((B, R, G + 1, V), jnp.float32),
        )
    start = _DecodeState(
        _begin(requests, buffer),
        draft_state,
        target_cache,
        rule.init(B),
        events,
        blocks,
        Finite(jnp.ones((), bool), jnp.ones((), bool)),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32) if rule.pauses else None,
    )

    step = rounds_of_one_kind if rule.pauses else decode_round
    end = jax.lax.while_loop(unfinished, step, start)
    if rule.pauses:
        end = end._replace(events=_completed(end.events, end.rows, requests))
    limits = jnp.full(B, limit, jnp.int32) if limited else None
    return Decoded(
        end.rows.tokens,
        end.rows.lengths,
        requests.prompt_lengths,
        requests.max_lengths,
        end.events,
        end.rounds,
        end.blocks,
        end.finite,
        limits,
    )


class _PlainState(NamedTuple):
    """State of the autoregressive loop."""

    rows: _Rows
    cache: KVCache
    finite: Bool[Array, ""]
    steps: Int[Array, ""]


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
    """Emits one token per step until every row is done; `decode.autoregress` has the arguments."""
    _require_capacity(cache, buffer)

    def step(s: _PlainState) -> _PlainState:
        now = _plain_step(target, target_params, s.rows, s.cache, requests, sampling)
        return _PlainState(now.rows, now.cache, s.finite & now.finite, s.steps + 1)

    start = _PlainState(
        _begin(requests, buffer), cache, jnp.ones((), bool), jnp.zeros((), jnp.int32)
    )
    end = jax.lax.while_loop(lambda s: ~s.rows.done.all(), step, start)
    return Decoded(
        end.rows.tokens,
        end.rows.lengths,
        requests.prompt_lengths,
        requests.max_lengths,
        None,
        end.steps,
        finite=Finite(end.finite, jnp.ones((), bool)),
    )
