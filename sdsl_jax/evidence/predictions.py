"""What the laws of a study's seen models predict for the models that it holds out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.evidence.common import Design, Setting, flop_problem
from sdsl_jax.fitting import FittedLaws
from sdsl_jax.fitting.law_files import Fits, LawRecord
from sdsl_jax.models import count, member
from sdsl_jax.records import ModelRecord
from sdsl_jax.statistics import quantile_interval
from sdsl_jax.theory import (
    ACCEPTANCE_LAWS,
    AcceptanceLaw,
    LossLaw,
    ModelPoint,
    point_and_draws,
)


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

    The intervals of a single loss or α combine the uncertainty of the laws, from joint bootstrap
    draws, with the distance from the laws of sizes that they had not seen, each left out in turn.

    Args:
      config: The whole study, whose `holdout` says what is kept back.
      seen: Records of the models that the laws were fitted to.
      fits: Their fits.
    """
    laws, confidence = fits.laws(), config.fit.confidence
    random = np.random.default_rng(config.seed)
    rungs = held_out(config)
    # Of several seeds the smallest stands for the rung.
    known = {
        Rung(m.role, m.params_nonembedding, m.train_tokens): m
        for m in sorted(seen, key=lambda m: m.seed, reverse=True)
    }
    # A model scatters about the law by one amount, whether its loss is asked for or an α that
    # follows from it.
    drawn = {
        rung: np.asarray(laws.loss_draws(float(rung.params), float(rung.tokens)), float)
        * np.exp(
            _scatter(fits.loss_law)
            * random.standard_normal(len(jax.tree.leaves(laws.loss_draws)[0]))
        )
        for rung in rungs
    }
    drafts, targets = (
        [r for r in [*known, *rungs] if r.role == role] for role in ("draft", "target")
    )

    def point(rung: Rung) -> ModelPoint:
        """A model as an acceptance law sees it: with its measured loss, or else the predicted one."""
        size, tokens = float(rung.params), float(rung.tokens)
        loss = known[rung].loss_nats if rung in known else float(laws.loss(size, tokens))
        return ModelPoint(size, loss, tokens)

    def pair(fit: LawRecord, draft: Rung, target: Rung) -> PredictedPair:
        points = point(draft), point(target)
        of_draws = [p._replace(loss=drawn.get(r, p.loss)) for r, p in zip((draft, target), points)]
        alpha = np.asarray(laws.acceptance_draws[fit.law](*of_draws), float)
        noisy = alpha + _scatter(fit) * random.standard_normal(len(alpha))
        return PredictedPair(
            fit.law,
            draft.params,
            draft.tokens,
            target.params,
            target.tokens,
            float(laws.acceptance[fit.law](*points)),
            *quantile_interval(noisy, confidence),
        )

    target = max(targets, key=lambda r: (r.params, r.tokens))
    budget = max(r.tokens for r in drafts)
    return Predictions(
        losses=[
            PredictedLoss(
                rung.role,
                rung.params,
                rung.tokens,
                float(laws.loss(float(rung.params), float(rung.tokens))),
                *quantile_interval(losses, confidence),
            )
            for rung, losses in drawn.items()
        ],
        pairs=[
            pair(fit, draft, of)
            for fit in fits.acceptance_laws
            for draft in drafts
            for of in targets
            if draft not in known or of not in known
        ],
        best_law=next(iter(laws.acceptance)),
        optimum=_optimum(
            laws,
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
    )


def _scatter(fit: LawRecord) -> float:
    """How far a model of a size that the law has not seen lies from it: by sizes left out, or else by the residual."""
    return fit.left_out_rmse if math.isfinite(fit.left_out_rmse) else fit.rmse or 0.0


def _optimum(
    laws: FittedLaws,
    target: Rung,
    budget: int,
    bounds: tuple[float, float],
    loss: float,
    confidence: float,
) -> PredictedOptimum:
    """N*, γ* and S* for a target in FLOPs under the best law, with intervals from the joint draws.

    Args:
      laws: Fitted laws.
      target: The target.
      budget: Training tokens of the draft.
      bounds: Smallest and largest N.
      loss: Measured loss of the target; NaN to take it from the loss law.
      confidence: Confidence of the intervals.
    """
    name = next(iter(laws.acceptance))
    with jax.enable_x64(True):
        at = Setting(target.params, budget, target.tokens, laws.rule, bounds)
        optima = np.asarray(
            _optima(
                point_and_draws(laws.loss, laws.loss_draws),
                point_and_draws(laws.acceptance[name], laws.acceptance_draws[name]),
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
def _optima(
    loss: LossLaw, acceptance: AcceptanceLaw, at: Setting, measured_loss: Any
) -> tuple[jax.Array, ...]:
    def one(loss: LossLaw, acceptance: AcceptanceLaw) -> tuple[jax.Array, ...]:
        best = flop_problem(loss, acceptance, at, measured_loss).optimum()
        return best.params, best.lookahead, best.speedup, *best.indifference_1pct

    return jax.vmap(one)(loss, acceptance)
