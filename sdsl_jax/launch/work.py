"""What tasks of a launch do. Several do it at once, and each takes what the others have left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sdsl_jax.cache_folders import locked
from sdsl_jax.config import StudyConfig, load_protocol, load_study
from sdsl_jax.data.study_tokenizer import with_vocabulary
from sdsl_jax.launch.records import PartRecord, Reporter
from sdsl_jax.measurement import measure_conditions
from sdsl_jax.measurement.protocol import run_protocol
from sdsl_jax.measurement.shared_parts import Part, measure_parts
from sdsl_jax.measurement.stage import StudyMeasurement
from sdsl_jax.measurement.threads import limit_threads
from sdsl_jax.processes import initialise_distributed
from sdsl_jax.progress import Progress
from sdsl_jax.report.protocol import write_answer
from sdsl_jax.study import Study, run_study
from sdsl_jax.study.run import is_fresh
from sdsl_jax.study.shared_training import train_part
from sdsl_jax.study.stages import parts_folder

_POLL_SECONDS = 1.0
# A task that has not begun when others have ended long ago never will.
_STARTS_WITHIN_SECONDS = 600.0


def train(
    progress: Progress, file: str, folder: str, patterns: list[str], distributed: bool
) -> str:
    """Trains rungs of a study that nobody else trains, those that cost most first.

    Args:
      progress: Reports progress after every step.
      file: The study's settings, overrides included.
      folder: The study's folder.
      patterns: Names of rungs; all if empty.
      distributed: Whether the processes of this job train every rung together.

    Returns:
      What became of it, in a sentence.
    """
    if distributed:
        initialise_distributed()
    trained = train_part(
        load_study(Path(file)), Path(folder), patterns, progress=progress, largest_first=True
    )
    others = ", ".join(sorted({*trained.owned_by_others.values()}))
    if others:
        return f"left the rest to {others}"
    return f"{trained.missing} models are missing" if trained.missing else "the ladder is complete"


def measure(progress: Progress, file: str, folder: str) -> str:
    """Trains the rungs of a study and then measures pairs and conditions that nobody else measures.

    Nothing is timed: `finish` does that, on a machine that it shares with nobody.

    Args:
      progress: Reports progress.
      file: The study's settings, overrides included.
      folder: The study's folder.

    Returns:
      What became of it, in a sentence.
    """
    config = _begin(file)
    if not config.ladder.weight_folders:
        train_part(config, Path(folder), progress=progress, largest_first=True)
    # Waits for the others, and takes in the models that are given.
    study = Study(with_vocabulary(config), Path(folder), progress)
    run_study(config, study.folder, only="train", progress=progress)
    models = study.records.trained
    if not is_fresh(study, "measure"):
        at = (study.config, study.dataset, models, study.home, progress)
        parts, where = StudyMeasurement(*at).parts, parts_folder(study, "measure")
        _announce(progress, "measure", parts, where, study.folder)
        progress.start("measure", sum(part.cost for part in parts))
        measure_parts(parts, where, progress, wait=False)
        progress.finish()
    if not config.conditions.is_empty and not is_fresh(study, "conditions"):
        at = (study.config, study.dataset, models, study.folder, progress)
        where = parts_folder(study, "conditions")
        measure_conditions(
            *at, where, lambda parts: _announce(progress, "conditions", parts, where, study.folder)
        )
    return "what could be shared is measured"


def finish(progress: Progress, file: str, folder: str, launch: str, after: int) -> str:
    """Does what is left of a study, when the tasks that measure it have ended: it puts the parts
    together, times what is to be timed, fits, optimises and reports.

    Args:
      progress: Reports progress.
      file: The study's settings, overrides included.
      folder: The study's folder.
      launch: Folder of the launch.
      after: Number of the tasks to wait for; 0 where a scheduler does that.

    Returns:
      What became of it, in a sentence.
    """
    _wait(Path(launch), after, progress)
    run_study(_begin(file), folder, progress=progress)
    if isinstance(progress, Reporter):
        progress.complete()
    return f"the report is {Path(folder) / 'report.html'}"


def protocol(progress: Progress, file: str, checkpoints: str, prompts: str, folder: str) -> str:
    """Measures pairs of a protocol that nobody else measures.

    Args:
      progress: Reports progress.
      file: The protocol.
      checkpoints: Folder of checkpoints.
      prompts: File of prompts.
      folder: Folder of the records.

    Returns:
      What became of it, in a sentence.
    """
    config = load_protocol(Path(file))
    done = run_protocol(config, Path(checkpoints), prompts, Path(folder), progress, shared=True)
    failed = f"; {len(done.unreadable)} could not be measured" if done.unreadable else ""
    return f"{len(done.measured)} pairs are measured{failed}"


def finish_protocol(
    progress: Progress,
    file: str,
    checkpoints: str,
    prompts: str,
    folder: str,
    launch: str,
    after: int,
) -> str:
    """Measures what is left of a protocol when its tasks have ended, puts the records together, and
    writes its tables.

    Args:
      progress: Reports progress.
      file: The protocol.
      checkpoints: Folder of checkpoints.
      prompts: File of prompts.
      folder: Folder of the records.
      launch: Folder of the launch.
      after: Number of the tasks to wait for; 0 where a scheduler does that.

    Returns:
      What became of it, in a sentence.
    """
    _wait(Path(launch), after, progress)
    config = load_protocol(Path(file))
    done = run_protocol(config, Path(checkpoints), prompts, Path(folder), progress)
    write_answer(config, done, Path(folder))
    if isinstance(progress, Reporter):
        progress.complete()
    return f"{len(done.measured)} pairs are in {folder}"


def _begin(file: str) -> StudyConfig:
    """A study's settings, with as many threads as `sdsl study` gives it."""
    config = load_study(Path(file))
    if config.computing_threads:
        limit_threads(config.computing_threads)
    return config


def _announce(
    progress: Progress, stage: str, parts: Sequence[Part], where: Path, study: Path
) -> None:
    """Tells the status of a launch what a stage consists of."""
    if isinstance(progress, Reporter):
        told = [
            PartRecord(
                part.name,
                part.cost,
                str(part.file(where).parent.relative_to(study)),
                [str(part.file(where).relative_to(study))],
            )
            for part in parts
        ]
        progress.add_parts(stage, told)


def _wait(launch: Path, tasks: int, progress: Progress) -> None:
    """Waits until the first tasks of a launch have ended."""
    began = time.monotonic()
    if tasks:
        progress.note(f"waits for {tasks} tasks")
    for number in range(tasks):
        report = launch / f"task-{number}.json"
        while not report.exists() and time.monotonic() - began < _STARTS_WITHIN_SECONDS:
            time.sleep(_POLL_SECONDS)
        if report.exists():
            with locked(launch / f"task-{number}.lock"):
                pass
