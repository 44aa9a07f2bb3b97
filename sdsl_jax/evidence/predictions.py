"""What the laws of a study's seen models predict for the models that it holds out."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.counts import short_count
from sdsl_jax.evidence.common import Design, Setting, flop_problem
from sdsl_jax.fitting.discrepancy import BentLaw, Variable, bent_laws, scatter
from sdsl_jax.fitting.law_files import Fits
from sdsl_jax.models import count, member
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import quantile_interval, stream
from sdsl_jax.theory import (
    ACCEPTANCE_LAWS,
    AcceptanceLaw,
    ModelPoint,
    ShapeRule,
)

# Groups of pairs that always have a name.
PAIRS, LARGER_DRAFTS = "pairs", "draft as large as its target or larger"


@dataclass(frozen=True)
class Rung:
    """A model to be: what is known of it before it is trained.

    Attributes:
      role: draft or target
      params: non-embedding parameters
      tokens: training tokens
    """

    role: str
    params: int
    tokens: int


@dataclass(frozen=True)
class PredictedLoss(Rung):
    """The loss that the loss law predicts for a held-out model.

    Attributes:
      loss: predicted loss, nats per token
      low: lower end of its interval
      high: upper end of its interval
    """

    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class PredictedPair:
    """The acceptance that a law predicts for a pair with a held-out member.

    Attributes:
      law: acceptance law
      draft_params: non-embedding parameters of the draft
      draft_tokens: training tokens of the draft
      target_params: non-embedding parameters of the target
      target_tokens: training tokens of the target
      alpha: predicted acceptance
      low: lower end of its interval
      high: upper end of its interval
    """

    law: str
    draft_params: int
    draft_tokens: int
    target_params: int
    target_tokens: int
    alpha: float
    low: float
    high: float


@dataclass(frozen=True)
class PredictedOptimum(Design):
    """The best draft for the largest target, in FLOPs; NaN where a number is infinite or unknown.

    Attributes:
      low_1pct: smallest draft within 1% of S*
      high_1pct: largest draft within 1% of S*
      interval: intervals of N*, γ* and S*
    """

    low_1pct: float
    high_1pct: float
    interval: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class FormError:
    """How far a law may err smoothly in one variable, before its coefficients take a part up.

    The deviation is that of the Gaussian process. The error of the law is smaller by what a refit
    would absorb, and grows beyond the table.

    Attributes:
      law: the law
      variable: the variable, such as draft_params
      deviation: standard deviation of the error: median of its draws, in ln loss or α
      low: lower end of its interval
      high: upper end of its interval
    """

    law: str
    variable: str
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class IntervalShares:
    """What the intervals of the predictions under a law are made of: shares of their variance, a
    mean over predictions.

    Attributes:
      law: the law
      coefficients: uncertainty of the coefficients, and of predicted losses that go into an
        acceptance
      form: errors of the form of the law
      scatter: scatter of single models and pairs
    """

    law: str
    coefficients: float
    form: float
    scatter: float


@dataclass(frozen=True)
class Coefficients:
    """A law as it was published.

    Attributes:
      law: name of the law
      coefficients: its coefficients
    """

    law: str
    coefficients: dict[str, float]


@dataclass(frozen=True)
class Predictions:
    """`predictions.json`: what the laws of the smaller study say about everything held out.

    Attributes:
      losses: losses of held-out models
      pairs: acceptance of pairs with a held-out member
      best_law: acceptance law that predicts left-out drafts best
      optimum: best draft for the largest target
      largest_target: the target that the optimum is for
      draft_tokens: training tokens of the best draft
      largest_seen: largest size that the laws were fitted to, by role
      loss_law: the loss law that predicted
      acceptance_laws: coefficients of the acceptance laws
      seen_models: models that the laws were fitted to
      confidence: confidence of the intervals
      made_from: digest of the settings and fits behind it
      published: when it was written
      already_measured: held-out models whose records were there by then
      form_errors: errors of the forms of the loss law and of the best acceptance law
      interval_shares: what their intervals are made of
      expected_inside: by group of pairs, or "losses": the share inside the intervals that joint draws
        of these very predictions have, from a low to a high quantile. Pairs that share runs err
        together, so that a share is no binomial one.
    """

    losses: list[PredictedLoss]
    pairs: list[PredictedPair]
    best_law: str
    optimum: PredictedOptimum
    largest_target: Rung
    draft_tokens: int
    largest_seen: dict[str, int]
    loss_law: Coefficients
    acceptance_laws: dict[str, dict[str, float]]
    seen_models: list[str]
    confidence: float
    made_from: str = ""
    published: str | None = None
    already_measured: list[str] = field(default_factory=list)
    form_errors: list[FormError] = field(default_factory=list)
    interval_shares: list[IntervalShares] = field(default_factory=list)
    expected_inside: dict[str, tuple[float, float]] = field(default_factory=dict)

    def law(self, name: str) -> AcceptanceLaw:
        """An acceptance law that predicted."""
        return ACCEPTANCE_LAWS[name](**self.acceptance_laws[name])


def held_out(config: StudyConfig) -> list[Rung]:
    """The models that a study keeps back: sizes as its family makes them, and token budgets."""
    rungs = []
    for role in ("draft", "target"):
        for size in getattr(config.holdout, f"{role}_params"):
            params = count(member(config.family, size, config.data.vocab_size), 0).nonembedding
            rungs += [Rung(role, params, tokens) for tokens in config.ladder.budgets(role, size)]
    return rungs


def forecast(config: StudyConfig, seen: list[ModelRecord], fits: Fits) -> Predictions:
    """Predicts everything that the study keeps back, without looking at any record of it.

    The intervals of a loss or α combine three uncertainties: of the coefficients, from joint
    bootstrap draws; of the form of the law, as `fitting.discrepancy` estimates it; and the scatter
    of single models and pairs about any law.

    Args:
      config: The whole study, whose `holdout` says what is kept back.
      seen: Records of the models that the laws were fitted to.
      fits: Their fits.
    """
    laws, confidence = fits.laws(), config.fit.confidence
    rungs = held_out(config)
    # Of several seeds the smallest stands for the rung.
    known = {
        Rung(m.role, m.params_nonembedding, m.train_tokens): m
        for m in sorted(seen, key=lambda m: m.seed, reverse=True)
    }

    def random(*purpose: str) -> np.random.Generator:
        """What one law draws must not be what another draws."""
        return stream(config.seed, "forecast", *purpose)

    loss_error, loss_name = fits.loss_law.form_error(), fits.loss_law.law
    loss_law = bent_laws(loss_error, laws.loss, laws.loss_draws, random("waves", loss_name))
    sizes, tokens = (
        np.asarray([getattr(r, n) for r in rungs], float) for n in ("params", "tokens")
    )
    runs = np.asarray([f"{r.role} {r.params}" for r in rungs])
    losses = _Drawn(
        *_losses_of(loss_law, sizes, tokens),
        scatter(
            loss_error, {"params": Variable(sizes, runs)}, len(rungs), random("scatter", loss_name)
        ),
        relative=True,
    )
    # A model scatters about the law by one amount, whether its loss is asked for or an α that
    # follows from it.
    drawn = dict(zip(rungs, losses.values.T))
    drafts, targets = (
        [r for r in [*known, *rungs] if r.role == role] for role in ("draft", "target")
    )
    pairs = [
        (draft, target)
        for draft in drafts
        for target in targets
        if draft not in known or target not in known
    ]

    def points(role: int) -> ModelPoint:
        """The models of a role as an acceptance law sees them, losses [1 + draws, pairs]: measured, or else predicted."""
        models = [pair[role] for pair in pairs]
        size, tokens = (
            np.asarray([getattr(r, n) for r in models], float) for n in ("params", "tokens")
        )
        everywhere = np.ones(len(losses.values))
        loss = [known[r].loss_nats * everywhere if r in known else drawn[r] for r in models]
        return ModelPoint(size, np.stack(loss, axis=1), tokens)

    draft_points, target_points = points(0), points(1)
    members = {
        f"{role}_params": Variable(
            (params := np.asarray([pair[i].params for pair in pairs], float)),
            params,
            _labels([pair[i] for pair in pairs]),
        )
        for i, role in enumerate(("draft", "target"))
    }
    bent, alphas = {}, {}
    for fit in fits.acceptance_laws:
        name, found = fit.law, fit.form_error()
        bent[name] = bent_laws(
            found, laws.acceptance[name], laws.acceptance_draws[name], random("waves", name)
        )
        alphas[name] = _Drawn(
            *_alphas_of(bent[name], draft_points, target_points),
            scatter(found, members, len(pairs), random("scatter", name)),
        )
    best = next(iter(laws.acceptance))
    target = max(targets, key=lambda r: (r.params, r.tokens))
    budget = max(r.tokens for r in drafts)
    return Predictions(
        losses=[
            PredictedLoss(rung.role, rung.params, rung.tokens, point, *ends)
            for rung, (point, *ends) in zip(rungs, losses.intervals(confidence))
        ],
        pairs=[
            PredictedPair(name, draft.params, draft.tokens, of.params, of.tokens, point, *ends)
            for name, of_law in alphas.items()
            for (draft, of), (point, *ends) in zip(pairs, of_law.intervals(confidence))
        ],
        best_law=best,
        optimum=_optimum(
            loss_law,
            bent[best],
            laws.rule,
            target,
            budget,
            (min(r.params for r in drafts) / 3, float(target.params)),
            known[target].loss_nats if target in known else math.nan,
            confidence,
        ),
        largest_target=target,
        draft_tokens=budget,
        largest_seen={
            role: max(m.params_nonembedding for m in seen if m.role == role)
            for role in ("draft", "target")
        },
        loss_law=Coefficients(fits.loss_law.law, fits.loss_law.coefficients),
        acceptance_laws={f.law: f.coefficients for f in fits.acceptance_laws},
        seen_models=[m.model_id for m in seen],
        confidence=confidence,
        form_errors=[
            FormError(
                fit.law,
                name,
                float(np.median(error.smooth)),
                *quantile_interval(np.asarray(error.smooth), confidence),
            )
            for fit in (fits.loss_law, fits.acceptance_laws[0])
            for name, error in fit.form_error().variables.items()
        ],
        interval_shares=[losses.shares(fits.loss_law.law), alphas[best].shares(best)],
        expected_inside=losses.shares_inside(confidence, {"losses": np.full(len(rungs), True)})
        | alphas[best].shares_inside(
            confidence,
            pair_groups(
                np.asarray([[rung.params for rung in pair] for pair in pairs]),
                np.asarray([[rung not in known for rung in pair] for pair in pairs]),
                config.holdout.smaller_drafts,
            ),
        ),
    )


def pair_groups(sizes: np.ndarray, held: np.ndarray, smaller_drafts: bool) -> dict[str, np.ndarray]:
    """Pairs by what was held out and by the runs of their members: which rows belong to a group.

    Args:
      sizes: Sizes of draft and target, [n, 2].
      held: Whether they were held out, [n, 2].
      smaller_drafts: Whether only pairs count whose draft is smaller than its target. The others are
        a group, and belong to no other.
    """
    counted = sizes[:, 0] < sizes[:, 1] if smaller_drafts else np.full(len(sizes), True)
    groups = {
        PAIRS: counted,
        "held-out draft, seen target": counted & held[:, 0] & ~held[:, 1],
        "seen draft, held-out target": counted & ~held[:, 0] & held[:, 1],
        "both held out": counted & held.all(axis=1),
        LARGER_DRAFTS: ~counted,
    }
    for k, role in enumerate(("draft", "target")):
        for size in np.unique(sizes[:, k]):
            groups[f"{role} of {short_count(size)}"] = counted & (sizes[:, k] == size)
    return {name: rows for name, rows in groups.items() if rows.any()}


def _labels(rungs: list[Rung]) -> np.ndarray:
    """A number for each rung."""
    numbers = {rung: i for i, rung in enumerate(dict.fromkeys(rungs))}
    return np.asarray([numbers[rung] for rung in rungs])


class _Drawn:
    """Draws of predictions: by the laws alone, with errors of their form, and with scatter.

    Attributes:
      values: Everything together, [1 + draws, n]; the first is the prediction itself.
    """

    def __init__(
        self, of_law: np.ndarray, bent: np.ndarray, scatter: np.ndarray, relative: bool = False
    ) -> None:
        unbounded = bent * np.exp(scatter) if relative else np.clip(bent + scatter, 0, 1)
        unbounded[0] = of_law[0]
        self.values = unbounded
        self._steps = (of_law, bent - of_law, unbounded - bent)

    def intervals(self, confidence: float) -> list[tuple[float, float, float]]:
        """Prediction and both ends of its interval, for each of the n."""
        return [(float(row[0]), *quantile_interval(row[1:], confidence)) for row in self.values.T]

    def shares_inside(
        self, confidence: float, groups: dict[str, np.ndarray]
    ) -> dict[str, tuple[float, float]]:
        """Quantiles over draws of the share of each group that lies inside the intervals."""
        tail, drawn = (1 - confidence) / 2, self.values[1:]
        low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
        inside = (low <= drawn) & (drawn <= high)
        shares = {name: inside[:, rows].mean(axis=1) for name, rows in groups.items()}
        return {name: quantile_interval(share, confidence) for name, share in shares.items()}

    def shares(self, law: str) -> IntervalShares:
        """What the variance is made of."""
        parts = np.asarray([step[1:].var(axis=0) for step in self._steps])
        return IntervalShares(law, *(float(x) for x in (parts / parts.sum(axis=0)).mean(axis=1)))


def _losses_of(
    law: BentLaw, params: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [1 + draws, n] by the law alone, and by the law with errors of its form."""
    return _in_double_precision(law, (params, tokens), (None, None))


