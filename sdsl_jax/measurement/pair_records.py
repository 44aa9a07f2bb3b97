"""Records of measured pairs: the rows of a pair, and the folder that collects the rows of many pairs
for the fits."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

from sdsl_jax.checkpoints.identity import are_different, identity
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.claims import Claim
from sdsl_jax.decoding import Decoded
from sdsl_jax.device import device_name
from sdsl_jax.errors import SdslError, require
from sdsl_jax.measurement.events import DecodedStatistics, event_columns
from sdsl_jax.measurement.latency import GenerationTimes
from sdsl_jax.measurement.overlap import PairOverlap
from sdsl_jax.measurement.pair import PairSettings
from sdsl_jax.measurement.replay import ExpectedRounds
from sdsl_jax.records import (
    AcceptanceRecord,
    ExpectedRecord,
    GenerationRecord,
    ModelRecord,
    SurvivalRecord,
    read_json,
    read_table,
    require_records_folder,
    write_json,
    write_table,
)
from sdsl_jax.records.documents import to_json
from sdsl_jax.records.files import whole_file
from sdsl_jax.statistics import Interval

_TABLES = ("models", "acceptance", "survival", "generation")
MEASUREMENTS, EVENTS = "measurements.json", "events.parquet"
_PARTS = "parts"
# Options of reading models that change no number but by rounding, or are recorded with each model.
_HOW_COMPUTED = ("devices", "repeated", "ignore_keys")
# In the part of a pair that is measured.
PART_DONE = "done"
WRITTEN = (*(f"{table}.csv" for table in _TABLES), MEASUREMENTS, EVENTS)


class PairName(NamedTuple):
    """The columns that identify a measurement in a folder."""

    draft_id: str
    target_id: str
    temperature: float
    domain: str


@dataclasses.dataclass(frozen=True)
class PairRows:
    """Builds the rows of one pair under one name, for `sdsl measure`, protocols and studies.

    Attributes:
      name: What identifies the measurement.
      confidence: Confidence of all intervals.
    """

    name: PairName
    confidence: float

    @property
    def _shared(self) -> dict[str, Any]:
        return {**self.name._asdict(), "confidence": self.confidence}

    def acceptance(
        self, estimator: str, lookahead: int, alpha: Interval, clusters: int, tokens: int
    ) -> AcceptanceRecord:
        """A row of `acceptance.csv`."""
        return AcceptanceRecord(
            **self._shared,
            **alpha.columns("alpha"),
            estimator=estimator,
            lookahead=lookahead,
            clusters=clusters,
            tokens=tokens,
        )

    def overlap(
        self, estimator: str, value: PairOverlap, sampling: int = 0, lookahead: int = 0
    ) -> AcceptanceRecord:
        """A row of `acceptance.csv` from the overlap at one of its samplings."""
        alpha = value.mean(self.confidence, sampling)
        row = self.acceptance(
            estimator, lookahead, alpha, len(value.positions), int(value.positions.sum())
        )
        return dataclasses.replace(row, alpha_bound=value.bound(sampling))

    def decoded(
        self, lookahead: int, statistics: DecodedStatistics, clusters: int
    ) -> tuple[list[AcceptanceRecord], list[SurvivalRecord]]:
        """Rows of `acceptance.csv` and `survival.csv` from one run of the decoder."""
        s = statistics
        acceptance = [
            self.acceptance("decoded_per_test", lookahead, s.per_test, clusters, s.tests),
            self.acceptance("decoded_tar", lookahead, s.tar, clusters, s.rounds * lookahead),
        ]
        survival = [
            SurvivalRecord(
                **self._shared,
                **value.columns("survival"),
                **s.tokens_per_round.columns("tokens_per_round"),
                lookahead=lookahead,
                position=k,
                rounds=s.rounds,
            )
            for k, value in enumerate(s.survival, 1)
        ]
        return acceptance, survival

    def expected(
        self, rounds: ExpectedRounds, samples: int, round_cost: float = math.nan
    ) -> ExpectedRecord:
        """A row of `expected.csv`."""
        columns: dict[str, Any] = {}
        for name in ("tokens_per_round", "accepted_per_test", "alpha", "alpha_change"):
            columns |= getattr(rounds, name).columns(name)
        return ExpectedRecord(
            **self._shared,
            **columns,
            lookahead=rounds.lookahead,
            samples=samples,
            rounds=rounds.rounds,
            round_cost=round_cost,
        )

    def generation(self, times: GenerationTimes, dtype: str) -> GenerationRecord:
        """A row of `generation.csv`."""
        return GenerationRecord(
            **self._shared,
            **times.total_seconds.columns("total_seconds"),
            **times.speedup.columns("speedup"),
            lookahead=times.lookahead,
            new_tokens=times.new_tokens,
            first_token_seconds=times.first_token_seconds.estimate,
            per_token_seconds=times.per_token_seconds.estimate,
            requests=times.requests,
            dtype=dtype,
            device=device_name(),
        )

    def events(self, lookahead: int, decoded: Decoded) -> pandas.DataFrame:
        """Rows of `events.parquet`."""
        return pandas.DataFrame(event_columns(decoded)).assign(
            lookahead=lookahead, **self.name._asdict()
        )


def measured_pairs(folder: Path) -> set[PairName]:
    """The measurements in a folder; empty if it does not exist.

    Raises:
      SdslError: its records are damaged.
    """
    return {_name_of(row) for row in read_table(folder, "survival", optional=True)}


def how_measured(settings: PairSettings, options: dict[str, Any]) -> dict[str, Any]:
    """What all pairs of a folder must share because its tables do not show it: filters,
    verification, and how models are read.

    The number of devices changes nothing, and ignored settings are recorded with each model.
    """
    sampling = settings.sampling
    filters = {name: getattr(sampling, name) for name in ("top_k", "top_p", "min_p")}
    kept = {key: value for key, value in options.items() if key not in _HOW_COMPUTED}
    return {**filters, "verification": settings.verification, **kept}


def prepare_output_dir(folder: Path, name: PairName, how: dict[str, Any]) -> None:
    """Makes a folder for records, if it may take this measurement.

    Raises:
      SdslError: it cannot be made, or it holds this measurement already, measurements made in
        another way, or somebody else's files.
    """
    require_records_folder(folder, WRITTEN, mark="schema.json")
    for answer in _answers(folder):
        earlier = answer.get("how", {})
        for key, value in how.items():
            require(
                key not in earlier or earlier[key] == value,
                f"the folder {folder} holds pairs measured with {key} = {earlier.get(key)!r}, and this is "
                f"{value!r}; its tables do not tell them apart: name another folder.",
            )
    require(
        name not in measured_pairs(folder),
        f"the folder {folder} already holds the draft {name.draft_id} with the target {name.target_id} at temperature "
        f"{name.temperature:g} on {name.domain}; name another folder.",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SdslError(f"cannot write {folder} ({error.strerror}).") from None


def require_same_models(folder: Path, *models: LoadedModel) -> None:
    """Raises `SdslError` if two models of one name differ, in the records of a folder or among those
    given.

    Sizes, parameter digests and identities are compared as far as the records hold them. Older
    records have no identity; what they do not tell counts as equal.
    """
    records = _rows(folder, "models")
    digests = {m.model_id: [m.params_digest] for m in records}
    sizes = {m.model_id: m.params_total for m in records}
    for answer in _answers(folder):
        for about in (answer["draft"], answer["target"]):
            digests.setdefault(about["model_id"], []).append(about.get("identity", ""))
    for m in models:
        name, own = m.record.model_id, (m.record.params_digest, identity(m))
        recorded = digests.setdefault(name, [])
        require(
            sizes.setdefault(name, m.record.params_total) == m.record.params_total
            and not any(are_different(one, other) for one in recorded for other in own),
            f"the folder {folder} would hold two models of the name {name}, of which {m.folder} is one: their weights, "
            "configurations or tokenizers differ; rename one of them, or name another folder for the records.",
        )
        recorded += own


def require_one_text(folder: Path, models: Sequence[LoadedModel], name: PairName) -> None:
    """Raises `SdslError` if a model without a loss of its own has been measured on another text:
    models.csv has one loss per model."""
    for m in models:
        if not math.isnan(m.record.loss_nats):
            continue
        texts = {
            row.domain
            for row in _rows(folder, "acceptance", name)
            if m.record.model_id in (row.draft_id, row.target_id)
        }
        require(
            not texts - {name.domain},
            f"the folder {folder} holds {m.record.model_id} on {', '.join(sorted(texts))}, and models.csv has one loss "
            f"of a model; name another folder for {name.domain}.",
        )


def append_pair(
    folder: Path,
    name: PairName,
    models: Sequence[ModelRecord],
    answer: Any,
    *,
    acceptance: Sequence[AcceptanceRecord],
    survival: Sequence[SurvivalRecord] = (),
    generation: Sequence[GenerationRecord] = (),
    events: Sequence[pandas.DataFrame] = (),
) -> None:
    """Adds the rows of a pair to the tables of a folder, its events to events.parquet, and its
    report to measurements.json.

    What an interrupted call left of the pair is replaced. A model that the folder holds keeps its
    record. A pair that was not decoded has no rows but those of acceptance.csv. Processes that add to
    one folder wait for each other.

    Raises:
      SdslError: the folder cannot be written to, or its records are damaged.
    """
    with _alone(folder):
        records = {m.model_id: m for m in _rows(folder, "models")}
        for model in models:
            records.setdefault(model.model_id, model)
        tables: dict[str, Sequence[Any]] = {"acceptance": acceptance}
        if survival:
            # Survival last: a decoded pair counts as measured once it is in.
            tables |= {"generation": generation, "survival": survival}
        whole = {key: [*_rows(folder, key, name), *new] for key, new in tables.items()}
        answers = [a for a in _answers(folder) if _answer_name(a) != name]
        frames = list(events)
        if frames and (earlier := _events(folder)) is not None:
            same = np.logical_and.reduce([earlier[k] == v for k, v in name._asdict().items()])
            frames.insert(0, earlier[~same])
        _write(folder, list(records.values()), whole, frames, [*answers, to_json(answer)])


def _write(
    folder: Path,
    models: list[ModelRecord],
    tables: dict[str, list[Any]],
    frames: list[pandas.DataFrame],
    answers: list[Any],
) -> None:
    write_table(folder, "models", models)
    if frames:
        with whole_file(folder / EVENTS) as path:
            pandas.concat(frames, ignore_index=True).to_parquet(path, index=False)
    write_json(folder / MEASUREMENTS, answers)
    for key, rows in tables.items():
        write_table(folder, key, rows)


def part_folder(folder: Path, draft: str, target: str) -> Path:
    """Where a process keeps the records of a pair until `merge_parts`: a folder of records itself."""
    return folder / _PARTS / target / draft


def merge_parts(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Moves the records of pairs that processes have measured beside each other into those of a folder.

    The tables then hold the pairs in the given order, whoever measured them; pairs that are not named
    come first.

    Args:
      folder: The folder of the records.
      pairs: Names (draft, target) in the order of the tables; they need not have parts.

    Raises:
      SdslError: The folder cannot be written to, its records are damaged, or two models of one name
        differ.
    """
    place = {pair: i for i, pair in enumerate(pairs)}
    with _alone(folder):
        parts = {pair: part_folder(folder, *pair) for pair in pairs}
        parts = {pair: part for pair, part in parts.items() if (part / PART_DONE).exists()}
        if not parts:
            return
        models: dict[str, ModelRecord] = {}
        for each in (folder, *parts.values()):
            for record in _rows(each, "models"):
                known = models.setdefault(record.model_id, record)
                require(
                    not are_different(known.params_digest, record.params_digest),
                    f"the folder {folder} would hold two models of the name {record.model_id}, whose weights differ.",
                )

        def in_order(read: Callable[[Path], list[Any]], pair_of: Callable[[Any], Any]) -> list[Any]:
            # What an interrupted call wrote of a pair is in its part, whole.
            rows = [row for row in read(folder) if pair_of(row) not in parts]
            rows += [row for part in parts.values() for row in read(part)]
            return sorted(rows, key=lambda row: place.get(pair_of(row), -1))

        tables = {
            key: in_order(lambda each, key=key: _rows(each, key), _pair)  # type: ignore[misc]
            for key in ("acceptance", "generation", "survival")
        }
        frames = in_order(_events_by_pair, lambda each: each[0])
        answers = in_order(_answers, lambda answer: _answer_name(answer)[:2])
        _write(folder, list(models.values()), tables, [rows for _, rows in frames], answers)
        # What is deleted half must not be taken for a part.
        for part in parts.values():
            (part / PART_DONE).unlink(missing_ok=True)
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)
    with contextlib.suppress(OSError):  # where other processes still have parts
        for target in {target for _, target in parts}:
            (folder / _PARTS / target).rmdir()
        (folder / _PARTS).rmdir()


