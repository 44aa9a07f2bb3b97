"""Training of a ladder, or of a part of it, by one of any number of processes that share the folder of a study."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdsl_jax.config import StudyConfig, to_toml
from sdsl_jax.errors import SdslError, require
from sdsl_jax.processes import is_primary
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import ModelRecord, require_study_folder, write_marked
from sdsl_jax.study import Study
from sdsl_jax.training import plan_rungs, read_records, select, train_rungs, write_records


class Trained(NamedTuple):
    """What `train_part` leaves behind.

    Attributes:
      records: of the finished models among the rungs that were chosen.
      elsewhere: the other rungs, and the host:pid that trains each.
      missing: number of the study's models, chosen or not, that are not finished.
    """

    records: list[ModelRecord]
    elsewhere: dict[str, str]
    missing: int


def train_part(
    config: StudyConfig,
    folder: Path,
    patterns: Sequence[str] = (),
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains some rungs of a study's ladder, beside any number of other processes that do the same.

    The processes of one distributed program (`initialise_distributed`) must all call it, and train
    every rung together.

    After every rung, and however the call ends, `models.csv` holds every model of the study that is
    finished, whoever trained it.

    Args:
      config: the study.
      folder: of its results, shared by all processes.
      patterns: names of rungs, `*` and `?` standing for others; none means all.
      part: (i, n) for part i of n, from 1.
      progress: told what happens.

    Raises:
      Diverged: the loss of one or more rungs became non-finite; all the others were trained first.
      SdslError: there are no such rungs, the study trains none, the folder holds settings of
        somebody else, or training cannot go on.
    """
    require(
        not config.ladder.weights,
        f"ladder.weights is {config.ladder.weights!r}: the study takes its models from there and trains none.",
    )
    require_study_folder(folder)
    study = Study(config, folder, progress or Silent())
    plans = plan_rungs(config, study.dataset, folder)
    chosen = select(plans, patterns, part)
    if is_primary():
        write_marked(folder / "config.toml", to_toml(config))

    def publish() -> list[ModelRecord]:
        finished = read_records(config, study.dataset, plans)
        if not finished or not is_primary() or finished == _published(study):
            return finished
        # What the table holds now need not be what the stage was completed with.
        study.forget("train")
        return write_records(config, study.dataset, folder, plans)

    try:
        outcome = train_rungs(
            config, study.dataset, folder, chosen, study.progress, wait=False, finished=publish
        )
    except BaseException:
        with contextlib.suppress(SdslError):
            publish()
        raise
    missing = sum(len(plan.models) for plan in plans) - len(publish())
    return Trained(outcome.records, outcome.elsewhere, missing)


def _published(study: Study) -> list[ModelRecord]:
    try:
        return study.table("models")
    except SdslError:
        return []
