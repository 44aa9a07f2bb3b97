"""Predicted against measured speed-ups of every decoder that was timed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.fitting import FittedLaws, read_laws
from sdsl_jax.fitting.hardware import record_shape
from sdsl_jax.records import ModelRecord, RunRecord
from sdsl_jax.theory import DraftProblem, HardwareCost, ModelPoint, tokens_per_round
from sdsl_jax.theory.hardware import Load, pass_time, round_time


class Cell(NamedTuple):
    """One speculative decoder: what was predicted of it, and what it did.

    Attributes:
      draft: its draft.
      target: its target.
      lookahead: γ.
      batch: rows.
      rates: measured tokens per second over those of plain decoding, one for each repetition.
      tokens_per_round: measured, of a row.
      round_seconds: measured.
      acceptance: predicted by the laws from sizes and tokens, and the target's loss.
      draft_seconds: predicted time of all drafts of a round.
      predicted_round_seconds: by the calibrated device.
      predicted: S by the laws and the device.
      predicted_with_tokens: S by the device, from measured tokens per round.
    """

    draft: ModelRecord
    target: ModelRecord
    lookahead: int
    batch: int
    rates: Float[np.ndarray, " R"]
    tokens_per_round: float
    round_seconds: float
    acceptance: float
    draft_seconds: float
    predicted_round_seconds: float
    predicted: float
    predicted_with_tokens: float

    @property
    def measured(self) -> float:
        """Median S over the repetitions."""
        return float(np.median(self.rates))


def cells(inputs: Inputs) -> list[Cell]:
    """Every speculative decoder of `runs.csv`, in its order."""
    if not inputs.runs or inputs.hardware is None:
        return []
    hardware, precision = inputs.hardware.hardware, inputs.hardware.precision
    laws = read_laws(inputs.fits)
    models = {m.model_id: m for m in [*inputs.models, *inputs.timed_models]}
    shapes = {name: record_shape(model, laws.rule) for name, model in models.items()}
    grouped: dict[tuple[int, str, str, int, int], list[RunRecord]] = {}
    for run in inputs.runs:
        grouped.setdefault(
            (run.block, run.draft_id, run.target_id, run.lookahead, run.batch), []
        ).append(run)
    plain = {key[0]: runs for key, runs in grouped.items() if not key[1]}
    found = []
    for (block, draft, target, lookahead, batch), runs in grouped.items():
        if not draft:
            continue
        rates = _by_repetition(runs) / _by_repetition(plain[block])
        context = float(runs[0].context)
        tau = sum(r.tokens for r in runs) / sum(r.rounds for r in runs) / batch
        alpha = predicted_acceptance(laws, models[draft], models[target])
        took = round_time(
            hardware,
            shapes[draft],
            shapes[target],
            float(lookahead),
            float(batch),
            context,
            precision,
            precision,
        )
        # Plain decoding has a cache of its own, without room for drafts.
        load = Load(1.0, float(batch), float(plain[block][0].context))
        step = float(pass_time(hardware, shapes[target], precision, load))
        seconds = float(took.seconds)
        found.append(
            Cell(
                draft=models[draft],
                target=models[target],
                lookahead=lookahead,
                batch=batch,
                rates=rates,
                tokens_per_round=tau,
                round_seconds=float(np.median([r.seconds / r.rounds for r in runs])),
                acceptance=alpha,
                draft_seconds=float(took.draft),
                predicted_round_seconds=seconds,
                predicted=float(tokens_per_round(alpha, float(lookahead))) * step / seconds,
                predicted_with_tokens=tau * step / seconds,
            )
        )
    return found


def predicted_acceptance(laws: FittedLaws, draft: ModelRecord, target: ModelRecord) -> float:
    """α by the best law, of a draft that might not have been trained yet: its loss is that of the loss law."""
    size, tokens = float(draft.params_nonembedding), float(draft.train_tokens)
    law = next(iter(laws.acceptance.values()))
    of_target = ModelPoint(float(target.params_nonembedding), target.loss_nats)
    return float(law(ModelPoint(size, laws.loss(size, tokens), tokens), of_target))


class PredictedOptimum(NamedTuple):
    """What to train and how far to guess by laws and device, before any draft is there: N*, γ* and S*, all real."""

    draft_params: float
    lookahead: float
    speedup: float


def predicted_optimum(inputs: Inputs, target: ModelRecord, draft_tokens: int) -> PredictedOptimum:
    """The optimum for a target on the calibrated device, in single rows, over the sizes of the study's drafts."""
    assert inputs.hardware is not None
    laws = read_laws(inputs.fits)
    sizes = [float(m.params_nonembedding) for m in inputs.models if m.role == "draft"]
    context = next(
        float(r.context) for r in inputs.runs if r.target_id == target.model_id and not r.draft_id
    )
    with jax.enable_x64(True):
        best = DraftProblem(
            loss_law=laws.loss,
            draft_tokens=float(draft_tokens),
            target=ModelPoint(float(target.params_nonembedding), target.loss_nats),
            acceptance_law=next(iter(laws.acceptance.values())),
            cost=HardwareCost(
                inputs.hardware.hardware,
                laws.rule,
                record_shape(target, laws.rule),
                inputs.hardware.precision,
                1.0,
                context,
            ),
            bounds=(min(sizes), max(sizes)),
        ).optimum()
    return PredictedOptimum(float(best.params), float(best.lookahead), float(best.speedup))


def _by_repetition(runs: list[RunRecord]) -> Float[np.ndarray, " R"]:
    """Tokens per second in each repetition; the median where a decoder ran more than once in it."""
    rates: dict[int, list[float]] = {}
    for run in runs:
        rates.setdefault(run.repetition, []).append(run.tokens / run.seconds)
    return np.asarray([np.median(rates[repetition]) for repetition in sorted(rates)])
