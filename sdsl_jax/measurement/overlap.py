"""Exact acceptance: α = E Σ_v min(p_v, q_v), every model scored once and every pair compared (Leviathan et al., 2211.17192)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sdsl_jax.decoding import Model, overlap, probabilities
from sdsl_jax.models import ModelConfig, Params, forward

# Rows scored at a time; with a few models this bounds the memory that their distributions take.
_CHUNK = 32


class PairOverlap(NamedTuple):
    """Sums of Σ_v min(p_v, q_v) over the positions of each context, and how many positions each has."""

    sums: Float[np.ndarray, " contexts"]
    positions: int


@functools.partial(jax.jit, static_argnames=("model", "first"))
def _distributions(params: Params, tokens: Int[Array, "B T"], temperature: Array, *, model: ModelConfig, first: int):
    with jax.default_matmul_precision("highest"):
        logits, _ = forward(model, params, tokens)
    return probabilities(logits[:, first:], temperature)


@jax.jit
def _sums(p: Float[Array, "B T V"], q: Float[Array, "B T V"]) -> Float[Array, " B"]:
    return overlap(p, q).sum(axis=-1)


def pairwise_overlap(
    drafts: Mapping[str, Model],
    targets: Mapping[str, Model],
    contexts: Int[np.ndarray, "contexts T"],
    *,
    first: int,
    temperature: float,
    advance: Callable[[int], None] = lambda models: None,
) -> dict[tuple[str, str], PairOverlap]:
    """Overlap of every (draft, target) on shared contexts, with one pass of each model over them.

    Args:
      drafts: by name.
      targets: by name.
      contexts: token ids; the distribution after position t is compared for t = first..T−1.
      first: first position whose next-token distribution counts.
      temperature: of both distributions.
      advance: told how many models have just scored a chunk.
    """
    sums: dict[tuple[str, str], list[np.ndarray]] = {(d, t): [] for d in drafts for t in targets}
    for begin in range(0, len(contexts), _CHUNK):
        chunk = contexts[begin : begin + _CHUNK]
        padded = np.resize(chunk, (_CHUNK, contexts.shape[1]))

        def score(model: Model, padded=padded):
            advance(1)
            return _distributions(model.params, padded, np.float32(temperature), model=model.config, first=first)

        scored = {name: score(model) for name, model in targets.items()}
        for draft, model in drafts.items():
            q = score(model)
            for target, p in scored.items():
                sums[draft, target].append(np.asarray(_sums(p, q), float)[: len(chunk)])
    return {pair: PairOverlap(np.concatenate(parts), contexts.shape[1] - first) for pair, parts in sums.items()}
