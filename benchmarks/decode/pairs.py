"""Pairs of random models whose acceptance is known, so that decoding can be timed at a useful one without training.

The cost of a step does not depend on the weights, acceptance does, and two independent random models accept next to nothing.
Here draft and target share a bigram model of low rank: r columns of both embeddings hold the same random vectors, and both
heads read those columns, through the same random matrix, and no others. What the blocks add is then noise to the shared
logits, different in draft and target, and its scale is bisected until the acceptance is the wanted one. Heads are untied:
a tied head would predict each token's own repetition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.config import FamilyConfig
from sdsl_jax.decoding import Model, Sampling, autoregress
from sdsl_jax.models import ModelConfig, forward, init_params, member

# Non-embedding parameters of target and draft.
SIZES = {"1m": (1_000_000, 50_000), "33m": (33_000_000, 164_000), "300m": (300_000_000, 1_500_000)}
VOCAB = 256
# Standard deviation of the shared logits: the likeliest of 256 tokens then has a probability of about a third.
_SHARPNESS = 3.0
# The scale is accepted when the acceptance, over this many prompts, is this close to the wanted one.
_TOLERANCE, _PROMPTS, _TRIES = 0.01, 12, 12


@dataclass(frozen=True)
class Pair:
    """A draft and a target, and what was done to make them agree.

    Attributes:
      draft: proposes.
      target: verifies.
      noise: scale of what the blocks add, bisected.
      acceptance: Σ_v min(p_v, q_v), averaged over the target's own samples, at that scale.
    """

    draft: Model
    target: Model
    noise: float
    acceptance: float


def acceptance(draft: Model, target: Model, tokens: np.ndarray, prompt_tokens: int) -> float:
    """Σ_v min(p_v, q_v), teacher-forced, averaged over what follows the prompts.

    Args:
      draft: q.
      target: p.
      tokens: prompts and what the target drew after them, [B, L].
      prompt_tokens: length of the prompts.
    """
    return float(_overlap(draft.config, target.config, draft.params, target.params, jnp.asarray(tokens), prompt_tokens))


def _overlap_eager(draft, target, draft_params, target_params, tokens, prompt_tokens):
    with jax.default_matmul_precision("highest"):
        q, p = (
            jax.nn.softmax(forward(config, params, tokens)[0].astype(jnp.float32), axis=-1)
            for config, params in ((draft, draft_params), (target, target_params))
        )
    return jnp.minimum(p, q).sum(-1)[:, prompt_tokens - 1 : -1].mean()


_overlap = jax.jit(_overlap_eager, static_argnums=(0, 1, 5))


def _shape(params: int, qk_norm: bool) -> ModelConfig:
    return member(FamilyConfig(qk_norm=qk_norm, tie_embeddings=False), params, VOCAB)


def _name(path: tuple[Any, ...]) -> set[str]:
    return {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}


def _parts(config: ModelConfig, seed: int, shared: np.ndarray, readout: np.ndarray) -> Any:
    """Random parameters with the shared bigram model written into embedding and head."""
    rank = shared.shape[1]

    def edit(path, x):
        names = _name(path)
        if "embedding" in names:
            # The model multiplies by √width: the columns come out with unit variance, as the others do.
            return x.at[:, :rank].set(shared / config.width**0.5)
        if "head" in names:
            return jnp.zeros_like(x).at[:rank].set(readout * (_SHARPNESS / rank**0.5))
        return x

    return jax.tree_util.tree_map_with_path(edit, init_params(config, jax.random.key(seed)))


def make_pair(
    size: str,
    wanted: float,
    *,
    prompt_tokens: int,
    new_tokens: int,
    qk_norm: bool = False,
    dtype: Any = jnp.float32,
    seed: int = 0,
) -> Pair:
    """A draft and a target of a size in `SIZES`, with an acceptance of about `wanted` at temperature 1.

    Args:
      size: a key of `SIZES`.
      wanted: acceptance.
      prompt_tokens: of every prompt. Attention averages more over longer contexts and so adds less noise: the pair is made
        at the lengths that it is to be timed at.
      new_tokens: that follow it.
      qk_norm: whether queries and keys are normalised.
      dtype: of the weights.
      seed: of weights and samples.
    """
    target, draft = (_shape(params, qk_norm) for params in SIZES[size])
    rank = min(draft.width, target.width) // 2
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((VOCAB, rank)).astype(np.float32)
    readout = rng.standard_normal((rank, VOCAB)).astype(np.float32)
    parts = [_parts(config, seed + i, shared, readout) for i, config in enumerate((draft, target))]
    prompts = rng.integers(0, VOCAB, (_PROMPTS, prompt_tokens))

    def noisy(noise: float) -> tuple[Model, Model]:
        """Every block's two contributions to the residual stream, scaled."""

        def scale(path, x):
            return (x * noise if _name(path) & {"out", "down"} else x).astype(dtype)

        made = [jax.tree_util.tree_map_with_path(scale, part) for part in parts]
        return Model(draft, made[0]), Model(target, made[1])

    low, high = 1 / 64, 64.0
    for _ in range(_TRIES):
        noise = (low * high) ** 0.5
        models = noisy(noise)
        decoded = autoregress(models[1], prompts, new_tokens=new_tokens, sampling=Sampling(temperature=1.0), seed=seed)
        reached = acceptance(*models, np.asarray(decoded.tokens), prompt_tokens)
        if abs(reached - wanted) <= _TOLERANCE:
            break
        low, high = (noise, high) if reached > wanted else (low, noise)
    return Pair(*models, noise, reached)
