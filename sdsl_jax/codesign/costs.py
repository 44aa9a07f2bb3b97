"""The cost models of a study for one target: FLOPs of the family, and the device that the study's steps were timed on."""

from __future__ import annotations

from sdsl_jax.fitting import FittedLaws
from sdsl_jax.fitting.hardware import record_shape
from sdsl_jax.records import ModelRecord
from sdsl_jax.theory import CostModel, FlopCost, HardwareCost


def cost_models(laws: FittedLaws, target: ModelRecord) -> dict[str, CostModel]:
    """The cost models of a study for one target: the family's FLOPs, and rounds on the fitted device as it was timed."""
    shape = record_shape(target, laws.rule)
    return {
        "flops": FlopCost(laws.rule, float(target.params_nonembedding)),
        "measured": HardwareCost(
            laws.hardware, laws.rule, shape, laws.precision, laws.batch, laws.context
        ),
    }


def timed_like(laws: FittedLaws, models: list[ModelRecord], model: ModelRecord) -> str | None:
    """The timed model of the same shape: one model of each role and size was timed, whatever its budget and seed."""
    alike = {
        m.model_id
        for m in models
        if (m.role, m.params_nonembedding) == (model.role, model.params_nonembedding)
    }
    return next((name for name in laws.decode_seconds if name in alike), None)
