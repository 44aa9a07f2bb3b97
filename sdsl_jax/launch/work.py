"""What tasks of a launch do. Several do it at once, and each takes what the others have left."""

from __future__ import annotations

from pathlib import Path

from sdsl_jax.config import load_study
from sdsl_jax.processes import initialise_distributed
from sdsl_jax.progress import Progress
from sdsl_jax.study.shared_training import train_part


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
