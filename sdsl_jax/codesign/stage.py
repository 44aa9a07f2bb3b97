"""The co-design stage: from fitted laws to N* and γ* for every target, acceptance law and cost model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.costs import cost_models, timed_like
from sdsl_jax.codesign.optimise import maximise, spread_starts
from sdsl_jax.config import StudyConfig
from sdsl_jax.errors import require
from sdsl_jax.fitting import FittedLaws
from sdsl_jax.progress import Progress
from sdsl_jax.records import ModelRecord, SurvivalRecord, longest_trained
from sdsl_jax.theory import (
    AcceptanceLaw,
    CostModel,
    DraftProblem,
    HardwareCost,
    LossLaw,
    ModelPoint,
)

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
    """Solves every target × cost model under the best acceptance law and the paper's, by gradient and reference, in float64."""
    drafts = [m for m in models if m.role == "draft"]
    targets = longest_trained(models, "target")
    require(
        bool(drafts) and bool(targets),
        "the records hold no draft or no target; co-design needs both.",
    )
    draft_tokens = max(m.train_tokens for m in drafts)
    smallest = min(m.params_nonembedding for m in drafts)
    chosen = _chosen_laws(list(laws.acceptance))
    progress.start("codesign", len(targets) * len(chosen) * 2)
    entries, landscapes = [], []
    for target in targets:
        for acceptance_law in chosen:
            for cost_model, cost in cost_models(laws, target).items():
                problem = DraftProblem(
                    loss_law=laws.loss,
                    draft_tokens=float(draft_tokens),
                    target=ModelPoint(float(target.params_nonembedding), target.loss_nats),
                    acceptance_law=laws.acceptance[acceptance_law],
                    cost=cost,
                    # Down to a third of the smallest draft, so that an optimum at the edge of the
                    # ladder shows as such.
                    bounds=(smallest / 3, float(target.params_nonembedding)),
                )
                name = {
                    "target_id": target.model_id,
                    "acceptance_law": acceptance_law,
                    "cost_model": cost_model,
                }
                with jax.enable_x64(True):
                    problem = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem)
                    entry, landscape = _solve(config, problem, laws, acceptance_law)
                entry |= {"target_params": target.params_nonembedding, "draft_tokens": draft_tokens}
                entry["trained"] = _trained(drafts, targets, target, survival, cost, laws)
                entry["nearest_trained"] = _nearest(entry)
                entry["warnings"] = _warnings(entry, drafts)
                entries.append(name | entry)
                landscapes.append(name | landscape)
                progress.advance(1, f"{target.model_id}  {acceptance_law}  {cost_model}")
    progress.finish()
    return Solution(entries, landscapes)


def _chosen_laws(ranked: list[str]) -> list[str]:
    """The law that predicts left-out drafts best, and the paper's plane, or the next best where the plane is the best."""
    return [ranked[0], next(name for name in ("affine_plane", *ranked[1:]) if name != ranked[0])]


class _Reference(NamedTuple):
    """What the stage uses of a `DraftOptimum`: the compiler drops the rest."""

    params: jax.Array
    lookahead: jax.Array
    acceptance: jax.Array
    speedup: jax.Array
    indifference_1pct: tuple[jax.Array, jax.Array]
    interior: jax.Array


@jax.jit
def _references(problem: DraftProblem, loss: LossLaw, acceptance: AcceptanceLaw) -> _Reference:
    """`DraftProblem.optimum` for many coefficients of the two laws at once."""

    def one(loss: LossLaw, acceptance: AcceptanceLaw) -> _Reference:
        best = problem._replace(loss_law=loss, acceptance_law=acceptance).optimum()
        return _Reference(*(getattr(best, name) for name in _Reference._fields))

    return jax.vmap(one)(loss, acceptance)


class _Evaluation(NamedTuple):
    """The objective at the optimum, at its whole-numbered neighbours, along N and over a map."""

    at: dict[str, jax.Array]
    whole: jax.Array
    curve: dict[str, jax.Array]
    map: jax.Array


