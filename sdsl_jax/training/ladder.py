"""The ladder: any number of processes train and evaluate the rungs of a study; `models.csv` has a
row for every model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from sdsl_jax.checkpoints import model_folder, storage
from sdsl_jax.checkpoints.layout import make_layout
from sdsl_jax.checkpoints.loading import is_published, open_model, require_same_text
from sdsl_jax.claims import Claim, ClaimLost
from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.errors import Diverged, SdslError, require
from sdsl_jax.models import count
from sdsl_jax.models.cuts import cut, leading
from sdsl_jax.models.feature_head import head_counts
from sdsl_jax.models.weights import WeightStorage, store
from sdsl_jax.package_files import user_path
from sdsl_jax.processes import (
    any_process,
    barrier,
    broadcast_from_primary,
    is_primary,
    raised_on_all,
)
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import ModelRecord, read_table, write_json, write_table, write_text
from sdsl_jax.training.closed_form import start_steps
from sdsl_jax.training.evaluation import held_out_losses, make_record
from sdsl_jax.training.loop import RungTrainer
from sdsl_jax.training.metrics import check_tensorboard
from sdsl_jax.training.rungs import (
    Plan,
    data_seed,
    head_of,
    parent_records,
    plan_rungs,
    rungs,
    shape,
)
from sdsl_jax.training.schedule import make_schedule
from sdsl_jax.training.teacher import TeacherCache, open_teacher, teacher_digest

_POLL_SECONDS = 1.0
# What became of a rung whose loss was not finite, in its folder.
_DIVERGED = "diverged.txt"
_STORED: dict[str, WeightStorage] = {"float32": "as-loaded", "bfloat16": "bfloat16"}


def check_ladder(config: StudyConfig) -> None:
    """Checks before training that every rung can be built, and that laws can be fitted to the drafts if
    any is trained on the text alone.

    Raises:
      SdslError: The family cannot build a size, two budgets are less than a step apart, there are
        too few models, a folder of `ladder.given_targets` or `ladder.given_drafts` holds no ladder
        (nor, of targets, a published model), or `distil.teacher` is no model.
    """
    for role in ("targets", "drafts"):
        for folder in getattr(config.ladder, f"given_{role}"):
            path = user_path(folder)
            if role == "targets" and path.exists() and is_published(path):
                open_model(path)
                continue
            require(
                (path / "records" / "models.csv").exists(),
                f"ladder.given_{role} holds {folder!r}, where no trained ladder is: records/models.csv is not there.",
            )
    teacher_digest(config.distil)
    parents = parent_records(config.distil)
    sizes = set()
    for rung in rungs(config):
        model = shape(config, rung, config.data.vocab_size)
        sizes_of_rung = count(model, 0)
        if head := head_of(config, rung, model, model.width):
            sizes_of_rung = head_counts(head, sizes_of_rung)
        size = sizes_of_rung.nonembedding
        make_schedule(config.training, size, rung.budgets, config.data.sequence_length)
        sizes.add(size)
    ladder, distil = config.ladder, config.distil
    if distil.teacher or ladder.given_targets:
        sizes.add(-1)  # of a target that is there already
    drafts = sum(len(rung.budgets) for rung in rungs(config) if rung.role == "draft")
    budgets = {*ladder.draft_tokens, *ladder.target_tokens}
    if ladder.given_drafts:
        given = [
            r for f in ladder.given_drafts for r in read_table(user_path(f) / "records", "models")
        ]
        of_text = [r for r in given if r.role == "draft" and r.trained_for == "text"]
        require(
            not of_text or len(of_text) >= 4,
            f"ladder.given_drafts holds {len(of_text)} drafts trained on the text alone; the laws need at least 4. Name a folder "
            "with the drafts that the others started from as well.",
        )
        return
    require(
        (drafts >= 4 and len(sizes) >= 4 and len(budgets) >= 2)
        or not _is_for_laws(config, parents),
        f"the ladder has {drafts} drafts, {len(sizes)} different sizes and {len(budgets)} token budgets; the laws need at "
        "least 4 drafts, 4 sizes and 2 budgets.",
    )


def _is_for_laws(config: StudyConfig, parents: Sequence[ModelRecord]) -> bool:
    """Whether any draft is to be trained on the text alone and to propose all ids. Laws are fitted to
    such drafts, and a study without them has none."""
    distil = config.distil
    of_text = not distil.active or ("ce" in distil.objectives and distil.text == "corpus")
    return (of_text and distil.tables == "own" and 0 in config.readouts) or any(
        r.role == "draft" and r.trained_for == "text" for r in parents
    )


def check_given(config: StudyConfig, dataset: Dataset) -> None:
    """Checks before training that the teacher and the published models of `ladder.given_targets` read
    the study's text.

    Raises:
      SdslError: One has another tokenizer or a shorter context.
    """
    given = {f"the target {name}": user_path(name) for name in config.ladder.given_targets}
    given = {called: path for called, path in given.items() if is_published(path)}
    if config.distil.teacher:
        given[f"the teacher {config.distil.teacher}"] = user_path(config.distil.teacher)
    for called, path in given.items():
        require_same_text(open_model(path), dataset, called)


class Outcome(NamedTuple):
    """What became of the rungs that were to be trained.

    Attributes:
      records: Records of all their finished models, in the order of the plans.
      owned_by_others: Names of the other rungs, with the host:pid of the process that trains each.
    """

    records: list[ModelRecord]
    owned_by_others: dict[str, str]


def train_ladder(
    config: StudyConfig, dataset: Dataset, folder: Path, progress: Progress | None = None
) -> list[ModelRecord]:
    """Trains every rung that is not finished, waits for those that other processes train, and
    returns all records.

    Args:
      config: The study.
      dataset: Its tokenised corpus.
      folder: The study's folder. Checkpoints go to `folder/checkpoints/<rung>.<tag>/`. The tag is a
        digest of everything that decides the rung's parameters, so a changed recipe trains beside
        the old one.
      progress: Reports progress after every step.

    Raises:
      Diverged: The loss of one or more rungs became non-finite; all the others were trained first.
      SdslError: The family cannot build a size, a file cannot be written, or `ladder.weights` does
        not hold what the study asks for.
    """
    if config.ladder.weight_folders:
        return _read_ladder(config, dataset, folder)
    plans = plan_rungs(config, dataset, folder)
    return train_rungs(
        config,
        dataset,
        folder,
        plans,
        progress,
        finished=lambda: write_records(config, dataset, folder, plans),
    ).records


def _read_ladder(config: StudyConfig, dataset: Dataset, folder: Path) -> list[ModelRecord]:
    """The records of a ladder trained earlier, with checkpoints relative to the study's folder."""
    homes = [Path(each) for each in config.ladder.weight_folders]
    for home in homes:
        require(home.is_dir(), f"ladder.weights is {str(home)!r}, which is not a folder.")
    # By rung, its plan in every folder.
    plans = list(zip(*(plan_rungs(config, dataset, home) for home in homes)))

    def missing(plan: Plan) -> list[Path]:
        return [model for model in plan.all_folders if not model_folder.is_complete(model)]

    best = [min(range(len(homes)), key=lambda at: len(missing(each[at]))) for each in plans]
    lacking = [model for each, at in zip(plans, best) for model in missing(each[at])]
    if lacking:
        count = sum(len(each[0].all_folders) for each in plans)
        raise SdslError(
            f"ladder.weights lacks {len(lacking)} of the {count} models that the study asks for, "
            f"{lacking[0]} first: it holds other sizes, budgets or seeds, was trained by another recipe or on "
            "other text, or is damaged."
        )
    return [
        dataclasses.replace(
            record, checkpoint=os.path.relpath(homes[at] / record.checkpoint, folder)
        )
        for each, at in zip(plans, best)
        for record in read_records(config, dataset, [each[at]])
    ]


