"""Training of one rung: a trunk at a constant learning rate, and a cool-down from it for every
token budget.

The trunk and the cool-downs are *segments*: ranges of steps that start from a checkpoint and end in
one. A segment resumes from its own newest good checkpoint, and since a batch depends only on (seed,
step), a resumed run takes the very steps that an uninterrupted one would have taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.layout import Layout
from sdsl_jax.config import TrainingConfig
from sdsl_jax.errors import Diverged, SdslError
from sdsl_jax.models import ModelConfig, abstract_params, init_params
from sdsl_jax.preemption import Preempted, sigterm_held_back
from sdsl_jax.processes import any_process, broadcast_from_primary, is_primary, raise_on_all
from sdsl_jax.progress import Progress
from sdsl_jax.training.compilation import compile_seconds
from sdsl_jax.training.metrics import MetricsFile, Tally, read_metrics, tensorboard
from sdsl_jax.training.schedule import Schedule
from sdsl_jax.training.step import StepMetrics, TrainState, init_state, step_config, train_step

# So many skipped steps in a row are no accident any more.
_MOST_SKIPPED = 100
# Steps after which the processes of a distributed program ask each other whether SIGTERM came.
_ASK_EVERY = 16
# Batches that wait ready; two threads read them while the step runs.
_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


def init_rung(model: ModelConfig, config: TrainingConfig, seed: int) -> TrainState:
    """The state of a rung before its first step."""
    return init_state(step_config(config), init_params(model, jax.random.key(seed)))


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
      layout: of states and batches over devices.
      guard: called before anything is written; raises where another process has taken the rung
        over.
    """

    name: str
    model: ModelConfig
    config: TrainingConfig
    schedule: Schedule
    batches: grain.MapDataset
    init_seed: int
    folder: Path
    progress: Progress
    layout: Layout
    guard: Callable[[], None] = lambda: None

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        state = jax.eval_shape(
            lambda: init_state(step_config(self.config), abstract_zeros(self.model))
        )
        return self.layout.abstract(state)

    def cool_down(self, budget: int) -> tuple[TrainState, Tally]:
        """The state at the end of a budget, and the tally of the steps that led to it: those of the
        trunk and its own.

        Continues from what is on disk.

        Raises:
          Diverged: the loss is no longer finite.
          SdslError: a file cannot be written.
          Preempted: SIGTERM came; a checkpoint was written first.
        """
        end = self.schedule.ends[budget]
        folder = self.folder / f"cooldown-{end}"
        if found := self._newest(folder, end):
            self._resumed(int(found[0].step) - self.schedule.branch_before(budget))
        else:
            found = self._trunk(budget)
        steps = range(self.schedule.branches[budget], end)
        return self._run(
            folder, *found, steps, lambda step: self.schedule.cooldown_rate(budget, step)
        )

    def _trunk(self, budget: int) -> tuple[TrainState, Tally]:
        """The state of the trunk where a budget leaves it, from the newest good checkpoint at or before that step."""
        folder, step = self.folder / "trunk", self.schedule.branches[budget]
        found = self._newest(folder, step)
        if found is None:
            found = self.layout.place(init_rung(self.model, self.config, self.init_seed)), Tally()
        self._resumed(int(found[0].step) - self.schedule.branch_before(budget))
        return self._run(folder, *found, range(step), self.schedule.trunk_rate)

    def _resumed(self, steps: int) -> None:
        if steps:
            self.progress.advance(steps, f"{self.name}  resumed")

    def _newest(self, folder: Path, at_most: int) -> tuple[TrainState, Tally] | None:
        """The newest good checkpoint of a segment up to a step; those that are damaged are named and passed over."""
        bad: list[SdslError] = []
        found, there = None, [s for s in storage.steps(folder) if s <= at_most]
        while (step := broadcast_from_primary(there[-1] if there else -1)) >= 0:
            try:
                restored = storage.restore(folder / str(step), self.abstract_state())
                found = restored.tree, Tally(**restored.metadata)
                break
            except SdslError as error:
                bad.append(error)
                there = [s for s in there if s < step]
        instead = (
            f"{folder / str(int(found[0].step))} is used instead"
            if found
            else f"{folder} starts again"
        )
        for damaged in bad:
            self.progress.note(f"{damaged} {instead}")
        return found

    def _run(
        self, folder: Path, state: TrainState, tally: Tally, steps: range, rate
    ) -> tuple[TrainState, Tally]:
        """Takes those steps of a segment that are not taken yet.

        There is a checkpoint every so often, one at the end, and one when SIGTERM comes.
        """
        start, stop = int(state.step), steps.stop
        if start >= stop:
            return state, tally
        self.guard()
        recorder = _Recorder(self, folder, range(steps.start, start), tally, rate)
        began, compiled = time.perf_counter(), compile_seconds()
        step_in_place = self.layout.step(train_step)
        previous = start  # the checkpoint before the latest, kept in case that one is damaged
        pending: tuple[int, StepMetrics] | None = None
        with (
            sigterm_held_back() as sigterm,
            recorder,
            _reading(self.batches[start:stop]) as batches,
        ):
            for step in range(start, stop):
                waiting = time.perf_counter()
                batch = self.layout.place_batch(next(batches))
                # While the device is still at the step before, nothing waits.
                if pending is None or pending[1].loss_nats.is_ready():  # type: ignore[attr-defined]
                    tally.wait_seconds += time.perf_counter() - waiting
                state, reported = step_in_place(
                    state,
                    batch,
                    np.float32(rate(step)),
                    model=self.model,
                    config=step_config(self.config),
                )
                # The loss of the step before is read while the device works on this one.
                if pending is not None:
                    recorder.report(*pending)
                pending = (step, reported)
                done = step + 1
                regular = done == stop or done % self.config.checkpoint_every_steps == 0
                preempted = _came_anywhere(sigterm, done, regular)
                if regular or preempted:
                    recorder.report(*pending)
                    pending = None
                    self.guard()
                    recorder.flush(last=done == stop)
                    now, compiling = time.perf_counter(), compile_seconds()
                    tally.seconds += now - began
                    tally.compile_seconds += compiling - compiled
                    began, compiled = now, compiling
                    self._save(folder / str(done), state, tally)
                    self._prune(folder, previous, done)
                    previous = done
                    if preempted:
                        # Here too where the signal came to another process of the same program.
                        raise Preempted
        return state, tally

    def _save(self, path: Path, state: TrainState, tally: Tally) -> None:
        try:
            storage.save(path, state, dataclasses.asdict(tally))
        except SdslError:
            # Who has taken the rung over may have removed what this process was writing.
            self.guard()
            raise

    def _prune(self, folder: Path, previous: int, latest: int) -> None:
        """Deletes the checkpoints below the latest but the one before it and the points where cool-downs leave."""
        if not is_primary():
            return
        branches = self.schedule.branches if folder.name == "trunk" else ()
        for step in storage.steps(folder):
            if step < latest and step != previous and step not in branches:
                storage.delete(folder / str(step))


