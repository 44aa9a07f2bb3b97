"""Pairs to decode with: the largest of the trained ladder, and random ones of any size whose
acceptance is known.

Random pairs let decoding be timed at a useful acceptance without training. The cost of a step does
not depend on the weights, acceptance does, and two independent random models accept next to
nothing. Here draft and target share a bigram model of low rank: r columns of both embeddings hold
the same random vectors, and both heads read those columns, through the same random matrix, and no
others. What the blocks add is then noise to the shared logits, different in draft and target, and
its scale is bisected until the acceptance is the wanted one. Heads are untied: a tied head would
predict each token's own repetition.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.config import FamilyConfig, load_study
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding import Model, Sampling, autoregress
from sdsl_jax.models import ModelConfig, forward, init_params, member

# Non-embedding parameters of target and draft.
SIZES = {"1m": (1_000_000, 50_000), "33m": (33_000_000, 164_000), "300m": (300_000_000, 1_500_000)}
VOCAB = 256
# The ladder that ships: its largest target and the draft nearest to that target's optimum by FLOPs,
# at the largest budget.
LADDER = "ladder"
_LADDER_FOLDER = Path("checkpoints/ladder")
_LADDER_RUNGS = ("draft-16k-s0", "target-500k-s0")
# Standard deviation of the shared logits: the likeliest of 256 tokens then has a probability of
# about a third.
_SHARPNESS = 3.0
# The scale is accepted when the acceptance, over this many prompts, is this close to the wanted
# one.
_TOLERANCE, _PROMPTS, _TRIES = 0.01, 12, 12


@dataclass(frozen=True)
class Pair:
    """A draft and a target, and what was done to make them agree.

    Attributes:
      draft: proposes.
      target: verifies.
      noise: scale of what the blocks add, bisected; nothing in trained models.
      acceptance: Σ_v min(p_v, q_v), averaged over the target's own samples, at that scale.
      text: token ids that prompts are taken from.
    """

    draft: Model
    target: Model
    noise: float | None
    acceptance: float
    text: np.ndarray | None = None

    def prompts(self, shape: tuple[int, ...], seed: int) -> np.ndarray:
        """Prompts, their length last: windows of `text` at random places, or random tokens where there is none."""
        rng = np.random.default_rng(seed)
        if self.text is None:
            return rng.integers(0, VOCAB, shape).astype(np.int32)
        starts = rng.integers(0, len(self.text) - shape[-1], shape[:-1])
        return self.text[starts[..., None] + np.arange(shape[-1])].astype(np.int32)


def acceptance(draft: Model, target: Model, tokens: np.ndarray, prompt_tokens: int) -> float:
    """Σ_v min(p_v, q_v), teacher-forced, averaged over what follows the prompts.

    Args:
      draft: q.
      target: p.
      tokens: prompts and what the target drew after them, [B, L].
      prompt_tokens: length of the prompts.
    """
    return float(
        _overlap(
            draft.config,
            target.config,
            draft.params,
            target.params,
            jnp.asarray(tokens),
            prompt_tokens,
        )
    )


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
            # The model multiplies by √width: the columns come out with unit variance, as the others
            # do.
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
    """A draft and a target of a size in `SIZES`, with an acceptance of about `wanted` at
    temperature 1.

    Args:
      size: a key of `SIZES`.
      wanted: acceptance.
      prompt_tokens: of every prompt. Attention averages more over longer contexts and so adds less
        noise: the pair is made at the lengths that it is to be timed at.
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
        decoded = autoregress(
            models[1], prompts, new_tokens=new_tokens, sampling=Sampling(temperature=1.0), seed=seed
        )
        reached = acceptance(*models, np.asarray(decoded.tokens), prompt_tokens)
        if abs(reached - wanted) <= _TOLERANCE:
            break
        low, high = (noise, high) if reached > wanted else (low, noise)
    return Pair(*models, noise, reached)


def trained_pair(
    *, prompt_tokens: int, new_tokens: int, dtype: Any = jnp.float32, seed: int = 0
) -> Pair:
    """The largest pair of the ladder that ships, and the test text of its study.

    Args:
      prompt_tokens: of the prompts at which acceptance is stated.
      new_tokens: that follow them.
      dtype: of the weights.
      seed: of prompts and samples.
    """

    def load(rung: str) -> Model:
        folders = (_LADDER_FOLDER / "checkpoints").glob(f"{rung}.*/model-*")
        loaded = load_model_folder(
            max(folders, key=lambda folder: int(folder.name.removeprefix("model-")))
        )
        return Model(loaded.config, jax.tree.map(lambda x: x.astype(dtype), loaded.params))

    draft, target = (load(rung) for rung in _LADDER_RUNGS)
    text = load_dataset(load_study(_LADDER_FOLDER / "config.toml").data).splits["test"][:]
    pair = Pair(draft, target, None, 0.0, text)
    prompts = pair.prompts((_PROMPTS, prompt_tokens), seed)
    decoded = autoregress(
        target, prompts, new_tokens=new_tokens, sampling=Sampling(temperature=1.0), seed=seed
    )
    return dataclasses.replace(
        pair, acceptance=acceptance(draft, target, np.asarray(decoded.tokens), prompt_tokens)
    )
