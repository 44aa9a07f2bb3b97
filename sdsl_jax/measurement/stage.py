"""The measurement of a study: acceptance, survival and latency of every draft × target pair, as records."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset, Text
from sdsl_jax.decoding import Model, Sampling, autoregress, speculate
from sdsl_jax.device import device_name
from sdsl_jax.errors import require
from sdsl_jax.measurement.decoded import DecodedStatistics, event_columns, summarise
from sdsl_jax.measurement.expected import expected_outcomes, expected_record
from sdsl_jax.measurement.latency import Step, time_steps
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.measurement.replay import drawn_acceptance
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
from sdsl_jax.statistics import Interval
from sdsl_jax.training import load_trained


class Measurements(NamedTuple):
    """All that the stage found out. `self_checks` maps "draft × target, γ" to a standard normal statistic."""

    acceptance: list[AcceptanceRecord]
    survival: list[SurvivalRecord]
    expected: list[ExpectedRecord]
    latency: list[LatencyRecord]
    events: pandas.DataFrame
    self_checks: dict[str, float]


def domain(config: StudyConfig) -> str:
    """What the contexts are: the test split of the corpus."""
    if config.data.source == "sotu":
        return f"sotu since {config.data.test_from_year}"
    return f"last {config.data.test_fraction:.0%} of {config.data.source}"


def load_models(
    config: StudyConfig, records: list[ModelRecord], dataset: Dataset, study: Path
) -> dict[str, Model]:
    """Every model of the records, its parameters checked against the recorded digest."""
    return {
        r.model_id: Model(*load_trained(config, r, dataset.tokenizer.vocab_size, study))
        for r in records
    }


def prompts(config: StudyConfig, text: Text, count: int) -> np.ndarray:
    """The first tokens of windows spread over a text, int32 [count, prompt_tokens]."""
    windows = text.windows(count)
    return windows[np.arange(count) % len(windows), : config.measure.prompt_tokens]


def measure(
    config: StudyConfig,
    dataset: Dataset,
    records: list[ModelRecord],
    study: Path,
    progress: Progress,
) -> Measurements:
    """Measures every pair; the live decoder runs for those that `measure.decode` asks for.

    Args:
      config: the study.
      dataset: its corpus.
      records: the trained models.
      study: the study's folder, which holds their weights.
      progress: told after every piece of work.

    Raises:
      SdslError: a checkpoint is missing or damaged.
    """
    available = dataset.window_count("test")
    require(
        config.measure.prompts <= available,
        f"measure.prompts is {config.measure.prompts}; the test split has only {available} sequences to take prompts from.",
    )
    models = load_models(config, records, dataset, study)
    drafts = {r.model_id: models[r.model_id] for r in records if r.role == "draft"}
    targets = {r.model_id: models[r.model_id] for r in records if r.role == "target"}
    # How long a model trained does not change how fast it runs: one of each shape is timed.
    largest = {r.model_id for role in ("draft", "target") for r in longest_trained(records, role)}
    latency_models = {name: model for name, model in models.items() if name in largest}
    wanted = {"all": {*models}, "largest": largest, "none": set[str]()}[config.measure.decode]
    decoded_pairs = [(d, t) for d in drafts for t in targets if {d, t} <= wanted]
    # One unit is about one batched pass of a small model; a run of the decoder is worth many.
    chunks = -(-config.measure.text_windows // 32) + len(targets) * -(-config.measure.prompts // 32)
    decode_units = 20 * len(decoded_pairs) * len(config.measure.lookaheads)
    progress.start("measure", chunks * len(models) + decode_units + 20 * len(latency_models))

    acceptance, expected = _exact(config, dataset, drafts, targets, progress)
    survival: list[SurvivalRecord] = []
    frames, checks = [], {}
    for draft_id, target_id in decoded_pairs:
        draft, target = drafts[draft_id], targets[target_id]
        for lookahead in config.measure.lookaheads:
            statistics, frame = _decode(
                config, dataset, draft_id, draft, target_id, target, lookahead
            )
            more, survived = _rows(config, draft_id, target_id, lookahead, statistics)
            acceptance += more
            survival += survived
            frames.append(frame.assign(draft_id=draft_id, target_id=target_id))
            checks[f"{draft_id} × {target_id}, γ = {lookahead}"] = statistics.self_check
            progress.advance(
                20,
                f"{draft_id} × {target_id}  γ = {lookahead}  {statistics.tokens_per_round.estimate:.2f} tokens/round",
            )
    latency = _latency(config, latency_models, set(targets), progress)
    progress.finish()
    events = pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
    return Measurements(acceptance, survival, expected, latency, events, checks)


def target_samples(
    config: StudyConfig, target: Model, starts: np.ndarray, temperature: float, seed: int
) -> np.ndarray:
    """Prompts and how a target continues them, int32 [prompts, prompt_tokens + new_tokens]."""
    sampled = autoregress(
        target,
        starts,
        new_tokens=config.measure.new_tokens,
        sampling=Sampling(temperature),
        seed=seed,
    )
    return np.asarray(sampled.tokens)


def _exact(
    config: StudyConfig,
    dataset: Dataset,
    drafts: dict[str, Model],
    targets: dict[str, Model],
    progress: Progress,
) -> tuple[list[AcceptanceRecord], list[ExpectedRecord]]:
    """Teacher-forced α on held-out text and on every target's own samples, and from the latter the expected rounds."""
    m = config.measure
    advance = lambda n: progress.advance(n, "exact acceptance")  # noqa: E731
    text = dataset.windows("test", m.text_windows)[:, :-1]
    found = {
        ("teacher_forced_text", pair): value
        for pair, value in pairwise_overlap(
            drafts, targets, text, first=0, samplings=[Sampling(m.temperature)], advance=advance
        ).pairs.items()
    }
    expected = []
    for target_id, target in targets.items():
        tokens = target_samples(
            config,
            target,
            prompts(config, dataset.text("test"), m.prompts),
            m.temperature,
            config.seed,
        )
        scored = pairwise_overlap(
            drafts,
            {target_id: target},
            tokens[:, :-1],
            first=m.prompt_tokens - 1,
            samplings=[Sampling(m.temperature)],
            following=tokens[:, m.prompt_tokens :],
            advance=advance,
        )
        found |= {("teacher_forced_samples", pair): value for pair, value in scored.pairs.items()}
        for draft_id, scores in scored.drafts.items():
            drawn = drawn_acceptance(scored.targets[target_id].log_probs[0], scores.log_probs[0])  # type: ignore[index]
            expected += [
                expected_record(
                    outcome,
                    draft_id=draft_id,
                    target_id=target_id,
                    temperature=m.temperature,
                    domain=domain(config),
                    confidence=m.confidence,
                    samples=len(drawn),
                )
                for outcome in expected_outcomes(drawn, m.expected_lookahead, m.confidence)
            ]
    rows = []
    for (estimator, (draft_id, target_id)), value in found.items():
        clusters = len(value.positions)
        interval = value.mean(value.acceptance[0], m.confidence)
        positions = int(value.positions.sum())
        rows.append(
            acceptance_record(
                config, draft_id, target_id, estimator, 0, interval, clusters, positions
            )
        )
    return rows, expected


