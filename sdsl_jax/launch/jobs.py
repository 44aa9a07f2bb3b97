"""What jobs each command launches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdsl_jax.config import ProtocolConfig, StudyConfig, to_toml
from sdsl_jax.errors import require
from sdsl_jax.launch.records import Launch, PartRecord, Where
from sdsl_jax.launch.submission import slurm_settings, submit
from sdsl_jax.launch.task import Task
from sdsl_jax.measurement.pair_records import PART_DONE, part_folder
from sdsl_jax.measurement.protocol import available_pairs, begin_protocol, claim_folder, pair_cost
from sdsl_jax.records import write_marked
from sdsl_jax.study.shared_training import begin_study, begin_training, by_cost
from sdsl_jax.training.rungs import Plan


def launch_training(
    config: StudyConfig,
    folder: Path,
    where: Where,
    jobs: int,
    patterns: Sequence[str] = (),
    distributed: bool = False,
    options: Sequence[tuple[str, str]] = (),
) -> Launch:
    """Submits jobs that train the rungs of a study, and returns at once.

    Args:
      config: The study.
      folder: Its folder, which all jobs share.
      where: "slurm" or "local".
      jobs: Number of jobs; there are no more than rungs.
      patterns: Names of rungs, in which `*` and `?` are wildcards; all rungs if empty.
      distributed: Whether the processes of each job train every rung together.
      options: Names and values of options of the jobs for Slurm.

    Raises:
      SdslError: The rungs cannot be trained, or the jobs cannot be submitted.
    """
    study, _, chosen = begin_training(config, folder, patterns)
    require(
        where == "slurm" or not distributed,
        "--distributed goes with --launch slurm, which gives every job its processes.",
    )
    chosen_only = {"patterns": list(patterns), "distributed": distributed}
    task = Task("train", _settings_file(study.config, folder) | chosen_only)
    parts = [part_of(plan, folder) for plan in by_cost(chosen)]
    return submit([task] * min(jobs, len(chosen)), folder, where, "train", parts, options)


def launch_study(
    config: StudyConfig,
    folder: Path,
    where: Where,
    jobs: int,
    options: Sequence[tuple[str, str]] = (),
) -> Launch:
    """Submits jobs that train the models of a study and measure them, and one that does the rest when
    they have ended, and returns at once.

    The last one puts together what the others have measured, and times models. It has a node of its
    own on a cluster, and this machine after the others have ended.

    Args:
      config: The study.
      folder: Its folder, which all jobs share.
      where: "slurm" or "local".
      jobs: Number of jobs that train and measure.
      options: Names and values of options of the jobs for Slurm.

    Raises:
      SdslError: The study holds models back, its rungs cannot be trained, or the jobs cannot be
        submitted.
    """
    require(
        not config.holdout.any,
        "a study with [holdout] cannot be launched: it publishes its predictions before it trains the models that it holds back.",
    )
    study, plans = begin_study(config, folder)
    places = _settings_file(study.config, folder)
    return submit(
        [Task("measure", places)] * jobs,
        folder,
        where,
        "study",
        [part_of(plan, folder) for plan in by_cost(plans)],
        options,
        last=Task("finish", places),
    )


def launch_protocol(
    config: ProtocolConfig,
    file: Path,
    checkpoints: Path,
    prompts: str,
    folder: Path,
    where: Where,
    jobs: int,
    options: Sequence[tuple[str, str]] = (),
) -> Launch:
    """Submits jobs that measure the pairs of a protocol, and one that puts the records together when
    they have ended, and returns at once.

    Args:
      config: The protocol.
      file: Its TOML.
      checkpoints: Folder of checkpoints.
      prompts: File of prompts.
      folder: Folder of the records, which all jobs share.
      where: "slurm" or "local".
      jobs: Number of jobs that measure.
      options: Names and values of options of the jobs for Slurm.

    Raises:
      SdslError: The protocol times models, which jobs of one machine would disturb; what it needs is
        missing; or the jobs cannot be submitted.
    """
    alone = where == "slurm" and slurm_settings(options).get("exclusive") is True
    require(
        not config.measure.timed or alone,
        f"measure.timed is {config.measure.timed}, and what is timed needs a node to itself; set it to 0, or give "
        "--launch slurm --slurm.exclusive.",
    )
    begin_protocol(config, checkpoints, prompts, folder)
    pairs = available_pairs(config, checkpoints)
    names = [(draft.folder, target.folder) for target, drafts in pairs for draft in drafts]
    parts = [
        PartRecord(
            " × ".join(pair),
            pair_cost(config),
            str(claim_folder(Path(), *pair)),
            [str(part_folder(Path(), *pair) / PART_DONE)],
        )
        for pair in names
    ]
    places = {
        "file": str(file.absolute()),
        "checkpoints": str(checkpoints.absolute()),
        "prompts": prompts,
        "folder": str(folder.absolute()),
    }
    shared = Task("protocol", places)
    last = Task("finish_protocol", places)
    return submit([shared] * jobs, folder, where, "protocol", parts, options, last=last)


def _settings_file(config: StudyConfig, folder: Path) -> dict[str, object]:
    """Writes a study's settings, overrides included, where its jobs read them; returns both places."""
    file = folder / "config.toml"
    write_marked(file, to_toml(config))
    return {"file": str(file.absolute()), "folder": str(folder.absolute())}


def part_of(plan: Plan, folder: Path) -> PartRecord:
    """A rung as a part of the work of a launch."""
    made = [str((model / "record.json").relative_to(folder)) for model in plan.all_folders]
    return PartRecord(plan.rung.name, plan.flops, str(plan.folder.relative_to(folder)), made)