@jax.jit
def _evaluate(
    problem: DraftProblem, params, lookahead, whole, sizes, map_sizes, map_lookaheads
) -> _Evaluation:
    alpha, step = jax.vmap(problem.acceptance)(sizes), jax.vmap(problem.cost.draft_step)(sizes)
    speculating = jax.vmap(problem.best_lookahead)(sizes)
    cost = problem.cost.draft_step(params)
    return _Evaluation(
        at={
            "acceptance": problem.acceptance(params),
            "cost": cost,
            # All of a round that is not γ draft steps; on a device it depends on γ.
            "verify_cost": problem.cost.round_cost(params, lookahead) - lookahead * cost,
            "speedup": problem.speedup(params, lookahead),
        },
        whole=jax.vmap(lambda g: problem.speedup(params, g))(whole),
        curve={
            "acceptance": alpha,
            "cost": step,
            "lookahead": speculating,
            # A hole where the law reaches 1: no lookahead is the best there.
            "speedup": jnp.where(alpha < 1, jax.vmap(problem.speedup)(sizes, speculating), jnp.nan),
        },
        map=jax.vmap(lambda n: jax.vmap(lambda g: problem.speedup(n, g))(map_lookaheads))(
            map_sizes
        ),
    )


def _solve(
    config: StudyConfig, problem: DraftProblem, laws: FittedLaws, law: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entry and landscape of one problem, in float64."""
    c = config.codesign
    # The fitted coefficients come first, their bootstrap draws after them.
    stacked = [
        jax.tree.map(
            lambda point, draw: jnp.concatenate([jnp.reshape(point, 1), draw]).astype(jnp.float64),
            point,
            draws,
        )
        for point, draws in (
            (laws.loss, laws.loss_draws),
            (laws.acceptance[law], laws.acceptance_draws[law]),
        )
    ]
    optima = jax.tree.map(np.asarray, _references(problem, *stacked))
    reference: _Reference = jax.tree.map(lambda x: x[0], optima)
    found = maximise(
        problem,
        c.max_lookahead,
        jnp.asarray(spread_starts(c.starts)),
        c.learning_rate,
        optimizer=c.optimizer,
        steps=c.steps,
    )
    n, gamma = float(found.params), float(found.lookahead)
    low, high = (float(b) for b in problem.bounds)
    sizes, map_sizes = np.geomspace(low, high, _CURVE_POINTS), np.geomspace(low, high, _MAP_POINTS)
    fewest, most = problem.cost.lookahead_bounds
    widest = min(c.max_lookahead, max(8.0, 2.5 * gamma), most)
    lookaheads = np.expm1(np.linspace(np.log1p(fewest), np.log1p(widest), _MAP_POINTS))
    whole = np.maximum(1.0, [math.floor(gamma), math.ceil(gamma)])
    values = jax.tree.map(
        np.asarray, _evaluate(problem, n, gamma, whole, sizes, map_sizes, lookaheads)
    )
    # An unbounded law may reach α = 1: no lookahead is then too long, and there is no optimum to
    # report.
    certain = bool(reference.acceptance >= 1) or bool(values.at["acceptance"] >= 1)
    pays = bool(found.speedup > 1) and gamma > 0 and not certain
    integer = int(whole[np.argmax(values.whole)]) if values.whole.max() > 1 and not certain else 0
    reference_pays = bool(reference.speedup > 1) and not certain
    # The reference knows nothing of the largest lookahead: beyond it the two solve different
    # problems, and a warning says so.
    compare = pays and 0 < float(reference.lookahead) <= c.max_lookahead
    entry = {
        "draft_params": n if pays else None,
        "lookahead": gamma if pays else None if certain else 0.0,
        "lookahead_integer": integer,
        "speculate": pays and integer > 0,
        "acceptance": float(values.at["acceptance"]) if pays else None,
        "cost": float(values.at["cost"]) if pays else None,
        "verify_cost": float(values.at["verify_cost"]),
        "speedup": float(values.at["speedup"]) if pays else None if certain else 1.0,
        "speedup_integer": float(values.whole.max()) if integer else None if certain else 1.0,
        "interior": reference_pays and bool(reference.interior),
        "indifference_1pct": [
            float(x) if reference_pays else None for x in reference.indifference_1pct
        ],
        "reference": {
            "method": "bracketed roots"
            if isinstance(problem.cost, HardwareCost)
            else "closed form",
            "draft_params": float(reference.params) if reference_pays else None,
            "lookahead": None if certain else float(reference.lookahead),
            "speedup": None if certain else float(reference.speedup),
        },
        "relative_difference": {
            "draft_params": abs(n / float(reference.params) - 1) if compare else None,
            "lookahead": abs(gamma / float(reference.lookahead) - 1) if compare else None,
        },
        "gradient": {
            "optimizer": c.optimizer,
            "learning_rate": c.learning_rate,
            "steps": c.steps,
            "starts": c.starts,
            "starts_agreeing": float(found.starts_agreeing),
            "stationarity": float(found.stationarity),
            "best_speedup_found": float(found.speedup),
        },
        **_intervals(config, jax.tree.map(lambda x: x[1:], optima)),
    }
    # The path slows down as it converges: points evenly spread in the logarithm of the step show
    # all of it.
    kept = np.unique(np.geomspace(1, c.steps, _PATH_POINTS).astype(int)) - 1
    landscape = {
        "curve": {"draft_params": _short(sizes)} | {k: _short(v) for k, v in values.curve.items()},
        "map": {
            "draft_params": _short(map_sizes),
            "lookahead": _short(lookaheads),
            "speedup": [_short(row) for row in values.map],
        },
        "path": {
            k: _short(np.asarray(found.path)[kept, i])
            for i, k in enumerate(("draft_params", "lookahead", "speedup"))
        },
    }
    return entry, landscape


def _short(values: Any) -> list[float]:
    return [float(f"{x:.6g}") for x in np.asarray(values)]


def _intervals(config: StudyConfig, draws: _Reference) -> dict[str, Any]:
    """Intervals of N*, γ* and S* over the joint bootstrap draws of the two laws.

    Draws in which speculation does not pay have γ* = 0 and S* = 1 and no N*; draws whose law
    reaches α = 1 have no optimum and are left out. Where fewer than half speculate no interval of
    an optimum means anything, and none is given.
    """
    tail = (1 - config.fit.confidence) / 2
    finite = draws.acceptance < 1
    share = float(((draws.speedup > 1) & finite).mean())
    draws = jax.tree.map(lambda x: x[finite], draws)
    pays = draws.speedup > 1
    values = {
        "draft_params": draws.params[pays],
        "lookahead": draws.lookahead,
        "speedup": draws.speedup,
    }
    return {
        f"interval_{round(100 * config.fit.confidence)}": {
            k: [float(x) for x in np.quantile(v, [tail, 1 - tail])] if share > 0.5 else None
            for k, v in values.items()
        },
        "interval_basis": "joint bootstrap of loss law and acceptance law over models; N* among draws that speculate",
        "share_of_draws_that_speculate": share,
        "share_of_draws_without_optimum": float(1 - finite.mean()),
    }


def _trained(
    drafts: list[ModelRecord],
    targets: list[ModelRecord],
    target: ModelRecord,
    survival: list[SurvivalRecord],
    cost: CostModel,
    laws: FittedLaws,
) -> list[dict[str, Any]]:
    """Measured tokens per round of every trained draft and lookahead over the cost of such a round.

    Under measured costs the round is made of the draft's own timed step and the verify pass timed
    at that very lookahead.
    """
    sizes = {m.model_id: m for m in drafts}
    timed = timed_like(laws, targets, target)
    verify = laws.verify_seconds.get(timed or "", {})
    found = []
    for row in survival:
        if row.target_id != target.model_id or row.position != 1 or row.draft_id not in sizes:
            continue
        draft = sizes[row.draft_id]
        of_round = float(cost.round_cost(float(draft.params_nonembedding), float(row.lookahead)))
        step = timed_like(laws, drafts, draft)
        if (
            isinstance(cost, HardwareCost)
            and timed is not None
            and step is not None
            and row.lookahead in verify
        ):
            seconds = row.lookahead * laws.decode_seconds[step] + verify[row.lookahead]
            of_round = seconds / laws.decode_seconds[timed]
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
        return (
            size,
            -row["train_tokens"],
            abs(math.log1p(row["lookahead"]) - math.log1p(entry["lookahead"])),
        )

    return min(entry["trained"], key=distance)


def _warnings(entry: dict[str, Any], drafts: list[ModelRecord]) -> list[str]:
    warnings = []
    sizes = [m.params_nonembedding for m in drafts]
    if entry["lookahead"] is None:
        return [
            "the acceptance law reaches 1 within the sizes considered, so that it has no finite optimum"
        ]
    if not entry["speculate"]:
        warnings.append(
            "speculation does not pay: no draft size and whole lookahead beat plain decoding at these costs"
        )
    elif not min(sizes) <= entry["draft_params"] <= max(sizes):
        warnings.append(
            f"N* lies outside the trained drafts ({min(sizes):,} to {max(sizes):,} parameters)"
        )
    if entry["speculate"] and entry["relative_difference"]["lookahead"] is None:
        warnings.append(
            "the lookahead stops at codesign.max_lookahead, which the reference would exceed"
        )
    if entry["speculate"] and 0.99 * entry["speedup"] <= 1:
        warnings.append("plain decoding is within 1% of the optimum")
    if entry["speculate"] and not entry["interior"]:
        warnings.append("S still rises at the edge of the sizes considered")
    return warnings
