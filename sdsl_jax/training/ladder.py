"""The ladder: the rungs of a study, trained and evaluated by any number of processes, as rows of `models.csv`."""

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

from sdsl_jax.checkpoints import model_folder, storage
from sdsl_jax.checkpoints.layout import Layout, make_layout
from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.errors import Diverged, SdslError, require
from sdsl_jax.models import ModelConfig, Params, abstract_params, count, member
from sdsl_jax.processes import (
    any_process,
    barrier,
    broadcast_from_primary,
    is_primary,
    raise_on_all,
)
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import ModelRecord, write_json, write_table
from sdsl_jax.seeds import derive_seed
from sdsl_jax.training.claims import Claim, ClaimLost, Owner, acquire
from sdsl_jax.training.evaluation import held_out_losses, make_record
from sdsl_jax.training.loop import RungTrainer
from sdsl_jax.training.metrics import check_tensorboard
from sdsl_jax.training.rungs import Plan, plan_rungs, rungs
from sdsl_jax.training.schedule import make_schedule

_POLL_SECONDS = 1.0


def check_ladder(config: StudyConfig) -> None:
    """Checks what can be known before anything is trained: that every rung can be made, and that
    the laws can be fitted.

    Raises:
      SdslError: the family cannot make a size, two budgets are less than a step apart, or there are
        too few models.
    """
    sizes = set()
    for rung in rungs(config):
        made = count(member(config.family, rung.params, config.data.vocab_size), 0).nonembedding
        make_schedule(config.training, made, rung.budgets, config.data.sequence_length)
        sizes.add(made)
    ladder = config.ladder
    drafts = sum(len(rung.budgets) for rung in rungs(config) if rung.role == "draft")
    budgets = {*ladder.draft_tokens, *ladder.target_tokens}
    require(
        drafts >= 4 and len(sizes) >= 4 and len(budgets) >= 2,
        f"the ladder has {drafts} drafts, {len(sizes)} different sizes and {len(budgets)} token budgets; the laws need at "
        "least 4 drafts, 4 sizes and 2 budgets.",
    )


class Outcome(NamedTuple):
    """What became of the rungs that were to be trained.

    Attributes:
      records: of all their models that are finished, in the order of the plans.
      elsewhere: names of the other rungs, and the host:pid of the process that trains each.
    """

    records: list[ModelRecord]
    elsewhere: dict[str, str]


