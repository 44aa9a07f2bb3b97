"""The measurement of a study: acceptance, survival and latency of every draft × target pair, and
exact acceptance under other conditions (temperatures, domains, drafts trained on other text)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from sdsl_jax.checkpoints.loading import load_other_models
from sdsl_jax.config import HEAD_KINDS, StudyConfig
from sdsl_jax.data import Dataset, Text
from sdsl_jax.data.corpus import held_out_name
from sdsl_jax.data.domains import SourceMissing, domain_files, load_domain
from sdsl_jax.decoding import Model, Sampling, autoregress, speculate
from sdsl_jax.device import device_name
from sdsl_jax.errors import require
from sdsl_jax.measurement.events import event_columns, summarise
from sdsl_jax.measurement.heads import head_overlap
from sdsl_jax.measurement.latency import Step, side_by_side, time_steps
from sdsl_jax.measurement.overlap import ModelScores, pairwise_overlap
from sdsl_jax.measurement.pair_records import PairName, PairRows
from sdsl_jax.measurement.replay import expected_rounds
from sdsl_jax.measurement.round_costs import RoundCost, round_cost
from sdsl_jax.measurement.study_models import StudyModels, by_role, load_heads, load_models
from sdsl_jax.progress import Progress
from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    LatencyRecord,
    LossRecord,
    ModelRecord,
    SurvivalRecord,
    longest_trained,
)
from sdsl_jax.seeds import derive_seed
from sdsl_jax.statistics import ratio_interval

# Prefix of the names of drafts that were trained on other text.
OTHER = "other-"
# Progress is counted in passes of a small model over 32 contexts. A run of a decoder is worth about
# so many.
_RUN_UNITS = 20


class Measurements(NamedTuple):
    """The tables of the measure stage. `self_checks` maps "draft × target, γ" to a standard normal
    score."""

    acceptance: list[AcceptanceRecord]
    survival: list[SurvivalRecord]
    expected: list[ExpectedRecord]
    latency: list[LatencyRecord]
    events: pandas.DataFrame
    self_checks: dict[str, float]


class Conditions(NamedTuple):
    """The tables of the conditions stage, by their names."""

    conditions: list[AcceptanceRecord]
    other_models: list[ModelRecord]
    losses: list[LossRecord]


class _Domain(NamedTuple):
    """A text to measure on, and the temperatures to measure at."""

    name: str
    text: Text
    temperatures: tuple[float, ...]


def domain(config: StudyConfig) -> str:
    """Name of the study's own contexts: the test split of the corpus."""
    return held_out_name(config.data)


def prompts(config: StudyConfig, text: Text, count: int) -> np.ndarray:
    """The first tokens of windows spread over a text, int32 [count, prompt_tokens]."""
    windows = text.windows(count)
    return windows[np.arange(count) % len(windows), : config.measure.prompt_tokens]


def _rows(
    config: StudyConfig, pair: tuple[str, str], temperature: float | None = None, name: str = ""
) -> PairRows:
    """The rows of a pair; of the study's own temperature and domain by default."""
    m = config.measure
    temperature = m.temperature if temperature is None else temperature
    return PairRows(PairName(*pair, temperature, name or domain(config)), m.confidence)


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
    units = chunks * len(loaded) + _RUN_UNITS * (len(pairs) * len(m.lookaheads) + len(largest))
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
        progress.advance(_RUN_UNITS, f"{run.name}  {run.tokens_per_round:.2f} tokens/round")
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
    acceptance, survival = _rows(config, (draft_id, target_id)).decoded(
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
        _rows(config, pair).overlap("teacher_forced_text", value)
        for pair, value in scored.pairs.items()
    ]
    expected = []
    own = _Domain(domain(config), dataset.text("test"), (m.temperature,))
    for name, target in models.targets.items():
        samples = _own_samples(config, own.text, target, m.temperature, config.seed)
        more, rounds = _on_samples(
            config, own, m.temperature, models, name, samples, advance, by_id=by_id
        )
        rows += more
        expected += rounds
    return rows, expected


def _own_samples(
    config: StudyConfig, text: Text, target: Model, temperature: float, seed: int
) -> np.ndarray:
    """A target's own continuations of a text, int32 [prompts, prompt_tokens + new_tokens]."""
    decoded = autoregress(
        target,
        prompts(config, text, config.measure.prompts),
        new_tokens=config.measure.new_tokens,
        sampling=Sampling(temperature),
        seed=seed,
    )
    return np.asarray(decoded.tokens)


def _expected(
    config: StudyConfig, rows: PairRows, drawn: np.ndarray, largest: int, cost: RoundCost
) -> list[ExpectedRecord]:
    """The expected rounds of a pair up to a largest lookahead, and what they cost."""
    # Every lookahead counts the same starts: what differs between two is the lookahead alone.
    outcomes = expected_rounds(
        drawn,
        largest,
        lengths=drawn.shape[1] - config.measure.expected_lookahead + 1,
        confidence=config.measure.confidence,
    )
    return [
        rows.expected(each, len(drawn), cost(each.lookahead, each.tokens_per_round.estimate))
        for each in outcomes
    ]


