"""Training of one rung: a trunk at a constant learning rate, and a cool-down from it for every token budget.

The trunk and the cool-downs are *segments*: ranges of steps that start from a checkpoint and end in one. A segment resumes
from its own latest checkpoint, and since a batch depends only on (seed, step), a resumed run takes the very steps that an
uninterrupted one would have taken.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np

from sdsl_jax.config import TrainingConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, abstract_params, init_params
from sdsl_jax.progress import Progress
from sdsl_jax.training import checkpoints
from sdsl_jax.training.metrics import MetricsFile
from sdsl_jax.training.schedule import Schedule
from sdsl_jax.training.step import StepMetrics, TrainState, init_state, step_config, train_step


def init_rung(model: ModelConfig, config: TrainingConfig, seed: int) -> TrainState:
    """The state of a rung before its first step."""
    return init_state(step_config(config), init_params(model, jax.random.key(seed)))


def rung_seed(*belongs_to: object) -> int:
    """A 31-bit seed made of what it belongs to, never of the order in which things are trained."""
    return int.from_bytes(hashlib.sha256(repr(belongs_to).encode()).digest()[:4]) >> 1


@dataclass(frozen=True)
class RungTrainer:
    """Runs segments of one rung.

    Attributes:
      name: of the rung, for messages.
      model: shape of the model.
      config: recipe.
      schedule: learning rates and budgets.
      batches: training batches by step.
      init_seed: seed of the initial parameters.
      folder: where the rung's checkpoints and metrics live.
      progress: told after every step; a unit is a training step.
    """

    name: str
    model: ModelConfig
    config: TrainingConfig
    schedule: Schedule
    batches: grain.MapDataset
    init_seed: int
    folder: Path
    progress: Progress

    def budgets(self) -> Iterator[tuple[int, TrainState, float]]:
        """Trains the rung, and yields (index of budget, final state, seconds) as each cool-down ends.

        The seconds are those that led to this state: the trunk up to the branch and the cool-down.
        """
        for i in range(len(self.schedule.ends)):
            yield i, *self.cool_down(i)

    def cool_down(self, budget: int) -> tuple[TrainState, float]:
        """The state at the end of a budget, and the seconds that led to it. Continues from what is on disk."""
        branch, end = self.schedule.branches[budget], self.schedule.ends[budget]
        folder = self.folder / f"cooldown-{end}"
        if latest := checkpoints.steps(folder):
            state, seconds = self._load(folder, latest[-1])
            before = max((b for b in self.schedule.branches if b < branch), default=0)
            self.progress.advance(branch - before, f"{self.name}  resumed")
        else:
            state, seconds = self._trunk(branch)
        self.progress.advance(int(state.step) - branch, f"{self.name}  resumed")
        return self._run(folder, state, seconds, end, lambda step: self.schedule.cooldown_rate(budget, step))

    def _trunk(self, step: int) -> tuple[TrainState, float]:
        """The state of the trunk at a step, from the latest checkpoint at or before it."""
        folder = self.folder / "trunk"
        reached = [s for s in checkpoints.steps(folder) if s <= step]
        state, seconds = (
            self._load(folder, reached[-1]) if reached else (init_rung(self.model, self.config, self.init_seed), 0.0)
        )
        before = max((b for b in self.schedule.branches if b < step), default=0)
        self.progress.advance(int(state.step) - before, f"{self.name}  resumed")
        return self._run(folder, state, seconds, step, self.schedule.trunk_rate)

    def _load(self, folder: Path, step: int) -> tuple[TrainState, float]:
        like = jax.eval_shape(lambda: init_state(step_config(self.config), abstract_zeros(self.model)))
        restored = checkpoints.restore(folder / str(step), like)
        return restored.tree, float(restored.metadata["seconds"])

    def _run(self, folder: Path, state: TrainState, seconds: float, stop: int, rate) -> tuple[TrainState, float]:
        """Takes the steps up to `stop`, with a checkpoint every so often and one at the end."""
        start = int(state.step)
        metrics = MetricsFile(folder / "metrics.jsonl", start, stop)
        began = last_report = time.perf_counter()
        step_seconds = math.nan  # a moving average
        tokens_per_step = self.batches[start][:, 1:].size

        def report(step: int, reported: StepMetrics) -> None:
            nonlocal last_report, step_seconds
            loss = float(reported.loss_nats)
            if not math.isfinite(loss):
                good = checkpoints.steps(folder)
                raise SdslError(
                    f"the loss of {self.name} became {loss} at step {step}; its last good checkpoint is "
                    f"{folder / str(good[-1]) if good else 'the start of this segment'}. Lower training.learning_rate."
                )
            norm = float(reported.gradient_norm)
            metrics.add(step=step, loss_nats=loss, gradient_norm=norm, learning_rate=rate(step))
            now = time.perf_counter()
            took, last_report = now - last_report, now
            # The first step compiles; the average forgets it within some fifty steps.
            step_seconds = took if math.isnan(step_seconds) else 0.9 * step_seconds + 0.1 * took
            self.progress.advance(1, f"{self.name}  loss {loss:.3f}  {tokens_per_step / step_seconds:,.0f} tokens/s")

        pending: tuple[int, StepMetrics] | None = None
        for step in range(start, stop):
            batch = self.batches[step]
            state, reported = train_step(
                state, batch, np.float32(rate(step)), model=self.model, config=step_config(self.config)
            )
            # The loss of the step before is read while the device works on this one.
            if pending is not None:
                report(*pending)
            pending = (step, reported)
            if step + 1 == stop or (step + 1) % self.config.checkpoint_every_steps == 0:
                report(*pending)
                pending = None
                metrics.flush(last=step + 1 == stop)
                seconds += time.perf_counter() - began
                began = time.perf_counter()
                checkpoints.save(folder / str(step + 1), state, {"seconds": seconds})
                self._prune(folder, step + 1)
        return state, seconds

    def _prune(self, folder: Path, latest: int) -> None:
        """Deletes what no resume can need: all but the latest checkpoint and the points where cool-downs leave."""
        for step in checkpoints.steps(folder):
            if step != latest and not (folder.name == "trunk" and step in self.schedule.branches):
                checkpoints.delete(folder / str(step))


def abstract_zeros(model: ModelConfig):
    """Parameters of the model's shapes, all zero; free under `jax.eval_shape`."""
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), abstract_params(model))
