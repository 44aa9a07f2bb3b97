"""The two decoders as functions: they check and shape their arguments and call the jitted loops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sdsl_jax.decoding import loop
from sdsl_jax.decoding.decoded import Decoded, Finite
from sdsl_jax.decoding.drafters import Drafter, Model, ModelDrafter, NgramDraft
from sdsl_jax.decoding.exit_drafter import EarlyExit, ExitDrafter, shared_blocks
from sdsl_jax.decoding.feature_drafter import FeatureDrafter, Head
from sdsl_jax.decoding.hybrid_drafter import HybridDraft, HybridDrafter, bound
from sdsl_jax.decoding.lookahead import FixedLookahead, LookaheadRule
from sdsl_jax.decoding.loop import Requests
from sdsl_jax.decoding.nested_drafter import NestedDraft, NestedDrafter
from sdsl_jax.decoding.noise import row_keys
from sdsl_jax.decoding.sampling import Sampling
from sdsl_jax.decoding.verification import VERIFICATIONS, Verification
from sdsl_jax.errors import require
from sdsl_jax.models import KVCache, prefill, prefill_with_features

_PLAIN = Sampling()
# What can propose drafts.
Draft = Model | Head | EarlyExit | NestedDraft | NgramDraft | HybridDraft


def _whole(values, name: str) -> np.ndarray:
    values = np.asarray(values)
    values = values.astype(np.int64) if values.size == 0 else values
    require(
        np.issubdtype(values.dtype, np.integer),
        f"{name} is of type {values.dtype}; it must hold whole numbers.",
    )
    return values


def _requests(
    prompts, prompt_lengths, new_tokens, seed, rows, stop_tokens, vocab_size: int
) -> Requests:
    """Checks and shapes the arguments that both loops share."""
    prompts = _whole(prompts, "prompts")
    require(
        prompts.ndim == 2 and prompts.size > 0,
        f"prompts have shape {prompts.shape}; they must be [rows, tokens].",
    )
    require(
        prompts.min() >= 0 and prompts.max() < vocab_size,
        f"prompts hold ids from {prompts.min()} to {prompts.max()}; the vocabulary has ids from 0 to {vocab_size - 1}.",
    )
    B, width = prompts.shape

    prompts = prompts.astype(np.int32)

    def per_row(values, name: str) -> np.ndarray:
        values = _whole(values, name)
        require(
            values.shape in ((), (B,)),
            f"{name} has shape {values.shape}; it must be one number or {B} of them.",
        )
        return np.broadcast_to(values, (B,))

    lengths = per_row(width if prompt_lengths is None else prompt_lengths, "prompt_lengths").astype(
        np.int32
    )
    require(
        lengths.min() >= 1 and lengths.max() <= width,
        f"prompt lengths run from {lengths.min()} to {lengths.max()}; they must lie in [1, {width}].",
    )
    new = per_row(new_tokens, "new_tokens").astype(np.int32)
    require(new.min() >= 0, f"new_tokens holds {new.min()}; it must not be negative.")
    stops = _whole(stop_tokens, "stop_tokens").reshape(-1)
    require(
        ((stops >= 0) & (stops < vocab_size)).all(),
        f"the stop tokens are {stops.tolist()}; the vocabulary has ids from 0 to {vocab_size - 1}.",
    )
    require(0 <= seed < 2**32, f"the seed is {seed}; it must lie in [0, 2**32).")
    names = per_row(np.arange(B) if rows is None else rows, "rows")
    require(
        0 <= names.min() <= names.max() < 2**32,
        f"rows run from {names.min()} to {names.max()}; they must lie in [0, 2**32).",
    )
    return Requests(
        jnp.asarray(prompts),
        jnp.asarray(lengths),
        jnp.asarray(lengths + new),
        row_keys(seed, names),
        jnp.asarray(stops, jnp.int32),
    )


def _room(requests: Requests, room: int | None) -> int:
    """The largest number of tokens that any row may emit."""
    most = int((requests.max_lengths - requests.prompt_lengths).max())
    require(
        room is None or room >= most,
        f"there is room for {room} new tokens; {most} were asked for.",
    )
    return most if room is None else room


def require_positions(
    model: Model | Head | EarlyExit | NestedDraft | HybridDraft,
    length: int,
    role: str,
    what: str = "prompts and new tokens",
) -> None:
    """Raises `SdslError` if rows exceed a table of learned positions; rotary positions have no limit."""
    limit = model.config.position_limit
    require(
        length <= limit,
        f"{what} come to {length} positions; the {role} knows only {limit}.",
    )


def require_finite(finite: Finite) -> None:
    """Raises `SdslError` if logits of one or several runs are not finite. Waits for the runs to end."""
    for role, all_finite in finite._asdict().items():
        require(np.all(all_finite), broken_logits(role))


def _checked(decoded: Decoded) -> Decoded:
    """The run, after checking that its logits are finite."""
    assert decoded.finite is not None
    require_finite(decoded.finite)
    return decoded._replace(finite=None)


def broken_logits(role: str, where: str = "") -> str:
    """An error message for a model whose logits are not finite; `where` names the positions."""
    return (
        f"the logits of the {role} are not finite{where}: its weights hold infinities or NaN, or its type overflows (float16 "
        "ends at 65,504; bfloat16 and float32 reach farther). Nothing is recorded."
    )


def drafter_of(draft: Draft, target: Model, max_lookahead: int) -> Drafter:
    """What proposes drafts in the loop.

    Raises:
      SdslError: A head was made for a target of another shape, an early exit shares fewer blocks
        with the target than it says, or a hybrid draft falls back on one that shares any.
    """
    if isinstance(draft, NgramDraft):
        return draft
    if isinstance(draft, Model):
        return ModelDrafter(draft.config)
    if isinstance(draft, EarlyExit):
        shared = shared_blocks(Model(draft.config, draft.params), target)
        require(
            1 <= draft.shared <= shared,
            f"the early exit is to share {draft.shared} blocks with its target; {shared} of its blocks are the target's own.",
        )
        return ExitDrafter(draft.config, draft.shared, max_lookahead + 1)
    if isinstance(draft, NestedDraft):
        return NestedDrafter(draft.small.config, draft.large.config, max_lookahead + 1)
    if isinstance(draft, HybridDraft):
        require(
            isinstance(draft.fallback, Model | Head | NestedDraft),
            "a hybrid draft falls back on a model, a head or a nested draft; give an early exit as the model it is, which "
            "shares no blocks.",
        )
        require(
            draft.ngrams.vocab_size == draft.config.ids,
            f"the n-grams have {draft.ngrams.vocab_size} tokens and the draft to fall back on {draft.config.ids}; they need "
            "one vocabulary.",
        )
        fallback = drafter_of(draft.fallback, target, max_lookahead)
        return HybridDrafter(draft.ngrams, fallback, draft.fallback_lookahead)
    c, t = draft.config, target.config
    require(
        c.target_width == t.width and max(c.taps) <= t.layers,
        f"the head reads blocks {', '.join(map(str, c.taps))} of a target of width {c.target_width}; this one has "
        f"{t.layers} blocks of width {t.width}.",
    )
    return FeatureDrafter(c, max_lookahead + 1)


def begin(
    drafter: Drafter, draft_params: Any, target: Model, prompts: Int[Array, "B P"], capacity: int
) -> tuple[Any, KVCache]:
    """The drafter's state and the target's cache after the prompts, with room for `capacity`
    positions. The drafter keeps the keys of blocks that it shares with the target."""
    cache, features = prefill_with_features(
        target.config, target.params, prompts, capacity=capacity, taps=drafter.taps
    )
    state = drafter.start(draft_params, prompts, capacity, features)
    return state, KVCache(*(part[drafter.shared_blocks :] for part in cache))


def speculate(
    draft: Draft,
    target: Model,
    prompts: Int[np.ndarray, "B P"],
    *,
    lookahead: int | LookaheadRule,
    new_tokens: int | Int[np.ndarray, " B"],
    prompt_lengths: Int[np.ndarray, " B"] | None = None,
    max_lookahead: int | None = None,
    sampling: Sampling = _PLAIN,
    verification: Verification = "token",
    seed: int = 0,
    rows: Int[np.ndarray, " B"] | None = None,
    stop_tokens: tuple[int, ...] = (),
    keep_distributions: bool = False,
    room: int | None = None,
) -> Decoded:
    """Decodes with a draft; the output is distributed exactly as the target's own.

    One compiled program serves every lookahead up to `max_lookahead`. Its verify pass is always
    `max_lookahead` + 1 tokens wide, which is right for acceptance statistics but wrong for timing:
    leave `max_lookahead` out when you time a lookahead.

    Args:
      draft: The drafter: a model, a head on the target's hidden states, an early exit that shares
        its blocks with the target, a nested draft that chooses its size, n-grams of the text itself,
        or n-grams with one of these to fall back on.
      target: The model that verifies; it must have the draft's vocabulary.
      prompts: Token ids, padded on the right.
      lookahead: Drafts per round, γ (num_speculative_tokens), or a rule by which each row chooses
        its own in every round.
      new_tokens: Largest number of tokens to emit (max_new_tokens), for all rows or for each.
      prompt_lengths: Tokens in each prompt; the full width by default.
      max_lookahead: Largest lookahead of the program; `lookahead` by default. Required with a rule.
      sampling: Temperature and filters, for draft and target alike.
      verification: "token" or "block".
      seed: Seed of the run.
      rows: Numbers that name the rows; 0..B−1 by default. A row's output depends on the seed, its
        number and its prompt only.
      stop_tokens: Ids after which a row stops.
      keep_distributions: Returns the drafts and both distributions of every round, which takes rows
        × rounds × (2γ + 1) × vocabulary numbers.
      room: New tokens that buffers and caches have room for; the largest of `new_tokens` by
        default. Calls with equal room share a program.

    Raises:
      SdslError: an argument is out of range, the vocabularies differ, rows exceed a table of
        positions, or logits are not finite.
    """
    if not isinstance(lookahead, LookaheadRule):
        require(
            isinstance(lookahead, int | np.integer) and not isinstance(lookahead, bool),
            f"the lookahead is {lookahead!r}; it must be a whole number or a rule.",
        )
        max_lookahead = int(lookahead) if max_lookahead is None else max_lookahead
        lookahead = FixedLookahead(int(lookahead))
    elif isinstance(lookahead, FixedLookahead) and max_lookahead is None:
        max_lookahead = int(lookahead.lookahead)
    require(
        max_lookahead is not None,
        "a lookahead rule needs max_lookahead, the largest number of drafts per round.",
    )
    require(
        isinstance(max_lookahead, int | np.integer),
        f"max_lookahead is {max_lookahead!r}; it must be a whole number.",
    )
    assert max_lookahead is not None
    rule = lookahead.check(max_lookahead)
    require(max_lookahead >= 1, f"max_lookahead is {max_lookahead}; it must be at least 1.")
    require(
        verification in VERIFICATIONS,
        f"the verification is {verification!r}; it must be one of {', '.join(VERIFICATIONS)}.",
    )
    drafter = drafter_of(draft, target, max_lookahead)
    draft = bound(draft, target)
    draft_params = None if isinstance(draft, NgramDraft) else draft.params
    vocab_size = draft.vocab_size if isinstance(draft, NgramDraft) else draft.config.ids
    require(
        vocab_size == target.config.ids,
        f"the draft has {vocab_size} tokens and the target {target.config.ids}; lossless decoding "
        "needs one vocabulary.",
    )
    requests = _requests(prompts, prompt_lengths, new_tokens, seed, rows, stop_tokens, vocab_size)
    most = _room(requests, room)
    buffer = requests.prompts.shape[1] + most
    longest = int(requests.max_lengths.max())
    require_positions(target, longest, "target")
    if not isinstance(draft, NgramDraft):
        require_positions(draft, longest, "draft")
    capacity = buffer + max_lookahead + 1
    with jax.default_matmul_precision("highest"):
        state, cache = begin(drafter, draft_params, target, requests.prompts, capacity)
        decoded = loop.speculative_loop(
            drafter,
            target.config,
            draft_params,
            target.params,
            requests,
            sampling.check(),
            rule,
            state,
            cache,
            verification=verification,
            max_lookahead=max_lookahead,
            buffer=buffer,
            max_rounds=max(1, most),
            keep_distributions=keep_distributions,
        )
    return _checked(decoded)


def autoregress(
    target: Model,
    prompts: Int[np.ndarray, "B P"],
    *,
    new_tokens: int | Int[np.ndarray, " B"],
    prompt_lengths: Int[np.ndarray, " B"] | None = None,
    sampling: Sampling = _PLAIN,
    seed: int = 0,
    rows: Int[np.ndarray, " B"] | None = None,
    stop_tokens: tuple[int, ...] = (),
    room: int | None = None,
) -> Decoded:
    """Decodes with the target alone, one token per step; arguments and errors as in `speculate`."""
    requests = _requests(
        prompts, prompt_lengths, new_tokens, seed, rows, stop_tokens, target.config.ids
    )
    buffer = requests.prompts.shape[1] + _room(requests, room)
    require_positions(target, int(requests.max_lengths.max()), "target")
    with jax.default_matmul_precision("highest"):
        cache = prefill(target.config, target.params, requests.prompts, capacity=buffer)
        decoded = loop.autoregressive_loop(
            target.config, target.params, requests, sampling.check(), cache, buffer=buffer
        )
    return _checked(decoded)
