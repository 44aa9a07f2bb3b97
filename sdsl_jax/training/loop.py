"""Training of one rung: a trunk at a constant learning rate, and a cool-down from it for every
token budget.

The trunk and the cool-downs are *segments*: ranges of steps that start from a checkpoint and end in
one. A segment resumes from its own newest good checkpoint. A batch depends only on (seed, step), so
a resumed run takes the very steps that an uninterrupted run would have taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.layout import Layout
from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.config import EXIT_KINDS, StudyConfig, TrainingConfig
from sdsl_jax.data import Dataset
from sdsl_jax.errors import Diverged, SdslError, require
from sdsl_jax.models import abstract_params, init_params
from sdsl_jax.models.cuts import early_exit, pruned
from sdsl_jax.models.feature_head import (
    FusionParams,
    Tables,
    abstract_head,
    graft,
    start_fusion,
    tables_of,
)
from sdsl_jax.preemption import Preempted, sigterm_held_back
from sdsl_jax.processes import any_process, broadcast_from_primary, is_primary, raised_on_all
from sdsl_jax.progress import Progress
from sdsl_jax.seeds import derive_seed
from sdsl_jax.training.closed_form import linear_start, start_steps
from sdsl_jax.training.metrics import (
    MetricsFile,
    Tally,
    compile_seconds,
    read_metrics,
    tensorboard,
)
from sdsl_jax.training.objectives import TEXT, Objective
from sdsl_jax.training.rungs import Plan, data_seed
from sdsl_jax.training.step import (
    StepConfig,
    StepMetrics,
    TrainState,
    init_state,
    step_config,
    train_step,
)
from sdsl_jax.training.teacher import TeacherCache, distil_batch, load_teacher

# Skipped steps in a row after which a run counts as diverged.
_MOST_SKIPPED = 100
# Steps between the times that the processes of a distributed program ask each other for SIGTERM.
_ASK_EVERY = 16
# Windows of the training text that show what a pruned draft can spare.
_PRUNING_WINDOWS = 16
# Two threads keep 16 batches ready while a step runs.
_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class Segment(NamedTuple):
    """A range of steps that starts from a checkpoint and ends in one.

    Attributes:
      folder: Folder of its checkpoints and metrics.
      steps: Steps it consists of.
      rate: Learning rate of each step.
    """

    folder: Path
    steps: range
    rate: Callable[[int], float]


@dataclass(frozen=True)
class RungTrainer:
    """Trains one rung, segment by segment.

    Attributes:
      config: The study.
      dataset: Its tokenised corpus.
      plan: The rung.
      layout: Where states and batches lie.
      progress: Reports progress after every training step, in steps.
      guard: Called before anything is written; raises if another process has taken the rung over.
      teacher: The teacher's distributions; None if the rung needs none.
    """

    config: StudyConfig
    dataset: Dataset
    plan: Plan
    layout: Layout
    progress: Progress
    guard: Callable[[], None] = lambda: None
    teacher: TeacherCache | None = None

    @property
    def name(self) -> str:
        """Name of the rung, for messages."""
        return self.plan.rung.name

    @property
    def recipe(self) -> TrainingConfig:
        """The study's training settings."""
        return self.config.training

    @functools.cached_property
    def batches(self) -> grain.MapDataset:
        """Training batches by step: windows of tokens, with the teacher's view of them if there is
        one."""
        seed = data_seed(self.config, self.plan.rung)
        if self.teacher is None:
            return self.dataset.batches(seed, self.plan.batch)
        return self.dataset.batches(seed, self.plan.batch, self.teacher).map(distil_batch)

    @functools.cached_property
    def tables(self) -> Tables | None:
        """What a head on its target's tables takes from the target; None for other models."""
        head = self.plan.head
        if head is None or not head.on_tables:
            return None
        target = load_teacher(self.config, self.dataset).model
        return tables_of(head, target.config, target.params)

    @functools.cached_property
    def step_config(self) -> StepConfig:
        """What the compiled step depends on beside the architecture."""
        objective, distil = self.plan.rung.objective, self.config.distil
        if not objective:
            return step_config(self.recipe)
        sampled = distil.text == "samples"
        # What the teacher did not write is not asked of the draft.
        first = distil.prompt_tokens - 1 if sampled else 0
        eta = distil.eta if objective == "hybrid" else TEXT.eta
        head = (distil.unrolled, distil.draft_decay) if self.plan.head else ()
        temperature = distil.temperature if self.teacher is not None else 1.0
        return step_config(self.recipe, Objective(objective, eta, temperature, first, *head))

    def initial_state(self) -> TrainState:
        """The state before the first step.

        Raises:
          SdslError: The model to start from is damaged or of another shape.
        """
        rung, parent = self.plan.rung, self.plan.parent
        params: Any
        seed = derive_seed("init", self.config.seed, rung.role, rung.params, rung.seed)
        if self.tables is not None:
            return init_state(self.step_config, self._linear_start(jax.random.key(seed)))
        if parent is None:
            params = init_params(self.plan.model, jax.random.key(seed))
        else:
            loaded = load_model(parent.folder)
            cut_out = rung.kind in (*EXIT_KINDS, "pruned")
            require(
                loaded.record.params_digest == parent.digest
                and (cut_out or loaded.config == self.plan.model),
                f"{self.name} cannot start from {parent.folder}: it is of another architecture, or not the model that the "
                "records beside it name.",
            )
            params = loaded.params
            if rung.kind in EXIT_KINDS:
                params = early_exit(loaded.config, params, self.plan.model.layers)[1]
            elif rung.kind == "pruned":
                shown = self.dataset.text("train").windows(_PRUNING_WINDOWS)
                params = pruned(loaded.config, params, self.plan.model, shown)
        if self.plan.head is not None:
            params = graft(self.plan.head, params)
        return init_state(self.step_config, params)

    def _linear_start(self, key: jax.Array) -> FusionParams:
        """A head on its target's tables that is the best linear one still."""
        plan = self.plan
        assert plan.head is not None
        assert self.tables is not None
        assert self.teacher is not None
        order = data_seed(self.config, plan.rung), plan.batch
        windows = self.dataset.seen_windows(*order, start_steps(plan.batch))
        start = linear_start(self.tables, self.teacher, windows)
        self.progress.note(
            f"{self.name}: the closed-form start explains {start.explained:.1%} of the hidden states' squares in held-out "
            f"windows, at λ = {start.strength:g}"
        )
        embed, read, bias = map(jnp.asarray, (start.embed, start.read, start.bias))
        return start_fusion(plan.head, embed, read, bias, key)

    def resume(self, budget: int) -> tuple[TrainState, Tally, list[Segment]]:
        """Where the training for a token budget continues from what is on disk.

        Returns:
          The newest good state, the tally of the steps that led to it, and the segments that are
          still to run from there.
        """
        schedule, folder = self.plan.schedule, self.plan.folder
        branch, end = schedule.branches[budget], schedule.ends[budget]
        trunk = Segment(folder / "trunk", range(branch), schedule.trunk_rate)
        cooldown = Segment(
            folder / f"cooldown-{end}",
            range(branch, end),
            functools.partial(schedule.cooldown_rate, budget),
        )
        segments = [cooldown]
        newest = self._newest(cooldown)
        if newest is None:
            segments = [trunk, cooldown]
            newest = self._newest(trunk)
        state, tally = newest or (self.layout.place(self.initial_state()), Tally())
        if steps := int(state.step) - schedule.branch_before(budget):
            self.progress.advance(steps, f"{self.name}  resumed")
        return state, tally, segments

    def _newest(self, segment: Segment) -> tuple[TrainState, Tally] | None:
        """The newest good checkpoint of a segment; damaged ones are reported and skipped."""
        initial = functools.partial(init_state, self.step_config)
        head, model = self.plan.head, self.plan.model
        params = abstract_head(head) if head else abstract_params(model)
        abstract = self.layout.abstract(jax.eval_shape(initial, params))
        damaged: list[SdslError] = []
        newest = None
        steps = [s for s in storage.steps(segment.folder) if s <= segment.steps.stop]
        while (step := broadcast_from_primary(steps[-1] if steps else -1)) >= 0:
            try:
                restored = storage.restore(segment.folder / str(step), abstract)
                newest = restored.tree, Tally(**restored.metadata)
                break
            except SdslError as error:
                damaged.append(error)
                steps = [s for s in steps if s < step]
        instead = (
            f"{segment.folder / str(int(newest[0].step))} is used instead"
            if newest
            else f"{segment.folder} starts again"
        )
        for problem in damaged:
            self.progress.note(f"{problem} {instead}")
        return newest

    def run(self, segment: Segment, state: TrainState, tally: Tally) -> tuple[TrainState, Tally]:
        """Takes the steps of a segment that are not taken yet.

        Writes a checkpoint every `checkpoint_every_steps` steps, one at the end, and one when
        SIGTERM comes.

        Args:
          segment: What to run.
          state: State to start from; donated to the first step.
          tally: Tally of the steps that led to it; counts on.

        Returns:
          The state at the end of the segment, and the tally of all steps up to it.

        Raises:
          Diverged: The loss is no longer finite.
          SdslError: A file cannot be written.
          Preempted: SIGTERM came; a checkpoint was written first.
        """
        folder, rate = segment.folder, segment.rate
        start, stop = int(state.step), segment.steps.stop
        if start >= stop:
            return state, tally
        self.guard()
        recorder = _Recorder(self, segment, range(segment.steps.start, start), tally)
        began, compiled = time.perf_counter(), compile_seconds()
        step_in_place, tables = self.layout.step(train_step), self._placed_tables()
        previous = start  # the second-latest checkpoint is kept in case the latest is damaged
        pending: tuple[int, StepMetrics] | None = None
        with (
            sigterm_held_back() as sigterm,
            recorder,
            _reading(self.batches[start:stop]) as batches,
        ):
            for step in range(start, stop):
                waiting = time.perf_counter()
                batch = self.layout.place_batch(next(batches))
                # Waiting for a batch costs nothing while the device still works on the step before.
                if pending is None or pending[1].loss_nats.is_ready():  # type: ignore[attr-defined]
                    tally.wait_seconds += time.perf_counter() - waiting
                state, reported = step_in_place(
                    state,
                    batch,
                    np.float32(rate(step)),
                    tables,
                    model=self.plan.architecture,
                    config=self.step_config,
                )
                # Reads the previous loss while the device works on this step.
                if pending is not None:
                    recorder.report(*pending)
                pending = (step, reported)
                done = step + 1
                regular = done == stop or done % self.recipe.checkpoint_every_steps == 0
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
                        # Also where the signal came to another process of the same program.
                        raise Preempted
        return state, tally

    def _placed_tables(self) -> Tables | None:
        if self.tables is None:
            return None
        dtype = self.recipe.compute_dtype
        return self.layout.place(jax.tree.map(lambda x: x.astype(dtype), self.tables))

    def _save(self, path: Path, state: TrainState, tally: Tally) -> None:
        try:
            storage.save(path, state, dataclasses.asdict(tally))
        except SdslError:
            # Another process that took the rung over may have removed what this one was writing.
            self.guard()
            raise

    def _prune(self, folder: Path, previous: int, latest: int) -> None:
        """Deletes older checkpoints, except the second-latest and those where cool-downs branch off."""
        if not is_primary():
            return
        branches = self.plan.schedule.branches if folder.name == "trunk" else ()
        for step in storage.steps(folder):
            if step < latest and step != previous and step not in branches:
                storage.delete(folder / str(step))


