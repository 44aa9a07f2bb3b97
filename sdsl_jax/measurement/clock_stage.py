"""The clock of a study: which decoders are timed, and their runs as records."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.decoding import Model, Sampling
from sdsl_jax.errors import require
from sdsl_jax.measurement.clock import Entrant, cache_slots, time_decoders
from sdsl_jax.measurement.other_models import load_other_models
from sdsl_jax.measurement.stage import load_models, prompts
from sdsl_jax.measurement.threads import computing_threads
from sdsl_jax.progress import Progress
from sdsl_jax.records import ClockRecord, ModelRecord, RunRecord, longest_trained
from sdsl_jax.training import device_name

# Plain decoding is what every ratio is taken to, so it is timed so many times in each repetition.
_PLAIN_RUNS = 4
# Of so many targets, the largest, batches and drafts of other shapes are timed.
_LARGEST = 2


class Timed(NamedTuple):
    """What the stage found out: runs of every decoder, and the models of other folders that took part."""

    runs: list[RunRecord]
    timed_models: list[ModelRecord]


class Pairing(NamedTuple):
    """A decoder by the names of its models; no draft and lookahead 0 for plain decoding."""

    draft: str
    target: str
    lookahead: int
    batch: int


def pairings(config: StudyConfig, models: list[ModelRecord], others: list[ModelRecord]) -> list[Pairing]:
    """Every decoder that `config.clock` asks for, plain ones first.

    Args:
      config: the study.
      models: its models.
      others: those of `clock.other_models`.
    """
    c = config.clock
    drafts = sorted(longest_trained(models, "draft"), key=lambda m: m.params_nonembedding)
    targets = sorted(
        [*longest_trained(models, "target"), *(m for m in others if m.role == "target")],
        key=lambda m: m.params_nonembedding,
    )
    # Three that span the sizes; the same one twice where there are fewer.
    few = {drafts[i].model_id for i in (0, len(drafts) // 2, len(drafts) - 1)}
    shaped = {m.model_id for m in others if m.role == "draft"}
    # Beside a draft of another shape: the study's own that was trained alike.
    alike = {
        own.model_id
        for own in models
        for other in others
        if own.role == other.role == "draft"
        and own.seed == other.seed
        and own.train_tokens == other.train_tokens
        and abs(own.params_nonembedding / other.params_nonembedding - 1) < 0.1
    }
    found = [Pairing(d.model_id, t.model_id, g, 1) for t in targets for d in drafts for g in c.lookaheads]
    largest = targets[-_LARGEST:]
    found += [Pairing(d, t.model_id, g, 1) for t in largest for d in sorted(shaped | alike) for g in c.batch_lookaheads]
    found += [
        Pairing(d, t.model_id, g, batch)
        for batch in c.batches
        for t in largest
        for d in sorted(few)
        for g in c.batch_lookaheads
    ]
    found = list(dict.fromkeys(found))
    plain = dict.fromkeys(Pairing("", p.target, 0, p.batch) for p in found)
    return [*plain, *found]


def time_study(
    config: StudyConfig, dataset: Dataset, records: list[ModelRecord], study: Path, progress: Progress
) -> Timed:
    """Times every decoder that `config.clock` asks for; nothing where it asks for none.

    Args:
      config: the study.
      dataset: its corpus, of whose test split the prompts are.
      records: its models.
      study: its folder, which holds their weights.
      progress: told after every piece of work.

    Raises:
      SdslError: a checkpoint is missing or damaged, or the test split holds too few prompts.
    """
    c, m = config.clock, config.measure
    if not c.lookaheads:
        return Timed([], [])
    count = c.repetitions * c.prompts
    available = dataset.window_count("test")
    require(
        count <= available,
        f"clock.repetitions × clock.prompts is {count}; the test split has only {available} sequences to take prompts from.",
    )
    others: list[ModelRecord] = []
    models: dict[str, Model] = {}
    for folder in map(Path, c.other_models):
        more, loaded = load_other_models(folder, "clock.other_models", f"{folder.name}/", dataset, study)
        others, models = others + more, models | loaded
    wanted = pairings(config, records, others)
    named = {name for p in wanted for name in (p.draft, p.target)}
    own = [r for r in records if r.model_id in named]
    models |= load_models(config, own, dataset, study)
    entrants, names = [], []
    for p in wanted:
        draft = models[p.draft] if p.draft else None
        copies = 1 if p.draft else _PLAIN_RUNS
        entrants += [Entrant(models[p.target], draft, p.lookahead, p.batch)] * copies
        names += [p] * copies
    progress.start("clock", 2 * len(entrants))
    # Neighbours in the text go to different repetitions.
    starts = prompts(config, dataset.text("test"), count).reshape(c.prompts, c.repetitions, -1).swapaxes(0, 1)
    runs = time_decoders(
        entrants, starts, new_tokens=m.new_tokens, sampling=Sampling(m.temperature), seed=config.seed, progress=progress
    )
    progress.finish()
    rows = [
        RunRecord(
            draft_id=p.draft,
            target_id=p.target,
            lookahead=p.lookahead,
            batch=p.batch,
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
        for repetition in range(c.repetitions)
    ]
    return Timed(rows, [r for r in others if r.model_id in named])


def clock(
    config: StudyConfig, dataset: Dataset, draft: ModelRecord, target: ModelRecord, lookahead: int, study: Path
) -> ClockRecord:
    """Times one pair at one lookahead against the target alone, on held-out prompts.

    Raises:
      SdslError: a checkpoint is missing or damaged.
    """
    m, repetitions = config.measure, config.codesign.clock_repetitions
    models = load_models(config, [draft, target], dataset, study)
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
