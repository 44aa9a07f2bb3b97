"""Trains a ladder or a part of it, beside other processes that share the study's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdsl_jax.checkpoints import model_folder
from sdsl_jax.config import StudyConfig, to_toml
from sdsl_jax.data.study_tokenizer import with_vocabulary
from sdsl_jax.errors import SdslError, require
from sdsl_jax.processes import is_primary
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import ModelRecord, require_study_folder, write_marked
from sdsl_jax.study.run import forget
from sdsl_jax.study.stages import Study
from sdsl_jax.training import plan_rungs, read_records, select, train_rungs, write_records
from sdsl_jax.training.rungs import Plan


class Trained(NamedTuple):
    """What `train_part` leaves behind.

    Attributes:
      records: Records of the finished models among the chosen rungs.
      owned_by_others: Names of the other chosen rungs, with the host:pid that trains each.
      missing: Number of the study's models, chosen or not, that are not finished.
    """

    records: list[ModelRecord]
    owned_by_others: dict[str, str]
    missing: int


def train_part(
    config: StudyConfig,
    folder: Path,
    patterns: Sequence[str] = (),
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
    largest_first: bool = False,
) -> Trained:
    """Trains some rungs of a study's ladder, beside any number of other processes that do the same.

    The processes of one distributed program (`initialise_distributed`) must all call it, and train
    every rung together.

    After every rung, and however the call ends, `models.csv` holds every finished model of the
    study, whichever process trained it.

    Args:
      config: The study.
      folder: Folder of its results, which all processes share.
      patterns: Names of rungs, in which `*` and `?` are wildcards; all rungs if empty.
      part: (i, n) for part i of n, counted from 1.
      progress: Reports progress after every step.
      largest_first: Whether rungs that cost most come first, for processes that take what others
        leave; otherwise the smallest come first.

    Raises:
      Diverged: The loss of one or more rungs became non-finite; all the others were trained first.
      SdslError: There are no such rungs, the study trains none, the folder holds another study's
        settings, or training cannot continue.
    """
    study, plans, chosen = begin_training(config, folder, patterns, part, progress)
    config = study.config
    if largest_first:
        chosen = by_cost(chosen)
    if is_primary():
        write_marked(folder / "config.toml", to_toml(config))

    def publish() -> list[ModelRecord]:
        finished = read_records(config, study.dataset, plans)
        own = {record.model_id for record in finished}
        published = [record for record in _published(study) if record.model_id in own]
        if not finished or not is_primary() or finished == published:
            return finished
        # The table may have changed since the stage was completed.
        forget(folder, "train")
        return write_records(config, study.dataset, folder, plans)

    try:
        outcome = train_rungs(
            config, study.dataset, folder, chosen, study.progress, wait=False, finished=publish
        )
    except BaseException:
        with contextlib.suppress(SdslError):
            publish()
        raise
    missing = sum(len(plan.all_folders) for plan in plans) - len(publish())
    return Trained(*outcome, missing)


def begin_training(
    config: StudyConfig,
    folder: Path,
    patterns: Sequence[str] = (),
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> tuple[Study, list[Plan], list[Plan]]:
    """Checks that some rungs of a study can be trained in a folder, and writes nothing.

    Returns:
      The study, the plans of all its rungs, and those of the chosen ones; see `train_part` for the
      arguments.

    Raises:
      SdslError: There are no such rungs, the study trains none, or the folder holds another study's
        settings.
    """
    require(
        not config.ladder.weight_folders,
        f"ladder.weights is {config.ladder.weights!r}: the study takes its models from there and trains none.",
    )
    require_study_folder(folder)
    study = Study(with_vocabulary(config), folder, progress or Silent())
    if config.takes:
        study.progress.note(f"takes {config.takes}")
    plans = plan_rungs(study.config, study.dataset, folder)
    return study, plans, select(plans, patterns, part)


def begin_study(config: StudyConfig, folder: Path) -> tuple[Study, list[Plan]]:
    """Checks that the models of a study can be trained in a folder, or are there, and writes nothing.

    Returns:
      The study, and the plans of the rungs that it trains.

    Raises:
      SdslError: See `begin_training`; or what is to be measured is not there.
    """
    from sdsl_jax.measurement import check_conditions
    from sdsl_jax.training import check_ladder

    require_study_folder(folder)
    check_ladder(config)
    check_conditions(config)
    if config.ladder.weight_folders:
        return Study(with_vocabulary(config), folder, Silent()), []
    study, plans, _ = begin_training(config, folder)
    return study, plans


def trained_so_far(config: StudyConfig, folder: Path, patterns: Sequence[str] = ()) -> Trained:
    """What other processes have trained of some rungs of a study.

    Raises:
      SdslError: There are no such rungs.
    """
    study, plans, chosen = begin_training(config, folder, patterns)
    missing = sum(not model_folder.is_complete(each) for plan in plans for each in plan.all_folders)
    return Trained(read_records(study.config, study.dataset, chosen), {}, missing)


def by_cost(plans: Sequence[Plan]) -> list[Plan]:
    """Rungs that cost most first: the last ones to be taken are then soon done."""
    return sorted(plans, key=lambda plan: -plan.flops)


def _published(study: Study) -> list[ModelRecord]:
    try:
        return study.records.trained
    except SdslError:
        return []
