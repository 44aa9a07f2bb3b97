"""What several questions share: means over drafts as clusters, tests, and measured speed-ups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc
from jaxtyping import Bool

from sdsl_jax.records import ExpectedRecord, ModelRecord
from sdsl_jax.records.documents import to_json
from sdsl_jax.statistics import ratio_interval, student_quantile
from sdsl_jax.theory import (
    AcceptanceLaw,
    DraftProblem,
    FlopCost,
    LossLaw,
    ModelPoint,
    ShapeRule,
    speedup,
)

BY_DRAFTS = (
    "t intervals that treat drafts as clusters: all pairs of a draft, at all its budgets, move "
    "together"
)


class Sparse:
    """A document whose keys are left out where they are None."""

    def to_json(self) -> dict[str, Any]:
        """The keys of the JSON object."""
        return {k: to_json(v) for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval; both ends are NaN where the interval is unknown.

    Attributes:
      estimate: estimate
      low: lower end of its interval
      high: upper end of its interval
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean(Estimate):
    """A mean over rows that belong to clusters.

    Attributes:
      n: rows
      clusters: independent clusters of rows
    """

    n: int
    clusters: int


@dataclass(frozen=True)
class Design:
    """A draft and how far to speculate with it.

    Attributes:
      draft_params: N*, parameters of the draft; non-embedding ones where a study says so
      lookahead: γ*
      speedup: S*
    """

    draft_params: float
    lookahead: float
    speedup: float

    @classmethod
    def of(cls, optimum: Any) -> Design:
        """An optimum of theory."""
        return cls(float(optimum.params), float(optimum.lookahead), float(optimum.speedup))


class Setting(NamedTuple):
    """Where laws are asked for the best draft of one target, in FLOPs.

    Attributes:
      target_params: Size of the target.
      draft_tokens: Training tokens of the draft.
      target_tokens: Training tokens of the target.
      rule: Shapes of the family.
      bounds: Smallest and largest draft.
    """

    target_params: Any
    draft_tokens: Any
    target_tokens: Any
    rule: ShapeRule
    bounds: tuple[Any, Any]

    def in_double_precision(self) -> Setting:
        """The same as arrays; within `jax.enable_x64`."""
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), self)


def flop_problem(
    loss: LossLaw, acceptance: AcceptanceLaw, at: Setting, measured_loss: Any = jnp.nan
) -> DraftProblem:
    """The design problem in FLOPs. The target's loss comes from the law, so that it moves with its
    size, unless a measured one is given."""
    m = at.target_params
    of_target = jnp.where(jnp.isnan(measured_loss), loss(m, at.target_tokens), measured_loss)
    target = ModelPoint(m, of_target, at.target_tokens)
    return DraftProblem(loss, at.draft_tokens, target, acceptance, FlopCost(at.rule, m), at.bounds)


def answer_of(yes: bool, no: bool) -> str:
    """The answer to a question that an interval may leave open: yes, no or undecided."""
    return "yes" if yes else "no" if no else "undecided"


def clustered_mean(
    values: Sequence[float] | np.ndarray, clusters: Sequence[str], confidence: float
) -> Mean:
    """Mean with a t interval over clusters; its ends are NaN where there is only one cluster."""
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    ratio = ratio_interval(
        np.bincount(index, np.asarray(values, float)), np.bincount(index), confidence
    )
    return Mean(*ratio, len(index), int(index.max()) + 1)


def training_run(model: ModelRecord) -> str:
    """The training run of a model. The token budgets of one run are no independent models, nor are the
    slices of one nested draft."""
    size = "" if model.kind == "nested" else model.params_nonembedding
    return f"{model.role}-{size}-{model.trained_for}-s{model.seed}"


def standard_error(low: float, high: float, confidence: float, clusters: int) -> float:
    """Standard error behind a t interval over so many clusters."""
    return (high - low) / 2 / student_quantile(0.5 + confidence / 2, clusters - 1)


def student_p_value(t: float, degrees: int) -> float:
    """Two-sided p-value of Student's t."""
    with jax.enable_x64(True):
        return float(betainc(degrees / 2, 0.5, degrees / (degrees + t * t)))


