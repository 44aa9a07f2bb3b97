"""What a mixture of experts changes: speculation for the target beside that for its dense twin, over the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdsl_jax.codesign.break_even import PayingBatches
from sdsl_jax.codesign.serving_problem import ServingProblem, Size, constant_acceptance
from sdsl_jax.theory.arrays import in_numpy
from sdsl_jax.theory.serving import Design, Serving, outcome, shapes, size_in_law

# Batches of the table, and all batches and lookaheads among which a break-even is looked for.
_SHOWN = (1, 4, 16, 64, 256, 1024)
_BATCHES, _LOOKAHEADS = np.arange(1.0, 4097.0), np.arange(1.0, 33.0)


@dataclass(frozen=True)
class ExpertsAtBatch:
    """The mixture and its dense twin at one batch, each at its best whole lookahead.

    Attributes:
      batch: Rows that are decoded together.
      lookahead: Drafts per round that are best for the mixture.
      step_experts: Experts of a layer that a step of the mixture alone reads, on average.
      verify_experts: Experts of a layer that its verify pass reads, on average.
      speedup: Speed-up S of the mixture, prefills included.
      dense_lookahead: Drafts per round that are best for the dense twin.
      dense_speedup: Speed-up S of the dense twin.
    """

    batch: int
    lookahead: int
    step_experts: float
    verify_experts: float
    speedup: float
    dense_lookahead: int
    dense_speedup: float


@dataclass(frozen=True)
class MixtureOfExperts:
    """A target that is a mixture of experts, beside its dense twin: the dense model of its active
    parameters, of the same depth, width and acceptance. Both have the draft of the answer.

    Attributes:
      experts: Experts of a layer, E.
      active_experts: Experts that each token passes through, k.
      active_params: Size of the dense twin: parameters that a token passes through.
      size_in_laws: Size of the dense model that the mixture counts as in the loss law: the
        geometric mean of all its parameters and the active ones.
      pays_at: Batches at which the draft pays for the mixture, memory aside.
      dense_pays_at: Batches at which it pays for the dense twin.
      by_batch: Speed-ups of both over the batch.
    """

    experts: int
    active_experts: int
    active_params: Size
    size_in_laws: float
    pays_at: PayingBatches
    dense_pays_at: PayingBatches
    by_batch: list[ExpertsAtBatch]


def dense_twin(serving: Serving, design: Design) -> tuple[Serving, Design]:
    """The same question for the dense model of the target's active parameters.

    It has the depth and width of the mixture. Its acceptance follows from its own size where the
    law depends on that.
    """
    family = serving.target_family._replace(experts=1.0, active_experts=1.0)
    active = shapes(serving, design)[1].active_params
    return serving._replace(target_family=family), design._replace(target_params=active)


def mixture_of_experts(
    problem: ServingProblem, design: Design, acceptance: float
) -> MixtureOfExperts | None:
    """The mixture beside its dense twin; None for a dense target, or without an α below 1.

    Args:
      problem: The problem that was solved.
      design: The design, whose draft both have.
      acceptance: Its α, which both have, so that they differ in cost alone.
    """
    target = problem.config.target
    if target.experts == 1 or not 0 < acceptance < 1:
        return None
    law = constant_acceptance(acceptance, problem.loss).law
    serving, design = in_numpy((problem.inputs.serving._replace(acceptance_law=law), design))
    shape = shapes(serving, design)[1]
    twin = in_numpy(dense_twin(serving, design))
    tables = [
        np.asarray(
            outcome(
                one, at._replace(batch=_BATCHES[:, None], lookahead=_LOOKAHEADS[None, :])
            ).speedup
        )
        for one, at in ((serving, design), twin)
    ]
    own_pays, dense_pays = (PayingBatches.of(_BATCHES, table.max(axis=1) > 1) for table in tables)

    rows = []
    for batch in _SHOWN:
        own, dense = (table[batch - 1] for table in tables)
        lookahead = 1 + int(np.argmax(own))
        rows.append(
            ExpertsAtBatch(
                batch,
                lookahead,
                float(shape.read_experts(np.float64(batch))),
                float(shape.read_experts(np.float64(batch * (lookahead + 1)))),
                float(own.max()),
                1 + int(np.argmax(dense)),
                float(dense.max()),
            )
        )
    active = float(shape.active_params)
    idle = float(shape.params) - active
    return MixtureOfExperts(
        target.experts,
        target.active_experts or 1,
        Size(float(shape.total_params) - idle, active),
        float(size_in_law(shape, serving.loss_law)),
        own_pays,
        dense_pays,
        rows,
    )
