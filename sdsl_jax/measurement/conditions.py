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
from sdsl_jax.decoding import Model
from sdsl_jax.errors import require
from sdsl_jax.measurement.exact import (
    Domain,
    domain,
    head_parts,
    head_rows,
    pair_rows,
    sample_parts,
    sample_rows,
    text_parts,
)
from sdsl_jax.measurement.overlap import ModelScores, Overlaps
from sdsl_jax.measurement.shared_parts import Part, measure_parts
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
    parts: Path | None = None,
    announce: Callable[[list[Part]], None] = lambda parts: None,
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
      parts: Folder of the parts that processes share; None to share none.
      announce: Called with the parts before the first is measured.

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
    on_text = {
        each.name: text_parts(config, each, models, _with_plain(each), progress, losses=True)
        for each in domains
    }
    on_samples: dict[tuple[str, float, str], tuple[list[Part], list[Part]]] = {}
    for each in domains:
        for temperature in each.temperatures:
            # The study's own samples are those of the measure stage; others share no randomness.
            same = each.name == domain(config) and temperature == config.measure.temperature
            for name in models.targets:
                belongs_to = ("conditions", config.seed, each.name, name, temperature)
                seed = config.seed if same else derive_seed(*belongs_to)
                at = (config, each, temperature, models, name, seed, progress)
                on_samples[each.name, temperature, name] = sample_parts(*at), head_parts(*at)
    every = [part for own in on_text.values() for part in own]
    every += [part for both in on_samples.values() for own in both for part in own]
    announce(every)
    progress.start("conditions", sum(part.cost for part in every))
    results = measure_parts(every, parts, progress)

    def together(of: list[Part]) -> Overlaps:
        return Overlaps.from_arrays(*(results[part.name] for part in of))

    rows: list[AcceptanceRecord] = []
    losses: list[LossRecord] = []
    for each in domains:
        if on_text[each.name]:
            more, lost = _text_rows(config, each, models, together(on_text[each.name]))
            rows += more
            losses += lost
        for temperature in each.temperatures:
            for name in models.targets:
                of_drafts, of_heads = on_samples[each.name, temperature, name]
                if of_drafts:
                    rows += sample_rows(config, each, temperature, together(of_drafts))[0]
                for head in (head for head, (_, of) in models.heads.items() if of == name):
                    pair = pair_rows(config, (head, name), temperature, each.name)
                    rows += head_rows(pair, head, results[of_heads[0].name])[0]
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


def _with_plain(where: Domain) -> tuple[float, ...]:
    """The temperatures of a domain, with that of losses, which is 1 by definition."""
    return where.temperatures if 1.0 in where.temperatures else (*where.temperatures, 1.0)


def _text_rows(
    config: StudyConfig, where: Domain, models: StudyModels, scored: Overlaps
) -> tuple[list[AcceptanceRecord], list[LossRecord]]:
    """α on text at every temperature, and the losses of all models there."""
    windows = where.text.windows(config.measure.text_windows)
    rows = [
        pair_rows(config, pair, temperature, where.name).overlap(
            "teacher_forced_text", value, index
        )
        for index, temperature in enumerate(where.temperatures)
        for pair, value in scored.pairs.items()
    ]
    plain = _with_plain(where).index(1.0)
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
