"""Exact acceptance under other conditions: temperatures, domains, and drafts that were trained on other text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdsl_jax.checkpoints.loading import load_other_models
from sdsl_jax.config import HEAD_KINDS, StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.data.domains import SourceMissing, domain_files, load_domain
from sdsl_jax.decoding import Model, Sampling
from sdsl_jax.errors import require
from sdsl_jax.measurement.exact import (
    RUN_UNITS,
    Domain,
    domain,
    of_head,
    on_samples,
    own_samples,
    pair_rows,
)
from sdsl_jax.measurement.overlap import ModelScores, pairwise_overlap
from sdsl_jax.measurement.study_models import StudyModels, by_role, load_heads, load_models
from sdsl_jax.progress import Progress
from sdsl_jax.records import (
    AcceptanceRecord,
    LossRecord,
    ModelRecord,
)
from sdsl_jax.seeds import derive_seed
from sdsl_jax.statistics import ratio_interval

# Prefix of the names of drafts that were trained on other text.
OTHER = "other-"


class Conditions(NamedTuple):
    """The tables of the conditions stage, by their names."""

    conditions: list[AcceptanceRecord]
    other_models: list[ModelRecord]
    losses: list[LossRecord]


def check_conditions(config: StudyConfig) -> None:
    """Checks before anything is trained that every domain and the other drafts can be found.

    Raises:
      SdslError: a domain that is not optional is missing, has the name of the study's own, or holds
        nothing to read; or there is no ladder in `conditions.other_drafts`.
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
    """The records and models of `conditions.other_drafts`, under names of their own.

    Raises:
      SdslError: the folder cannot be read, or it holds no draft.
    """
    if not config.conditions.other_drafts:
        return [], {}
    folder, setting = Path(config.conditions.other_drafts), "conditions.other_drafts"
    records, models = load_other_models(
        folder,
        setting,
        OTHER,
        dataset,
        study,
        lambda r: r.role == "draft" and r.kind not in HEAD_KINDS,
    )
    require(records, f"{setting} is {str(folder)!r}, whose records hold no draft.")
    return records, models


def measure_conditions(
    config: StudyConfig,
    dataset: Dataset,
    records: list[ModelRecord],
    study: Path,
    progress: Progress,
) -> Conditions:
    """Measures the exact acceptance of every pair under every condition: of drafts of all kinds, and of a
    head with its own target.

    Nothing is decoded by a pair. One pass of each model over a text serves every temperature and the
    losses as well. The targets' own samples are drawn and scored at the temperature that they stand
    for. Rows of the study's own domain and temperature repeat those of the measure stage, so that
    laws find a complete table; where no law will be fitted, the own domain is left out if no other
    temperature asks for it.

    Args:
      config: The study.
      dataset: Its corpus.
      records: Its trained models.
      study: Its folder, which holds their weights.
      progress: Reports progress after every piece of work.

    Raises:
      SdslError: a domain is missing, unreadable or too short, or a checkpoint is missing or
        damaged.
    """
    check_conditions(config)
    own = load_models(records, study)
    other_records, others = load_other_drafts(config, dataset, study)
    domains = _domains(config, dataset, progress)
    for_laws = any(r.role == "draft" and r.trained_for == "text" for r in records)
    if not (for_laws or others or len(domains[0].temperatures) > 1):
        domains = domains[1:]
    drafts, targets, _ = by_role(own, records)
    heads = load_heads(records, study, own)
    models = StudyModels(drafts | others, targets, heads).aligned
    progress.start("conditions", sum(_units(config, each, models) for each in domains))
    rows: list[AcceptanceRecord] = []
    losses: list[LossRecord] = []
    for each in domains:
        advance = lambda n, name=each.name: progress.advance(n, name)  # noqa: E731
        if models.drafts:
            more, lost = _on_text(config, each, models, advance)
            rows += more
            losses += lost
        for temperature in each.temperatures:
            # The study's own samples are those of the measure stage; others share no randomness.
            same = each.name == domain(config) and temperature == config.measure.temperature
            for name, target in models.targets.items():
                belongs_to = ("conditions", config.seed, each.name, name, temperature)
                seed = config.seed if same else derive_seed(*belongs_to)
                samples = own_samples(config, each.text, target, temperature, seed)
                advance(RUN_UNITS)
                at = (config, each, temperature, models)
                if models.drafts:
                    rows += on_samples(*at, name, samples, advance)[0]
                for head in (head for head, (_, of) in models.heads.items() if of == name):
                    rows += of_head(*at, head, samples)[0]
                    advance(RUN_UNITS)
    progress.finish()
    return Conditions(rows, other_records, losses)


def _domains(config: StudyConfig, dataset: Dataset, progress: Progress) -> list[Domain]:
    """The study's own domain first; optional domains that are missing are left out."""
    m, c = config.measure, config.conditions
    domains = [
        Domain(
            domain(config),
            dataset.text("test"),
            tuple(sorted({*map(float, c.temperatures), float(m.temperature)})),
        )
    ]
    for each in c.domains:
        try:
            text = load_domain(each, dataset, m.prompts, progress.note, config.data)
            domains.append(Domain(each.name, text, (float(m.temperature),)))
        except SourceMissing as error:
            if not each.optional:
                raise
            progress.note(f"{each.name} is left out: {error}")
    return domains


def _units(config: StudyConfig, where: Domain, models: StudyModels) -> int:
    drafts, targets = len(models.drafts), len(models.targets)
    windows = min(config.measure.text_windows, where.text.window_count)
    on_samples = -(-config.measure.prompts // 32) * (drafts + 1) if drafts else 0
    each = targets * (RUN_UNITS + on_samples) + len(models.heads) * RUN_UNITS
    on_text = -(-windows // 32) * (drafts + targets) if drafts else 0
    return on_text + len(where.temperatures) * each


def _on_text(
    config: StudyConfig, where: Domain, models: StudyModels, advance: Callable[[int], None]
) -> tuple[list[AcceptanceRecord], list[LossRecord]]:
    """α on text at every temperature, and the losses of all models there, which are at temperature 1
    by definition."""
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
        pair_rows(config, pair, temperature, where.name).overlap(
            "teacher_forced_text", value, index
        )
        for index, temperature in enumerate(where.temperatures)
        for pair, value in scored.pairs.items()
    ]
    plain = temperatures.index(1.0)
    losses = []
    for name, scores in (scored.drafts | scored.targets).items():
        readout = (models.drafts | models.targets)[name].config.readout_ids
        counted = np.isin(windows[:, 1:], readout) if readout else None
        losses.append(_loss(config, where, name, scores, plain, counted))
    return rows, losses


def _loss(
    config: StudyConfig,
    where: Domain,
    name: str,
    scores: ModelScores,
    plain: int,
    counted: np.ndarray | None,
) -> LossRecord:
    """The loss of a model on a text; `counted` are the tokens that a truncated readout can give."""
    assert scores.log_probs is not None
    confidence, nats, positions = (
        config.measure.confidence,
        -scores.log_probs[plain],
        scores.positions,
    )
    if counted is not None:
        nats, positions = np.where(counted, nats, 0.0), counted.sum(axis=1)
    loss = ratio_interval(nats.sum(axis=1, dtype=float), positions, confidence)
    return LossRecord(
        model_id=name,
        domain=where.name,
        **loss.columns("loss_nats"),
        entropy_nats=scores.mean_entropy(confidence).estimate,
        bits_per_byte=math.nan
        if counted is not None
        else loss.estimate / math.log(2) / where.text.bytes_per_token,
        confidence=confidence,
        windows=len(positions),
        tokens=int(positions.sum()),
    )
