"""The co-design stage: from fitted laws to N* and γ* for every target, acceptance law and cost model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.objective import DesignProblem
from sdsl_jax.codesign.optimise import maximise, spread_starts
from sdsl_jax.config import StudyConfig
from sdsl_jax.errors import require
from sdsl_jax.fitting import FittedLaws
from sdsl_jax.progress import Progress
from sdsl_jax.records import ModelRecord, SurvivalRecord
from sdsl_jax.theory import CostModel, FlopCost, MeasuredCost, optimal_lookahead

_CURVE_POINTS = 96
_MAP_POINTS = 48
_PATH_POINTS = 200


class Solution(NamedTuple):
    """What the stage writes: the entries of `codesign.json`, and the curves, maps and paths that figures draw."""

    entries: list[dict[str, Any]]
    landscapes: list[dict[str, Any]]


def solve_all(
    config: StudyConfig,
    laws: FittedLaws,
    models: list[ModelRecord],
    survival: list[SurvivalRecord],
    progress: Progress,
) -> Solution:
    """Solves every target × acceptance law × cost model, by gradient and in closed form, in float64."""
    drafts = [m for m in models if m.role == "draft"]
    targets = [m for m in models if m.role == "target"]
    require(bool(drafts) and bool(targets), "the records hold no draft or no target; co-design needs both.")
    draft_tokens = max(m.train_tokens for m in drafts)
    smallest = min(m.params_nonembedding for m in drafts)
    progress.start("codesign", len(targets) * len(laws.acceptance) * 2)
    entries, landscapes = [], []
    for target in targets:
        for acceptance_law in laws.acceptance:
            for cost_model, cost in cost_models(config, laws, target).items():
                problem = DesignProblem(
                    loss=laws.loss,
                    draft_tokens=float(draft_tokens),
                    target_loss=target.loss_nats,
                    acceptance_law=laws.acceptance[acceptance_law],
                    cost=cost,
                    # Down to a third of the smallest draft, so that an optimum at the edge of the ladder shows as such.
                    bounds=(smallest / 3, float(target.params_nonembedding)),
                )
                name = {"target_id": target.model_id, "acceptance_law": acceptance_law, "cost_model": cost_model}
                with jax.enable_x64(True):
                    problem = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem)
                    entry, landscape = _solve(config, problem, laws, acceptance_law)
                entry |= {"target_params": target.params_nonembedding, "draft_tokens": draft_tokens}
                entry["trained"] = _trained(drafts, target, survival, cost)
                entry["nearest_trained"] = _nearest(entry)
                entry["warnings"] = _warnings(entry, drafts)
                entries.append(name | entry)
                landscapes.append(name | landscape)
                progress.advance(1, f"{target.model_id}  {acceptance_law}  {cost_model}")
    progress.finish()
    return Solution(entries, landscapes)


def cost_models(config: StudyConfig, laws: FittedLaws, target: ModelRecord) -> dict[str, CostModel]:
    """The two cost models of a study for one target: the family's FLOPs, and this machine's step times.

    The verify pass of the second is the one measured at the median of the measured lookaheads.
    """
    models: dict[str, CostModel] = {"flops": FlopCost(laws.rule, float(target.params_nonembedding))}
    shape = next((m for m in laws.decode_seconds if m == target.model_id), None)
    if shape is not None and laws.verify_seconds.get(shape):
        widths = laws.verify_seconds[shape]
        middle = sorted(widths)[(len(widths) - 1) // 2]
        models["measured"] = MeasuredCost(laws.rule, laws.step_time, laws.decode_seconds[shape], widths[middle])
    return models


@jax.jit
def _closed_form(problem: DesignProblem):
    return problem.closed_form()


@jax.jit
def _at(problem: DesignProblem, params, lookahead):
    return {
        "acceptance": problem.acceptance(params),
        "cost": problem.cost.draft_step(params),
        "verify_cost": jnp.asarray(problem.cost.verify_pass),
        "speedup": problem.speedup(params, lookahead),
    }


@jax.jit
def _curve(problem: DesignProblem, params):
    alpha, step = jax.vmap(problem.acceptance)(params), jax.vmap(problem.cost.draft_step)(params)
    best = optimal_lookahead(alpha, step, problem.cost.verify_pass)
    return {"acceptance": alpha, "cost": step, "lookahead": best.lookahead, "speedup": best.speedup}


@jax.jit
def _map(problem: DesignProblem, params, lookaheads):
    return jax.vmap(lambda n: jax.vmap(lambda g: problem.speedup(n, g))(lookaheads))(params)


def _solve(config: StudyConfig, problem: DesignProblem, laws: FittedLaws, law: str) -> tuple[dict[str, Any], dict[str, Any]]:
    c = config.codesign
    closed = _closed_form(problem)
    found = maximise(
        problem,
        c.max_lookahead,
        jnp.asarray(spread_starts(c.starts)),
        c.learning_rate,
        optimizer=c.optimizer,
        steps=c.steps,
    )
    speculate = bool(found.speedup > 1) and float(found.lookahead) > 0
    n, gamma = float(found.params), float(found.lookahead)
    whole = [g for g in (math.floor(gamma), math.ceil(gamma)) if g >= 1]
    whole_speedup = {g: float(_at(problem, n, float(g))["speedup"]) for g in whole}
    integer = max(whole_speedup, key=lambda g: whole_speedup[g]) if whole else 0
    if integer and whole_speedup[integer] <= 1:
        integer = 0
    at = {k: float(v) for k, v in _at(problem, n, gamma).items()}
    relative = {
        "draft_params": abs(n / float(closed.params) - 1) if speculate and math.isfinite(float(closed.params)) else None,
        "lookahead": abs(gamma / float(closed.lookahead) - 1) if speculate and float(closed.lookahead) > 0 else None,
    }
    entry = {
        "draft_params": n if speculate else None,
        "lookahead": gamma if speculate else 0.0,
        "lookahead_integer": integer,
        "speculate": integer > 0,
        "acceptance": at["acceptance"] if speculate else None,
        "cost": at["cost"] if speculate else None,
        "verify_cost": at["verify_cost"],
        "speedup": at["speedup"] if speculate else 1.0,
        "speedup_integer": whole_speedup.get(integer, 1.0),
        "interior": bool(closed.interior),
        "indifference_1pct": [float(x) for x in closed.indifference],
        "closed_form": {
            "draft_params": float(closed.params),
            "lookahead": float(closed.lookahead),
            "speedup": float(closed.speedup),
        },
        "relative_difference": relative,
        "gradient": {
            "optimizer": c.optimizer,
            "learning_rate": c.learning_rate,
            "steps": c.steps,
            "starts": c.starts,
            "starts_agreeing": float(found.starts_agreeing),
            "stationarity": float(found.stationarity),
            "best_speedup_found": float(found.speedup),
        },
        **_bootstrap(config, problem, laws, law),
    }
    low, high = (float(b) for b in problem.bounds)
    params = np.geomspace(low, high, _CURVE_POINTS)
    coarse = np.geomspace(low, high, _MAP_POINTS)
    widest = min(c.max_lookahead, max(8.0, 2.5 * gamma))
    lookaheads = np.expm1(np.linspace(0, np.log1p(widest), _MAP_POINTS))
    # The path slows down as it converges: points evenly spread in the logarithm of the step show all of it.
    kept = np.unique(np.geomspace(1, c.steps, _PATH_POINTS).astype(int)) - 1
    landscape = {
        "curve": {"draft_params": _short(params)} | {k: _short(v) for k, v in _curve(problem, params).items()},
        "map": {
            "draft_params": _short(coarse),
            "lookahead": _short(lookaheads),
            "speedup": [_short(row) for row in np.asarray(_map(problem, coarse, lookaheads))],
        },
        "path": {k: _short(np.asarray(found.path)[kept, i]) for i, k in enumerate(("draft_params", "lookahead", "speedup"))},
    }
    return entry, landscape


def _short(values: Any) -> list[float]:
    return [float(f"{x:.6g}") for x in np.asarray(values)]


@jax.jit
def _closed_forms(problem: DesignProblem, loss, acceptance):
    return jax.vmap(lambda l, a: problem._replace(loss=l, acceptance_law=a).closed_form())(loss, acceptance)


def _bootstrap(config: StudyConfig, problem: DesignProblem, laws: FittedLaws, law: str) -> dict[str, Any]:
    """Intervals of N*, γ* and S* from the joint bootstrap draws of the laws; draws in which speculation does not pay count."""
    to_arrays = lambda draws: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), draws)  # noqa: E731
    optima = _closed_forms(problem, to_arrays(laws.loss_draws), to_arrays(laws.acceptance_draws[law]))
    tail = (1 - config.fit.confidence) / 2
    pays = np.asarray(optima.speedup) > 1
    enough = pays.mean() > 0.5
    intervals = {
        "draft_params": np.asarray(optima.params)[pays],
        "lookahead": np.asarray(optima.lookahead),
        "speedup": np.asarray(optima.speedup),
    }
    return {
        f"interval_{round(100 * config.fit.confidence)}": {
            k: [float(x) for x in np.quantile(v, [tail, 1 - tail])] if enough else None for k, v in intervals.items()
        },
        "interval_basis": "joint bootstrap of loss law and acceptance law over models; N* among draws that speculate",
        "share_of_draws_that_speculate": float(pays.mean()),
    }


def _trained(
    drafts: list[ModelRecord], target: ModelRecord, survival: list[SurvivalRecord], cost: CostModel
) -> list[dict[str, Any]]:
    """Measured tokens per round of every trained draft and lookahead, put into a cost model: S = τ / (γ·d + v)."""
    sizes = {m.model_id: m for m in drafts}
    found = []
    for row in survival:
        if row.target_id == target.model_id and row.position == 1 and row.draft_id in sizes:
            draft = sizes[row.draft_id]
            of_round = row.lookahead * float(cost.draft_step(float(draft.params_nonembedding))) + float(cost.verify_pass)
            found.append(
                {
                    "draft_id": row.draft_id,
                    "draft_params": draft.params_nonembedding,
                    "train_tokens": draft.train_tokens,
                    "lookahead": row.lookahead,
                    "tokens_per_round": row.tokens_per_round,
                    "speedup": row.tokens_per_round / of_round,
                    "speedup_low": row.tokens_per_round_low / of_round,
                    "speedup_high": row.tokens_per_round_high / of_round,
                }
            )
    return found


def _nearest(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Of the trained drafts the one nearest to N* in log size, most tokens first, at the lookahead nearest to γ*."""
    if entry["draft_params"] is None or not entry["trained"]:
        return None

    def distance(row: dict[str, Any]) -> tuple[float, ...]:
        size = abs(math.log(row["draft_params"] / entry["draft_params"]))
        return size, -row["train_tokens"], abs(math.log1p(row["lookahead"]) - math.log1p(entry["lookahead"]))

    return min(entry["trained"], key=distance)


def _warnings(entry: dict[str, Any], drafts: list[ModelRecord]) -> list[str]:
    warnings = []
    sizes = [m.params_nonembedding for m in drafts]
    if not entry["speculate"]:
        warnings.append("speculation does not pay under this cost model: no draft size and whole lookahead beat plain decoding")
    elif not min(sizes) <= entry["draft_params"] <= max(sizes):
        warnings.append(f"N* lies outside the trained drafts ({min(sizes):,} to {max(sizes):,} parameters)")
    if entry["acceptance"] is not None and not 0 < entry["acceptance"] < 1:
        warnings.append(f"the acceptance law leaves (0, 1) at N*: {entry['acceptance']:.3f}")
    if entry["speculate"] and not entry["interior"]:
        warnings.append("S still rises at the edge of the sizes considered")
    return warnings