def train_rungs(
    config: StudyConfig,
    dataset: Dataset,
    folder: Path,
    plans: Sequence[Plan],
    progress: Progress | None = None,
    wait: bool = True,
    finished: Callable[[], object] = lambda: None,
) -> Outcome:
    """Trains the rungs that are neither finished nor being trained by another process.

    Args:
      config: The study.
      dataset: Its tokenised corpus.
      folder: The study's folder.
      plans: The rungs, from `plan_rungs` and perhaps `select`.
      progress: Reports progress after every step.
      wait: Whether to wait for the rungs that other processes train. Otherwise they are left to
        those processes, once each of them has shown that it is alive.
      finished: Called after every rung that this process has trained.

    Raises:
      Diverged: The loss of one or more rungs became non-finite; all the others were trained first.
      SdslError: A file cannot be written, or the devices or batches do not fit `[parallel]`.
    """
    if config.training.tensorboard:
        check_tensorboard()
    progress = progress or Silent()
    layout = make_layout(config.parallel)
    for plan in plans:
        layout.check_batch(plan.batch)
        require(
            not plan.slices or jax.process_count() == 1,
            f"{plan.rung.name} is a nested draft, which one process trains: run the command without --distributed.",
        )
    teacher = _teacher(config, dataset, plans, progress)
    progress.start("train", sum(plan.flops for plan in plans))
    remaining, others, began = list(plans), dict[str, str](), time.time()
    claims = {plan.rung.name: Claim(plan.folder) for plan in plans if is_primary()}
    diverged: list[Diverged] = []
    while remaining:
        left: list[Plan] = []
        for plan in remaining:
            name = plan.rung.name
            weighted = _Weighted(progress, plan.flops_per_step)
            if broadcast_from_primary(all(map(model_folder.is_whole, plan.all_folders))):
                by = f"trained by {others.pop(name)}" if name in others else "already trained"
                weighted.advance(plan.schedule.total_steps, f"{name}  {by}")
                continue
            if broadcast_from_primary((said := _diverged_since(plan, began)) is not None):
                diverged.append(Diverged(said or f"{name} diverged in another process."))
                continue
            # The processes of one distributed program train a rung together, under the claim of the
            # primary one.
            claim = claims.get(name)
            if not _acquire_together(claim, name):
                if name not in others:
                    progress.note(f"{name}: being trained by {claim}")
                others[name] = str(claim)
                left.append(plan)
                continue
            others.pop(name, None)
            guard = functools.partial(_check_together, claim)
            learns = teacher if plan.teacher_digest else None
            trainer = RungTrainer(config, dataset, plan, layout, weighted, guard, learns)
            try:
                with claim or contextlib.nullcontext():
                    if claim is not None:
                        storage.clean(plan.folder)
                    barrier("cleaned")
                    _train_rung(trainer, folder)
                finished()
            except ClaimLost as lost:
                progress.note(f"{name}: {lost}; it is left to that process")
                others[name] = "another process"
                left.append(plan)
            except Diverged as error:
                progress.note(str(error))
                if is_primary():
                    write_text(plan.folder / _DIVERGED, str(error))
                diverged.append(error)
        stuck, remaining = len(left) == len(remaining), left
        # A claim that nobody renews is that of a dead process.
        alive = all(claims[plan.rung.name].alive for plan in remaining if claims)
        if stuck and not wait and broadcast_from_primary(alive):
            break
        if stuck and remaining:
            time.sleep(_POLL_SECONDS)
    progress.finish()
    if diverged:
        raise Diverged(" ".join(map(str, diverged)))
    complete = [plan for plan in plans if plan.rung.name not in others]
    return Outcome(read_records(config, dataset, complete), others)


