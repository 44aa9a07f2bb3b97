"""Calibration of a device: which operations of which models are timed, and their times as records.

Every coefficient needs operations that differ in what it multiplies and in little else:

- layer_seconds: depths from 1 to 6 (on an accelerator 16) at about the same number of parameters;
- pass_seconds: models so small that little else is left;
- bytes_per_second: sizes, vocabularies and caches over two orders of magnitude, in steps of one row;
- flops_per_second: passes over many tokens, in width and in batch;
- token_seconds: equal numbers of tokens in models whose arithmetic differs, above all small models
  with many tokens;
- round_seconds: whole rounds beside the passes that they consist of.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.decoding import Model, Sampling
from sdsl_jax.device import device_name
from sdsl_jax.errors import require
from sdsl_jax.measurement.clock import Entrant, time_decoders
from sdsl_jax.measurement.latency import Step, time_steps
from sdsl_jax.models import ModelConfig, Params, abstract_params, count
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import TimingRecord
from sdsl_jax.statistics import Interval, median_interval
from sdsl_jax.theory.hardware import Shape

# Lookaheads of the timed rounds.
_LOOKAHEADS = (1, 2, 4, 8, 12)
LARGEST_BATCH = 64


@dataclass(frozen=True)
class Scale:
    """Models and cache sizes for one kind of device.

    Attributes:
      sizes: Width, layers and vocabulary of each model.
      quick: Positions in `sizes` of the models that a quick calibration takes.
      head_dim: Largest size of a head.
      kv_groups: Query heads that share a key-value head.
      verify_widths: New tokens of a verify pass.
      prompt_tokens: Tokens before the decoded ones, short and long.
      new_tokens: Room for decoded tokens.
    """

    sizes: tuple[tuple[int, int, int], ...]
    quick: tuple[int, ...]
    head_dim: int
    kv_groups: int
    verify_widths: tuple[int, ...]
    prompt_tokens: tuple[int, int]
    new_tokens: int


# Up to two million parameters. A pass takes between tens of microseconds and a few milliseconds on
# one core.
CPU = Scale(
    sizes=(
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
    sizes=(
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
    ),
    quick=(0, 2, 4, 6, 8, 10, 12, 13),
    head_dim=128,
    kv_groups=4,
    # Wider than any round: arithmetic only outweighs memory traffic from about a thousand tokens.
    verify_widths=(2, 5, 9, 13, 33, 65),
    prompt_tokens=(128, 1920),
    new_tokens=64,
)


def device_scale() -> tuple[Scale, str]:
    """Models and number type for the current device."""
    return (CPU, "float32") if jax.default_backend() == "cpu" else (ACCELERATOR, "bfloat16")


class Operation(NamedTuple):
    """One operation to time.

    Attributes:
      kind: A plain decoding step, a verify pass, or a round of speculative decoding.
      target: The model of a pass, or the target of a round.
      draft: The draft of a round; None for a pass.
      tokens: New tokens of each row in a pass; the lookahead γ of a round.
      batch: Rows decoded together.
      prompt_tokens: Tokens that precede the decoded ones.
    """

    kind: Literal["step", "verify", "round"]
    target: ModelConfig
    draft: ModelConfig | None
    tokens: int
    batch: int
    prompt_tokens: int

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """The target, and the draft if there is one."""
        return (self.target,) if self.draft is None else (self.target, self.draft)


def build(scale: Scale, size: tuple[int, int, int]) -> ModelConfig:
    """A model shaped like those of studies, with about 12·layers·width² non-embedding parameters."""
    width, layers, vocab_size = size
    head_dim = min(scale.head_dim, width)
    heads = width // head_dim
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=max(1, heads // scale.kv_groups),
        head_dim=head_dim,
        hidden=8 * round(width / 3),
    )


def shape_of(config: ModelConfig) -> Shape:
    """The sizes that the time of a pass of this model depends on."""
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
    """Name of a model in tables."""
    return f"w{config.width}-l{config.layers}-v{config.vocab_size}"


def check_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes sorted, each once.

    Raises:
      SdslError: there are none, one is out of range, or their least common multiple is too large.
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
    """The operations of a calibration. Batch, cache and width change from one to the next, so that
    no two of them are correlated.

    Args:
      scale: Models for this kind of device.
      batches: Numbers of rows decoded together.
      quick: Times fewer models, and fewer operations of each.
    """
    sizes = [scale.sizes[i] for i in scale.quick] if quick else list(scale.sizes)
    configs = [build(scale, size) for size in sizes]
    batches, B = check_batches(batches), len(set(batches))
    chosen_operations = []
    for i, config in enumerate(configs):
        for k in range(1 if quick else 2):
            batch, prompt = batches[(i + 2 * k) % B], scale.prompt_tokens[(i // 3 + k) % 2]
            chosen_operations.append(Operation("step", config, None, 1, batch, prompt))
        for k in range(2):
            width = scale.verify_widths[(2 * i + k) % len(scale.verify_widths)]
            # Every other model has its long cache with its widest pass.
            batch, prompt = batches[(i // 2 + k) % B], scale.prompt_tokens[(i + k) % 2]
            chosen_operations.append(Operation("verify", config, None, width, batch, prompt))
    pairs = [
        (d, t) for t in configs for d in configs if d.vocab_size == t.vocab_size and _drafts(d, t)
    ]
    # There are more pairs than needed; take them evenly.
    most = 8 if quick else 20
    chosen = [pairs[round(i * (len(pairs) - 1) / (most - 1))] for i in range(min(most, len(pairs)))]
    for i, (draft, target) in enumerate(chosen):
        lookahead, batch = _LOOKAHEADS[(2 * i) % len(_LOOKAHEADS)], batches[(i + i // 3) % B]
        chosen_operations.append(
            Operation("round", target, draft, lookahead, batch, scale.prompt_tokens[i // 2 % 2])
        )
    return chosen_operations


def _drafts(draft: ModelConfig, target: ModelConfig) -> bool:
    """Whether one model is a sensible draft for another: 1/2 to 1/100 of its size."""
    ratio = count(target, 0).total / count(draft, 0).total
    return 2 <= ratio <= 100


def held_out(names: Sequence[str], sizes: Sequence[float]) -> set[str]:
    """A third of the models, spread over their sizes, without the smallest and the largest.

    Args:
      names: Names of the models; repetitions are allowed.
      sizes: Size of each model.
    """
    ordered = [
        name
        for name, _ in sorted(dict(zip(names, sizes)).items(), key=lambda item: (item[1], item[0]))
    ]
    return set(ordered[1:-1:3])


# Random numbers in a matrix; a larger one repeats them. To draw as many as a large model has weights
# would take minutes.
_DRAWN = 1 << 20
# Number types of the timed models. Random weights take as long as trained ones.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def random_params(config: ModelConfig, dtype: str, random: np.random.Generator) -> Params:
    """Random weights in the type they are computed with, drawn by numpy: a jax program would take seconds to compile."""

    def draw(leaf):
        # Norms start at 1, and matrix products keep the size of their input.
        if len(leaf.shape) == 1:
            values = np.ones(leaf.shape)
        else:
            drawn = random.normal(size=min(math.prod(leaf.shape), _DRAWN))
            values = drawn * min(leaf.shape) ** -0.5
        return jnp.asarray(np.resize(values.astype(np.float32).astype(DTYPES[dtype]), leaf.shape))

    return jax.tree.map(draw, abstract_params(config))


def time_operations(
    operations: Sequence[Operation],
    scale: Scale,
    *,
    dtype: str,
    repetitions: int,
    confidence: float,
    threads: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[TimingRecord]:
    """Times every operation: steps and rounds in the decoders' own loops, verify passes in a loop of
    their own.

    All decoders are interleaved, and so are all verify passes: a machine that is busy for a while
    slows one repetition of everything instead of everything about one model.

    Args:
      operations: Operations to time.
      scale: Scale of the models; it sets the room for decoded tokens.
      dtype: Type of weights and caches, a key of `DTYPES`.
      repetitions: Timed runs of each operation.
      confidence: Confidence of the intervals of the medians.
      threads: Threads to write to the records; 0 if unknown.
      seed: Seed of weights, prompts and samples.
      progress: Reports progress after every piece of work.
    """
    progress = progress or Silent()
    random = np.random.default_rng(seed)
    configs = dict.fromkeys(c for o in operations for c in o.models)
    models = {c: Model(c, random_params(c, dtype, random)) for c in configs}
    progress.start("calibrate", 2 * len(operations))
    decoders = [o for o in operations if o.kind != "verify"]
    passes = [o for o in operations if o.kind == "verify"]
    seconds = _time_decoders(decoders, models, scale, repetitions, confidence, seed, progress)
    seconds |= _time_passes(passes, models, scale, repetitions, confidence, progress)
    progress.finish()
    unseen = unseen_models(operations)
    measured = dict(
        confidence=confidence,
        repetitions=repetitions,
        threads=threads,
        dtype=dtype,
        device=device_name(),
    )
    return [record_of(o, seconds[o], scale, unseen, **measured) for o in operations]


def _time_decoders(
    operations: list[Operation],
    models: dict[ModelConfig, Model],
    scale: Scale,
    repetitions: int,
    confidence: float,
    seed: int,
    progress: Progress,
) -> dict[Operation, Interval]:
    """Seconds of a step or a round, in the decoders' own loops."""
    if not operations:
        return {}
    entrants = [
        Entrant(models[o.target], None, 0, o.batch, o.prompt_tokens)
        if o.draft is None
        else Entrant(models[o.target], models[o.draft], o.tokens, o.batch, o.prompt_tokens)
        for o in operations
    ]
    count = math.lcm(*(e.batch for e in entrants))
    width = max(o.prompt_tokens for o in operations)
    ids = min(e.target.config.vocab_size for e in entrants)
    prompts = np.random.default_rng(seed).integers(0, ids, (repetitions, count, width))
    runs = time_decoders(
        entrants,
        prompts,
        new_tokens=scale.new_tokens,
        sampling=Sampling(),
        seed=seed,
        progress=progress,
    )
    return {o: median_interval(r.seconds_per_round, confidence) for o, r in zip(operations, runs)}