def _alphas_of(
    law: BentLaw, draft: ModelPoint, target: ModelPoint
) -> tuple[np.ndarray, np.ndarray]:
    """α [1 + draws, n], likewise; losses are [1 + draws, n]."""
    axes: Any = ModelPoint(None, 0, None)  # type: ignore[arg-type]
    return _in_double_precision(law, (draft, target), (axes, axes))


def _in_double_precision(law: BentLaw, points: Any, axes: Any) -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        alone, bent = _both(law, points, axes)
        return np.array(alone), np.array(bent)


@functools.partial(jax.jit, static_argnames="axes")
def _both(law: BentLaw, points: Any, axes: Any) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(lambda law, points: (law.law(*points), law(*points)), (0, axes))(law, points)


def _optimum(
    loss_law: BentLaw,
    acceptance: BentLaw,
    rule: ShapeRule,
    target: Rung,
    budget: int,
    bounds: tuple[float, float],
    loss: float,
    confidence: float,
) -> PredictedOptimum:
    """N*, γ* and S* for a target in FLOPs , with intervals from joint draws of the laws.

    Args:
      loss_law: Loss law, arrays [1 + draws].
      acceptance: Acceptance law, arrays [1 + draws].
      rule: Shapes of the family.
      target: The target.
      budget: Training tokens of the draft.
      bounds: Smallest and largest N.
      loss: Measured loss of the target; NaN to take it from the loss law.
      confidence: Confidence of the intervals.
    """
    with jax.enable_x64(True):
        at = Setting(target.params, budget, target.tokens, rule, bounds)
        optima = np.asarray(
            _optima(
                loss_law,
                acceptance,
                at.in_double_precision(),
                loss,
            )
        )
    drawn = optima[:3, 1:]
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    if drawn.size == 0:  # no draw has a finite optimum, and so nothing is known of its interval
        drawn = np.full((3, 1), np.nan)
    names = ("draft_params", "lookahead", "speedup")
    intervals = {k: quantile_interval(v, confidence) for k, v in zip(names, drawn)}
    n, lookahead, best, low, high = map(float, optima[:, 0])
    return PredictedOptimum(n, lookahead, best, low, high, intervals)


@jax.jit
def _optima(loss: Any, acceptance: Any, at: Setting, measured_loss: Any) -> tuple[jax.Array, ...]:
    def one(loss: Any, acceptance: Any) -> tuple[jax.Array, ...]:
        best = flop_problem(loss, acceptance, at, measured_loss).optimum()
        return best.params, best.lookahead, best.speedup, *best.indifference_1pct

    return jax.vmap(one)(loss, acceptance)