def _teacher(
    config: StudyConfig, dataset: Dataset, plans: Sequence[Plan], progress: Progress
) -> TeacherCache | None:
    """The teacher's probabilities of every window that the unfinished rungs will see, if any rung
    learns from it."""
    left = [
        plan
        for plan in plans
        if plan.teacher_digest and not all(map(model_folder.is_complete, plan.all_folders))
    ]
    if not broadcast_from_primary(len(left)):
        return None
    orders: dict[tuple[int, int], int] = {}
    for plan in left:
        order, steps = (data_seed(config, plan.rung), plan.batch), plan.schedule.ends[-1]
        if plan.head is not None and plan.head.on_tables:
            steps = max(steps, start_steps(plan.batch))
        orders[order] = max(orders.get(order, 0), steps)
    seen = [dataset.seen_windows(*order, steps) for order, steps in orders.items()]
    return open_teacher(config, dataset, np.concatenate(seen), progress)


def _train_rung(trainer: RungTrainer, study: Path) -> None:
    """Trains the model of every token budget of a rung that this process has claimed.

    Raises:
      ClaimLost: Another process took the rung over.
      Diverged: The loss became non-finite.
      SdslError: A file cannot be written, or the device has too little memory.
    """
    config, dataset, plan = trainer.config, trainer.dataset, trainer.plan
    for budget, folder in enumerate(plan.models):
        # Another process may have finished it before this one got the claim.
        if broadcast_from_primary(all(map(model_folder.is_whole, plan.folders(budget)))):
            trainer.progress.advance(
                plan.schedule.ends[budget] - plan.schedule.branch_before(budget),
                f"{trainer.name}  already trained",
            )
            continue
        if (folder / model_folder.RECORD).exists():
            trainer.progress.note(
                f"the model in {folder} is damaged; it is rebuilt from the checkpoints."
            )
        try:
            state, tally, segments = trainer.resume(budget)
            for segment in segments:
                state, tally = trainer.run(segment, state, tally)
            # Losses and digest are those of the weights that the folder will hold.
            params = store(state.params, _STORED[config.training.stored_weights])
            slices = []
            for part in plan.slices:
                own = cut(plan.model, params, leading(part.model))[1]
                on_one = trainer.layout.whole(own)
                slices.append((part, own, make_record(trainer, budget, on_one, tally, study, part)))
            record = make_record(trainer, budget, trainer.layout.whole(params), tally, study)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise SdslError(
                f"{trainer.name} does not fit into the device's memory at batches of {plan.batch} × "
                f"{config.data.sequence_length} tokens; a smaller training.batch_size, training.remat = true and "
                "parallel.fsdp need less."
            ) from None
        trainer.guard()
        for part, own, of_slice in slices:
            model_folder.write_model_folder(
                plan.slice_folder(budget, part),
                part.model,
                own,
                dataset.tokenizer,
                of_slice,
                config.data,
            )
        model_folder.write_model_folder(
            folder, plan.model, params, dataset.tokenizer, record, config.data, plan.head
        )
        barrier(record.model_id)
        trainer.progress.note(
            f"{record.model_id}: {record.params_nonembedding:,} non-embedding parameters, test loss "
            f"{record.loss_nats:.3f} nats, {record.tokens_per_second:,.0f} tokens/s, {record.train_seconds:.0f} s"
        )


