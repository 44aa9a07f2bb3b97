"""Runs a study: each stage only when its settings or inputs have changed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdsl_jax.config import ConditionsConfig, StudyConfig, load_study, to_dict, to_toml
from sdsl_jax.data import source_digests
from sdsl_jax.data.domains import domain_identity
from sdsl_jax.data.study_tokenizer import with_vocabulary
from sdsl_jax.digests import file_sha256, json_sha256
from sdsl_jax.errors import require
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.package_files import user_path
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import (
    SCHEMA_VERSION,
    read_json,
    read_table,
    require_study_folder,
    write_json,
    write_marked,
)
from sdsl_jax.study.holdout import publish_predictions
from sdsl_jax.study.stages import STAGES, Study, forget_parts

# Stages that report no progress of their own.
_WITHOUT_PARTS = ("fit", "evidence", "figures", "report")


def run_study(
    config: StudyConfig | str | Path,
    folder: str | Path,
    *,
    only: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> StudyRecords:
    """Runs a study, and returns its records.

        records = run_study("experiments/quickstart.toml", "runs/quickstart")

    Args:
      config: Settings, or the path of a TOML file that holds them.
      folder: Folder of its results; the study continues if the folder already holds some.
      only: A single stage to run, on the inputs that are there.
      force: Whether to run stages even if nothing they depend on has changed.
      progress: Reports what each stage does.

    Raises:
      SdslError: The folder cannot be written to, or holds settings or a report of another origin;
        or a stage cannot do what the settings ask. Results of earlier stages stay.
    """
    require(
        only is None or only in STAGES,
        f"the stage {only!r} does not exist; the stages are {', '.join(STAGES)}.",
    )
    config = config if isinstance(config, StudyConfig) else load_study(config)
    progress = progress or Silent()
    if only is None and config.takes:
        progress.note(f"takes {config.takes}")
    config = with_vocabulary(config)
    folder = Path(folder)
    require_study_folder(folder)
    study = Study(config, folder, progress)
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
        publish_predictions(study, lambda seen, stages: _run_stages(seen, stages, force, "seen, "))
    _run_stages(study, STAGES if only is None else (only,), force)
    return study.records


def _run_stages(study: Study, stages: Iterable[str], force: bool, prefix: str = "") -> None:
    for stage in stages:
        if STAGES[stage].of_laws and not _has_laws(study):
            study.progress.note(
                f"{prefix}{stage}: passed over, for the study has no drafts that were trained on the text alone and propose all "
                "ids, which laws are fitted to"
            )
        elif not force and is_fresh(study, stage):
            study.progress.note(f"{prefix}{stage}: up to date")
        else:
            if force:
                forget_parts(study, stage)
            _run_stage(study, stage)


def _has_laws(study: Study) -> bool:
    """Whether the study has drafts that laws are fitted to; it may have, before any are on record."""
    trained = study.records_folder / "models.csv"
    return not trained.exists() or any(m.role == "draft" for m in study.records.models)


def _run_stage(study: Study, stage: str) -> None:
    """Runs one stage and notes that it was completed."""
    for path in _needed(study, stage):
        maker = next(name for name in STAGES if path in STAGES[name].outputs)
        require(
            (study.folder / path).exists(),
            f"the stage {stage} needs {study.folder / path}, which does not exist; run the stage {maker} first.",
        )
    key, began = _key(study, stage), time.perf_counter()
    # While a stage overwrites its outputs one after another, they belong to no settings at all.
    forget(study.folder, stage)
    if stage in _WITHOUT_PARTS:
        study.progress.start(stage, 1)
    STAGES[stage].run(study)
    if stage in _WITHOUT_PARTS:
        study.progress.finish()
    stamp = {
        "key": key,
        "seconds": time.perf_counter() - began,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        **_slow_product(study, stage),
    }
    write_json(study.folder / "stages.json", stamps(study.folder) | {stage: stamp})


def _slow_product(study: Study, stage: str) -> dict[str, Any]:
    """What a stamp says of times that were measured without the compiled product of this CPU."""
    times = STAGES[stage].times
    if not times or not read_table(study.records_folder, times):
        return {}
    from sdsl_jax.models.small_matmul import absence

    missing = absence()
    return {"without_small_matmul": missing} if missing else {}


def is_fresh(study: Study, stage: str) -> bool:
    """Whether a stage was completed with the present settings and inputs, and its outputs are still there."""
    stamp = stamps(study.folder).get(stage)
    files = (*STAGES[stage].outputs, *_inputs(study, stage))
    return (
        stamp is not None
        and all((study.folder / path).exists() for path in files)
        and stamp["key"] == _key(study, stage)
        and (stage != "train" or not _lacks_weights(study))
    )


def _lacks_weights(study: Study) -> bool:
    """Whether some checkpoint is gone while others are there; a folder without any was left behind on purpose."""
    checkpoints = [m.checkpoint for m in study.records.trained if m.checkpoint]
    return (study.home / "checkpoints").is_dir() and not all(
        (study.home / checkpoint).exists() for checkpoint in checkpoints
    )


def forget(folder: Path, stage: str) -> None:
    """Takes back that a stage of the study in a folder was completed."""
    kept = {k: v for k, v in stamps(folder).items() if k != stage}
    write_json(folder / "stages.json", kept)


def stamps(folder: Path) -> dict[str, Any]:
    """For every completed stage the digest of what it was made from, its seconds, when it ended, and
    why it timed models without the compiled product of a CPU, if it did."""
    path = folder / "stages.json"
    return {
        stage: stamp
        for stage, stamp in (read_json(path) if path.exists() else {}).items()
        if isinstance(stamp, dict) and "key" in stamp
    }


def _needed(study: Study, stage: str) -> tuple[str, ...]:
    """Files that a stage cannot do without."""
    if _has_laws(study):
        return STAGES[stage].inputs
    passed_over = {path for each in STAGES.values() if each.of_laws for path in each.outputs}
    return tuple(path for path in STAGES[stage].inputs if path not in passed_over)


def _inputs(study: Study, stage: str) -> tuple[str, ...]:
    """Files that a stage reads."""
    inputs = _needed(study, stage)
    return (*inputs, *(path for path in STAGES[stage].optional if (study.folder / path).exists()))


def _key(study: Study, stage: str) -> str:
    """Digest of everything that the stage's outputs depend on, other than the program."""
    settings = to_dict(study.config)
    del settings["data"]["shards"]  # where the corpus is kept does not change what it is
    names = STAGES[stage].settings
    parts: list[Any] = [SCHEMA_VERSION, {name: settings[name] for name in names}]
    if "data" in names:
        parts.append(source_digests(study.config.data))
    if stage == "train":
        parts.append(_given_identity(study.config))
    if stage == "conditions":
        parts.append(_conditions_identity(study.config.conditions))
    parts += [file_sha256(study.folder / path) for path in _inputs(study, stage)]
    return json_sha256(parts)


def _given_identity(config: StudyConfig) -> list[Any]:
    """Identity of the models that a study is given: the records of their ladders, and the files of
    published models."""
    folders = [*config.ladder.given_targets, *config.ladder.given_drafts, config.distil.init_from]
    given = [_published_files(folder) or _ladder_digest(folder) for folder in folders if folder]
    # What a study trained does not change under its name.
    teacher = config.distil.teacher and _published_files(config.distil.teacher)
    return [*given, teacher] if teacher else given


def _published_files(path: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a published model; nothing of anything else."""
    from sdsl_jax.checkpoints.loading import files_stamp, is_published

    where = user_path(path)
    return files_stamp(where) if where.exists() and is_published(where) else []


def _ladder_digest(folder: str) -> str:
    table = user_path(folder) / "records" / "models.csv"
    return file_sha256(table) if table.exists() else ""


def _conditions_identity(conditions: ConditionsConfig) -> list[Any]:
    """Identity of what conditions are measured on beside the corpus: the files of domains, and the drafts of another ladder."""
    models = Path(conditions.other_drafts) / "records" / "models.csv"
    drafts = file_sha256(models) if conditions.other_drafts and models.exists() else ""
    return [[domain_identity(domain) for domain in conditions.domains], drafts]
