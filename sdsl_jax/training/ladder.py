"""The ladder: every rung of a study, trained and evaluated, as rows of `models.csv`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np

from sdsl_jax.config import StudyConfig, to_dict
from sdsl_jax.data import Dataset
from sdsl_jax.errors import require
from sdsl_jax.models import ModelConfig, ModelCounts, Params, abstract_params, count, member
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import Interval, mean_interval
from sdsl_jax.training import checkpoints, model_folder
from sdsl_jax.training.loop import RungTrainer, rung_seed
from sdsl_jax.training.schedule import Schedule, make_schedule
from sdsl_jax.training.step import window_losses

# Settings that change how a rung is stored but not what it becomes.
_STORAGE_ONLY = ("checkpoint_every_steps",)
_EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Rung:
    """One size and seed of one role, with the token budgets that its run yields."""

    role: str
    params: int
    seed: int
    budgets: tuple[int, ...]

    @property
    def name(self) -> str:
        """For example draft-14k-s0."""
        return f"{self.role}-{compact(self.params)}-s{self.seed}"

    def model_id(self, budget: int) -> str:
        """For example draft-14k-2M-s0."""
        return f"{self.role}-{compact(self.params)}-{compact(self.budgets[budget])}-s{self.seed}"


def compact(number: float) -> str:
    """A number with the suffix k, M or B, and as many digits as it needs up to six."""
    for divisor, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= divisor:
            return f"{number / divisor:.6g}{suffix}"
    return f"{number:.6g}"


def rungs(config: StudyConfig) -> list[Rung]:
    """All rungs of a study, the smallest first."""
    ladder = config.ladder
    sizes = [("draft", n, ladder.draft_tokens) for n in ladder.draft_params]
    sizes += [("target", n, ladder.target_tokens) for n in ladder.target_params]
    made = [
        Rung(role, n, seed, tuple(sorted(tokens)))
        for role, n, tokens in sizes
        for seed in (*ladder.seeds, *(ladder.replicate_seeds if n <= ladder.replicate_below else ()))
    ]
    return sorted(made, key=lambda rung: (rung.params, rung.role, rung.seed))


def check_ladder(config: StudyConfig) -> None:
    """Checks what can be known before anything is trained: that every rung can be made, and that the laws can be fitted.

    Raises:
      SdslError: the family cannot make a size, two budgets are less than a step apart, or there are too few models.
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


class _Plan(NamedTuple):
    rung: Rung
    model: ModelConfig
    counts: ModelCounts
    schedule: Schedule
    folder: Path


def _plan(config: StudyConfig, dataset: Dataset, folder: Path) -> list[_Plan]:
    """What each rung will be, before anything is trained: a size that cannot be made is an error here."""
    plans = []
    for rung in rungs(config):
        model = member(config.family, rung.params, dataset.tokenizer.vocab_size)
        counts = count(model, dataset.sequence_length / 2)
        schedule = make_schedule(config.training, counts.nonembedding, rung.budgets, dataset.sequence_length)
        recipe = {k: v for k, v in to_dict(config.training).items() if k not in _STORAGE_ONLY}
        identity = [
            rung.role,
            rung.seed,
            config.seed,
            dataclasses.asdict(model),
            recipe,
            schedule.warmup,
            dataset.digest,
        ]
        tag = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        plans.append(_Plan(rung, model, counts, schedule, folder / "checkpoints" / f"{rung.name}.{tag}"))
    return plans


def train_ladder(
    config: StudyConfig, dataset: Dataset, folder: Path, progress: Progress | None = None
) -> list[ModelRecord]:
    """Trains every rung that is not complete yet, and returns the records of all models.

    Args:
      config: the study.
      dataset: its tokenised corpus.
      folder: the study's folder; checkpoints go to `folder/checkpoints/<rung>.<tag>/`, where the tag is a digest of
        everything that decides the rung's parameters and records, so that a changed recipe trains beside the old one.
      progress: told after every step.

    Raises:
      SdslError: the family cannot make a size, a loss becomes non-finite, or a checkpoint is damaged.
    """
    progress = progress or Silent()
    plans = _plan(config, dataset, folder)
    total = sum(plan.schedule.total_steps * plan.counts.flops_per_token for plan in plans)
    progress.start("train", total)
    records = []
    for plan in plans:
        rung_progress = _Weighted(progress, plan.counts.flops_per_token)
        models = [plan.folder / f"model-{end}" for end in plan.schedule.ends]
        if all(map(model_folder.is_complete, models)):
            rung_progress.advance(plan.schedule.total_steps, f"{plan.rung.name}  already trained")
        else:
            _train_rung(config, dataset, plan, folder, rung_progress)
        for model in models:
            # Folders of earlier versions do not say what they hold.
            if not model_folder.is_described(model):
                model_folder.describe(model, plan.model, dataset.tokenizer, config.data)
            records.append(model_folder.read_record(model / model_folder.RECORD))
    progress.finish()
    return records