def _pair(row: Any) -> tuple[str, str]:
    return row.draft_id, row.target_id


def _events(folder: Path) -> pandas.DataFrame | None:
    """The events of a folder; None if it has none."""
    if not (folder / EVENTS).exists():
        return None
    events = pandas.read_parquet(folder / EVENTS)
    # Older events are those of drafts of one part.
    return events.assign(drafted_by=events.get("drafted_by", 0))


def _events_by_pair(folder: Path) -> list[tuple[tuple[str, str], pandas.DataFrame]]:
    events = _events(folder)
    if events is None:
        return []
    pairs = events.groupby(["draft_id", "target_id"], sort=False)
    return [((str(draft), str(target)), rows) for (draft, target), rows in pairs]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder of records within the block."""
    claim = Claim(folder)
    while not claim.acquire():
        time.sleep(0.05)
    with claim:
        yield


def with_loss(
    record: ModelRecord, role: str, losses: tuple[Interval, Interval] | None
) -> ModelRecord:
    """A model's record in a role, with its loss on the prompts if it has none of its own; see
    `pair.loss_on_prompts`."""
    record = dataclasses.replace(record, role=record.role or role)
    if losses is None or not math.isnan(record.loss_nats):
        return record
    loss, bits_per_byte = losses
    return dataclasses.replace(
        record,
        **loss.columns("loss_nats"),
        perplexity=math.exp(loss.estimate),
        bits_per_byte=bits_per_byte.estimate,
    )


def _rows(folder: Path, table: str, without: PairName | None = None) -> list[Any]:
    """The rows of a table, without those of one pair."""
    rows = read_table(folder, table, optional=True)
    return rows if without is None else [row for row in rows if _name_of(row) != without]


def _name_of(row: Any) -> PairName:
    return PairName(row.draft_id, row.target_id, row.temperature, row.domain)


def _answers(folder: Path) -> list[Any]:
    return read_json(folder / MEASUREMENTS, list) if (folder / MEASUREMENTS).exists() else []


def _answer_name(answer: dict[str, Any]) -> tuple[Any, ...]:
    ids = (answer["draft"]["model_id"], answer["target"]["model_id"])
    return (*ids, answer["temperature"], answer["prompts"]["source"])