def acceptance_record(
    config: StudyConfig,
    draft_id: str,
    target_id: str,
    estimator: str,
    lookahead: int,
    value: Interval,
    clusters: int,
    tokens: int,
) -> AcceptanceRecord:
    """A row of `acceptance.csv`."""
    return AcceptanceRecord(
        draft_id=draft_id,
        target_id=target_id,
        estimator=estimator,
        lookahead=lookahead,
        temperature=config.measure.temperature,
        domain=domain(config),
        alpha=value.estimate,
        alpha_low=value.low,
        alpha_high=value.high,
        confidence=config.measure.confidence,
        clusters=clusters,
        tokens=tokens,
    )


def _decode(
    config: StudyConfig,
    dataset: Dataset,
    draft_id: str,
    draft: Model,
    target_id: str,
    target: Model,
    lookahead: int,
):
    """Statistics and events of one pair at one lookahead; pairs share prompts but no randomness."""
    m = config.measure
    decoded = speculate(
        draft,
        target,
        prompts(config, dataset.text("test"), m.prompts),
        lookahead=lookahead,
        max_lookahead=max(m.lookaheads),
        new_tokens=m.new_tokens,
        sampling=Sampling(m.temperature),
        seed=derive_seed("decode", config.seed, draft_id, target_id, lookahead),
    )
    frame = pandas.DataFrame(event_columns(decoded)).assign(
        lookahead=lookahead, temperature=m.temperature
    )
    return summarise(decoded, lookahead, m.confidence), frame


def _rows(
    config: StudyConfig, draft_id: str, target_id: str, lookahead: int, found: DecodedStatistics
) -> tuple[list[AcceptanceRecord], list[SurvivalRecord]]:
    m = config.measure
    acceptance = [
        acceptance_record(config, draft_id, target_id, name, lookahead, value, m.prompts, tokens)
        for name, value, tokens in (
            ("decoded_per_test", found.per_test, found.tests),
            ("decoded_tar", found.tar, found.rounds * lookahead),
        )
    ]
    survival = [
        SurvivalRecord(
            draft_id=draft_id,
            target_id=target_id,
            lookahead=lookahead,
            temperature=m.temperature,
            domain=domain(config),
            position=k,
            survival=value.estimate,
            survival_low=value.low,
            survival_high=value.high,
            confidence=m.confidence,
            rounds=found.rounds,
            tokens_per_round=found.tokens_per_round.estimate,
            tokens_per_round_low=found.tokens_per_round.low,
            tokens_per_round_high=found.tokens_per_round.high,
        )
        for k, value in enumerate(found.survival, 1)
    ]
    return acceptance, survival


def _latency(
    config: StudyConfig, models: dict[str, Model], targets: set[str], progress: Progress
) -> list[LatencyRecord]:
    """Decode steps of every shape, and verify passes of the targets at every lookahead."""
    m = config.measure
    steps = {(name, 1): Step(model, 1) for name, model in models.items()}
    steps |= {
        (name, g + 1): Step(models[name], g + 1)
        for name in models
        if name in targets
        for g in m.lookaheads
    }
    context = config.data.sequence_length // 2
    names = {f"{name}/{width}": key for key in steps for name, width in [key]}
    timed = time_steps(
        {label: steps[key] for label, key in names.items()},
        batch=m.latency_batch,
        context=context,
        repetitions=m.latency_repetitions,
        confidence=m.confidence,
    )
    progress.advance(20 * len(models), "latency")
    return [
        LatencyRecord(
            model_id=name,
            operation="decode" if width == 1 else "verify",
            width=width,
            batch=m.latency_batch,
            context=context,
            seconds=timed[label].estimate,
            seconds_low=timed[label].low,
            seconds_high=timed[label].high,
            confidence=m.confidence,
            repetitions=m.latency_repetitions,
            device=device_name(),
        )
        for label, (name, width) in names.items()
    ]
