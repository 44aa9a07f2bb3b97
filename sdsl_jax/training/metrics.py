"""What a segment reports step by step."""

from __future__ import annotations

import json
from pathlib import Path

from sdsl_jax.errors import SdslError
from sdsl_jax.records import write_text


class MetricsFile:
    """Metrics of a segment, one JSON object a line, with neither gaps nor doubles across resumes.

    Lines of steps from `start` to `stop` are about to be written again and are dropped; later ones, which a trunk holds when
    a budget is added between two others, belong to the same trajectory and stay.
    """

    def __init__(self, path: Path, start: int, stop: int):
        self._path = path
        self._pending: list[str] = []
        self._later: list[str] = []
        if path.exists():
            steps = {line: step for line in path.read_text().splitlines() if (step := _step_of(line)) is not None}
            self._later = [line for line, step in steps.items() if step >= stop]
            write_text(path, "".join(line + "\n" for line, step in steps.items() if step < start))

    def add(self, **values: float) -> None:
        self._pending.append(json.dumps(values))

    def flush(self, last: bool) -> None:
        """Appends what is pending; called before a checkpoint is written, so that metrics are never behind it."""
        lines = self._pending + (self._later if last else [])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        except OSError as error:
            raise SdslError(f"cannot write {self._path} ({error.strerror}).") from None
        self._pending.clear()


def _step_of(line: str) -> int | None:
    """The step of a line of metrics; None for a line that was cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