def _exact_heads(
    config: StudyConfig, dataset: Dataset, models: StudyModels, by_id: dict[str, ModelRecord]
) -> tuple[list[AcceptanceRecord], list[ExpectedRecord]]:
    """α of every head with its target, on text and on the target's own samples: of its first draft,
    and of each later one; with the expected rounds."""
    m = config.measure
    own = _Domain(domain(config), dataset.text("test"), (m.temperature,))
    samples = {
        target_id: _own_samples(
            config, own.text, models.targets[target_id], m.temperature, config.seed
        )
        for target_id in {target_id for _, target_id in models.heads.values()}
    }
    acceptance, expected = [], []
    for name, (head, target_id) in models.heads.items():
        more, drawn = _of_head(config, own, m.temperature, models, name, samples[target_id])
        acceptance += more
        cost = round_cost(by_id[name], by_id[target_id], head, config.data.sequence_length / 2)
        rows = _rows(config, (name, target_id))
        expected += _expected(config, rows, drawn, drawn.shape[-1], cost)
    return acceptance, expected


def _of_head(
    config: StudyConfig,
    where: _Domain,
    temperature: float,
    models: StudyModels,
    name: str,
    samples: np.ndarray,
) -> tuple[list[AcceptanceRecord], np.ndarray]:
    """α of a head on a domain's text and on its target's continuations of it: of its first draft, and
    of each later one; with min(1, q(y)/p(y)) of the continuations, [prompts, tokens, drafts]."""
    m, (head, target_id) = config.measure, models.heads[name]
    rows = _rows(config, (name, target_id), temperature, where.name)
    drafts = min(m.expected_lookahead, head.config.parallel or m.expected_lookahead)
    compare = functools.partial(
        head_overlap, head, models.targets[target_id], sampling=Sampling(temperature)
    )
    on_text = compare(where.text.windows(m.text_windows)[:, :-1], first=0, drafts=1)
    own = compare(
        samples[:, :-1],
        first=m.prompt_tokens - 1,
        drafts=drafts,
        following=samples[:, m.prompt_tokens :],
    )
    assert own.drawn is not None
    return [
        rows.overlap("teacher_forced_text", on_text.drafts[0]),
        rows.overlap("teacher_forced_samples", own.drafts[0]),
        *(rows.overlap("by_draft_samples", o, lookahead=k) for k, o in enumerate(own.drafts, 1)),
    ], own.drawn


def _on_samples(
    config: StudyConfig,
    where: _Domain,
    temperature: float,
    models: StudyModels,
    target_id: str,
    tokens: np.ndarray,
    advance: Callable[[int], None],
    *,
    by_id: dict[str, ModelRecord] | None = None,
) -> tuple[list[AcceptanceRecord], list[ExpectedRecord]]:
    """α of all drafts on a target's own continuations of a domain, and the expected rounds if records
    say what a round costs."""
    m, target = config.measure, models.targets[target_id]
    scored = pairwise_overlap(
        models.drafts,
        {target_id: target},
        tokens[:, :-1],
        first=m.prompt_tokens - 1,
        samplings=[Sampling(temperature)],
        following=None if by_id is None else tokens[:, m.prompt_tokens :],
        advance=advance,
    )
    rows = {pair: _rows(config, pair, temperature, where.name) for pair in scored.pairs}
    acceptance = [
        rows[pair].overlap("teacher_forced_samples", value) for pair, value in scored.pairs.items()
    ]
    expected: list[ExpectedRecord] = []
    if by_id is None:
        return acceptance, []
    for draft_id in scored.drafts:
        drawn = scored.drawn_acceptance(draft_id, target_id)
        cost = round_cost(by_id[draft_id], by_id[target_id])
        pair = rows[draft_id, target_id]
        expected += _expected(config, pair, drawn, m.expected_lookahead, cost)
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
    progress.advance(_RUN_UNITS * len(models), "latency")
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
    for. Rows of the study's own domain and temperature repeat those of the measure stage, so the
    table is complete by itself.

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
    domains = _domains(config, dataset, progress)
    own = load_models(records, study)
    other_records, others = load_other_drafts(config, dataset, study)
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
                samples = _own_samples(config, each.text, target, temperature, seed)
                advance(_RUN_UNITS)
                at = (config, each, temperature, models)
                if models.drafts:
                    rows += _on_samples(*at, name, samples, advance)[0]
                for head in (head for head, (_, of) in models.heads.items() if of == name):
                    rows += _of_head(*at, head, samples)[0]
                    advance(_RUN_UNITS)
    progress.finish()
    return Conditions(rows, other_records, losses)


def _domains(config: StudyConfig, dataset: Dataset, progress: Progress) -> list[_Domain]:
    """The study's own domain first; optional domains that are missing are left out."""
    m, c = config.measure, config.conditions
    domains = [
        _Domain(
            domain(config),
            dataset.text("test"),
            tuple(sorted({*map(float, c.temperatures), float(m.temperature)})),
        )
    ]
    for each in c.domains:
        try:
            text = load_domain(each, dataset, m.prompts, progress.note, config.data)
            domains.append(_Domain(each.name, text, (float(m.temperature),)))
        except SourceMissing as error:
            if not each.optional:
                raise
            progress.note(f"{each.name} is left out: {error}")
    return domains


def _units(config: StudyConfig, where: _Domain, models: StudyModels) -> int:
    drafts, targets = len(models.drafts), len(models.targets)
    windows = min(config.measure.text_windows, where.text.window_count)
    on_samples = -(-config.measure.prompts // 32) * (drafts + 1) if drafts else 0
    each = targets * (_RUN_UNITS + on_samples) + len(models.heads) * _RUN_UNITS
    on_text = -(-windows // 32) * (drafts + targets) if drafts else 0
    return on_text + len(where.temperatures) * each


def _on_text(
    config: StudyConfig, where: _Domain, models: StudyModels, advance: Callable[[int], None]
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
        _rows(config, pair, temperature, where.name).overlap("teacher_forced_text", value, index)
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
    where: _Domain,
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
