"""The optima of a study and the landscapes around them: what `codesign.json` and `landscapes.json` hold."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdsl_jax.errors import require
from sdsl_jax.records.documents import from_json, to_json
from sdsl_jax.records.files import read_json

_INTERVAL = re.compile(r"interval_(\d+)")


@dataclass(frozen=True)
class ReferenceOptimum:
    """The optimum by the reference method.

    Attributes:
      method: "closed form", or "bracketed roots" at the costs of a device.
      draft_params: N*, non-embedding parameters; none where speculation does not pay.
      lookahead: γ*; none where the law has no finite optimum.
      speedup: S*; none where the law has no finite optimum.
    """

    method: str
    draft_params: float | None
    lookahead: float | None
    speedup: float | None


@dataclass(frozen=True)
class RelativeDifference:
    """How far the gradient method ends from the reference, relative to it.

    Attributes:
      draft_params: Difference in N*; none where the two cannot be compared.
      lookahead: Difference in γ*; none where the two cannot be compared.
    """

    draft_params: float | None
    lookahead: float | None


@dataclass(frozen=True)
class GradientRun:
    """The settings of the gradient method, and how well it converged.

    Attributes:
      optimizer: Name of the optimizer.
      learning_rate: Initial step size, in e-folds of the variables.
      steps: Updates of each start.
      starts: Starting points.
      starts_agreeing: Share of starts that reached the best objective.
      stationarity: Largest violation of the conditions of an optimum at the end.
      best_speedup_found: S at the end, also where it is below 1.
    """

    optimizer: str
    learning_rate: float
    steps: int
    starts: int
    starts_agreeing: float
    stationarity: float
    best_speedup_found: float


@dataclass(frozen=True)
class OptimumInterval:
    """Intervals of the optimum over the bootstrap draws of the laws.

    Attributes:
      draft_params: Interval of N*, among draws that speculate.
      lookahead: Interval of γ*; 0 in draws that do not speculate.
      speedup: Interval of S*; 1 in draws that do not speculate.
    """

    draft_params: tuple[float, float] | None
    lookahead: tuple[float, float] | None
    speedup: tuple[float, float] | None


@dataclass(frozen=True)
class TrainedDraft:
    """A trained draft at one measured lookahead, under the cost model of the entry.

    Attributes:
      draft_id: model_id of the draft.
      draft_params: Non-embedding parameters.
      train_tokens: Tokens that the draft was trained on.
      lookahead: Drafts per round.
      tokens_per_round: Measured tokens per round.
      speedup: Tokens per round over the cost of such a round.
      speedup_low: Lower end of its interval.
      speedup_high: Upper end of its interval.
    """

    draft_id: str
    draft_params: int
    train_tokens: int
    lookahead: int
    tokens_per_round: float
    speedup: float
    speedup_low: float
    speedup_high: float


@dataclass(frozen=True)
class CodesignEntry:
    """The best draft for one target, under one acceptance law and one cost model.

    The file names `interval` after its confidence: `interval_90` at 90%.

    Attributes:
      target_id: model_id of the target.
      acceptance_law: Name of the acceptance law.
      cost_model: "flops", or "measured" for the timed device.
      draft_params: N*, non-embedding parameters; none where speculation does not pay.
      lookahead: γ*; 0 where speculation does not pay, none without a finite optimum.
      lookahead_integer: Best whole lookahead at N*; 0 where none pays.
      speculate: Whether a whole lookahead beats plain decoding.
      acceptance: α at N*.
      cost: Cost d of a draft step, in target steps.
      verify_cost: Cost v of the rest of a round at γ*, in target steps.
      speedup: S*; 1 where speculation does not pay.
      speedup_integer: S at the best whole lookahead.
      interior: Whether the reference is a stationary point inside the bounds.
      indifference_1pct: Draft sizes that lose at most 1% of S*.
      reference: The optimum by the reference method.
      relative_difference: Between the two methods.
      gradient: Settings and convergence of the gradient method.
      interval: Intervals over the draws of the laws, at `interval_percent`.
      interval_percent: Confidence of the interval; part of its key in the file.
      interval_basis: What was resampled.
      share_of_draws_that_speculate: Share of draws in which speculation pays.
      share_of_draws_without_optimum: Share of draws whose law reaches α = 1.
      target_params: Non-embedding parameters of the target.
      draft_tokens: Tokens that the drafts of the law are trained on.
      trained: Every trained draft at every measured lookahead.
      nearest_trained: The trained draft nearest to the optimum.
      warnings: What to know before relying on the optimum.
    """

    target_id: str
    acceptance_law: str
    cost_model: str
    draft_params: float | None
    lookahead: float | None
    lookahead_integer: int
    speculate: bool
    acceptance: float | None
    cost: float | None
    verify_cost: float
    speedup: float | None
    speedup_integer: float | None
    interior: bool
    indifference_1pct: tuple[float | None, float | None]
    reference: ReferenceOptimum
    relative_difference: RelativeDifference
    gradient: GradientRun
    interval: OptimumInterval
    interval_percent: int
    interval_basis: str
    share_of_draws_that_speculate: float
    share_of_draws_without_optimum: float
    target_params: int
    draft_tokens: int
    trained: list[TrainedDraft]
    nearest_trained: TrainedDraft | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """The entry as the file holds it."""
        values = {f.name: to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}
        percent = values.pop("interval_percent")
        return {f"interval_{percent}" if k == "interval" else k: v for k, v in values.items()}


@dataclass(frozen=True)
class Curve:
    """The best speculation along the draft size.

    Attributes:
      draft_params: Non-embedding parameters.
      acceptance: α.
      cost: Cost d of a draft step, in target steps.
      lookahead: Best γ ≥ 1.
      speedup: S at that γ.
    """

    draft_params: list[float]
    acceptance: list[float]
    cost: list[float]
    lookahead: list[float]
    speedup: list[float]


@dataclass(frozen=True)
class SpeedupMap:
    """The speed-up over draft size and lookahead.

    Attributes:
      draft_params: Draft sizes of the rows.
      lookahead: Lookaheads of the columns.
      speedup: S, [draft sizes][lookaheads].
    """

    draft_params: list[float]
    lookahead: list[float]
    speedup: list[list[float]]


@dataclass(frozen=True)
class OptimizerPath:
    """The path of the best start, at steps spread evenly in their logarithm.

    Attributes:
      draft_params: Non-embedding parameters.
      lookahead: γ.
      speedup: S.
    """

    draft_params: list[float]
    lookahead: list[float]
    speedup: list[float]


@dataclass(frozen=True)
class CodesignLandscape:
    """What the figures draw around one optimum.

    Attributes:
      target_id: model_id of the target.
      acceptance_law: Name of the acceptance law.
      cost_model: "flops", or "measured" for the timed device.
      curve: The best speculation along the draft size.
      map: The speed-up over draft size and lookahead.
      path: Path of the gradient method.
    """

    target_id: str
    acceptance_law: str
    cost_model: str
    curve: Curve
    map: SpeedupMap
    path: OptimizerPath


def read_codesign(folder: Path) -> list[CodesignEntry]:
    """The optima in `codesign.json` of a folder of records.

    Raises:
      SdslError: the file is missing, damaged, or holds no optimum.
    """
    path = folder / "codesign.json"
    entries = []
    for values in read_json(path, list, ("target_id",)):
        match = next(filter(None, map(_INTERVAL.fullmatch, values)), None)
        require(match is not None, f"the record file {path} is damaged: it lacks the interval.")
        assert match is not None
        named = {"interval": values[match[0]], "interval_percent": int(match[1])}
        entries.append(from_json(CodesignEntry, values | named, f"the record file {path}"))
    return entries


def read_landscapes(folder: Path) -> list[CodesignLandscape]:
    """The landscapes in `landscapes.json` of a folder of records, in the order of the optima.

    Raises:
      SdslError: the file is missing or damaged.
    """
    path = folder / "landscapes.json"
    return [
        from_json(CodesignLandscape, values, f"the record file {path}")
        for values in read_json(path, list, ("curve", "map", "path"))
    ]
