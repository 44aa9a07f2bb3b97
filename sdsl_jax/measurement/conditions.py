"""Exact acceptance under other conditions: other temperatures, text of other domains, drafts that
were trained on other text.

Nothing is decoded by a pair. Text is scored in one pass of each model, which serves every
temperature and the losses as well; the target's own samples are drawn, and scored, at the
temperature that they stand for. Rows of the study's own domain at its own temperature repeat those
of the measure stage, so that the table is a whole grid by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sdsl_jax.checkpoints.loading import load_other_models
from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset, Text
from sdsl_jax.data.domains import SourceMissing, domain_files, load_domain
from sdsl_jax.decoding import Model, Sampling
from sdsl_jax.errors import require
from sdsl_jax.measurement.overlap import ModelScores, PairOverlap, pairwise_overlap
from sdsl_jax.measurement.stage import (
    acceptance_record,
    domain,
    load_models,
    prompts,
    target_samples,
)
from sdsl_jax.progress import Progress
from sdsl_jax.records import AcceptanceRecord, LossRecord, ModelRecord
from sdsl_jax.seeds import derive_seed
from sdsl_jax.statistics import ratio_interval

OTHER = "other-"
# Units of progress, of which a pass of a small model over 32 contexts is one, that a run of a
# target is about worth.
_SAMPLING_UNITS = 20


class Conditions(NamedTuple):
    """All that the stage found out, by the names of its tables."""

    conditions: list[AcceptanceRecord]
    other_models: list[ModelRecord]
    losses: list[LossRecord]


class _Domain(NamedTuple):
    """A text to measure on, and the temperatures that are wanted there."""

    name: str
    text: Text
    temperatures: tuple[float, ...]


class _Models(NamedTuple):
    drafts: dict[str, Model]
    targets: dict[str, Model]


def check_conditions(config: StudyConfig) -> None:
    """Checks what can be known before anything is trained: that every domain can be found, and the
    other drafts as well.

    Raises:
      SdslError: a domain that is not optional is not there, has the name of the study's own, or
        holds nothing to read; or there is no ladder in `conditions.other_drafts`.
    """
    for each in config.conditions.domains:
        require(
            each.name != domain(config),
            f"conditions.domains holds {each.name!r}, which is the name of the study's own test split; choose another.",
        )
        try:
            domain_files(each)
        except SourceMissing:
            if not each.optional:
                raise
    folder = config.conditions.other_drafts
    require(
        not folder or (Path(folder) / "records" / "models.csv").exists(),
        f"conditions.other_drafts is {folder!r}, which holds no trained ladder: records/models.csv is not there.",
    )


def load_other_drafts(
    config: StudyConfig, dataset: Dataset, study: Path
) -> tuple[list[ModelRecord], dict[str, Model]]:
    """The drafts of `conditions.other_drafts`: their records, under names of their own, and the
    models by those names.

    Raises:
      SdslError: as `load_other_models` does, or the folder holds no draft.
    """
    if not config.conditions.other_drafts:
        return [], {}
    folder, setting = Path(config.conditions.other_drafts), "conditions.other_drafts"
    records, models = load_other_models(folder, setting, OTHER, dataset, study, role="draft")
    require(bool(records), f"{setting} is {str(folder)!r}, whose records hold no draft.")
    return records, models


def measure_conditions(
    config: StudyConfig,
    dataset: Dataset,
    records: list[ModelRecord],
    study: Path,
    progress: Progress,
) -> Conditions:
    """Measures every pair under every condition.

    Args:
      config: the study.
      dataset: its corpus.
      records: its trained models.
      study: its folder, which holds their weights.
      progress: told after every piece of work.

    Raises:
      SdslError: a domain is missing, unreadable or too short, or a checkpoint is missing or
        damaged.
    """
    check_conditions(config)
    domains = _domains(config, dataset, progress)
    own = load_models(config, records, dataset, study)
    other_records, others = load_other_drafts(config, dataset, study)
    models = _Models(
        {r.model_id: own[r.model_id] for r in records if r.role == "draft"} | others,
        {r.model_id: own[r.model_id] for r in records if r.role == "target"},
    )
    progress.start("conditions", sum(_units(config, each, models) for each in domains))
    rows: list[AcceptanceRecord] = []
    losses: list[LossRecord] = []
    for each in domains:
        advance = lambda n, name=each.name: progress.advance(n, name)  # noqa: E731
        more, lost = _on_text(config, each, models, advance)
        rows += more
        losses += lost
        for temperature in each.temperatures:
            rows += _on_samples(config, each, temperature, models, advance)
    progress.finish()
    return Conditions(rows, other_records, losses)


def _domains(config: StudyConfig, dataset: Dataset, progress: Progress) -> list[_Domain]:
    """The study's own first; those that are optional and not there are left out."""
    m, c = config.measure, config.conditions
    found = [
        _Domain(
            domain(config),
            dataset.text("test"),
            tuple(sorted({*map(float, c.temperatures), float(m.temperature)})),
        )
    ]
    for each in c.domains:
        try:
            text = load_domain(each, dataset, m.prompts, progress.note)
            found.append(_Domain(each.name, text, (float(m.temperature),)))
        except SourceMissing as error:
            if not each.optional:
                raise
            progress.note(f"{each.name} is left out: {error}")
    return found