class _Weighted:
    """Progress in FLOPs, so that the time left does not depend on which sizes come first."""

    def __init__(self, inner: Progress, weight: float):
        self._inner, self._weight = inner, weight
        self.note, self.start, self.finish = inner.note, inner.start, inner.finish

    def advance(self, amount: float, detail: str = "") -> None:
        self._inner.advance(amount * self._weight, detail)


def _train_rung(config: StudyConfig, dataset: Dataset, plan: _Plan, study: Path, progress: Progress) -> None:
    rung = plan.rung
    trainer = RungTrainer(
        name=rung.name,
        model=plan.model,
        config=config.training,
        schedule=plan.schedule,
        batches=dataset.batches(
            rung_seed("data", config.seed, rung.seed), config.training.batch(plan.counts.nonembedding)
        ),
        init_seed=rung_seed("init", config.seed, rung.role, rung.params, rung.seed),
        folder=plan.folder,
        progress=progress,
    )
    for budget, state, seconds in trainer.budgets():
        folder = plan.folder / f"model-{plan.schedule.ends[budget]}"
        record = _evaluate(config, dataset, plan, budget, state.params, seconds, str(folder.relative_to(study)))
        model_folder.write_model_folder(folder, plan.model, state.params, dataset.tokenizer, record, config.data)
        rate = (
            config.training.batch(plan.counts.nonembedding)
            * dataset.sequence_length
            * plan.schedule.ends[budget]
            / max(seconds, 1e-9)
        )
        progress.note(
            f"{record.model_id}: {record.params_nonembedding:,} non-embedding parameters, test loss "
            f"{record.loss_nats:.3f} nats, {rate:,.0f} tokens/s, {seconds:.0f} s"
        )


def evaluate(model: ModelConfig, params: Params, windows: np.ndarray) -> np.ndarray:
    """Mean loss of each window in nats per token, float64 [windows]."""
    chunks = [windows[i : i + _EVALUATION_BATCH] for i in range(0, len(windows), _EVALUATION_BATCH)]
    padded = [np.resize(chunk, (_EVALUATION_BATCH, windows.shape[1])) for chunk in chunks]
    losses = [np.asarray(window_losses(params, x, model=model), float)[: len(c)] for x, c in zip(padded, chunks)]
    return np.concatenate(losses)


def _evaluate(
    config: StudyConfig, dataset: Dataset, plan: _Plan, budget: int, params: Params, seconds: float, folder: str
) -> ModelRecord:
    # The validation loss only watches over training: a quarter of the windows is enough for it.
    wanted = {"validation": max(1, config.training.evaluation_windows // 4), "test": config.training.evaluation_windows}
    losses = {s: evaluate(plan.model, params, dataset.windows(s, count)) for s, count in wanted.items()}
    test: Interval = mean_interval(losses["test"], 0.9)
    steps = plan.schedule.ends[budget]
    tokens = steps * config.training.batch(plan.counts.nonembedding) * dataset.sequence_length
    return ModelRecord(
        model_id=plan.rung.model_id(budget),
        role=plan.rung.role,
        params_nonembedding=plan.counts.nonembedding,
        params_total=plan.counts.total,
        train_tokens=tokens,
        seed=plan.rung.seed,
        loss_nats=test.estimate,
        perplexity=math.exp(test.estimate),
        params_digest=checkpoints.digest(params),
        loss_nats_low=test.low,
        loss_nats_high=test.high,
        validation_loss_nats=float(losses["validation"].mean()),
        bits_per_byte=test.estimate / math.log(2) / dataset.bytes_per_token["test"],
        epochs=tokens / len(dataset.splits["train"]),
        layers=plan.model.layers,
        width=plan.model.width,
        flops_per_token=plan.counts.flops_per_token,
        weight_bytes=plan.counts.weight_bytes,
        learning_rate=plan.schedule.peak,
        steps=steps,
        train_seconds=seconds,
        data_digest=dataset.digest,
        device=device_name(),
        versions=f"python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}",
        checkpoint=f"{folder}/params",
    )


def device_name() -> str:
    """The kind of the default device and how many there are, with the number of cores where it is a CPU."""
    device = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    return f"{len(jax.devices())} x {device.device_kind}{cores}"


def load_model(config: StudyConfig, record: ModelRecord, vocab_size: int, study: Path) -> tuple[ModelConfig, Params]:
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
    path = study / record.checkpoint
    params = checkpoints.restore(path, abstract_params(model)).tree
    checkpoints.verify(path, params, record.params_digest)
    return model, params
