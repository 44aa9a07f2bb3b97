"""What training reports: a line per step, and a tally of what a trajectory has cost and shown."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdsl_jax.errors import SdslError, require
from sdsl_jax.records import write_text

# The running mean and deviation of the loss weigh the last steps with 1/50, and all steps alike while there are fewer.
_MEMORY = 50


@dataclass
class Tally:
    """What the steps so far have cost and shown; it is saved in every checkpoint, so that a resumed run goes on counting.

    Attributes:
      seconds: wall-clock time, compilation included.
      compile_seconds: of it, time in which XLA compiled.
      wait_seconds: of it, time in which the device had nothing to do for want of a batch; at most that.
      mean, variance: running moments of the loss.
      seen: losses that entered them.
      spikes: steps whose loss was a spike.
      skipped: steps that changed nothing, because the loss or the gradient was not finite.
      skipped_in_a_row: the latest of them, without a good step in between.
    """

    seconds: float = 0.0
    compile_seconds: float = 0.0
    wait_seconds: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0
    spikes: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def observe(self, loss: float, skipped: bool, deviations: float) -> bool:
        """Counts a step, and says whether its loss is a spike: a function of the losses so far and of nothing else.

        A spike exceeds the running mean by more than `deviations` running standard deviations, once 50 losses have been seen.
        It enters the mean cut down to that limit: a single one hardly moves it, yet a lasting rise becomes the new level.

        Args:
          loss: nats per token; a loss that is not finite is no spike and enters nothing.
          skipped: whether the step changed nothing.
          deviations: the limit.
        """
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if not math.isfinite(loss):
            return False
        limit = self.mean + deviations * math.sqrt(self.variance) if self.seen >= _MEMORY else math.inf
        spike = loss > limit
        self.spikes += spike
        self.seen += 1
        weight, change = 1 / min(self.seen, _MEMORY), min(loss, limit) - self.mean
        self.mean += weight * change
        self.variance = (1 - weight) * (self.variance + weight * change**2)
        return spike


class MetricsFile:
    """The metrics of a segment, one JSON object a line: every step once, in order.

    Lines are appended while the file is as this process left it. Otherwise, and at the end, the file is merged with them by
    step and replaced as a whole: lines that a killed process wrote after its last checkpoint, and lines of a second process
    that trains the same segment, are neither doubled nor lost.
    """

    def __init__(self, path: Path, board: Any = None):
        self._path, self._board = path, board
        self._pending: dict[int, str] = {}
        self._size = -1

    def add(self, step: int, **values: float | bool) -> None:
        """Keeps the values of a step; those that are not finite become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._pending[step] = json.dumps({"step": step, **finite})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, float(value), step)

    def flush(self, last: bool = False) -> None:
        """Writes what is pending; called before a checkpoint is, so that metrics are never behind it.

        Raises:
          SdslError: the file cannot be written to.
        """
        try:
            if not last and self._path.exists() and self._path.stat().st_size == self._size:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write("".join(line + "\n" for line in self._pending.values()))
            else:
                lines = read_metrics(self._path) | self._pending
                write_text(self._path, "".join(lines[step] + "\n" for step in sorted(lines)))
            self._size = self._path.stat().st_size
        except OSError as error:
            raise SdslError(f"cannot write {self._path} ({error.strerror}).") from None
        self._pending.clear()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Closes the TensorBoard log, if there is one."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> dict[int, str]:
    """The lines of a metrics file by step, without lines that were cut short; none if there is no file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return {step: line for line in lines if (step := _step_of(line)) is not None}


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def check_tensorboard() -> None:
    """Checks that TensorBoard's logs can be written.

    Raises:
      SdslError: the package that writes them is not installed.
    """
    require(
        importlib.util.find_spec("tensorboardX") is not None,
        "training.tensorboard is true, which needs the package tensorboardX; install sdsl_jax[tensorboard] or set it to false.",
    )


def tensorboard(folder: Path, start: int) -> Any:
    """A writer of TensorBoard's logs; what an earlier process logged from step `start` on is hidden.

    Raises:
      SdslError: the package is not installed.
    """
    check_tensorboard()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start)