def _units(config: StudyConfig, where: _Domain, models: _Models) -> int:
    drafts, targets = map(len, models)
    windows = min(config.measure.text_windows, where.text.window_count)
    each = _SAMPLING_UNITS + -(-config.measure.prompts // 32) * (drafts + 1)
    return -(-windows // 32) * (drafts + targets) + len(where.temperatures) * targets * each


def _on_text(
    config: StudyConfig, where: _Domain, models: _Models, advance: Callable[[int], None]
) -> tuple[list[AcceptanceRecord], list[LossRecord]]:
    """α on text at every temperature, and the losses of all models there, which are at temperature 1 by definition."""
    m = config.measure
    windows = where.text.windows(m.text_windows)
    temperatures = where.temperatures if 1.0 in where.temperatures else (*where.temperatures, 1.0)
    scored = pairwise_overlap(
        models.drafts,
        models.targets,
        windows[:, :-1],
        first=0,
        samplings=[Sampling(temperature) for temperature in temperatures],
        following=windows[:, 1:],
        advance=advance,
    )
    rows = [
        _row(config, pair, "teacher_forced_text", value, index, temperature, where.name)
        for index, temperature in enumerate(where.temperatures)
        for pair, value in scored.pairs.items()
    ]
    plain = temperatures.index(1.0)
    losses = [
        _loss(config, where, name, scores, plain)
        for name, scores in (scored.drafts | scored.targets).items()
    ]
    return rows, losses


def _on_samples(
    config: StudyConfig,
    where: _Domain,
    temperature: float,
    models: _Models,
    advance: Callable[[int], None],
) -> list[AcceptanceRecord]:
    """α on every target's own continuations of the domain, drawn and scored at one temperature."""
    m, rows = config.measure, []
    same = where.name == domain(config) and temperature == m.temperature
    for target_id, target in models.targets.items():
        # The study's own samples are those of the measure stage; all others share no randomness.
        seed = (
            config.seed
            if same
            else derive_seed("conditions", config.seed, where.name, target_id, temperature)
        )
        tokens = target_samples(
            config, target, prompts(config, where.text, m.prompts), temperature, seed
        )
        advance(_SAMPLING_UNITS)
        scored = pairwise_overlap(
            models.drafts,
            {target_id: target},
            tokens[:, :-1],
            first=m.prompt_tokens - 1,
            samplings=[Sampling(temperature)],
            advance=advance,
        )
        rows += [
            _row(config, pair, "teacher_forced_samples", value, 0, temperature, where.name)
            for pair, value in scored.pairs.items()
        ]
    return rows


def _row(
    config: StudyConfig,
    pair: tuple[str, str],
    estimator: str,
    value: PairOverlap,
    index: int,
    temperature: float,
    name: str,
) -> AcceptanceRecord:
    interval = value.mean(value.acceptance[index], config.measure.confidence)
    clusters, positions = len(value.positions), int(value.positions.sum())
    row = acceptance_record(config, *pair, estimator, 0, interval, clusters, positions)
    return dataclasses.replace(row, temperature=temperature, domain=name)


def _loss(
    config: StudyConfig, where: _Domain, name: str, scores: ModelScores, plain: int
) -> LossRecord:
    assert scores.log_probs is not None
    confidence = config.measure.confidence
    loss = ratio_interval(
        -scores.log_probs[plain].sum(axis=1, dtype=float), scores.positions, confidence
    )
    return LossRecord(
        model_id=name,
        domain=where.name,
        loss_nats=loss.estimate,
        loss_nats_low=loss.low,
        loss_nats_high=loss.high,
        entropy_nats=scores.mean_entropy(confidence).estimate,
        bits_per_byte=loss.estimate / math.log(2) / where.text.bytes_per_token,
        confidence=confidence,
        windows=len(scores.positions),
        tokens=int(scores.positions.sum()),
    )
