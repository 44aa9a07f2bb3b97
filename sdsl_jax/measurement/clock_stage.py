"""The decoders that a study times, and their runs as records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.checkpoints.loading import load_other_models
from sdsl_jax.config import EXIT_KINDS, StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.decoding import EarlyExit, Head, Model, Sampling
from sdsl_jax.decoding.exit_drafter import shared_blocks
from sdsl_jax.device import device_name
from sdsl_jax.errors import require
from sdsl_jax.measurement.clock import Entrant, cache_slots, time_decoders
from sdsl_jax.measurement.exact import prompts
from sdsl_jax.measurement.study_models import aligned, load_heads, load_models
from sdsl_jax.measurement.threads import computing_threads
from sdsl_jax.progress import Progress
from sdsl_jax.records import ClockRecord, ModelRecord, RunRecord, longest_trained

# Every ratio refers to plain decoding, so it is timed this often in each repetition.
_PLAIN_RUNS = 4
# Batches and drafts of other shapes are timed for this many targets, the largest.
_LARGEST = 2


class Timed(NamedTuple):
    """The tables of the stage: runs of every decoder, and the models of other folders among them."""

    runs: list[RunRecord]
    timed_models: list[ModelRecord]


class Pairing(NamedTuple):
    """A decoder by the names of its models; no draft and lookahead 0 for plain decoding."""

    draft: str
    target: str
    lookahead: int
    batch: int


def pairings(
    config: StudyConfig, models: list[ModelRecord], others: list[ModelRecord]
) -> list[list[Pairing]]:
    """Every decoder that `config.clock` asks for, in blocks that run interleaved, each with plain
    decoding as its first. Where there are drafts of other kinds than models of their own, or of truncated
    readouts, whatever laws are not fitted to is timed as well, one seed of each size, by its teacher.

    Blocks are small, so that one process can hold all compiled programs of a block.

    Args:
      config: The study.
      models: Its models.
      others: The models of `clock.other_models`.
    """
    c = config.clock
    apart = any(m.kind or m.readout for m in models)
    told = [m for m in models if m.trained_for != "text"] if apart else []
    models = [m for m in models if m.trained_for == "text"]
    drafts = sorted(longest_trained(models, "draft"), key=lambda m: m.params_nonembedding)
    targets = sorted(
        [*longest_trained(models, "target"), *(m for m in others if m.role == "target")],
        key=lambda m: m.params_nonembedding,
    )
    # Three that span the sizes; the same one twice where there are fewer.
    few = {drafts[i].model_id for i in (0, len(drafts) // 2, -1)} if drafts else set()
    shaped = {m.model_id for m in others if m.role == "draft"}
    # Own drafts that were trained like a draft of another shape, to compare with it.
    alike = {
        own.model_id
        for own in models
        for other in others
        if own.role == other.role == "draft"
        and own.seed == other.seed
        and own.train_tokens == other.train_tokens
        and abs(own.params_nonembedding / other.params_nonembedding - 1) < 0.1
    }
    largest = targets[-_LARGEST:]

    def block(
        target: ModelRecord, names: Iterable[str], lookaheads: tuple[int, ...], batch: int
    ) -> list[Pairing]:
        rivals = [Pairing(d, target.model_id, g, batch) for d in names for g in lookaheads]
        return [Pairing("", target.model_id, 0, batch), *rivals]

    blocks = [block(t, [d.model_id], c.lookaheads, 1) for t in targets for d in drafts]
    if shaped:
        blocks += [block(t, sorted(shaped | alike), c.batch_lookaheads, 1) for t in largest]
    blocks += [
        block(t, sorted(few), c.batch_lookaheads, batch) for batch in c.batches for t in largest
    ]
    blocks += [
        block(target, [draft.model_id], c.lookaheads, 1)
        for target in targets
        for draft in _one_of_each(told)
        if draft.of_text or draft.teacher_digest == target.params_digest
    ]
    return [each for each in blocks if len(each) > 1]


def _one_of_each(drafts: list[ModelRecord]) -> list[ModelRecord]:
    """The longest-trained draft of the first seed, of every kind, objective and size."""
    best: dict[tuple[str, int, int], ModelRecord] = {}
    for draft in sorted(drafts, key=lambda m: (-m.train_tokens, m.seed)):
        best.setdefault((draft.trained_for, draft.params_total, draft.layers), draft)
    return sorted(best.values(), key=lambda m: (m.kind, m.params_nonembedding, m.model_id))


def time_study(
    config: StudyConfig,
    dataset: Dataset,
    records: list[ModelRecord],
    study: Path,
    progress: Progress,
) -> Timed:
    """Times every decoder that `config.clock` asks for.

    Args:
      config: The study.
      dataset: Its corpus; the prompts come from the test split.
      records: Its models.
      study: Its folder, which holds their weights.
      progress: Reports progress after every piece of work.

    Raises:
      SdslError: a checkpoint is missing or damaged, or the test split holds too few prompts.
    """
    c = config.clock
    if not c.lookaheads:
        return Timed([], [])
    count = c.repetitions * c.prompts
    available = dataset.text("test").window_count
    require(
        count <= available,
        f"clock.repetitions × clock.prompts is {count}; the test split has only {available} sequences to take prompts from.",
    )
    others: list[ModelRecord] = []
    models: dict[str, Any] = {}
    for folder in map(Path, c.other_models):
        more, loaded = load_other_models(
            folder,
            "clock.other_models",
            f"{folder.name}/",
            dataset,
            study,
            lambda record: not record.kind,
        )
        others, models = others + more, models | loaded
    blocks = pairings(config, records, others)
    named = {name for block in blocks for p in block for name in (p.draft, p.target)}
    timed = [r for r in records if r.model_id in named]
    models |= load_models(timed, study)
    models |= {name: head for name, (head, _) in load_heads(timed, study, models).items()}
    models = aligned(models)
    exits = {r.model_id for r in timed if r.kind in EXIT_KINDS}
    # Neighbours in the text go to different repetitions.
    starts = (
        prompts(config, dataset.text("test"), count)
        .reshape(c.prompts, c.repetitions, -1)
        .swapaxes(0, 1)
    )
    progress.start("clock", sum(map(len, blocks)))
    rows: list[RunRecord] = []
    for number, block in enumerate(blocks):
        rows += _time_block(config, number, block, models, exits, starts)
        first, last = block[1], block[-1]
        progress.advance(len(block), f"{first.draft} × {first.target}, batch {last.batch}")
    progress.finish()
    return Timed(rows, [r for r in others if r.model_id in named])


def _time_block(
    config: StudyConfig,
    number: int,
    block: list[Pairing],
    models: dict[str, Any],
    exits: set[str],
    starts: np.ndarray,
) -> list[RunRecord]:
    m = config.measure
    names = [block[0]] * _PLAIN_RUNS + block[1:]

    def draft_of(p: Pairing) -> Model | Head | EarlyExit | None:
        if p.draft not in exits:
            return models[p.draft] if p.draft else None
        draft: Model = models[p.draft]
        shared = shared_blocks(draft, models[p.target])
        return EarlyExit(*draft, shared) if shared else draft

    drafts = {p.draft: draft_of(p) for p in block}
    entrants = [Entrant(models[p.target], drafts[p.draft], p.lookahead, p.batch) for p in names]
    runs = time_decoders(
        entrants,
        starts,
        new_tokens=m.new_tokens,
        sampling=Sampling(m.temperature),
        seed=config.seed,
    )
    rows = [
        RunRecord(
            draft_id=p.draft,
            target_id=p.target,
            lookahead=p.lookahead,
            batch=p.batch,
            block=number,
            repetition=repetition,
            seconds=float(run.seconds[repetition]),
            rounds=int(run.rounds[repetition]),
            tokens=int(run.tokens[repetition]),
            context=cache_slots(entrant, m.prompt_tokens, m.new_tokens),
            temperature=m.temperature,
            threads=computing_threads(),
            device=device_name(),
        )
        for p, entrant, run in zip(names, entrants, runs)
        for repetition in range(len(starts))
    ]
    # Each program maps many small pieces of memory, and the number per process is limited.
    jax.clear_caches()
    return rows


def clock_pair(
    config: StudyConfig,
    dataset: Dataset,
    draft: ModelRecord,
    target: ModelRecord,
    lookahead: int,
    study: Path,
) -> ClockRecord:
    """Times one pair at one lookahead against the target alone, on held-out prompts.

    Raises:
      SdslError: a checkpoint is missing or damaged.
    """
    m, repetitions = config.measure, config.codesign.clock_repetitions
    models = aligned(load_models([draft, target], study))
    pair = models[target.model_id], models[draft.model_id]
    count = repetitions * config.clock.prompts * m.latency_batch
    fast, plain = time_decoders(
        [Entrant(*pair, lookahead, m.latency_batch), Entrant(pair[0], batch=m.latency_batch)],
        prompts(config, dataset.text("test"), count).reshape(repetitions, -1, m.prompt_tokens),
        new_tokens=m.new_tokens,
        sampling=Sampling(m.temperature),
        seed=config.seed,
    )
    ratios = fast.tokens_per_second / plain.tokens_per_second
    return ClockRecord(
        draft_id=draft.model_id,
        target_id=target.model_id,
        lookahead=lookahead,
        temperature=m.temperature,
        batch=m.latency_batch,
        speculative_tokens_per_second=float(np.median(fast.tokens_per_second)),
        autoregressive_tokens_per_second=float(np.median(plain.tokens_per_second)),
        tokens_per_round=float(fast.tokens.sum() / fast.rounds.sum() / m.latency_batch),
        speedup=float(np.median(ratios)),
        speedup_low=float(ratios.min()),
        speedup_high=float(ratios.max()),
        repetitions=repetitions,
        device=device_name(),
    )
