"""The records that a study left in its folder, each read when it is first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sdsl_jax.config import StudyConfig, load_study
from sdsl_jax.counts import short_count
from sdsl_jax.fitting import FittedLaws
from sdsl_jax.fitting.law_files import Fits, read_fits
from sdsl_jax.hardware import HardwareFile, load_hardware
from sdsl_jax.models.small_matmul import Absence
from sdsl_jax.notebook import table_of
from sdsl_jax.records import (
    AcceptanceRecord,
    ClockRecord,
    ExpectedRecord,
    LatencyRecord,
    LossRecord,
    ModelRecord,
    RaceRecord,
    RunRecord,
    SurvivalRecord,
    longest_trained,
    read_json,
    read_table,
)
from sdsl_jax.records.codesign import (
    CodesignEntry,
    CodesignLandscape,
    read_codesign,
    read_landscapes,
)
from sdsl_jax.records.documents import from_json

Row = TypeVar("Row")
T = TypeVar("T")


def _table(name: str, row: type[Row], optional: bool = False) -> cached_property[list[Row]]:
    def read(records: StudyRecords) -> list[Row]:
        return read_table(records.path, name, optional=optional)

    return cached_property(read)


class OptimumRow(NamedTuple):
    """The best draft for one target under one cost model: a line of the table that ends a study.

    Attributes:
      entry: The optimum, under the acceptance law that predicts left-out drafts best.
      clock: The nearest trained draft on the clock; None where it was not timed.
    """

    entry: CodesignEntry
    clock: ClockRecord | None


class StudyRecords:
    """The tables and documents of a study. Each is read once, when it is first asked for.

    Tables that a study need not have are empty lists, and documents that it need not have are None,
    where their files are missing. Reading any other raises `SdslError` if its file is missing, and
    all do if their file is damaged.

        records = StudyRecords("runs/quickstart")
        records.models, records.laws.loss, records.optima

    Args:
      folder: Folder of the study, or of its record files.
      tables: Tables and documents, by the names below, to use in place of those in the folder.

    Attributes:
      folder: Folder of the study.
      path: Folder of its record files.
      trained: Drafts and targets of the study, whatever they were trained for.
      models: Those trained on the text alone, which laws are fitted to.
      measured_acceptance: α of every pair by every estimator, on the study's own text and at its
        temperature.
      acceptance: The same of the pairs of `models`.
      survival: S_k of the live decoder.
      measured_rounds: Expected tokens per round of every pair and lookahead, without decoding.
      expected: The same of the pairs of `models`.
      latency: Timed steps.
      conditions: Exact α at other temperatures, in other domains, and of other drafts.
      other_models: Drafts trained on other text.
      losses: Losses of all these models in all these domains.
      timed_runs: Timed runs of decoders.
      runs: The same of the drafts of `models` and of other folders.
      timed_models: Models of other folders that were timed.
      clock: The draft nearest to each optimum, on the clock.
    """

    trained = _table("models", ModelRecord)
    measured_acceptance = _table("acceptance", AcceptanceRecord)
    survival = _table("survival", SurvivalRecord)
    latency = _table("latency", LatencyRecord)
    measured_rounds = _table("expected", ExpectedRecord, optional=True)
    conditions = _table("conditions", AcceptanceRecord, optional=True)
    other_models = _table("other_models", ModelRecord, optional=True)
    losses = _table("losses", LossRecord, optional=True)
    timed_runs = _table("runs", RunRecord, optional=True)
    timed_models = _table("timed_models", ModelRecord, optional=True)
    clock = _table("clock", ClockRecord, optional=True)
    race = _table("race", RaceRecord, optional=True)

    def __init__(self, folder: str | Path, **tables: Any):
        self.folder = Path(folder)
        self.path = self.folder / "records"
        if not self.path.is_dir():
            self.path = self.folder
        vars(self).update(tables)
        # Tables that stand for a study whose drafts were all trained on text.
        for given, whole in (
            ("models", "trained"),
            ("acceptance", "measured_acceptance"),
            ("expected", "measured_rounds"),
            ("runs", "timed_runs"),
        ):
            if given in tables:
                vars(self).setdefault(whole, tables[given])

    def replaced(self, **tables: Any) -> StudyRecords:
        """The same records with other tables or documents in place of some."""
        kept = {k: v for k, v in vars(self).items() if k not in ("folder", "path", "laws")}
        return StudyRecords(self.folder, **(kept | tables))

    def document(self, name: str, form: type[T]) -> T | None:
        """A JSON document of the study, read once; None if there is no such file.

            records.document("evidence", Evidence)

        Args:
          name: Name of the file without ending.
          form: The dataclass that the document is.

        Raises:
          SdslError: The file is damaged.
        """
        path = self.path / f"{name}.json"
        if name not in vars(self):
            where = f"the record file {path}"
            vars(self)[name] = from_json(form, read_json(path), where) if path.exists() else None
        return vars(self)[name]

    @cached_property
    def models(self) -> list[ModelRecord]:
        """Drafts and targets that were trained on the text alone."""
        return [m for m in self.trained if m.trained_for == "text"]

    @cached_property
    def acceptance(self) -> list[AcceptanceRecord]:
        """α of their pairs."""
        return [r for r in self.measured_acceptance if r.draft_id not in self._distilled]

    @cached_property
    def expected(self) -> list[ExpectedRecord]:
        """Expected tokens per round of their pairs."""
        return [r for r in self.measured_rounds if r.draft_id not in self._distilled]

    @cached_property
    def runs(self) -> list[RunRecord]:
        """Timed runs of their decoders, and of plain decoding."""
        kept = {
            r.block for r in self.timed_runs if r.draft_id and r.draft_id not in self._distilled
        }
        return [r for r in self.timed_runs if r.block in kept]

    @property
    def _distilled(self) -> set[str]:
        path = self.path / "models.csv"
        if "trained" not in vars(self) and not path.exists():
            return set()
        return {m.model_id for m in self.trained if m.trained_for != "text"}

    @cached_property
    def config(self) -> StudyConfig:
        """Settings of the study."""
        return load_study(self.folder / "config.toml")

    @cached_property
    def fits(self) -> Fits:
        """Fitted laws and device, as `fits.json` holds them."""
        path = self.path / "fits.json"
        return read_fits(read_json(path), f"the record file {path}")

    @cached_property
    def laws(self) -> FittedLaws:
        """Fitted laws and device, as functions."""
        return self.fits.laws()

    @property
    def has_fits(self) -> bool:
        """Whether laws were fitted."""
        return "fits" in vars(self) or (self.path / "fits.json").exists()

    @cached_property
    def codesign(self) -> list[CodesignEntry]:
        """Optimal designs."""
        return read_codesign(self.path)

    @cached_property
    def landscapes(self) -> list[CodesignLandscape]:
        """Curves and maps around the optimal designs, in the same order."""
        return read_landscapes(self.path)

    @cached_property
    def self_checks(self) -> dict[str, float | None]:
        """Self-check of the decoder in each run, a standard normal score."""
        return read_json(self.path / "checks.json", keys=("decoder_self_check",))[
            "decoder_self_check"
        ]

    @cached_property
    def hardware(self) -> HardwareFile | None:
        """The calibrated device; None if nothing was timed."""
        path = self.path / "hardware.toml"
        return load_hardware(str(path)) if path.exists() else None

    @property
    def models_by_id(self) -> dict[str, ModelRecord]:
        """Drafts and targets of the study by their ids."""
        return {m.model_id: m for m in self.models}

    def of_role(self, role: str) -> list[ModelRecord]:
        """The drafts or the targets of the study."""
        return [m for m in self.models if m.role == role]

    def measured(
        self, estimator: str, lookahead: int | None = None
    ) -> dict[tuple[str, str], AcceptanceRecord]:
        """α by one estimator, by draft and target; the last row of a pair wins."""
        return {
            (r.draft_id, r.target_id): r
            for r in self.acceptance
            if r.estimator == estimator and lookahead in (None, r.lookahead)
        }

    @property
    def targets(self) -> list[ModelRecord]:
        """The longest-trained target of each size, the smallest first."""
        return longest_trained(self.models, "target")

    @property
    def has_pairs(self) -> bool:
        """Whether the estimator that laws are fitted to measured enough drafts to fit any."""
        drafts = {draft for draft, _ in self.measured(self.config.fit.estimator)}
        return len(drafts & self.models_by_id.keys()) >= 4

    @property
    def optima(self) -> list[OptimumRow]:
        """The optimum of every target and cost model, under the acceptance law that predicts left-out drafts best."""
        clock = {(r.draft_id, r.target_id, r.lookahead): r for r in self.clock}
        rows = []
        for entry in self.codesign:
            if entry.acceptance_law == self.codesign[0].acceptance_law:
                draft = entry.nearest_trained.draft_id if entry.nearest_trained else ""
                pair = draft, entry.target_id, max(1, entry.lookahead_integer)
                rows.append(OptimumRow(entry, clock.get(pair)))
        return rows

    @property
    def timing_notes(self) -> list[str]:
        """Why speculation gains less in the timings of this study than it might, a sentence for each
        reason; empty where they were taken with the compiled product of a CPU, or on another device.
        """
        path = self.folder / "stages.json"
        stages: dict[Absence, list[str]] = {}
        for stage, stamp in (read_json(path) if path.exists() else {}).items():
            if isinstance(stamp, dict) and "without_small_matmul" in stamp:
                absence = from_json(Absence, stamp["without_small_matmul"], f"the file {path}")
                stages.setdefault(absence, []).append(stage)
        # The passes of docs/decoding.md, from 5 to 135 million parameters.
        return [
            f"The timings of this study (stages: {', '.join(named)}) were taken without the fast compiled product for CPUs, "
            f"because {absence.why}: in models of about a million parameters and more, a verify pass of five tokens then takes "
            "1.4 to 2.3 decoding steps instead of 1.2 to 1.8, so speculation gains less on this machine; to have it, "
            f"{absence.remedy}, and run these stages again with --force."
            for absence, named in stages.items()
        ]

    def _overview(self) -> dict[str, str]:
        drafts, targets = len(self.of_role("draft")), len(self.of_role("target"))
        rows = {"models": f"{drafts} drafts, {targets} targets"}
        for entry, _ in self.optima if (self.path / "codesign.json").exists() else []:
            best = (
                f"draft of {short_count(entry.draft_params)} at γ = {entry.lookahead:.1f}: {entry.speedup:.2f}×"
                if entry.speculate and entry.lookahead is not None
                else "speculation does not pay"
            )
            rows[f"{entry.target_id}, {entry.cost_model} costs"] = best
        if (report := self.folder / "report.html").exists():
            rows["report"] = str(report)
        return rows

    def __repr__(self) -> str:
        lines = [f"  {name}: {value}" for name, value in self._overview().items()]
        return "\n".join([f"StudyRecords({str(self.folder)!r})", *lines])

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        return table_of(str(self.folder), self._overview())