class _Recorder(contextlib.AbstractContextManager):
    """Turns what steps report into metrics, tally and progress, and stops a rung that diverges."""

    def __init__(self, trainer: RungTrainer, segment: Segment, taken: range, tally: Tally):
        self._trainer, self._segment, self._tally = trainer, segment, tally
        board = (
            tensorboard(segment.folder, taken.stop)
            if trainer.recipe.tensorboard and is_primary()
            else None
        )
        path = segment.folder / "metrics.jsonl"
        self._metrics = MetricsFile(path, board)
        if lost := len({*taken} - read_metrics(path).keys()):
            trainer.progress.note(
                f"{path} lacks {lost} of the {len(taken)} steps before step {taken.stop}: it was damaged; they are not repeated."
            )
        self._tokens_per_step = trainer.plan.tokens_per_step
        self._reported = time.perf_counter()
        self._step_seconds = math.nan  # a moving average

    def report(self, step: int, reported: StepMetrics) -> None:
        """Records what a step reported.

        Raises:
          Diverged: The loss or the gradient is not finite, and the recipe does not skip such steps
            or too many came in a row.
        """
        recipe, tally = self._trainer.recipe, self._tally
        loss, lowered, accepted, norm, skipped = (x.item() for x in jax.device_get(reported))
        flags = {"spike": tally.observe(loss, skipped, recipe.spike_deviations), "skipped": skipped}
        raised = {name: value for name, value in flags.items() if value}
        if not math.isnan(accepted):
            raised |= {"objective": lowered, "acceptance": accepted}
        self._metrics.add(
            step,
            loss_nats=loss,
            gradient_norm=norm,
            learning_rate=self._segment.rate(step),
            **raised,
        )
        stops = tally.skipped_in_a_row >= _MOST_SKIPPED
        if stops or (
            recipe.on_nonfinite == "stop" and not all(map(math.isfinite, (loss, lowered, norm)))
        ):
            self._stop(step, loss if not math.isfinite(loss) else lowered, norm)
        now = time.perf_counter()
        took, self._reported = now - self._reported, now
        # The first step compiles; the average forgets it within about fifty steps.
        average = self._step_seconds
        self._step_seconds = took if math.isnan(average) else 0.9 * average + 0.1 * took
        speed = self._tokens_per_step / self._step_seconds
        reached = f"loss {loss:.3f}" if math.isnan(accepted) else f"α {accepted:.3f}"
        self._trainer.progress.advance(1, f"{self._trainer.name}  {reached}  {speed:,.0f} tokens/s")

    def flush(self, last: bool = False) -> None:
        """Writes the metrics so far, on the primary process; fails on all processes or on none."""
        with raised_on_all(
            f"the metrics in {self._segment.folder} cannot be written, as another process finds."
        ):
            if is_primary():
                self._metrics.flush(last=last)

    def _stop(self, step: int, loss: float, norm: float) -> None:
        self._trainer.guard()
        self.flush()
        segments = [self._segment.folder, self._segment.folder.parent / "trunk"]
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
    """Whether SIGTERM came to this process or, every `_ASK_EVERY` steps, to any other process."""
    if jax.process_count() == 1:
        return sigterm()
    # Asking the others waits for the device.
    return any_process(sigterm()) if regular or done % _ASK_EVERY == 0 else False


@contextlib.contextmanager
def _reading(batches: grain.MapDataset) -> Iterator[Iterator[np.ndarray]]:
    """Batches in order, read ahead in the background."""
    iterator = iter(batches.to_iter_dataset(_READ_AHEAD))
    try:
        yield iterator
    finally:
        iterator.close()