def _diverged_since(plan: Plan, began: float) -> str | None:
    """What another process said of a rung that it lost after this one began: it would diverge again."""
    path = plan.folder / _DIVERGED
    if not path.exists() or path.stat().st_mtime < began:
        return None
    return path.read_text(encoding="utf-8")


def _acquire_together(claim: Claim | None, name: str) -> bool:
    """Whether the primary process, whose claim it is, gets a rung; all processes must call it."""
    with raised_on_all(f"{name} cannot be claimed, as another process finds."):
        acquired = claim is None or claim.acquire()
    return bool(broadcast_from_primary(acquired))


def _check_together(claim: Claim | None) -> None:
    """Makes sure that the claim still holds; all processes must call it.

    Raises:
      ClaimLost: It does not, on any process.
    """
    lost = None
    try:
        if claim is not None:
            claim.check()
    except ClaimLost as error:
        lost = error
    if any_process(lost is not None):
        raise lost or ClaimLost("another process has taken over the rung")


class _Weighted:
    """Progress in FLOPs, so that the time left does not depend on which sizes come first."""

    def __init__(self, inner: Progress, weight: float):
        self._inner, self._weight = inner, weight
        self.note, self.start, self.finish = inner.note, inner.start, inner.finish

    def advance(self, amount: float, detail: str = "") -> None:
        self._inner.advance(amount * self._weight, detail)


def read_records(config: StudyConfig, dataset: Dataset, plans: Sequence[Plan]) -> list[ModelRecord]:
    """The records of the finished models. Those evaluated on another number of windows are evaluated again."""
    records = []
    for plan in plans:
        parts = [
            (plan._replace(model=part.model, counts=part.counts), plan.slice_folder(budget, part))
            for part in plan.slices
            for budget in range(len(plan.models))
        ]
        parts += [(plan, folder) for folder in plan.models]
        for own, folder in parts:
            if not model_folder.is_complete(folder):
                continue
            record = model_folder.read_record(folder / model_folder.RECORD)
            windows = config.training.evaluation_windows
            if record.evaluation_windows != windows:
                params = model_folder.load_model_folder(folder).params
                record = dataclasses.replace(
                    record, **held_out_losses(config, own, params, dataset, windows)
                )
                write_json(folder / model_folder.RECORD, dataclasses.asdict(record))
            records.append(record)
    return records


def write_records(
    config: StudyConfig, dataset: Dataset, folder: Path, plans: Sequence[Plan]
) -> list[ModelRecord]:
    """Writes every finished model of a ladder to `models.csv`, and returns their records.

    Any number of processes may do so at once: each one looks once more after writing, so that the
    last one misses none.

    Raises:
      SdslError: The folder cannot be written to.
    """
    finished = read_records(config, dataset, plans)
    while finished and is_primary():
        dataset.tokenizer.save(folder / "tokenizer.json")
        write_table(folder / "records", "models", finished)
        finished, written = read_records(config, dataset, plans), finished
        if len(finished) == len(written):
            break
    return finished
