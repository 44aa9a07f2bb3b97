"""The measurement of a study: acceptance, survival and latency of every draft × target pair."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.decoding import Model, Sampling, speculate
from sdsl_jax.device import device_name
from sdsl_jax.errors import require
from sdsl_jax.measurement.events import event_columns, summarise
from sdsl_jax.measurement.exact import (
    RUN_UNITS,
    Domain,
    domain,
    expected_records,
    of_head,
    on_samples,
    own_samples,
    pair_rows,
    prompts,
)
from sdsl_jax.measurement.latency import Step, side_by_side, time_steps
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.measurement.round_costs import round_cost
from sdsl_jax.measurement.study_models import StudyModels, by_role, load_heads, load_models
from sdsl_jax.progress import Progress
from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    LatencyRecord,
    ModelRecord,
    SurvivalRecord,
    longest_trained,
)
from sdsl_jax.seeds import derive_seed


class Measurements(NamedTuple):
    """The tables of the measure stage. `self_checks` maps "draft × target, γ" to a standard normal
    score."""

    acceptance: list[AcceptanceRecord]
    survival: list[SurvivalRecord]
    expected: list[ExpectedRecord]
    latency: list[LatencyRecord]
    events: pandas.DataFrame
    self_checks: dict[str, float]


def measure_study(
    config: StudyConfig,
    dataset: Dataset,
    records: list[ModelRecord],
    study: Path,
    progress: Progress,
) -> Measurements:
    """Measures every pair of a study. The live decoder runs for the pairs that `measure.decode`
    selects.

    Args:
      config: The study.
      dataset: Its corpus.
      records: The trained models.
      study: The study's folder, which holds their weights.
      progress: Reports progress after every piece of work.

    Raises:
      SdslError: a checkpoint is missing or damaged.
    """
    m = config.measure
    available = dataset.text("test").window_count
    require(
        m.prompts <= available,
        f"measure.prompts is {m.prompts}; the test split has only {available} sequences to take prompts from.",
    )
    loaded = load_models(records, study)
    heads = load_heads(records, study, loaded)
    models = by_role(loaded, records)._replace(heads=heads).aligned
    # How long a model was trained does not change its speed: one of each shape is timed.
    of_text = [r for r in records if r.trained_for == "text"]
    largest = {
        r.model_id
        for role in ("draft", "target")
        for r in longest_trained(of_text, role) or longest_trained(records, role)
    }
    for readout in {r.readout for r in records} - {0}:
        of_readout = [r for r in records if r.readout == readout and not r.kind]
        largest |= {r.model_id for r in longest_trained(of_readout, "draft")}
    everything = {*loaded, *models.heads}
    decoding = {"all": everything, "largest": largest, "none": set[str]()}[m.decode]
    pairs = [pair for pair in models.pairs if {*pair} <= decoding]
    chunks = -(-m.text_windows // 32) + len(models.targets) * -(-m.prompts // 32)
    units = chunks * len(loaded) + RUN_UNITS * (len(pairs) * len(m.lookaheads) + len(largest))
    progress.start("measure", units)

    acceptance: list[AcceptanceRecord] = []
    expected: list[ExpectedRecord] = []
    by_id = {r.model_id: r for r in records}
    if models.drafts:
        acceptance, expected = _exact(config, dataset, models, by_id, progress)
    of_heads, rounds = _exact_heads(config, dataset, models, by_id)
    acceptance, expected = acceptance + of_heads, expected + rounds
    survival: list[SurvivalRecord] = []
    frames, checks = [], {}
    for run in side_by_side(
        functools.partial(
            _decode, config, models, prompts(config, dataset.text("test"), m.prompts)
        ),
        [(*pair, lookahead) for pair in pairs for lookahead in m.lookaheads],
        workers=2,  # each holds two models' caches
    ):
        acceptance += run.acceptance
        survival += run.survival
        frames.append(run.events)
        checks[run.name] = run.self_check
        progress.advance(RUN_UNITS, f"{run.name}  {run.tokens_per_round:.2f} tokens/round")
    latency = _latency(
        config,
        # A head's step is timed on the clock, with its target.
        {name: model for name, model in loaded.items() if name in largest},
        {*models.targets},
        progress,
    )
    progress.finish()
    events = pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
    return Measurements(acceptance, survival, expected, latency, events, checks)


class _PairRun(NamedTuple):
    """What a live run of the decoder gave: rows of the tables, and what it is called in them."""

    name: str
    acceptance: list[AcceptanceRecord]
    survival: list[SurvivalRecord]
    events: pandas.DataFrame
    self_check: float
    tokens_per_round: float


def _decode(
    config: StudyConfig, models: StudyModels, texts: np.ndarray, run: tuple[str, str, int]
) -> _PairRun:
    """Decodes the prompts with a draft, a target and a lookahead."""
    m, (draft_id, target_id, lookahead) = config.measure, run
    decoded = speculate(
        models.draft(draft_id),
        models.targets[target_id],
        texts,
        lookahead=lookahead,
        max_lookahead=max(m.lookaheads),
        new_tokens=m.new_tokens,
        sampling=Sampling(m.temperature),
        # Pairs share prompts but no randomness.
        seed=derive_seed("decode", config.seed, *run),
    )
    statistics = summarise(decoded, lookahead, m.confidence)
    acceptance, survival = pair_rows(config, (draft_id, target_id)).decoded(
        lookahead, statistics, m.prompts
    )
    events = pandas.DataFrame(event_columns(decoded)).assign(
        lookahead=lookahead,
        temperature=m.temperature,
        draft_id=draft_id,
        target_id=target_id,
    )
    return _PairRun(
        f"{draft_id} × {target_id}, γ = {lookahead}",
        acceptance,
        survival,
        events,
        statistics.self_check,
        statistics.tokens_per_round.estimate,
    )


def _exact(
    config: StudyConfig,
    dataset: Dataset,
    models: StudyModels,
    by_id: dict[str, ModelRecord],
    progress: Progress,
) -> tuple[list[AcceptanceRecord], list[ExpectedRecord]]:
    """Teacher-forced α on held-out text and on every target's own samples, with the expected rounds
    of the latter."""
    m = config.measure
    advance = lambda n: progress.advance(n, "exact acceptance")  # noqa: E731
    scored = pairwise_overlap(
        models.drafts,
        models.targets,
        dataset.text("test").windows(m.text_windows)[:, :-1],
        first=0,
        samplings=[Sampling(m.temperature)],
        advance=advance,
    )
    rows = [
        pair_rows(config, pair).overlap("teacher_forced_text", value)
        for pair, value in scored.pairs.items()
    ]
    expected = []
    own = Domain(domain(config), dataset.text("test"), (m.temperature,))
    for name, target in models.targets.items():
        samples = own_samples(config, own.text, target, m.temperature, config.seed)
        more, rounds = on_samples(
            config, own, m.temperature, models, name, samples, advance, by_id=by_id
        )
        rows += more
        expected += rounds
    return rows, expected


def _exact_heads(
    config: StudyConfig, dataset: Dataset, models: StudyModels, by_id: dict[str, ModelRecord]
) -> tuple[list[AcceptanceRecord], list[ExpectedRecord]]:
    """α of every head with its target, on text and on the target's own samples: of its first draft,
    and of each later one; with the expected rounds."""
    m = config.measure
    own = Domain(domain(config), dataset.text("test"), (m.temperature,))
    samples = {
        target_id: own_samples(
            config, own.text, models.targets[target_id], m.temperature, config.seed
        )
        for target_id in {target_id for _, target_id in models.heads.values()}
    }
    acceptance, expected = [], []
    for name, (head, target_id) in models.heads.items():
        more, drawn = of_head(config, own, m.temperature, models, name, samples[target_id])
        acceptance += more
        cost = round_cost(by_id[name], by_id[target_id], head, config.data.sequence_length / 2)
        rows = pair_rows(config, (name, target_id))
        expected += expected_records(config, rows, drawn, drawn.shape[-1], cost)
    return acceptance, expected


def _latency(
    config: StudyConfig, models: dict[str, Model], targets: set[str], progress: Progress
) -> list[LatencyRecord]:
    """Decode steps of every shape, and verify passes of the targets at every lookahead."""
    m = config.measure
    context = config.data.sequence_length // 2
    shapes = [(name, 1) for name in models]
    shapes += [(name, g + 1) for name in models if name in targets for g in m.lookaheads]
    steps = {
        f"{name}/{width}": Step(models[name], width, context, m.latency_batch)
        for name, width in shapes
    }
    timed = time_steps(steps, repetitions=m.latency_repetitions, confidence=m.confidence)
    progress.advance(RUN_UNITS * len(models), "latency")
    return [
        LatencyRecord(
            model_id=name,
            operation="decode" if width == 1 else "verify",
            width=width,
            batch=m.latency_batch,
            context=context,
            **seconds.columns("seconds"),
            confidence=m.confidence,
            repetitions=m.latency_repetitions,
            device=device_name(),
        )
        for (name, width), seconds in zip(shapes, timed.values())
    ]