class _Recorder(contextlib.AbstractContextManager):
    """Turns what steps report into metrics, tally and progress, and stops a rung that has gone wrong."""

    def __init__(
        self,
        trainer: RungTrainer,
        folder: Path,
        taken: range,
        tally: Tally,
        rate: Callable[[int], float],
    ):
        self._trainer, self._folder, self._tally, self._rate = trainer, folder, tally, rate
        board = (
            tensorboard(folder, taken.stop) if trainer.config.tensorboard and is_primary() else None
        )
        path = folder / "metrics.jsonl"
        self._metrics = MetricsFile(path, board)
        if lost := len({*taken} - read_metrics(path).keys()):
            trainer.progress.note(
                f"{path} lacks {lost} of the {len(taken)} steps before step {taken.stop}: it was damaged; they are not repeated."
            )
        self._tokens_per_step = trainer.batches[taken.stop][:, 1:].size
        self._reported = time.perf_counter()
        self._step_seconds = math.nan  # a moving average

    def report(self, step: int, reported: StepMetrics) -> None:
        """Takes in what a step reported.

        Raises:
          Diverged: the loss or the gradient is not finite, and such steps are not, or no longer, to
            be skipped.
        """
        config, tally = self._trainer.config, self._tally
        loss, norm, skipped = (value.item() for value in jax.device_get(reported))
        flags = {"spike": tally.observe(loss, skipped, config.spike_deviations), "skipped": skipped}
        raised = {name: value for name, value in flags.items() if value}
        self._metrics.add(
            step, loss_nats=loss, gradient_norm=norm, learning_rate=self._rate(step), **raised
        )
        stops = tally.skipped_in_a_row >= _MOST_SKIPPED
        if stops or (
            config.on_nonfinite == "stop" and not (math.isfinite(loss) and math.isfinite(norm))
        ):
            self._stop(step, loss, norm)
        now = time.perf_counter()
        took, self._reported = now - self._reported, now
        # The first step compiles; the average forgets it within some fifty steps.
        average = self._step_seconds
        self._step_seconds = took if math.isnan(average) else 0.9 * average + 0.1 * took
        speed = self._tokens_per_step / self._step_seconds
        self._trainer.progress.advance(
            1, f"{self._trainer.name}  loss {loss:.3f}  {speed:,.0f} tokens/s"
        )

    def flush(self, last: bool = False) -> None:
        """Writes the metrics so far, once for all processes, and fails on all of them or on none."""
        failed = None
        try:
            if is_primary():
                self._metrics.flush(last=last)
        except SdslError as error:
            failed = error
        raise_on_all(
            failed, f"the metrics in {self._folder} cannot be written, as another process finds."
        )

    def _stop(self, step: int, loss: float, norm: float) -> None:
        self._trainer.guard()
        self.flush()
        segments = [self._folder, self._folder.parent / "trunk"]
        good = [f / str(s) for f in segments for s in reversed(storage.steps(f)) if s <= step]
        good = [path for path in good if storage.damage(path) is None]
        what = (
            f"the loss of {self._trainer.name} became {loss}"
            if not math.isfinite(loss)
            else (f"the gradient of {self._trainer.name} had the norm {norm}")
        )
        again = (
            f", after {_MOST_SKIPPED} skipped steps in a row"
            if self._tally.skipped_in_a_row
            else ""
        )
        raise Diverged(
            f"{what} at step {step}{again}; its last good checkpoint is "
            f"{good[0] if good else 'none: it had not reached the first one'}. Lower training.learning_rate."
        )

    def __exit__(self, *_: object) -> None:
        self._metrics.close()


def _came_anywhere(sigterm: Callable[[], bool], done: int, regular: bool) -> bool:
    """Whether SIGTERM came to this process or, every so often, to any other of the same distributed program."""
    if jax.process_count() == 1:
        return sigterm()
    # To ask the others waits for the device.
    return any_process(sigterm()) if regular or done % _ASK_EVERY == 0 else False


@contextlib.contextmanager
def _reading(batches: grain.MapDataset) -> Iterator[Iterator[np.ndarray]]:
    """Batches in order, read ahead in the background."""
    iterator = iter(batches.to_iter_dataset(_READ_AHEAD))
    try:
        yield iterator
    finally:
        iterator.close()


def abstract_zeros(model: ModelConfig):
    """Parameters of the model's shapes, all zero; free under `jax.eval_shape`."""
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), abstract_params(model))
