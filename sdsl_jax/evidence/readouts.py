"""How size, tokens and the number of ids that a draft proposes make its acceptance, and which of them
to choose on the clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.common import Estimate, training_run
from sdsl_jax.evidence.size_lines import BEYOND, GRID, least_squares, with_ones
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import quantile_interval, resampled, student_quantile

# Level, and slopes in ln N, ln D and ln K.
_TERMS = ("level", "size", "tokens", "readout")
_DRAWS = 1000


@dataclass(frozen=True)
class ReadoutPrediction:
    """α of a draft of the largest size, predicted by the law of the smaller ones.

    Attributes:
      draft_id: draft model
      predicted: with the interval for one more draft, on the scale of logit(α/p(K)) a t interval
      measured: what was measured on the target's own samples
    """

    draft_id: str
    predicted: Estimate
    measured: float


@dataclass(frozen=True)
class ReadoutOptimum:
    """The best size for a readout, on the clock.

    Attributes:
      readout: K
      alpha_bound: p(K)
      draft_params: N*, over bootstrap draws of training runs
      lookahead: γ of the largest speed-up
      speedup: τ/(γ·d + v) there, with the measured times of draft steps d and verify passes v in
        steps of the target; tokens per round τ as if drafts were accepted independently
      inside: share of the draws whose N* lies among the sizes that were trained
    """

    readout: int
    alpha_bound: float
    draft_params: Estimate
    lookahead: int
    speedup: Estimate
    inside: float


@dataclass(frozen=True)
class Readouts:
    """The law logit(α/p(K)) = level + a·ln N + b·ln D + k·ln K of truncated drafts.

    α cannot exceed p(K), the target's probability of the K ids, so the law is about the share of it
    that a draft reaches. N is the non-embedding size and D the training tokens.

    Attributes:
      target_id: target model
      objective: what the drafts were trained for
      drafts: drafts behind the law
      coefficients: level, a, b and k by name, with intervals over bootstrap draws of training runs; those of
        what does not vary are left out
      residual: standard deviation of logit(α/p(K)) around the law
      predictions: drafts of the largest size, as the law of the smaller ones predicts them
      error: mean absolute error of these predictions of α
      optima: the best size for each readout at the largest token budget, the best first
      confidence: confidence of the intervals
    """

    target_id: str
    objective: str
    drafts: int
    coefficients: dict[str, Estimate]
    residual: float
    predictions: list[ReadoutPrediction]
    error: float
    optima: list[ReadoutOptimum]
    confidence: float


class _Table(NamedTuple):
    """Drafts, what explains them, and logit(α/p(K))."""

    drafts: list[ModelRecord]
    x: Float[np.ndarray, "n 4"]
    y: Float[np.ndarray, " n"]
    bound: Float[np.ndarray, " n"]

    def rows(self, kept: np.ndarray) -> _Table:
        some = [d for d, k in zip(self.drafts, kept) if k]
        return _Table(some, self.x[kept], self.y[kept], self.bound[kept])

    def fitted(self) -> tuple[Float[np.ndarray, " 4"], float, int]:
        """Coefficients, standard deviation of the residuals, and their degrees of freedom."""
        b = least_squares(self.x, self.y, np.ones((1, len(self.y))))[0]
        free = len(self.y) - np.linalg.matrix_rank(self.x)
        squares = np.square(self.y - self.x @ b).sum()
        return b, float(np.sqrt(squares / free)) if free > 0 else np.nan, int(free)


def readouts(records: StudyRecords) -> Readouts | None:
    """The law of the truncated drafts of a study that are models of their own. None without two sizes
    and two readouts of one objective, measured with one target."""
    chosen = _tables(records)
    if chosen is None:
        return None
    target, table = chosen
    confidence, seed = records.config.measure.confidence, records.config.seed
    coefficients, residual, _ = table.fitted()
    runs = np.array([training_run(d) for d in table.drafts])
    draws = least_squares(table.x, table.y, resampled(runs, _DRAWS, seed))
    predictions = _predictions(table, confidence)
    return Readouts(
        target_id=target.model_id,
        objective=table.drafts[0].objective or "text",
        drafts=len(table.drafts),
        coefficients={
            name: _around(coefficients[i], draws[:, i], confidence)
            for i, name in enumerate(_TERMS)
            if not i or np.ptp(table.x[:, i]) > 0
        },
        residual=residual,
        predictions=predictions,
        error=float(np.mean([abs(p.predicted.estimate - p.measured) for p in predictions]))
        if predictions
        else np.nan,
        optima=_optima(records, target, table, coefficients, draws, confidence),
        confidence=confidence,
    )


def _around(estimate: float, draws: np.ndarray, confidence: float) -> Estimate:
    return Estimate(float(estimate), *quantile_interval(draws, confidence))


def _share(alpha: np.ndarray, bound: np.ndarray) -> np.ndarray:
    share = np.clip(alpha / bound, 1e-6, 1 - 1e-6)
    return np.log(share / (1 - share))


def _tables(records: StudyRecords) -> tuple[ModelRecord, _Table] | None:
    """The target and the largest group of truncated drafts of one objective."""
    targets = {m.model_id: m for m in records.trained if m.role == "target"}
    drafts = {m.model_id: m for m in records.trained if m.readout and not m.kind}
    groups: dict[tuple[str, str], list[tuple[ModelRecord, float, float]]] = defaultdict(list)
    for r in records.measured_acceptance:
        own = r.estimator == "teacher_forced_samples" and r.alpha_bound < 1
        if own and r.draft_id in drafts and r.target_id in targets:
            draft = drafts[r.draft_id]
            groups[r.target_id, draft.objective].append((draft, r.alpha, r.alpha_bound))
    if not groups:
        return None
    (target_id, _), rows = max(groups.items(), key=lambda item: len(item[1]))
    some, alpha, bound = zip(*rows)
    axes = [(d.params_nonembedding, d.train_tokens, d.readout) for d in some]
    x = with_ones(np.log(np.asarray(axes, float)))
    if len({a[0] for a in axes}) < 2 or len({a[2] for a in axes}) < 2 or len(axes) < 5:
        return None
    bounds = np.asarray(bound)
    return targets[target_id], _Table(list(some), x, _share(np.asarray(alpha), bounds), bounds)


def _predictions(table: _Table, confidence: float) -> list[ReadoutPrediction]:
    """Drafts of the largest size by the law of the others; none where it does not determine them."""
    largest = table.x[:, 1] == table.x[:, 1].max()
    seen, unseen = table.rows(~largest), table.rows(largest)
    if len({*seen.x[:, 1]}) < 2:
        return []
    coefficients, residual, free = seen.fitted()
    if free < 1:
        return []
    inverse = np.linalg.pinv(seen.x.T @ seen.x)
    found = []
    for draft, x, y, bound in zip(*unseen):
        half = (
            student_quantile(0.5 + confidence / 2, free) * residual * np.sqrt(1 + x @ inverse @ x)
        )
        middle = float(x @ coefficients)
        low, estimate, high, measured = (
            float(bound / (1 + np.exp(-z))) for z in (middle - half, middle, middle + half, y)
        )
        found.append(ReadoutPrediction(draft.model_id, Estimate(estimate, low, high), measured))
    return found


def _optima(
    records: StudyRecords,
    target: ModelRecord,
    table: _Table,
    coefficients: Float[np.ndarray, " 4"],
    draws: Float[np.ndarray, "draws 4"],
    confidence: float,
) -> list[ReadoutOptimum]:
    """The best size for each readout; none where steps were not timed."""
    seconds = {(r.model_id, r.operation, r.width): r.seconds for r in records.latency}
    plain = seconds.get((target.model_id, "decode", 1))
    passes = {
        width - 1: each / plain
        for (name, operation, width), each in seconds.items()
        if plain and (name, operation) == (target.model_id, "verify")
    }
    timed = [d for d in table.drafts if (d.model_id, "decode", 1) in seconds]
    if not passes or plain is None or len({d.params_nonembedding for d in timed}) < 2:
        return []
    steps = np.array([seconds[d.model_id, "decode", 1] for d in timed]) / plain
    line = least_squares(with_ones(_weights(timed)[:, None]), steps, np.ones((1, len(steps))))[0]
    sizes = np.exp(table.x[:, 1])
    grid = np.geomspace(sizes.min() / BEYOND, sizes.max() * BEYOND, GRID)
    # A family's width is about a power of its size.
    shapes = np.log([(d.params_nonembedding, d.width) for d in table.drafts])
    power = least_squares(with_ones(shapes[:, :1]), shapes[:, 1], np.ones((1, len(shapes))))[0]
    widths = np.exp(with_ones(np.log(grid)[:, None]) @ power)
    found = []
    for readout in sorted({d.readout for d in table.drafts}):
        bound = float(table.bound[[d.readout == readout for d in table.drafts]].mean())
        point = with_ones(
            np.stack(
                [np.log(grid), np.full(GRID, table.x[:, 2].max()), np.full(GRID, np.log(readout))],
                1,
            )
        )
        every = np.concatenate([coefficients[None], draws])
        alpha = bound / (1 + np.exp(-every @ point.T))
        step = np.maximum(line[0] + line[1] * (grid + readout * widths), 1e-9)
        best, at = np.zeros_like(alpha), np.zeros(alpha.shape, int)
        for lookahead, verify in sorted(passes.items()):
            tokens = (1 - alpha ** (lookahead + 1)) / (1 - alpha)
            speedup = tokens / (lookahead * step + verify)
            at = np.where(speedup > best, lookahead, at)
            best = np.maximum(best, speedup)
        size = grid[best.argmax(axis=1)]
        inside = (size >= sizes.min()) & (size <= sizes.max())
        found.append(
            ReadoutOptimum(
                readout=readout,
                alpha_bound=bound,
                draft_params=_around(size[0], size[1:], confidence),
                lookahead=int(at[0, best[0].argmax()]),
                speedup=_around(best[0].max(), best[1:].max(axis=1), confidence),
                inside=float(inside[1:].mean()),
            )
        )
    return sorted(found, key=lambda o: -o.speedup.estimate)


def _weights(drafts: Sequence[ModelRecord]) -> Float[np.ndarray, " n"]:
    """Weights that a step reads: blocks, and the readout's rows."""
    return np.array([d.params_nonembedding + d.readout * d.width for d in drafts], float)
