"""What is timed to find the coefficients of a device: which models, and which operations of each.

Every coefficient needs operations that differ in what it multiplies and in little else:

- layer_seconds: depths from 1 to 6 (on an accelerator 16) at about the same number of parameters;
- pass_seconds: models so small that little else is left;
- bytes_per_second: sizes, vocabularies and caches over two orders of magnitude, in steps of one
row;
- flops_per_second: passes over many tokens, in width and in batch;
- token_seconds: the same number of tokens in models whose arithmetic differs, small ones with many
tokens above all;
- round_seconds: whole rounds beside the passes that they consist of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax

from sdsl_jax.errors import require
from sdsl_jax.models import ModelConfig, count
from sdsl_jax.theory.hardware import Shape

# Drafts of a round.
_LOOKAHEADS = (1, 2, 4, 8, 12)
LARGEST_BATCH = 64


class Size(NamedTuple):
    """A model by what distinguishes it from others."""

    width: int
    layers: int
    vocab_size: int


@dataclass(frozen=True)
class Scale:
    """Models and cache sizes for one kind of device.

    Attributes:
      sizes: of the models.
      quick: numbers of those that a quick calibration takes.
      head_dim: largest size of a head.
      kv_groups: query heads that share a key-value head.
      verify_widths: new tokens of a verify pass.
      prompt_tokens: before the decoded tokens, short and long.
      new_tokens: room for decoded tokens.
    """

    sizes: tuple[Size, ...]
    quick: tuple[int, ...]
    head_dim: int
    kv_groups: int
    verify_widths: tuple[int, ...]
    prompt_tokens: tuple[int, int]
    new_tokens: int


# Up to two million parameters; a pass of them takes between some ten microseconds and a few
# milliseconds on one core.
CPU = Scale(
    sizes=tuple(
        Size(*x)
        for x in (
            (16, 1, 256),
            (16, 5, 256),
            (32, 1, 1024),
            (32, 2, 256),
            (32, 6, 256),
            (48, 2, 1024),
            (48, 4, 256),
            (64, 1, 256),
            (64, 3, 1024),
            (64, 6, 256),
            (96, 1, 256),
            (96, 2, 1024),
            (96, 4, 256),
            (128, 2, 256),
            (128, 3, 1024),
            (192, 1, 1024),
            (192, 2, 256),
            (192, 4, 1024),
        )
    ),
    quick=(0, 1, 3, 4, 7, 9, 11, 13, 16),
    head_dim=32,
    kv_groups=1,
    verify_widths=(2, 3, 5, 9, 13),
    prompt_tokens=(16, 208),
    new_tokens=48,
)
# From three million parameters, where overheads are everything, to 0.9 billion, where they are
# little.
ACCELERATOR = Scale(
    sizes=tuple(
        Size(*x)
        for x in (
            (256, 1, 32_000),
            (256, 4, 8_192),
            (256, 16, 8_192),
            (512, 1, 32_000),
            (512, 4, 8_192),
            (512, 12, 32_000),
            (1024, 1, 8_192),
            (1024, 4, 32_000),
            (1024, 8, 8_192),
            (1024, 16, 32_000),
            (2048, 1, 32_000),
            (2048, 2, 8_192),
            (2048, 4, 32_000),
            (2048, 8, 8_192),
            (2048, 16, 32_000),
        )
    ),
    quick=(0, 2, 4, 6, 8, 10, 12, 13),
    head_dim=128,
    kv_groups=4,
    # Wider than any round: it takes some thousand tokens before arithmetic, and not memory,
    # decides.
    verify_widths=(2, 5, 9, 13, 33, 65),
    prompt_tokens=(128, 1920),
    new_tokens=64,
)


def device_scale() -> tuple[Scale, str]:
    """Models and type of numbers that fit the device at hand."""
    return (CPU, "float32") if jax.default_backend() == "cpu" else (ACCELERATOR, "bfloat16")


class Operation(NamedTuple):
    """One thing to be timed.

    Attributes:
      kind: a plain decoding step, a verify pass, or a round of speculative decoding.
      target: the model of a pass, or the target of a round.
      draft: of a round; None for a pass.
      tokens: new tokens of each row in a pass; the lookahead γ of a round.
      batch: rows.
      prompt_tokens: that precede what is decoded.
    """

    kind: Literal["step", "verify", "round"]
    target: ModelConfig
    draft: ModelConfig | None
    tokens: int
    batch: int
    prompt_tokens: int


def build(scale: Scale, size: Size) -> ModelConfig:
    """A model as the families of the studies make them: about 12·layers·width² non-embedding parameters."""
    head_dim = min(scale.head_dim, size.width)
    heads = size.width // head_dim
    return ModelConfig(
        vocab_size=size.vocab_size,
        width=size.width,
        layers=size.layers,
        heads=heads,
        kv_heads=max(1, heads // scale.kv_groups),
        head_dim=head_dim,
        hidden=8 * round(size.width / 3),
    )


def shape_of(config: ModelConfig) -> Shape:
    """What the time of a pass of this model depends on."""
    return Shape(
        params=float(count(config, 0).nonembedding),
        layers=float(config.layers),
        width=float(config.width),
        query_width=float(config.heads * config.head_dim),
        kv_width=float(config.kv_heads * config.head_dim),
        vocab_size=float(config.vocab_size),
        embedding_tables=1.0 if config.tie_embeddings else 2.0,
    )


def model_name(config: ModelConfig) -> str:
    """Of a model in tables."""
    return f"w{config.width}-l{config.layers}-v{config.vocab_size}"


def check_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes in order, each once.

    Raises:
      SdslError: there are none, one is out of range, or they have no common multiple of a
        reasonable size.
    """
    require(len(batches) > 0, "no batch size is given; at least one is needed.")
    for batch in batches:
        require(
            1 <= batch <= LARGEST_BATCH,
            f"a batch size is {batch}; it must lie in [1, {LARGEST_BATCH}].",
        )
    common = math.lcm(*batches)
    require(
        common <= LARGEST_BATCH,
        f"the batch sizes {', '.join(map(str, batches))} have {common} as their least common multiple; it must be at most "
        f"{LARGEST_BATCH}, since all of them decode the same prompts.",
    )
    return tuple(sorted(set(batches)))