def _time_passes(
    operations: list[Operation],
    models: dict[ModelConfig, Model],
    scale: Scale,
    repetitions: int,
    confidence: float,
    progress: Progress,
) -> dict[Operation, Interval]:
    """Seconds of a verify pass."""
    if not operations:
        return {}
    steps = {
        str(i): Step(models[o.target], o.tokens, _context(o, scale), o.batch)
        for i, o in enumerate(operations)
    }
    progress.advance(0, "verify passes")
    times = time_steps(steps, repetitions=repetitions, confidence=confidence)
    progress.advance(2 * len(operations), "verify passes")
    return dict(zip(operations, times.values()))


def _context(o: Operation, scale: Scale) -> int:
    """Context of a verify pass; `time_steps` keeps room for twice as much, as many slots as a decoder has."""
    return (o.prompt_tokens + scale.new_tokens) // 2


def slots_of(o: Operation, scale: Scale) -> int:
    """Cache positions that every pass of an operation reads."""
    if o.kind == "verify":
        return 2 * _context(o, scale) + o.tokens
    return o.prompt_tokens + scale.new_tokens + (o.tokens + 1 if o.kind == "round" else 0)


def unseen_models(operations: Sequence[Operation]) -> set[str]:
    """Names of the models that are held out from the fit whose errors are reported."""
    configs = [c for o in operations for c in o.models]
    return held_out(
        [model_name(c) for c in configs], [float(shape_of(c).total_params) for c in configs]
    )


def record_of(
    o: Operation, seconds: Interval, scale: Scale, unseen: Collection[str], **measured: Any
) -> TimingRecord:
    """One operation and its seconds as a row.

    Args:
      o: The operation.
      seconds: Its median seconds.
      scale: Scale of the models.
      unseen: Names of the models that are held out.
      **measured: The columns that say how it was timed: confidence, repetitions, threads, dtype and
        device.
    """
    names = [model_name(c) for c in o.models]
    draft = None if o.draft is None else shape_of(o.draft)
    sizes: dict[str, Any] = {
        f"{role}_{name}": 0 if shape is None else int(getattr(shape, name))
        for role, shape in (("target", shape_of(o.target)), ("draft", draft))
        for name in Shape._fields
        # The timed models are dense: a record has no columns of experts.
        if f"{role}_{name}" in TimingRecord.__dataclass_fields__
    }
    return TimingRecord(
        operation=o.kind,
        target_id=names[0],
        draft_id=names[1] if o.draft is not None else "",
        tokens=o.tokens,
        batch=o.batch,
        context=slots_of(o, scale),
        **seconds.columns("seconds"),
        held_out=int(any(name in unseen for name in names)),
        **sizes,
        **measured,
    )
