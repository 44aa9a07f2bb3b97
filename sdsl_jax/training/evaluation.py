"""Losses of a trained model on held-out text, and its row of `models.csv`."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.loading import is_published, load_model, open_model, require_same_text
from sdsl_jax.checkpoints.model_folder import PARAMS
from sdsl_jax.config import StudyConfig
from sdsl_jax.data import Dataset
from sdsl_jax.decoding.feature_drafter import Head, with_tables
from sdsl_jax.device import device_name
from sdsl_jax.models import ModelConfig, Params
from sdsl_jax.progress import Progress
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import Interval, ratio_interval
from sdsl_jax.training.loop import RungTrainer
from sdsl_jax.training.metrics import Tally
from sdsl_jax.training.rungs import Plan, Slice
from sdsl_jax.training.step import head_window_losses, window_losses
from sdsl_jax.training.teacher import load_teacher

# Most windows of a batch, and most bytes of its logits.
_BATCH, _LOGIT_BYTES = 32, 1 << 28


def evaluate(
    losses_of: Callable[[np.ndarray], Any], windows: np.ndarray, vocab_size: int
) -> np.ndarray:
    """Mean loss of each window in nats per token, float64 [windows].

    Args:
      losses_of: Gives those of a batch.
      windows: Windows of tokens.
      vocab_size: Logits of a position, which limit the batch.
    """
    batch = max(1, min(_BATCH, _LOGIT_BYTES // (4 * vocab_size * windows.shape[1])))
    chunks = [windows[i : i + batch] for i in range(0, len(windows), batch)]
    padded = [np.resize(chunk, (batch, windows.shape[1])) for chunk in chunks]
    losses = [np.asarray(losses_of(x), float)[: len(c)] for x, c in zip(padded, chunks)]
    return np.concatenate(losses)


def held_out_losses(
    config: StudyConfig, plan: Plan, params: Any, dataset: Dataset, windows: int
) -> dict[str, Any]:
    """The columns of a record that depend on the number of evaluation windows, by name.

    The loss of a head is that of its first draft, which has seen its target's features; that of a
    truncated readout is over the tokens that the model can give.
    """
    losses_of: Callable[[np.ndarray], Any]
    if plan.head is None:
        losses_of = functools.partial(window_losses, params, model=plan.model)
    else:
        target = load_teacher(config, dataset).model
        head = with_tables(Head(plan.head, params), target)
        losses_of = functools.partial(
            head_window_losses, head.params, target.params, model=head.config, target=target.config
        )
    return _loss_columns(losses_of, plan.model, dataset, windows)


def _loss_columns(
    losses_of: Callable[[np.ndarray], Any], model: ModelConfig, dataset: Dataset, windows: int
) -> dict[str, Any]:
    def loss(split: str) -> Interval:
        tokens = dataset.text(split).windows(windows)
        each = evaluate(losses_of, tokens, len(model.readout_ids) or model.ids)
        counted = np.ones(len(tokens))
        if model.readout_ids:
            counted = np.isin(tokens[:, 1:], model.readout_ids).sum(axis=1).astype(float)
        return ratio_interval(each * counted, counted, 0.9)

    validation, test = map(loss, ("validation", "test"))

    def bits(nats: float, split: str) -> float:
        # What a truncated readout rules out would take infinitely many.
        whole = not model.readout_ids
        return nats / math.log(2) / dataset.bytes_per_token[split] if whole else math.nan

    return {
        "loss_nats": test.estimate,
        "perplexity": math.exp(test.estimate),
        "loss_nats_low": test.low,
        "loss_nats_high": test.high,
        "bits_per_byte": bits(test.estimate, "test"),
        "validation_loss_nats": validation.estimate,
        "validation_bits_per_byte": bits(validation.estimate, "validation"),
        "evaluation_windows": windows,
    }


def given_record(
    config: StudyConfig,
    dataset: Dataset,
    path: Path,
    study: Path,
    earlier: Sequence[ModelRecord],
    progress: Progress,
) -> ModelRecord:
    """A model that exists already as a target of a study.

    The losses of a model of ours are on record. Those of a published one are measured on the study's
    text, like a rung's; about its training nothing is known: 0 tokens.

    Args:
      config: The study.
      dataset: Its corpus.
      path: The model's folder or file.
      study: The study's folder, from which the record names the checkpoint.
      earlier: Records in which the losses of a published model may be found.
      progress: Is told when losses are to be measured.

    Raises:
      SdslError: The path holds no model, or one with another tokenizer or a shorter context.
    """
    opened = open_model(path)
    if not is_published(path):
        checkpoint = os.path.relpath(opened.folder / PARAMS, study)
        return dataclasses.replace(opened.record, role="target", checkpoint=checkpoint)
    require_same_text(opened, dataset, f"the target {path}")
    windows = config.training.evaluation_windows
    same = (opened.record.params_digest, dataset.digest, windows)
    now: dict[str, Any] = {
        "model_id": opened.record.model_id,
        "role": "target",
        "checkpoint": os.path.relpath(path, study),
    }
    for record in earlier:
        if (record.params_digest, record.data_digest, record.evaluation_windows) == same:
            # The losses are the model's; where it lies and what it is called may have changed since.
            return dataclasses.replace(record, **now)
    progress.note(f"measuring the losses of {opened.record.model_id} on the study's text")
    params = load_model(path).params
    losses_of = functools.partial(window_losses, params, model=opened.config)
    return dataclasses.replace(
        opened.record,
        data_digest=dataset.digest,
        device=device_name(),
        **now,
        **_loss_columns(losses_of, opened.config, dataset, windows),
    )


def make_record(
    trainer: RungTrainer,
    budget: int,
    params: Params,
    tally: Tally,
    study: Path,
    part: Slice | None = None,
) -> ModelRecord:
    """Evaluates a model at the end of a token budget.

    Args:
      trainer: Its rung.
      budget: Index of the budget.
      params: Its weights, on one device.
      tally: Tally of the steps that led to them.
      study: The study's folder, from which the record names the checkpoint.
      part: The slice of a nested draft that it is; the whole if None.
    """
    plan, dataset = trainer.plan, trainer.dataset
    folder = plan.models[budget]
    if part is not None:
        folder = plan.slice_folder(budget, part)
        plan = plan._replace(model=part.model, counts=part.counts)
    steps, available = plan.schedule.ends[budget], len(dataset.splits["train"])
    tokens = steps * plan.tokens_per_step
    return ModelRecord(
        model_id=plan.rung.model_id(budget, part.params if part else 0),
        role=plan.rung.role,
        params_nonembedding=plan.counts.nonembedding,
        params_total=plan.counts.total,
        train_tokens=tokens,
        seed=plan.rung.seed,
        params_digest=storage.digest(params),
        epochs=tokens / available,
        unique_tokens=min(tokens, available),
        layers=plan.model.layers,
        width=plan.model.width,
        flops_per_token=plan.counts.flops_per_token,
        weight_bytes=plan.counts.weight_bytes,
        learning_rate=plan.schedule.peak,
        batch_size=plan.batch,
        steps=steps,
        train_seconds=tally.seconds,
        compile_seconds=tally.compile_seconds,
        data_wait_share=tally.wait_seconds / max(tally.seconds - tally.compile_seconds, 1e-9),
        spikes=tally.spikes,
        skipped_steps=tally.skipped,
        data_digest=dataset.digest,
        device=device_name(),
        versions=f"python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}",
        checkpoint=str((folder / PARAMS).relative_to(study)),
        objective=plan.rung.objective,
        teacher_digest=plan.teacher_digest,
        parent_digest=plan.parent.digest if plan.parent else "",
        kind=plan.rung.kind,
        readout=plan.rung.readout,
        train_flops=trainer.plan.flops_per_step * steps
        + (plan.parent.train_flops if plan.parent else 0.0),
        **held_out_losses(trainer.config, plan, params, dataset, trainer.recipe.evaluation_windows),
    )
