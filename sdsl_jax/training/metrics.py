"""What training reports: a line per step, a tally of what a trajectory has cost and shown, and the
utilisation of the device.
"""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sdsl_jax.errors import SdslError, require
from sdsl_jax.records import ModelRecord, write_text

# The running level of the loss weighs the latest step with 1/10, its running noise with 1/50, and
# both weigh all steps alike while there are fewer. No step is a spike before the noise is known.
_LEVEL_MEMORY, _NOISE_MEMORY = 10, 50
# Nats; noise that is smaller counts as this much.
_LEAST_NOISE = 1e-3

# The name under which JAX reports every compilation, and every program that it reads from its cache
# instead.
_COMPILED = "/jax/core/compile/backend_compile_duration"
_compile_durations: list[float] = []


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED:
        _compile_durations.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
    """Seconds spent compiling, or reading compiled programs, since this module was imported."""
    return sum(_compile_durations)


@dataclass
class Tally:
    """What the steps so far have cost and shown. It is saved in every checkpoint, so a resumed run
    goes on counting.

    Attributes:
      seconds: Wall-clock time, with compilation.
      compile_seconds: Part of it in which XLA compiled.
      wait_seconds: Part of it in which the device had nothing to do while waiting for a batch; an
        upper bound.
      level: Running mean of the loss.
      variance: Running variance of its noise, from differences of consecutive losses.
      latest: The last loss that was no spike.
      seen: Number of losses that entered the level.
      spikes: Number of steps whose loss was a spike.
      skipped: Number of steps that changed nothing because the loss or the gradient was not finite.
      skipped_in_a_row: Number of the latest skipped steps without a good step in between.
    """

    seconds: float = 0.0
    compile_seconds: float = 0.0
    wait_seconds: float = 0.0
    level: float = 0.0
    variance: float = 0.0
    latest: float = 0.0
    seen: int = 0
    spikes: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def observe(self, loss: float, skipped: bool, deviations: float) -> bool:
        """Counts a step and returns whether its loss is a spike. The result depends only on the
        losses so far.

        A spike exceeds the running level by more than `deviations` times the running noise, once 50
        losses have been seen. The noise is that of differences, σ² = E(lᵢ − lᵢ₋₁)²/2, on which a
        falling loss has little effect. A spike enters level and noise cut down to the limit: a
        single spike hardly moves them, but a lasting rise becomes the new level.

        Args:
          loss: Nats per token. A loss that is not finite is no spike and enters nothing.
          skipped: Whether the step changed nothing.
          deviations: The limit, in standard deviations of the noise.
        """
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if not math.isfinite(loss):
            return False
        noise = max(math.sqrt(self.variance), _LEAST_NOISE)
        limit = self.level + deviations * noise if self.seen >= _NOISE_MEMORY else math.inf
        spike = loss > limit
        entering = min(loss, limit)
        change = entering - self.level if spike else (loss - self.latest) / math.sqrt(2)
        if self.seen:
            self.variance += (change**2 - self.variance) / min(self.seen, _NOISE_MEMORY)
        self.spikes += spike
        self.seen += 1
        self.level += (entering - self.level) / min(self.seen, _LEVEL_MEMORY)
        self.latest = self.latest if spike else loss
        return spike


class MetricsFile:
    """The metrics of a segment, one JSON object a line: every step once, in order.

    Lines are appended as long as the file is as this process left it. Otherwise, and at the end,
    the file is merged with them by step and replaced as a whole. Lines that a killed process wrote
    after its last checkpoint, and lines of a second process that trains the same segment, are
    neither doubled nor lost.
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
        """Writes what is pending. Called before a checkpoint is written, so that metrics are never
        behind it.

        Raises:
          SdslError: The file cannot be written.
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
    """The lines of a metrics file by step, without lines that were cut short; empty if there is no
    file.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return {step: line for line in lines if (step := _step_of(line)) is not None}


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def check_tensorboard() -> None:
    """Checks that TensorBoard logs can be written.

    Raises:
      SdslError: The package that writes them is not installed.
    """
    require(
        importlib.util.find_spec("tensorboardX") is not None,
        "training.tensorboard is true, which needs the package tensorboardX; install sdsl_jax[tensorboard] or set it to false.",
    )


def tensorboard(folder: Path, start: int) -> Any:
    """A writer of TensorBoard logs. It hides what an earlier process logged from step `start` on.

    Raises:
      SdslError: The package is not installed.
    """
    check_tensorboard()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start)


# Dense bfloat16 peak, FLOP/s, by what the device calls itself; the vendors' data sheets.
_PEAKS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class Utilisation(NamedTuple):
    """How much of an accelerator's arithmetic training used.

    Attributes:
      flops_per_second: FLOPs per second of forward and backward pass, three times those of the
        forward pass. What remat computes twice counts once.
      share: Share of the bfloat16 peak of all devices together (MFU); NaN where the peak is
        unknown, as on CPUs.
    """

    flops_per_second: float
    share: float


def utilisation(record: ModelRecord) -> Utilisation:
    """Model FLOPs utilisation of the training that led to a model, without compilation.

    Args:
      record: The model's record; the result is NaN if it holds no time.
    """
    flops_per_second = 3 * record.flops_per_token * record.tokens_per_second
    count, _, kind = record.device.partition(" x ")
    peak = next((peak for name, peak in _PEAKS.items() if name in kind), math.nan)
    share = flops_per_second / (int(count) * peak) if count.isdecimal() else math.nan
    return Utilisation(flops_per_second, share)