def operations(scale: Scale, batches: Sequence[int], quick: bool) -> list[Operation]:
    """The operations of a calibration; batch, cache and width change from one to the next, so that
    no two go together.

    Args:
      scale: models for this kind of device.
      batches: rows decoded together.
      quick: whether to time few models, less of each.
    """
    sizes = [scale.sizes[i] for i in scale.quick] if quick else list(scale.sizes)
    configs = [build(scale, size) for size in sizes]
    batches, B = check_batches(batches), len(set(batches))
    found = []
    for i, config in enumerate(configs):
        for k in range(1 if quick else 2):
            batch, prompt = batches[(i + 2 * k) % B], scale.prompt_tokens[(i // 3 + k) % 2]
            found.append(Operation("step", config, None, 1, batch, prompt))
        for k in range(2):
            width = scale.verify_widths[(2 * i + k) % len(scale.verify_widths)]
            # Every other model has its long cache with its widest pass.
            batch, prompt = batches[(i // 2 + k) % B], scale.prompt_tokens[(i + k) % 2]
            found.append(Operation("verify", config, None, width, batch, prompt))
    pairs = [
        (d, t) for t in configs for d in configs if d.vocab_size == t.vocab_size and _drafts(d, t)
    ]
    # Evenly over all pairs, of which there are more than are needed.
    wanted = 8 if quick else 20
    chosen = [
        pairs[round(i * (len(pairs) - 1) / (wanted - 1))] for i in range(min(wanted, len(pairs)))
    ]
    for i, (draft, target) in enumerate(chosen):
        lookahead, batch = _LOOKAHEADS[(2 * i) % len(_LOOKAHEADS)], batches[(i + i // 3) % B]
        found.append(
            Operation("round", target, draft, lookahead, batch, scale.prompt_tokens[i // 2 % 2])
        )
    return found


def _drafts(draft: ModelConfig, target: ModelConfig) -> bool:
    """Whether one model is a sensible draft of another: between a half and a hundredth of its size."""
    ratio = count(target, 0).total / count(draft, 0).total
    return 2 <= ratio <= 100


def held_out(names: Sequence[str], sizes: Sequence[float]) -> set[str]:
    """A third of the models, spread over their sizes, neither the smallest nor the largest among
    them.

    Args:
      names: of the models, repetitions allowed.
      sizes: of each.
    """
    ordered = [
        name
        for name, _ in sorted(dict(zip(names, sizes)).items(), key=lambda item: (item[1], item[0]))
    ]
    return set(ordered[1:-1:3])
