"""The measurement of a study: acceptance, survival and latency of every draft × target pair."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas

from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.decoding import Model, Sampling, speculate
from sdsl_jax.device import device_name
from sdsl_jax.errors import require
from sdsl_jax.measurement.events import DecodedStatistics, event_columns, summarise
from sdsl_jax.measurement.exact import (
    RUN_UNITS,
    Domain,
    domain,
    expected_records,
    head_parts,
    head_rows,
    pair_rows,
    prompts,
    sample_parts,
    sample_rows,
    text_parts,
)
from sdsl_jax.measurement.latency import Step, time_steps
from sdsl_jax.measurement.overlap import Overlaps
from sdsl_jax.measurement.round_costs import round_cost
from sdsl_jax.measurement.shared_parts import Arrays, Part, measure_parts
from sdsl_jax.measurement.study_models import by_role, load_heads, load_models
from sdsl_jax.measurement.threads import available_threads
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


class StudyMeasurement:
    """What a study measures of its models, in parts that any number of processes share.

    Args:
      config: The study.
      dataset: Its corpus.
      records: The trained models.
      study: The study's folder, which holds their weights.
      progress: Reports progress after every piece of work.

    Raises:
      SdslError: A checkpoint is missing or damaged, or there are too few sequences to take prompts
        from.
    """

    def __init__(
        self,
        config: StudyConfig,
        dataset: Dataset,
        records: list[ModelRecord],
        study: Path,
        progress: Progress,
    ):
        m = config.measure
        self.text = dataset.text("test")
        available = self.text.window_count
        require(
            m.prompts <= available,
            f"measure.prompts is {m.prompts}; the test split has only {available} sequences to take prompts from.",
        )
        self.config, self.records, self.progress = config, records, progress
        self.loaded = load_models(records, study)
        heads = load_heads(records, study, self.loaded)
        self.models = by_role(self.loaded, records)._replace(heads=heads).aligned
        self.where = Domain(domain(config), self.text, (m.temperature,))
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
        everything = {*self.loaded, *self.models.heads}
        decoding = {"all": everything, "largest": largest, "none": set[str]()}[m.decode]
        self.timed = {name: model for name, model in self.loaded.items() if name in largest}
        self._decoded = [pair for pair in self.models.pairs if {*pair} <= decoding]
        at = (config, self.where, m.temperature, self.models)
        self._text = text_parts(config, self.where, self.models, [m.temperature], progress)
        self._samples = {
            name: sample_parts(*at, name, config.seed, progress, drawn=True)
            for name in self.models.targets
        }
        self._heads = {
            name: head_parts(*at, name, config.seed, progress) for name in self.models.targets
        }
        self._runs = [self._decode(*pair) for pair in self._decoded]

    @property
    def parts(self) -> list[Part]:
        """All parts. What is timed is none: it wants a machine for itself."""
        by_target = [*self._samples.values(), *self._heads.values()]
        return [*self._text, *(part for each in by_target for part in each), *self._runs]

    def measurements(self, results: dict[str, Arrays]) -> Measurements:
        """The tables of the stage, latency not included, in an order that depends on no process.

        Args:
          results: The results of all parts.
        """
        m, by_id = self.config.measure, {r.model_id: r for r in self.records}

        def together(parts: list[Part]) -> Overlaps:
            return Overlaps.from_arrays(*(results[part.name] for part in parts))

        acceptance: list[AcceptanceRecord] = []
        expected: list[ExpectedRecord] = []
        if self._text:
            acceptance += [
                pair_rows(self.config, pair).overlap("teacher_forced_text", value)
                for pair, value in together(self._text).pairs.items()
            ]
        for parts in filter(None, self._samples.values()):
            more, rounds = sample_rows(
                self.config, self.where, m.temperature, together(parts), by_id=by_id
            )
            acceptance, expected = acceptance + more, expected + rounds
        for name, (head, target_id) in self.models.heads.items():
            (part,) = self._heads[target_id]
            rows = pair_rows(self.config, (name, target_id))
            more, drawn = head_rows(rows, name, results[part.name])
            cost = round_cost(
                by_id[name], by_id[target_id], head, self.config.data.sequence_length / 2
            )
            acceptance += more
            expected += expected_records(self.config, rows, drawn, drawn.shape[-1], cost)
        survival: list[SurvivalRecord] = []
        frames, checks = [], {}
        for (draft_id, target_id), part in zip(self._decoded, self._runs):
            for lookahead in m.lookaheads:
                own = {
                    key.partition("\t")[2]: value
                    for key, value in results[part.name].items()
                    if key.partition("\t")[0] == str(lookahead)
                }
                statistics = DecodedStatistics.from_arrays(own)
                more, kept = pair_rows(self.config, (draft_id, target_id)).decoded(
                    lookahead, statistics, m.prompts
                )
                acceptance, survival = acceptance + more, survival + kept
                checks[f"{draft_id} × {target_id}, γ = {lookahead}"] = statistics.self_check
                columns = {k[6:]: v for k, v in own.items() if k.startswith("event-")}
                frames.append(
                    pandas.DataFrame(columns).assign(
                        lookahead=lookahead,
                        temperature=m.temperature,
                        draft_id=draft_id,
                        target_id=target_id,
                    )
                )
        events = pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()
        return Measurements(acceptance, survival, expected, [], events, checks)

    def _decode(self, draft_id: str, target_id: str) -> Part:
        """Decodes the prompts with a draft and a target, at every lookahead."""
        m, name = self.config.measure, f"{draft_id}--{target_id}"

        def work() -> Arrays:
            arrays: Arrays = {}
            for lookahead in m.lookaheads:
                decoded = speculate(
                    self.models.draft(draft_id),
                    self.models.targets[target_id],
                    prompts(self.config, self.text, m.prompts),
                    lookahead=lookahead,
                    max_lookahead=max(m.lookaheads),
                    new_tokens=m.new_tokens,
                    sampling=Sampling(m.temperature),
                    # Pairs share prompts but no randomness.
                    seed=derive_seed("decode", self.config.seed, draft_id, target_id, lookahead),
                )
                statistics = summarise(decoded, lookahead, m.confidence)
                columns = {f"event-{k}": v for k, v in event_columns(decoded).items()}
                found = statistics.to_arrays() | columns
                arrays |= {f"{lookahead}\t{key}": value for key, value in found.items()}
                tau = statistics.tokens_per_round.estimate
                self.progress.advance(RUN_UNITS, f"{name}  γ = {lookahead}, {tau:.2f} tokens/round")
            return arrays

        # Each holds two models' caches, and compiles most of the time.
        return Part(name, RUN_UNITS * len(m.lookaheads), work, min(2, available_threads()))


def measure_study(
    config: StudyConfig,
    dataset: Dataset,
    records: list[ModelRecord],
    study: Path,
    progress: Progress,
    parts: Path | None = None,
) -> Measurements:
    """Measures every pair of a study. The live decoder runs for the pairs that `measure.decode`
    selects.

    Args:
      config: The study.
      dataset: Its corpus.
      records: The trained models.
      study: The study's folder, which holds their weights.
      progress: Reports progress after every piece of work.
      parts: Folder of the parts that processes share; None to share none.

    Raises:
      SdslError: a checkpoint is missing or damaged, or a file cannot be written.
    """
    whole = StudyMeasurement(config, dataset, records, study, progress)
    units = sum(part.cost for part in whole.parts) + RUN_UNITS * len(whole.timed)
    progress.start("measure", units)
    measured = whole.measurements(measure_parts(whole.parts, parts, progress))
    # A head's step is timed on the clock, with its target.
    latency = _latency(config, whole.timed, {*whole.models.targets}, progress)
    progress.finish()
    return measured._replace(latency=latency)


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
