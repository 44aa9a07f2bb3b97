"""The cost models of a study for one target: FLOPs of the family, and step times of this machine."""

from __future__ import annotations

import numpy as np

from sdsl_jax.fitting import FittedLaws
from sdsl_jax.records import ModelRecord
from sdsl_jax.theory import CostModel, FlopCost, MeasuredCost


def cost_models(laws: FittedLaws, models: list[ModelRecord], target: ModelRecord) -> dict[str, CostModel]:
    """The cost models of a study for one target: the family's FLOPs and, if the target was timed, this machine's step times."""
    made: dict[str, CostModel] = {"flops": FlopCost(laws.rule, float(target.params_nonembedding))}
    timed = timed_like(laws, models, target)
    if timed is not None and laws.verify_seconds.get(timed):
        widths = laws.verify_seconds[timed]
        level, slope = _verify_line(widths, laws.decode_seconds[timed])
        made["measured"] = MeasuredCost(laws.rule, laws.step_time, laws.decode_seconds[timed], level, slope)
    return made


def _verify_line(seconds: dict[int, float], step_seconds: float) -> tuple[float, float]:
    """Level and slope of the verify pass over the lookahead, by least squares.

    A wider pass is never cheaper than a step: where noise says otherwise, the line starts at the step or stays level.
    """
    lookaheads, times = np.asarray(list(seconds), float), np.asarray(list(seconds.values()))
    slope, level = np.polyfit(lookaheads, times, 1) if len(seconds) > 1 else (0.0, times[0])
    if slope < 0:
        slope, level = 0.0, times.mean()
    if level < step_seconds:
        level = step_seconds
        slope = max(0.0, float(((times - step_seconds) * lookaheads).sum() / (lookaheads**2).sum()))
    return float(level), float(slope)


def timed_like(laws: FittedLaws, models: list[ModelRecord], model: ModelRecord) -> str | None:
    """The timed model of the same shape: one model of each role and size was timed, whatever its budget and seed."""
    alike = {m.model_id for m in models if (m.role, m.params_nonembedding) == (model.role, model.params_nonembedding)}
    return next((name for name in laws.decode_seconds if name in alike), None)
