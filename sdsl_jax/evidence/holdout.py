"""Published predictions against what was measured afterwards, and what acting on them would have cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from sdsl_jax.evidence.inputs import Inputs
from sdsl_jax.evidence.speedups import Measured, measured_speedups
from sdsl_jax.fitting.loss import fit_loss_law, loss_table
from sdsl_jax.records import ModelRecord, longest_trained
from sdsl_jax.theory import ACCEPTANCE_LAWS, AcceptanceLaw, ModelPoint

# What a study sets out to reach: mean relative error of the losses of the largest size, of α in
# absolute terms, and regret of S.
GOALS = {"largest_loss": 0.01, "alpha_mae": 0.02, "regret": 0.03}
# Budgets are rounded to whole steps.
_SAME_TOKENS = 0.05


def holdout(inputs: Inputs) -> dict[str, Any] | None:
    """Every published prediction beside its measurement; None where nothing was held out."""
    published = inputs.predictions
    if published is None:
        return None
    losses = _losses(inputs, published)
    pairs = _pairs(inputs, published)
    choice = _choice(inputs, published)
    if not losses or not pairs or choice is None:
        return None
    best = published["best_law"]
    size = max(row["params"] for row in losses)
    largest = [row for row in losses if row["params"] == size]
    longest = max(largest, key=lambda row: row["tokens"])
    by_depth = _loss_by_depth(inputs)
    by_law = {
        name: _alpha_errors([p for p in pairs if p["law"] == name]) for name in ACCEPTANCE_LAWS
    }
    reached = {
        "largest_loss": float(np.mean([abs(row["relative_error"]) for row in largest])),
        "alpha_mae": by_law[best]["mae"],
        "regret": choice["strategies"]["predicted N* and γ*"]["regret"],
    }
    return {
        "losses": losses,
        "pairs": [p for p in pairs if p["law"] == best],
        "alpha_by_law": by_law,
        "best_law": best,
        "choice": choice,
        "largest_at_longest_budget": longest["relative_error"],
        "loss_by_depth": by_depth,
        "goals": {
            k: {"goal": GOALS[k], "reached": reached[k], "met": reached[k] <= GOALS[k]}
            for k in GOALS
        },
        "loss_coverage": float(np.mean([row["inside"] for row in losses])),
        "alpha_coverage": float(np.mean([p["inside"] for p in pairs if p["law"] == best])),
        "confidence": published["confidence"],
        "why": _why(by_law[best], largest, by_depth),
        "published": published.get("published"),
        "already_measured": published.get("already_measured", []),
        "basis": "extrapolation: size over the largest size that the laws were fitted to; S: exact expected tokens per round "
        "over the FLOPs of a round; the optimum is taken to the trained draft that lies nearest, and so is the 200× rule",
    }


def _why(
    alpha: dict[str, Any], largest: list[dict[str, Any]], depths: list[dict[str, Any]]
) -> list[str]:
    """What the errors come from, in sentences: of α by the published law, of the largest size, and of loss laws by depth."""
    error = float(np.mean([row["relative_error"] for row in largest]))
    said = [
        f"the loss law puts the largest size {abs(error):.1%} too {'low' if error < 0 else 'high'} in the mean of its budgets"
    ]
    if len(depths) > 1:
        errors = [float(np.mean([e["error"] for e in row["errors"]])) for row in depths]
        best = int(np.argmin(np.abs(errors)))
        if best > 0 and abs(errors[best]) < abs(errors[0]) / 2:
            said.append(
                f"fitted afterwards to models of at least {depths[best]['least_layers']} layers alone it errs by "
                f"{errors[best]:+.1%} instead of {errors[0]:+.1%}: one law of size does not hold across those depths"
            )
    share = alpha["mae_true_losses"] / alpha["mae"] if alpha["mae"] > 0 else 1.0
    said.append(
        f"given the true losses the acceptance law still errs by {alpha['mae_true_losses']:.4f} of {alpha['mae']:.4f}: "
        + (
            "its own form is most of the error"
            if share > 0.5
            else "predicted losses are most of the error"
        )
    )
    return said


def _find(models: list[ModelRecord], role: str, params: int, tokens: int) -> ModelRecord | None:
    """The model of a rung, the smallest seed of several."""
    found = [
        m
        for m in models
        if (m.role, m.params_nonembedding) == (role, params)
        and abs(m.train_tokens / tokens - 1) < _SAME_TOKENS
    ]
    return min(found, key=lambda m: m.seed, default=None)


def _losses(inputs: Inputs, published: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in published["losses"]:
        model = _find(inputs.models, row["role"], row["params"], row["tokens"])
        if model is not None:
            largest = max(published["largest_seen"].values())
            rows.append(
                row
                | {
                    "model_id": model.model_id,
                    "measured": model.loss_nats,
                    "relative_error": row["loss"] / model.loss_nats - 1,
                    "inside": row["low"] <= model.loss_nats <= row["high"],
                    "extrapolation": row["params"] / largest,
                }
            )
    return rows


def _loss_by_depth(inputs: Inputs) -> list[dict[str, Any]]:
    """After the fact: errors on the largest size of loss laws fitted to all smaller models of at
    least so many layers.

    L(N, D) takes size for the only thing that a shape does. Where models of one layer and of
    several do not lie on one line, a law fitted to both has the wrong slope, and shows it here.
    """
    models = [m for m in inputs.models if not m.epochs > inputs.config.fit.max_epochs]
    largest = max(m.params_nonembedding for m in models)
    out = loss_table([m for m in models if m.params_nonembedding == largest])
    config = dataclasses.replace(inputs.config.fit, bootstrap=20)
    rows = []
    for layers in sorted({m.layers for m in models}):
        rest = [m for m in models if m.layers >= layers and m.params_nonembedding < largest]
        table = loss_table(rest)
        if len(rest) < 8 or len(set(table.params)) < 4 or len(set(table.tokens)) < 2:
            continue
        fit = fit_loss_law(
            table, config, np.ones((1, len(rest))), inputs.config.seed, config.loss_law
        )
        errors = np.asarray(fit.law(out.params, out.tokens), float) / out.loss - 1
        rows.append(
            {
                "least_layers": layers,
                "sizes": len(set(table.params)),
                "models": len(rest),
                "rmse": fit.rmse,
                "errors": [
                    {"tokens": int(t), "error": float(e)} for t, e in zip(out.tokens, errors)
                ],
            }
        )
    return rows


def _pairs(inputs: Inputs, published: dict[str, Any]) -> list[dict[str, Any]]:
    """Predictions of α beside measurements; `alpha_true_losses` is the same law given the losses that were measured later."""
    measured = {
        (r.draft_id, r.target_id): r
        for r in inputs.acceptance
        if r.estimator == inputs.config.fit.estimator
    }
    laws = published_laws(published)
    rows = []
    for row in published["pairs"]:
        models = [
            _find(inputs.models, role, row[f"{role}_params"], row[f"{role}_tokens"])
            for role in ("draft", "target")
        ]
        if models[0] is None or models[1] is None:
            continue
        record = measured.get((models[0].model_id, models[1].model_id))
        if record is None:
            continue
        points = [
            ModelPoint(float(m.params_nonembedding), m.loss_nats, float(m.train_tokens))
            for m in models
            if m
        ]
        rows.append(
            row
            | {
                "draft_id": models[0].model_id,
                "target_id": models[1].model_id,
                "measured": record.alpha,
                "measured_low": record.alpha_low,
                "measured_high": record.alpha_high,
                "error": row["alpha"] - record.alpha,
                "inside": row["low"] <= record.alpha <= row["high"],
                "alpha_true_losses": float(laws[row["law"]](*points)),
                "extrapolation": max(
                    row[f"{r}_params"] / published["largest_seen"][r] for r in ("draft", "target")
                ),
                "draft_held_out": models[0].model_id not in published["seen_models"],
                "target_held_out": models[1].model_id not in published["seen_models"],
            }
        )
    return rows


def published_laws(published: dict[str, Any]) -> dict[str, AcceptanceLaw]:
    """The acceptance laws that the predictions were made with."""
    return {
        name: ACCEPTANCE_LAWS[name](**values)
        for name, values in published["acceptance_laws"].items()
    }


def _alpha_errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = np.asarray([row["error"] for row in rows])
    true_losses = np.asarray([row["alpha_true_losses"] - row["measured"] for row in rows])
    kinds = {
        "held-out draft, seen target": [
            r["draft_held_out"] and not r["target_held_out"] for r in rows
        ],
        "seen draft, held-out target": [
            r["target_held_out"] and not r["draft_held_out"] for r in rows
        ],
        "both held out": [r["draft_held_out"] and r["target_held_out"] for r in rows],
    }
    return {
        "mae": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "mae_true_losses": float(np.abs(true_losses).mean()),
        "n": len(rows),
        "mae_by_kind": {
            k: float(np.abs(errors[np.asarray(v)]).mean()) for k, v in kinds.items() if any(v)
        },
    }


def _choice(inputs: Inputs, published: dict[str, Any]) -> dict[str, Any] | None:
    """What each way of choosing would have given for the largest target, in measured S (FLOPs)."""
    rung = published["largest_target"]
    target = _find(inputs.models, "target", rung["params"], rung["tokens"])
    if target is None:
        return None
    found = measured_speedups(longest_trained(inputs.models, "draft"), inputs.expected, target)
    if found is None:
        return None
    optimum = published["optimum"]
    alpha = np.asarray([_predicted_alpha(published, m, target) for m in found.drafts])
    # A law whose acceptance reaches 1 asks for drafts without end: its lookahead is infinite, and
    # so null in the file.
    asked = optimum["lookahead"]
    endless = asked is None or not math.isfinite(asked)
    lookahead = int(found.lookaheads[-1]) if endless else max(1, round(asked))
    nearest = _nearest(found, optimum["draft_params"])
    ratio = _nearest(found, target.params_nonembedding / 200)
    ladder_draft, ladder_lookahead = found.choice(alpha)
    best = np.unravel_index(np.argmax(found.speedup), found.speedup.shape)

    def own_lookahead(draft: int) -> int:
        """The lookahead that the predicted α of this draft asks for."""
        alone = found._replace(
            drafts=[found.drafts[draft]], cost=found.cost[[draft]], speedup=found.speedup[[draft]]
        )
        return max(1, alone.choice(alpha[[draft]])[1])

    everyone = range(len(found.drafts))
    strategies = {
        "predicted N* and γ*": _strategy(found, nearest, lookahead),
        "best of the ladder by predicted α": _strategy(found, ladder_draft, ladder_lookahead),
        "200× rule, its own predicted γ": _strategy(found, ratio, own_lookahead(ratio)),
        "predicted N*, γ = 4": _strategy(found, nearest, 4),
        "200× rule, γ = 4": _strategy(found, ratio, 4),
        "random draft, its own predicted γ": _mean(
            found, [(i, own_lookahead(i)) for i in everyone]
        ),
        "random draft, γ = 4": _mean(found, [(i, 4) for i in everyone]),
    }
    return {
        "target": target.model_id,
        "predicted": optimum,
        "best_measured": {
            "draft_id": found.drafts[best[0]].model_id,
            "lookahead": int(found.lookaheads[best[1]]),
            "speedup": found.best,
        },
        "predicted_speedup_error": None if endless else optimum["speedup"] / found.best - 1,
        "strategies": strategies,
        "within_3pct": [
            {
                "draft_id": m.model_id,
                "lookaheads": [int(g) for g in found.lookaheads[row >= 0.97 * found.best]],
            }
            for m, row in zip(found.drafts, found.speedup)
            if (row >= 0.97 * found.best).any()
        ],
    }


def _predicted_alpha(published: dict[str, Any], draft: ModelRecord, target: ModelRecord) -> float:
    """α by the published law, with the published loss of whatever was held out."""
    points = []
    for model in (draft, target):
        held = [
            row["loss"]
            for row in published["losses"]
            if (row["role"], row["params"]) == (model.role, model.params_nonembedding)
            and abs(row["tokens"] / model.train_tokens - 1) < _SAME_TOKENS
        ]
        loss = held[0] if held else model.loss_nats
        points.append(ModelPoint(float(model.params_nonembedding), loss, float(model.train_tokens)))
    return float(published_laws(published)[published["best_law"]](*points))


def _nearest(found: Measured, params: float) -> int:
    return int(np.argmin([abs(math.log(m.params_nonembedding / params)) for m in found.drafts]))


def _strategy(found: Measured, draft: int, lookahead: int) -> dict[str, Any]:
    return {
        "draft_id": found.drafts[draft].model_id,
        "lookahead": lookahead,
        "speedup": found.at(draft, lookahead),
        "regret": found.regret(draft, lookahead),
    }


def _mean(found: Measured, choices: list[tuple[int, int]]) -> dict[str, Any]:
    """The mean over choices that are equally likely."""
    return {
        "draft_id": None,
        "lookahead": None,
        "speedup": float(np.mean([found.at(*choice) for choice in choices])),
        "regret": float(np.mean([found.regret(*choice) for choice in choices])),
    }
