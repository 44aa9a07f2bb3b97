"""Predictions of models that do not exist yet: losses, acceptance and the best draft, from laws fitted to smaller models."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.config import StudyConfig
from sdsl_jax.fitting import FittedLaws, read_laws
from sdsl_jax.models import count, member
from sdsl_jax.records import ModelRecord
from sdsl_jax.theory import (
    AcceptanceLaw,
    DraftProblem,
    FlopCost,
    LossLaw,
    ModelPoint,
    ShapeRule,
)


class Rung(NamedTuple):
    """A model to be: what is known of it before it is trained."""

    role: str
    params: int
    tokens: int


def forecast(config: StudyConfig, seen: list[ModelRecord], fits: dict[str, Any]) -> dict[str, Any]:
    """Publishes what laws say about all that the study keeps back; looks at no record of it.

    The intervals of a single loss or α hold the uncertainty of the laws, from joint bootstrap
    draws, and how far sizes that the laws had not seen lay from them, each left out in turn.

    Args:
      config: the whole study, whose `holdout` says what is kept back.
      seen: records of the models that the laws were fitted to.
      fits: contents of their `fits.json`.
    """
    laws = read_laws(fits)
    random = np.random.default_rng(config.seed)
    rungs = held_out(config)
    # Of several seeds the smallest stands for the rung.
    known = {
        Rung(m.role, m.params_nonembedding, m.train_tokens): m
        for m in sorted(seen, key=lambda m: m.seed, reverse=True)
    }
    # A model scatters about the law by one amount, whether its loss is asked for or an α that
    # follows from it.
    losses = {
        rung: np.asarray(laws.loss_draws(float(rung.params), float(rung.tokens)), float)
        * np.exp(
            _scatter(fits["loss_law"])
            * random.standard_normal(len(jax.tree.leaves(laws.loss_draws)[0]))
        )
        for rung in rungs
    }
    everyone = [*known, *rungs]
    drafts, targets = ([r for r in everyone if r.role == role] for role in ("draft", "target"))
    target = max(targets, key=lambda r: (r.params, r.tokens))
    budget = max(r.tokens for r in drafts)
    return {
        "losses": [
            rung._asdict()
            | {"loss": float(laws.loss(float(rung.params), float(rung.tokens)))}
            | _interval(drawn, config)
            for rung, drawn in losses.items()
        ],
        "pairs": [
            _pair(config, laws, fit, (a, b), known, losses, random)
            for fit in fits["acceptance_laws"]
            for a in drafts
            for b in targets
            if a not in known or b not in known
        ],
        "best_law": next(iter(laws.acceptance)),
        "optimum": _optimum(config, laws, target, budget, known, min(r.params for r in drafts)),
        "largest_target": target._asdict(),
        "draft_tokens": budget,
        "largest_seen": {
            role: max(m.params_nonembedding for m in seen if m.role == role)
            for role in ("draft", "target")
        },
        "loss_law": {
            "law": fits["loss_law"]["law"],
            "coefficients": fits["loss_law"]["coefficients"],
        },
        "acceptance_laws": {f["law"]: f["coefficients"] for f in fits["acceptance_laws"]},
        "seen_models": [m.model_id for m in seen],
        "confidence": config.fit.confidence,
    }


def _scatter(fit: dict[str, Any]) -> float:
    """How far a model of a size that the law has not seen lies from it: by sizes left out, or else by the residual."""
    return fit["rmse"] if fit["left_out_rmse"] is None else fit["left_out_rmse"]


def _interval(draws: np.ndarray, config: StudyConfig) -> dict[str, float]:
    tail = (1 - config.fit.confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return {"low": float(low), "high": float(high)}


def _pair(
    config: StudyConfig,
    laws: FittedLaws,
    fit: dict[str, Any],
    pair: tuple[Rung, Rung],
    known: dict[Rung, ModelRecord],
    losses: dict[Rung, np.ndarray],
    random: np.random.Generator,
) -> dict[str, Any]:
    """α of one pair by one law, from measured losses where there are any, and predicted ones where there are not."""
    points = [_point(r, known, laws.loss) for r in pair]
    drawn = [p._replace(loss=losses.get(r, p.loss)) for r, p in zip(pair, points)]
    alpha = np.asarray(laws.acceptance_draws[fit["law"]](*drawn), float)
    noisy = alpha + _scatter(fit) * random.standard_normal(len(alpha))
    names = {
        f"{role}_{name}": value
        for role, r in zip(("draft", "target"), pair)
        for name, value in (("params", r.params), ("tokens", r.tokens))
    }
    return {
        "law": fit["law"],
        **names,
        "alpha": float(laws.acceptance[fit["law"]](*points)),
    } | _interval(noisy, config)


def held_out(config: StudyConfig) -> list[Rung]:
    """The models that a study keeps back: size as its family makes it, and token budget."""
    found = []
    for role in ("draft", "target"):
        for size in getattr(config.holdout, f"{role}_params"):
            made = count(member(config.family, size, config.data.vocab_size), 0).nonembedding
            found += [
                Rung(role, made, tokens) for tokens in getattr(config.ladder, f"{role}_tokens")
            ]
    return found


def _point(rung: Rung, known: dict[Rung, ModelRecord], loss: LossLaw) -> ModelPoint:
    """A model as an acceptance law sees it: with the loss that was measured, or else the one that is predicted."""
    value = (
        known[rung].loss_nats
        if rung in known
        else float(loss(float(rung.params), float(rung.tokens)))
    )
    return ModelPoint(float(rung.params), value, float(rung.tokens))


def _optimum(
    config: StudyConfig,
    laws: FittedLaws,
    target: Rung,
    budget: int,
    known: dict[Rung, ModelRecord],
    smallest: int,
) -> dict[str, Any]:
    """N*, γ* and S* for a target in FLOPs under the best law, with the intervals of the joint draws."""
    tail = (1 - config.fit.confidence) / 2
    name = next(iter(laws.acceptance))
    with jax.enable_x64(True):

        def with_draws(law: Any, draws: Any) -> Any:
            return jax.tree.map(
                lambda x, many: jnp.concatenate([jnp.asarray([x]), jnp.asarray(many)]), law, draws
            )

        found = np.asarray(
            _optima(
                with_draws(laws.loss, laws.loss_draws),
                with_draws(laws.acceptance[name], laws.acceptance_draws[name]),
                laws.rule,
                target.params,
                target.tokens,
                float(budget),
                (smallest / 3, float(target.params)),
                known[target].loss_nats if target in known else jnp.nan,
            )
        )
    names = ("draft_params", "lookahead", "speedup", "low_1pct", "high_1pct")
    drawn = found[:3, 1:]
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    if drawn.size == 0:  # no draw has a finite optimum, and so nothing is known of its interval
        drawn = np.full((3, 1), np.nan)
    intervals = {
        k: [float(x) for x in np.quantile(v, [tail, 1 - tail])] for k, v in zip(names, drawn)
    }
    return {k: float(v) for k, v in zip(names, found[:, 0])} | {"interval": intervals}


@jax.jit
def _optima(
    loss: LossLaw,
    acceptance: AcceptanceLaw,
    rule: ShapeRule,
    size: Any,
    tokens: Any,
    budget: Any,
    bounds: Any,
    seen: Any,
) -> tuple[jax.Array, ...]:
    def one(loss: LossLaw, acceptance: AcceptanceLaw) -> tuple[jax.Array, ...]:
        m = jnp.asarray(size, float)
        value = jnp.where(jnp.isnan(seen), loss(m, tokens), seen)
        target = ModelPoint(m, value, jnp.asarray(tokens, float))
        best = DraftProblem(loss, budget, target, acceptance, FlopCost(rule, m), bounds).optimum()
        return best.params, best.lookahead, best.speedup, *best.indifference_1pct

    return jax.vmap(one)(loss, acceptance)
