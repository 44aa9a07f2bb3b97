"""Timed passes and rounds of models with random weights, as records."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.decoding import Model, Sampling
from sdsl_jax.device import device_name
from sdsl_jax.measurement.clock import Entrant, time_decoders
from sdsl_jax.measurement.latency import Step, time_steps
from sdsl_jax.measurement.workloads import Operation, Scale, held_out, model_name, shape_of
from sdsl_jax.models import ModelConfig, Params, abstract_params
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import TimingRecord
from sdsl_jax.statistics import Interval, median_interval

# Of a model in the type of its weights; random weights take as long as trained ones.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def random_params(config: ModelConfig, dtype: str, random: np.random.Generator) -> Params:
    """Random weights in the type they are computed with; drawn without a program, which would take seconds to compile."""

    def draw(leaf):
        # Norms begin at 1, and products of matrices keep the size of what goes in.
        values = (
            np.ones(leaf.shape)
            if len(leaf.shape) == 1
            else random.normal(size=leaf.shape) * min(leaf.shape) ** -0.5
        )
        return jnp.asarray(values.astype(np.float32)).astype(DTYPES[dtype])

    return jax.tree.map(draw, abstract_params(config))


def _models(operations: Sequence[Operation], dtype: str, seed: int) -> dict[ModelConfig, Model]:
    configs = dict.fromkeys(c for o in operations for c in (o.target, o.draft) if c is not None)
    random = np.random.default_rng(seed)
    return {c: Model(c, random_params(c, dtype, random)) for c in configs}


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
    """Times every operation: steps and rounds in the loops of the decoders, verify passes in a loop
    of their own.

    All decoders are interleaved, and so are all verify passes: a machine that is busy for a while
    slows a repetition of everything rather than everything about one model.

    Args:
      operations: what to time.
      scale: of the models, for the room that decoding has.
      dtype: of weights and caches, a key of `DTYPES`.
      repetitions: timed runs of each.
      confidence: of the intervals of the medians.
      threads: written to the records; 0 if not known.
      seed: of weights, prompts and samples.
      progress: told after every piece of work.
    """
    progress = progress or Silent()
    models = _models(operations, dtype, seed)
    unseen = unseen_models(operations)
    found: dict[int, Interval] = {}
    progress.start("calibrate", 2 * len(operations))
    decoders = [i for i, o in enumerate(operations) if o.kind != "verify"]
    passes = [i for i, o in enumerate(operations) if o.kind == "verify"]
    found |= _decoders(operations, decoders, models, scale, repetitions, confidence, seed, progress)
    found |= _passes(operations, passes, models, scale, repetitions, confidence, progress)
    progress.finish()
    device = device_name()
    return [
        record_of(o, found[i], scale, unseen, confidence, repetitions, threads, dtype, device)
        for i, o in enumerate(operations)
    ]


def _decoders(
    operations, which, models, scale, repetitions, confidence, seed, progress
) -> dict[int, Interval]:
    """Seconds of a step or a round, in the decoders' own loops."""
    if not which:
        return {}
    entrants = []
    for o in (operations[i] for i in which):
        draft = None if o.draft is None else models[o.draft]
        entrants.append(
            Entrant(
                models[o.target], draft, 0 if draft is None else o.tokens, o.batch, o.prompt_tokens
            )
        )
    count = math.lcm(*(e.batch for e in entrants))
    width = max(operations[i].prompt_tokens for i in which)
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
    return {i: median_interval(run.seconds_per_round, confidence) for i, run in zip(which, runs)}


def _passes(
    operations, which, models, scale, repetitions, confidence, progress
) -> dict[int, Interval]:
    """Seconds of a verify pass."""
    # `time_steps` keeps room for twice the context.
    contexts = {i: (operations[i].prompt_tokens + scale.new_tokens) // 2 for i in which}
    steps = {
        str(i): Step(
            models[operations[i].target], operations[i].tokens, operations[i].batch, contexts[i]
        )
        for i in which
    }
    if not steps:
        return {}
    progress.advance(0, "verify passes")
    timed = time_steps(steps, batch=1, context=1, repetitions=repetitions, confidence=confidence)
    progress.advance(2 * len(which), "verify passes")
    return {i: timed[str(i)] for i in which}


def _context(o: Operation, scale: Scale) -> int:
    """Of a verify pass; `time_steps` keeps room for twice as much, which makes as many slots as a decoder has."""
    return (o.prompt_tokens + scale.new_tokens) // 2


def slots_of(o: Operation, scale: Scale) -> int:
    """Cache positions that every pass of an operation reads."""
    if o.kind == "verify":
        return 2 * _context(o, scale) + o.tokens
    return o.prompt_tokens + scale.new_tokens + (o.tokens + 1 if o.kind == "round" else 0)


def unseen_models(operations: Sequence[Operation]) -> set[str]:
    """Names of the models that are held out from the fit whose errors are reported."""
    configs = [c for o in operations for c in (o.target, o.draft) if c is not None]
    return held_out(
        [model_name(c) for c in configs], [float(shape_of(c).total_params) for c in configs]
    )


def record_of(
    o: Operation,
    seconds: Interval,
    scale: Scale,
    unseen: Collection[str],
    confidence: float,
    repetitions: int,
    threads: int,
    dtype: str,
    device: str,
) -> TimingRecord:
    """One operation and its seconds as a row."""
    target = shape_of(o.target)
    draft = None if o.draft is None else shape_of(o.draft)
    names = [model_name(c) for c in (o.target, o.draft) if c is not None]
    size = lambda shape, name: 0 if shape is None else int(getattr(shape, name))  # noqa: E731
    return TimingRecord(
        operation=o.kind,
        target_id=names[0],
        draft_id=names[1] if draft is not None else "",
        tokens=o.tokens,
        batch=o.batch,
        context=slots_of(o, scale),
        seconds=seconds.estimate,
        seconds_low=seconds.low,
        seconds_high=seconds.high,
        held_out=int(any(name in unseen for name in names)),
        **{
            f"{role}_{name}": size(s, name)
            for role, s in (("target", target), ("draft", draft))
            for name in target._fields
        },
        confidence=confidence,
        repetitions=repetitions,
        threads=threads,
        dtype=dtype,
        device=device,
    )
