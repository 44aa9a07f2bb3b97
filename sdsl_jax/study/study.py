"""A study and the folder that holds its results; a stage is run only when its settings or inputs have changed."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdsl_jax.config import ConditionsConfig, StudyConfig, to_dict, to_toml
from sdsl_jax.data import Dataset, load_dataset, source_digests
from sdsl_jax.data.domains import domain_identity
from sdsl_jax.errors import require
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import (
    SCHEMA_VERSION,
    read_json,
    read_table,
    require_study_folder,
    write_json,
    write_marked,
)
from sdsl_jax.study.plan import PLAN, STAGES
from sdsl_jax.study.stages import RUNNERS


@dataclass(frozen=True)
class Study:
    """A study and the folder that holds its results.

    Attributes:
      config: its settings.
      folder: of its records, figures and report.
      progress: told what happens.
      models_folder: that checkpoints lie in and are named from, where it is not `folder`.
    """

    config: StudyConfig
    folder: Path
    progress: Progress
    models_folder: Path | None = None

    @property
    def home(self) -> Path:
        """The folder that checkpoints are named from."""
        return self.folder if self.models_folder is None else self.models_folder

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
        stamp = self.stamps().get(stage)
        return (
            stamp is not None
            and all(
                (self.folder / path).exists()
                for path in (*PLAN[stage].outputs, *self._inputs(stage))
            )
            and stamp["key"] == self._key(stage)
            and (stage != "train" or not self._lacks_weights())
        )

    def _lacks_weights(self) -> bool:
        """Whether some checkpoint is gone while others are there; a folder without any was left behind on purpose."""
        folders = [
            self.home / record.checkpoint for record in self.table("models") if record.checkpoint
        ]
        return (self.home / "checkpoints").is_dir() and not all(
            folder.is_dir() for folder in folders
        )

    def run(self, stage: str) -> None:
        """Runs one stage and notes that it was completed.

        Raises:
          SdslError: an input is missing or damaged, or the stage cannot do what the settings ask.
        """
        for path in PLAN[stage].inputs:
            maker = next(name for name in STAGES if path in PLAN[name].outputs)
            require(
                (self.folder / path).exists(),
                f"the stage {stage} needs {self.folder / path}, which does not exist; run the stage {maker} first.",
            )
        key, began = self._key(stage), time.perf_counter()
        # While a stage overwrites its outputs one after another, they belong to no settings at all.
        self.forget(stage)
        RUNNERS[stage](self)
        stamp = {
            "key": key,
            "seconds": time.perf_counter() - began,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_json(self.folder / "stages.json", self.stamps() | {stage: stamp})

    def forget(self, stage: str) -> None:
        """Takes back that a stage was completed."""
        write_json(
            self.folder / "stages.json", {k: v for k, v in self.stamps().items() if k != stage}
        )

    def stamps(self) -> dict[str, Any]:
        """For every completed stage the digest of what it was made from, its seconds, and when it ended."""
        path = self.folder / "stages.json"
        stamps = read_json(path) if path.exists() else {}
        return {
            stage: stamp
            for stage, stamp in stamps.items()
            if isinstance(stamp, dict) and "key" in stamp
        }

    def _inputs(self, stage: str) -> tuple[str, ...]:
        """Files that a stage reads; among them a calibrated device and published predictions, where a study has them."""
        optional = ("records/hardware.toml",) if stage == "evidence" else ()
        if stage == "evidence" and self.config.holdout.any:
            optional = (*optional, "records/predictions.json")
        return (*PLAN[stage].inputs, *(path for path in optional if (self.folder / path).exists()))

    def _key(self, stage: str) -> str:
        """Digest of everything that the stage's outputs depend on, other than the program."""
        settings = to_dict(self.config)
        del settings["data"]["shards"]  # where the corpus is kept does not change what it is
        parts: list[Any] = [SCHEMA_VERSION, {name: settings[name] for name in PLAN[stage].settings}]
        if "data" in PLAN[stage].settings:
            parts.append(_source_digest(self.config))
        if stage == "conditions":
            parts.append(_conditions_identity(self.config.conditions))
        parts += [_file_digest(self.folder / path) for path in self._inputs(stage)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _source_digest(config: StudyConfig) -> list[str]:
    """Identity of the corpus: the version of the embedded one, or the digest of every file."""
    return source_digests(config.data)


def _conditions_identity(conditions: ConditionsConfig) -> list[Any]:
    """Identity of what conditions are measured on beside the corpus: the files of domains, and the drafts of another ladder."""
    models = Path(conditions.other_drafts) / "records" / "models.csv"
    drafts = _file_digest(models) if conditions.other_drafts and models.exists() else ""
    return [[domain_identity(domain) for domain in conditions.domains], drafts]


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
      SdslError: the folder cannot be written to, or holds settings or a report of somebody else; or
        a stage cannot do what the settings ask. Results of earlier stages stay.
    """
    require(
        only is None or only in STAGES,
        f"the stage {only!r} does not exist; the stages are {', '.join(STAGES)}.",
    )
    require_study_folder(folder)
    study = Study(config, folder, progress or Silent())
    if only is None:
        from sdsl_jax.measurement import check_conditions
        from sdsl_jax.training import check_ladder

        check_ladder(config)
        if config.holdout.any:
            check_ladder(config.seen)
        check_conditions(config)
    # A single stage run with other settings does not change what the results at large were made
    # with.
    if only is None or not (folder / "config.toml").exists():
        write_marked(folder / "config.toml", to_toml(config))
    if only is None and config.holdout.any:
        publish_predictions(study, force)
    for stage in STAGES if only is None else (only,):
        if not force and study.is_fresh(stage):
            study.progress.note(f"{stage}: up to date")
        else:
            study.run(stage)


# What the laws of a holdout are fitted to is made in a study of its own, of these stages.
_SEEN_STAGES = ("train", "measure", "fit")
# Of what is predicted and how: predictions of another version are made anew.
_FORECAST_VERSION = 1


def publish_predictions(study: Study, force: bool = False) -> None:
    """Trains, measures and fits what is not held out, then writes `records/predictions.json`,
    before all else of the study.

    The smaller study lives in `seen/`; its models are those of the whole study, and are not trained
    twice.

    Raises:
      SdslError: as the stages do.
    """
    from sdsl_jax.evidence import forecast

    study.progress.note("holdout: what is not held out comes first, and is fitted, in seen/")
    seen = Study(study.config.seen, study.folder / "seen", study.progress, models_folder=study.home)
    for stage in _SEEN_STAGES:
        if not force and seen.is_fresh(stage):
            study.progress.note(f"seen, {stage}: up to date")
        else:
            seen.run(stage)
    path = study.records / "predictions.json"
    settings = to_dict(study.config)
    read = [
        _FORECAST_VERSION,
        *(settings[name] for name in ("seed", "data", "family", "ladder", "fit", "holdout")),
    ]
    made_from = hashlib.sha256(
        json.dumps(read, sort_keys=True).encode() + (seen.records / "fits.json").read_bytes()
    )
    if path.exists() and read_json(path).get("made_from") == made_from.hexdigest():
        return
    predictions = forecast(
        study.config, seen.table("models"), read_json(seen.records / "fits.json")
    )
    # Whoever changes something and predicts again has seen the answers, and the file says so.
    models = study.table("models") if (study.records / "models.csv").exists() else []
    known = {(m.role, m.params_nonembedding) for m in models}
    held = {(row["role"], row["params"]) for row in predictions["losses"]} & known
    looked = [f"the {role} of {params:,} parameters" for role, params in sorted(held)]
    when = {"published": time.strftime("%Y-%m-%d %H:%M:%S"), "already_measured": looked}
    write_json(path, {"made_from": made_from.hexdigest(), **when, **predictions})
    study.progress.note(
        f"holdout: {len(predictions['losses'])} losses and their pairs are predicted in {path}"
    )
