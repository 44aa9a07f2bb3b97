"""The optima of a study and the landscapes around them: what `codesign.json` and `landscapes.json` hold."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdsl_jax.errors import require
from sdsl_jax.records.documents import described, from_json, to_json
from sdsl_jax.records.files import read_json

_INTERVAL = re.compile(r"interval_(\d+)")


@dataclass(frozen=True)
class ReferenceOptimum:
    """The optimum by the reference method."""

    method: str = described("closed form, or bracketed roots at the costs of a device")
    draft_params: float | None = described(
        "N*, non-embedding parameters; none where speculation does not pay"
    )
    lookahead: float | None = described("γ*; none where the law has no finite optimum")
    speedup: float | None = described("S*; none where the law has no finite optimum")


@dataclass(frozen=True)
class RelativeDifference:
    """How far the gradient method ends from the reference, relative to it."""

    draft_params: float | None = described("of N*; none where the two cannot be compared")
    lookahead: float | None = described("of γ*; none where the two cannot be compared")


@dataclass(frozen=True)
class GradientRun:
    """The settings of the gradient method, and how well it converged."""

    optimizer: str = described("name of the optimizer")
    learning_rate: float = described("initial step size, in e-folds of the variables")
    steps: int = described("updates of each start")
    starts: int = described("starting points")
    starts_agreeing: float = described("share of starts that reached the best objective")
    stationarity: float = described("largest violation of the conditions of an optimum at the end")
    best_speedup_found: float = described("S at the end, also where it is below 1")


@dataclass(frozen=True)
class OptimumInterval:
    """Intervals of the optimum over the bootstrap draws of the laws."""

    draft_params: tuple[float, float] | None = described("of N*, among draws that speculate")
    lookahead: tuple[float, float] | None = described("of γ*; 0 in draws that do not speculate")
    speedup: tuple[float, float] | None = described("of S*; 1 in draws that do not speculate")


@dataclass(frozen=True)
class TrainedDraft:
    """A trained draft at one measured lookahead, under the cost model of the entry."""

    draft_id: str = described("model_id of the draft")
    draft_params: int = described("non-embedding parameters")
    train_tokens: int = described("tokens that the draft was trained on")
    lookahead: int = described("drafts per round")
    tokens_per_round: float = described("measured tokens per round")
    speedup: float = described("tokens per round over the cost of such a round")
    speedup_low: float = described("lower end of its interval")
    speedup_high: float = described("upper end of its interval")


@dataclass(frozen=True)
class CodesignEntry:
    """The best draft for one target, under one acceptance law and one cost model.

    The file names `interval` after its confidence: `interval_90` at 90%.
    """

    target_id: str = described("model_id of the target")
    acceptance_law: str = described("name of the acceptance law")
    cost_model: str = described("flops, or measured for the timed device")
    draft_params: float | None = described(
        "N*, non-embedding parameters; none where speculation does not pay"
    )
    lookahead: float | None = described(
        "γ*; 0 where speculation does not pay, none without a finite optimum"
    )
    lookahead_integer: int = described("best whole lookahead at N*; 0 where none pays")
    speculate: bool = described("whether a whole lookahead beats plain decoding")
    acceptance: float | None = described("α at N*")
    cost: float | None = described("d, cost of a draft step in target steps")
    verify_cost: float = described("v, rest of a round at γ*, in target steps")
    speedup: float | None = described("S*; 1 where speculation does not pay")
    speedup_integer: float | None = described("S at the best whole lookahead")
    interior: bool = described("whether the reference is a stationary point inside the bounds")
    indifference_1pct: tuple[float | None, float | None] = described(
        "draft sizes that lose at most 1% of S*"
    )
    reference: ReferenceOptimum = described("the optimum by the reference method")
    relative_difference: RelativeDifference = described("of the two methods")
    gradient: GradientRun = described("the gradient method")
    interval: OptimumInterval = described("over the draws of the laws, at `interval_percent`")
    interval_percent: int = described("confidence of the interval; part of its key in the file")
    interval_basis: str = described("what was resampled")
    share_of_draws_that_speculate: float = described("among all draws")
    share_of_draws_without_optimum: float = described("draws whose law reaches α = 1")
    target_params: int = described("non-embedding parameters of the target")
    draft_tokens: int = described("tokens that the drafts of the law are trained on")
    trained: list[TrainedDraft] = described("every trained draft at every measured lookahead")
    nearest_trained: TrainedDraft | None = described("the trained draft nearest to the optimum")
    warnings: list[str] = described("what to know before relying on the optimum")

    def to_json(self) -> dict[str, Any]:
        """The entry as the file holds it."""
        values = {f.name: to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}
        percent = values.pop("interval_percent")
        return {f"interval_{percent}" if k == "interval" else k: v for k, v in values.items()}


@dataclass(frozen=True)
class Curve:
    """The best speculation along the draft size."""

    draft_params: list[float] = described("non-embedding parameters")
    acceptance: list[float] = described("α")
    cost: list[float] = described("d, cost of a draft step in target steps")
    lookahead: list[float] = described("best γ ≥ 1")
    speedup: list[float] = described("S at that γ")


@dataclass(frozen=True)
class SpeedupMap:
    """The speed-up over draft size and lookahead."""

    draft_params: list[float] = described("of the rows")
    lookahead: list[float] = described("of the columns")
    speedup: list[list[float]] = described("S, [draft sizes][lookaheads]")


@dataclass(frozen=True)
class OptimizerPath:
    """The path of the best start, at steps spread evenly in their logarithm."""

    draft_params: list[float] = described("non-embedding parameters")
    lookahead: list[float] = described("γ")
    speedup: list[float] = described("S")


@dataclass(frozen=True)
class CodesignLandscape:
    """What the figures draw around one optimum."""

    target_id: str = described("model_id of the target")
    acceptance_law: str = described("name of the acceptance law")
    cost_model: str = described("flops, or measured for the timed device")
    curve: Curve = described("along the draft size")
    map: SpeedupMap = described("over draft size and lookahead")
    path: OptimizerPath = described("of the gradient method")


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
