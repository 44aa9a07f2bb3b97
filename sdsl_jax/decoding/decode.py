"""The two decoders as functions to call: arguments checked and shaped, then handed to the jitted loops."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sdsl_jax.decoding.loop import Decoded, Model, autoregressive_loop, prefill, row_keys, speculative_loop
from sdsl_jax.errors import require


class _Request(NamedTuple):
    prompts: Array
    prompt_lengths: Array
    max_lengths: Array
    keys: Array
    temperature: Array
    stop_tokens: Array


def _request(prompts, prompt_lengths, new_tokens, seed, rows, temperature, stop_tokens, vocab_size: int):
    """Checks and shapes the arguments that both loops share."""
    prompts = np.asarray(prompts, np.int32)
    require(prompts.ndim == 2 and prompts.size > 0, f"prompts have shape {prompts.shape}; they must be [rows, tokens].")
    require(
        prompts.min() >= 0 and prompts.max() < vocab_size,
        f"prompts hold ids from {prompts.min()} to {prompts.max()}; the vocabulary has ids from 0 to {vocab_size - 1}.",
    )
    B, width = prompts.shape
    lengths = np.broadcast_to(np.asarray(width if prompt_lengths is None else prompt_lengths, np.int32), (B,))
    require(
        lengths.min() >= 1 and lengths.max() <= width,
        f"prompt lengths run from {lengths.min()} to {lengths.max()}; they must lie in [1, {width}].",
    )
    new = np.broadcast_to(np.asarray(new_tokens, np.int32), (B,))
    require(new.min() >= 0, f"new_tokens holds {new.min()}; it must not be negative.")
    require(temperature >= 0, f"the temperature is {temperature}; it must not be negative.")
    keys = row_keys(seed, np.arange(B) if rows is None else np.asarray(rows))
    request = _Request(
        jnp.asarray(prompts),
        jnp.asarray(lengths),
        jnp.asarray(lengths + new),
        keys,
        jnp.float32(temperature),
        jnp.asarray(stop_tokens, jnp.int32).reshape(-1),
    )
    return request, width + int(new.max()), int(new.max())


def speculate(
    draft: Model,
    target: Model,
    prompts: Int[np.ndarray, "B P"],
    *,
    lookahead: int,
    new_tokens: int | Int[np.ndarray, " B"],
    prompt_lengths: Int[np.ndarray, " B"] | None = None,
    max_lookahead: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    rows: Int[np.ndarray, " B"] | None = None,
    stop_tokens: tuple[int, ...] = (),
) -> Decoded:
    """Decodes with a draft; the output is distributed exactly as the target's own.

    One trace serves every lookahead up to `max_lookahead`; the verify pass is then `max_lookahead` + 1 wide whatever the
    lookahead, which is right for acceptance statistics and wrong for timing: to time, leave `max_lookahead` out.

    Args:
      draft: proposes tokens.
      target: verifies them; must have the draft's vocabulary.
      prompts: ids, padded on the right.
      lookahead: drafts per round, γ.
      new_tokens: tokens to emit at most, for all rows or for each.
      prompt_lengths: tokens of each prompt; the full width if left out.
      max_lookahead: largest lookahead of the trace; `lookahead` if left out.
      temperature: 0 for greedy decoding.
      seed: of the run.
      rows: numbers that name the rows; 0..B−1 if left out. A row's output depends on seed, number and prompt alone.
      stop_tokens: ids after which a row stops.

    Raises:
      SdslError: an argument lies outside its range, or the vocabularies differ.
    """
    max_lookahead = lookahead if max_lookahead is None else max_lookahead
    require(lookahead >= 1, f"the lookahead is {lookahead}; it must be at least 1.")
    require(
        lookahead <= max_lookahead, f"the lookahead is {lookahead}; it must not exceed max_lookahead ({max_lookahead})."
    )
    require(
        draft.config.vocab_size == target.config.vocab_size,
        f"the draft has {draft.config.vocab_size} tokens and the target {target.config.vocab_size}; lossless decoding "
        "needs one vocabulary.",
    )
    request, buffer, most = _request(
        prompts, prompt_lengths, new_tokens, seed, rows, temperature, stop_tokens, target.config.vocab_size
    )
    capacity = buffer + max_lookahead + 1
    with jax.default_matmul_precision("highest"):
        return speculative_loop(
            draft.config,
            target.config,
            draft.params,
            target.params,
            *request,
            jnp.int32(lookahead),
            prefill(draft.config, draft.params, request.prompts, capacity=capacity),
            prefill(target.config, target.params, request.prompts, capacity=capacity),
            max_lookahead=max_lookahead,
            buffer=buffer,
            max_rounds=max(1, most),
        )


def autoregress(
    target: Model,
    prompts: Int[np.ndarray, "B P"],
    *,
    new_tokens: int | Int[np.ndarray, " B"],
    prompt_lengths: Int[np.ndarray, " B"] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    rows: Int[np.ndarray, " B"] | None = None,
    stop_tokens: tuple[int, ...] = (),
) -> Decoded:
    """Decodes with the target alone, one token a step; arguments as in `speculate`."""
    request, buffer, _ = _request(
        prompts, prompt_lengths, new_tokens, seed, rows, temperature, stop_tokens, target.config.vocab_size
    )
    with jax.default_matmul_precision("highest"):
        cache = prefill(target.config, target.params, request.prompts, capacity=buffer + 1)
        return autoregressive_loop(target.config, target.params, *request, cache, buffer=buffer)