def train_ladder(
    config: StudyConfig, dataset: Dataset, folder: Path, progress: Progress | None = None
) -> list[ModelRecord]:
    """Trains every rung that is not complete yet, waits for those that other processes train, and
    returns all records.

    Args:
      config: the study.
      dataset: its tokenised corpus.
      folder: the study's folder; checkpoints go to `folder/checkpoints/<rung>.<tag>/`, where the
        tag is a digest of everything that decides the rung's parameters, so that a changed recipe
        trains beside the old one.
      progress: told after every step.

    Raises:
      Diverged: the loss of one or more rungs became non-finite; all the others were trained first.
      SdslError: the family cannot make a size, or a file cannot be written; or `ladder.weights`
        does not hold what the study asks for.
    """
    if config.ladder.weights:
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
    """The records of a ladder that was trained before, their checkpoints named from the study's folder."""
    weights = Path(config.ladder.weights)
    require(
        weights.is_dir(), f"ladder.weights is {config.ladder.weights!r}, which is not a folder."
    )
    plans = plan_rungs(config, dataset, weights)
    missing = [
        model for plan in plans for model in plan.models if not model_folder.is_complete(model)
    ]
    require(
        not missing,
        f"ladder.weights lacks {len(missing)} of the {sum(len(plan.models) for plan in plans)} models that the study asks "
        f"for, {missing[0] if missing else ''} first: it holds other sizes, budgets or seeds, was trained by "
        "another recipe or on other text, or is damaged.",
    )
    records = read_records(config, dataset, plans)
    return [
        dataclasses.replace(record, checkpoint=os.path.relpath(weights / record.checkpoint, folder))
        for record in records
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
    """Trains those rungs that are neither complete nor being trained by another process.

    Args:
      config: the study.
      dataset: its tokenised corpus.
      folder: the study's folder.
      plans: the rungs, of `plan_rungs`, perhaps after `select`.
      progress: told after every step.
      wait: for the rungs that other processes train, and take over those whose process dies;
        otherwise they are left to them.
      finished: called after every rung that this process has trained.

    Raises:
      Diverged: the loss of one or more rungs became non-finite; all the others were trained first.
      SdslError: a file cannot be written, or the devices or batches do not suit `[parallel]`.
    """
    if config.training.tensorboard:
        check_tensorboard()
    progress = progress or Silent()
    layout = make_layout(config.parallel)
    for plan in plans:
        layout.check_batch(plan.batch)
    progress.start("train", sum(plan.flops for plan in plans))
    todo, tried, elsewhere = list(plans), set[str](), dict[str, str]()
    diverged: list[Diverged] = []
    while todo:
        held: list[Plan] = []
        for plan in todo:
            name = plan.rung.name
            weighted = _Weighted(progress, plan.flops_per_step)
            if broadcast_from_primary(all(map(model_folder.is_whole, plan.models))):
                by = f"trained by {elsewhere.pop(name)}" if name in elsewhere else "already trained"
                weighted.advance(plan.schedule.total_steps, f"{name}  {by}")
                continue
            # The processes of one distributed program train a rung together, under the claim of the
            # first.
            claim = _acquire_together(plan)
            if broadcast_from_primary(isinstance(claim, Owner)):
                if name not in tried:
                    progress.note(f"{name}: being trained by {claim}")
                tried.add(name)
                elsewhere[name] = str(claim)
                held.append(plan)
                continue
            elsewhere.pop(name, None)
            assert not isinstance(claim, Owner)
            try:
                if _train_claimed(config, dataset, plan, folder, weighted, claim, layout):
                    finished()
                else:
                    elsewhere[name] = "another process"
                    held.append(plan)
            except Diverged as error:
                progress.note(str(error))
                diverged.append(error)
        stuck, todo = len(held) == len(todo), held
        if stuck and not wait:
            break
        if stuck and todo:
            time.sleep(_POLL_SECONDS)
    progress.finish()
    if diverged:
        raise Diverged(" ".join(map(str, diverged)))
    complete = [plan for plan in plans if plan.rung.name not in elsewhere]
    return Outcome(read_records(config, dataset, complete), elsewhere)


def read_records(config: StudyConfig, dataset: Dataset, plans: Sequence[Plan]) -> list[ModelRecord]:
    """The records of those models that are finished, evaluated again where the settings ask for other windows than before."""
    records = []
    for plan in plans:
        for folder in filter(model_folder.is_complete, plan.models):
            record = model_folder.read_record(folder / model_folder.RECORD)
            windows = config.training.evaluation_windows
            if record.evaluation_windows != windows:
                params = storage.restore_params(
                    folder / model_folder.PARAMS, abstract_params(plan.model), record.params_digest
                )
                record = dataclasses.replace(
                    record, **held_out_losses(plan.model, params, dataset, windows)
                )
                write_json(folder / model_folder.RECORD, dataclasses.asdict(record))
            records.append(record)
    return records


def write_records(
    config: StudyConfig, dataset: Dataset, folder: Path, plans: Sequence[Plan]
) -> list[ModelRecord]:
    """Makes `models.csv` hold every finished model of a ladder, and returns their records.

    Any number of processes may do so at once: the last of them to write looks once more whether
    that was all.

    Raises:
      SdslError: the folder cannot be written to.
    """
    finished = read_records(config, dataset, plans)
    while finished and is_primary():
        dataset.tokenizer.save(folder / "tokenizer.json")
        write_table(folder / "records", "models", finished)
        finished, written = read_records(config, dataset, plans), finished
        if len(finished) == len(written):
            break
    return finished


class _Weighted:
    """Progress in FLOPs, so that the time left does not depend on which sizes come first."""

    def __init__(self, inner: Progress, weight: float):
        self._inner, self._weight = inner, weight
        self.note, self.start, self.finish = inner.note, inner.start, inner.finish

    def advance(self, amount: float, detail: str = "") -> None:
        self._inner.advance(amount * self._weight, detail)


def _train_claimed(
    config: StudyConfig,
    dataset: Dataset,
    plan: Plan,
    study: Path,
    progress: Progress,
    claim: Claim | None,
    layout: Layout,
) -> bool:
    """Trains a rung that this process has claimed; False if another one took it over."""
    with claim or contextlib.nullcontext():
        # It may have been finished, and its claim given up, since its models were looked for.
        if broadcast_from_primary(all(map(model_folder.is_whole, plan.models))):
            progress.advance(plan.schedule.total_steps, f"{plan.rung.name}  already trained")
            return True
        try:
            if claim is not None:
                storage.clean(plan.folder)
            barrier("cleaned")
            _train_rung(
                config,
                dataset,
                plan,
                study,
                progress,
                layout,
                functools.partial(_check_together, claim),
            )
        except ClaimLost as lost:
            progress.note(f"{plan.rung.name}: {lost}; it is left to that one")
            return False
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise SdslError(
                f"{plan.rung.name} does not fit into the device's memory at batches of {plan.batch} × "
                f"{config.data.sequence_length} tokens; a smaller training.batch_size, training.remat = true and "
                "parallel.fsdp need less."
            ) from None
    return True


def _acquire_together(plan: Plan) -> Claim | Owner | None:
    """What the primary process has of a rung's folder; None on the others, which train under its claim."""
    found, failed = None, None
    try:
        found = acquire(plan.folder) if is_primary() else None
    except SdslError as error:
        failed = error
    raise_on_all(failed, f"{plan.rung.name} cannot be claimed, as another process finds.")
    return found


def _check_together(claim: Claim | None) -> None:
    """Makes sure that the claim still holds; with several processes all of them must call it, and
    it is lost for all or none.

    Raises:
      ClaimLost: it does not.
    """
    lost = None
    try:
        if claim is not None:
            claim.check()
    except ClaimLost as error:
        lost = error
    if any_process(lost is not None):
        raise lost or ClaimLost("another process has taken over the rung")


def _train_rung(
    config: StudyConfig,
    dataset: Dataset,
    plan: Plan,
    study: Path,
    progress: Progress,
    layout: Layout,
    guard: Callable[[], None],
) -> None:
    rung, windows = plan.rung, config.training.evaluation_windows
    trainer = RungTrainer(
        name=rung.name,
        model=plan.model,
        config=config.training,
        schedule=plan.schedule,
        batches=dataset.batches(derive_seed("data", config.seed, rung.seed), plan.batch),
        init_seed=derive_seed("init", config.seed, rung.role, rung.params, rung.seed),
        folder=plan.folder,
        progress=progress,
        layout=layout,
        guard=guard,
    )
    for budget, folder in enumerate(plan.models):
        if broadcast_from_primary(model_folder.is_whole(folder)):
            progress.advance(
                plan.schedule.ends[budget] - plan.schedule.branch_before(budget),
                f"{rung.name}  already trained",
            )
            continue
        if (folder / model_folder.RECORD).exists():
            progress.note(
                f"the model in {folder} is damaged; it is made again from the checkpoints."
            )
        state, tally = trainer.cool_down(budget)
        checkpoint = str((folder / model_folder.PARAMS).relative_to(study))
        record = make_record(
            plan, budget, layout.whole(state.params), tally, dataset, windows, checkpoint
        )
        guard()
        model_folder.write_model_folder(
            folder, plan.model, state.params, dataset.tokenizer, record, config.data
        )
        barrier(record.model_id)
        progress.note(
            f"{record.model_id}: {record.params_nonembedding:,} non-embedding parameters, test loss "
            f"{record.loss_nats:.3f} nats, {record.tokens_per_second:,.0f} tokens/s, {record.train_seconds:.0f} s"
        )


def load_trained(
    config: StudyConfig, record: ModelRecord, vocab_size: int, study: Path
) -> tuple[ModelConfig, Params]:
    """The configuration and the parameters of a trained model.

    Raises:
      SdslError: the checkpoint is missing, damaged, or not the one that the record describes.
    """
    wanted = {r.model_id(i): r.params for r in rungs(config) for i in range(len(r.budgets))}
    require(
        record.model_id in wanted and bool(record.checkpoint),
        f"the records hold {record.model_id}, which is not a model of this study's ladder; its weights cannot be loaded.",
    )
    model = member(config.family, wanted[record.model_id], vocab_size)
    params = storage.restore_params(
        study / record.checkpoint, abstract_params(model), record.params_digest
    )
    return model, params