def holm(p_values: Sequence[float] | np.ndarray, level: float) -> Bool[np.ndarray, " n"]:
    """Which hypotheses Holm's step-down procedure rejects; the chance of any false rejection is at
    most `level`.

    Valid under any dependence between the tests (Holm, 1979).
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    passed = p[order] <= level / (len(p) - np.arange(len(p)))
    rejected = np.zeros(len(p), bool)
    rejected[order[: len(p) if passed.all() else int(np.argmin(passed))]] = True
    return rejected


def kolmogorov_p_value(distance: float, n: int) -> float:
    """P-value of the Kolmogorov–Smirnov distance to a fully specified distribution (Stephens, 1970)."""
    root = math.sqrt(n)
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series needs ever more terms, and the answer is 1 to many digits
        return 1.0
    return min(
        1.0,
        max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 60))),
    )


class MeasuredSpeedups(NamedTuple):
    """What every draft gives one target at every lookahead, in FLOPs: S = τ/(γ·d + 1), where d is
    the ratio of FLOPs per token (2603.11053).

    Attributes:
      drafts: Candidate drafts.
      cost: Cost d of a step of each draft, in target steps, [drafts].
      lookaheads: Every γ at which τ is known.
      speedup: S, [drafts, lookaheads].
    """

    drafts: list[ModelRecord]
    cost: np.ndarray
    lookaheads: np.ndarray
    speedup: np.ndarray

    @property
    def best(self) -> float:
        """The best S of any draft and lookahead; at least 1, since plain decoding is always possible."""
        return max(1.0, float(self.speedup.max()))

    def at(self, draft: int, lookahead: int) -> float:
        """S of a draft at the measured lookahead nearest to the one given; 1 at 0, which is plain decoding."""
        if lookahead < 1:
            return 1.0
        return float(self.speedup[draft, np.argmin(np.abs(self.lookaheads - lookahead))])

    def choice(self, acceptance: np.ndarray) -> tuple[int, int]:
        """The draft and lookahead that predicted acceptances ask for, by the geometric formula; lookahead 0 is plain decoding."""
        alpha = np.clip(acceptance, 0.0, 1 - 1e-6)[:, None]
        predicted = np.asarray(
            speedup(alpha, self.lookaheads[None].astype(float), self.cost[:, None])
        )
        draft, column = np.unravel_index(np.argmax(predicted), predicted.shape)
        return int(draft), int(self.lookaheads[column]) if predicted[draft, column] > 1 else 0

    def regret(self, draft: int, lookahead: int) -> float:
        """Share of the best measured S that a choice loses."""
        return 1 - self.at(draft, lookahead) / self.best


def measured_speedups(
    drafts: list[ModelRecord], expected: list[ExpectedRecord], target: ModelRecord
) -> MeasuredSpeedups | None:
    """Speed-ups of all drafts that were measured with a target at common lookaheads; None if there
    are none.

    Args:
      drafts: Candidate drafts.
      expected: Expected tokens per round.
      target: Target that they draft for.
    """
    tau: dict[str, dict[int, float]] = {}
    for row in expected:
        if row.target_id == target.model_id:
            tau.setdefault(row.draft_id, {})[row.lookahead] = row.tokens_per_round
    drafts = [m for m in drafts if m.model_id in tau and m.flops_per_token > 0]
    if not drafts or not target.flops_per_token > 0:
        return None
    lookaheads = sorted(set.intersection(*(set(tau[m.model_id]) for m in drafts)))
    if not lookaheads:
        return None
    cost = np.asarray([m.flops_per_token / target.flops_per_token for m in drafts])
    values = np.asarray([[tau[m.model_id][g] for g in lookaheads] for m in drafts])
    return MeasuredSpeedups(
        drafts, cost, np.asarray(lookaheads), values / (np.asarray(lookaheads) * cost[:, None] + 1)
    )
