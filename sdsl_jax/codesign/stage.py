"""The co-design stage: from fitted laws to N* and γ* for every target, acceptance law and cost model."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdsl_jax.codesign.kkt import Box
from sdsl_jax.codesign.laws import FORMS_HOLD, intervals_over_draws
from sdsl_jax.codesign.optimise import Minimum, convergence_warning, minimise, spread_starts
from sdsl_jax.compiler_options import quick_jit
from sdsl_jax.config import StudyConfig
from sdsl_jax.errors import require
from sdsl_jax.fitting import FittedLaws
from sdsl_jax.fitting.hardware import record_shape
from sdsl_jax.progress import Progress
from sdsl_jax.records import ModelRecord, SurvivalRecord, longest_trained
from sdsl_jax.records.codesign import (
    CodesignEntry,
    CodesignLandscape,
    Curve,
    GradientRun,
    OptimizerPath,
    OptimumInterval,
    ReferenceOptimum,
    RelativeDifference,
    SpeedupMap,
    TrainedDraft,
)
from sdsl_jax.records.documents import document
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.theory import (
    AcceptanceLaw,
    CostModel,
    DraftProblem,
    FlopCost,
    HardwareCost,
    LossLaw,
    ModelPoint,
    point_and_draws,
)

_CURVE_POINTS = 96
_MAP_POINTS = 48
_PATH_POINTS = 200
# No interval of an optimum is given unless more than this share of the draws speculates.
_SPECULATING = 0.5


class Solution(NamedTuple):
    """What the stage writes.

    Attributes:
      entries: The entries of `codesign.json`.
      landscapes: The curves, maps and paths that figures draw, in the same order.
    """

    entries: list[CodesignEntry]
    landscapes: list[CodesignLandscape]


def _cost_models(laws: FittedLaws, target: ModelRecord) -> dict[str, CostModel]:
    """The cost models of a study for one target: the family's FLOPs, and rounds on the fitted device as it was timed.
    A published target has FLOPs of its own, for it is no member of the family."""
    shape = record_shape(target, laws.rule)
    own_flops = None if target.training_is_known else float(target.flops_per_token)
    return {
        "flops": FlopCost(laws.rule, float(target.params_nonembedding), own_flops),
        "measured": HardwareCost(
            laws.hardware, laws.rule, shape, laws.precision, laws.batch, laws.context
        ),
    }


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
        drafts and targets,
        "the records hold no draft or no target; co-design needs both.",
    )
    draft_tokens = max(m.train_tokens for m in drafts)
    smallest = min(m.params_nonembedding for m in drafts)
    chosen = _chosen_laws(list(laws.acceptance))
    progress.start("codesign", len(targets) * len(chosen) * 2)
    solution = Solution([], [])
    for target in targets:
        for name in chosen:
            for cost_model, cost in _cost_models(laws, target).items():
                problem = DraftProblem(
                    loss_law=laws.loss,
                    draft_tokens=float(draft_tokens),
                    target=ModelPoint(float(target.params_nonembedding), target.loss_nats),
                    acceptance_law=laws.acceptance[name],
                    cost=cost,
                    # Down to a third of the smallest draft, so that an optimum at the edge of the
                    # ladder shows as such.
                    bounds=(smallest / 3, float(target.params_nonembedding)),
                )
                with jax.enable_x64(True):
                    problem = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem)
                    solved = _solve(
                        config,
                        problem,
                        point_and_draws(laws.loss, laws.loss_draws),
                        point_and_draws(laws.acceptance[name], laws.acceptance_draws[name]),
                    )
                    entry, landscape = _described(
                        config, problem, solved, target, name, cost_model, draft_tokens
                    )
                trained = _trained(drafts, targets, target, survival, cost, cost_model, laws)
                entry = dataclasses.replace(
                    entry,
                    trained=trained,
                    nearest_trained=_nearest(entry, trained),
                    warnings=_warnings(entry, drafts, int(solved.end.status)),
                )
                solution.entries.append(entry)
                solution.landscapes.append(landscape)
                progress.advance(1, f"{target.model_id}  {name}  {cost_model}")
    progress.finish()
    return solution


def _chosen_laws(ranked: list[str]) -> list[str]:
    """The law that predicts left-out drafts best, and the paper's plane, or the next best where the plane is the best."""
    return [ranked[0], next(name for name in ("affine_plane", *ranked[1:]) if name != ranked[0])]


@functools.partial(quick_jit, static_argnames=("optimizer", "steps"))
def gradient_optimum(
    problem: DraftProblem,
    max_lookahead: Array | float,
    starts: Float[Array, "S 2"],
    learning_rate: Array | float,
    *,
    optimizer: str,
    steps: int,
) -> Minimum:
    """Minimises −ln S over x = (ln N, ln(1 + γ)), N within the problem's bounds, and γ within those
    of its cost model and at most `max_lookahead`.
    """
    fewest, most = problem.cost.lookahead_bounds
    smallest, largest = (jnp.log(bound) for bound in problem.bounds)
    low = jnp.stack([smallest, jnp.full_like(smallest, jnp.log1p(fewest))])
    high = jnp.stack([largest, jnp.log1p(jnp.minimum(max_lookahead, most))])

    def functions(x: Array) -> tuple[Array, Array]:
        return -problem.log_speedup(x), jnp.zeros(0, x.dtype)

    return minimise(
        functions, Box(low, high), starts, learning_rate, optimizer=optimizer, steps=steps
    )


class _Reference(NamedTuple):
    """What the stage uses of a `DraftOptimum`: the compiler drops the rest."""

    params: jax.Array
    lookahead: jax.Array
    acceptance: jax.Array
    speedup: jax.Array
    indifference_1pct: tuple[jax.Array, jax.Array]
    interior: jax.Array


@quick_jit
def _references(problem: DraftProblem, loss: LossLaw, acceptance: AcceptanceLaw) -> _Reference:
    """`DraftProblem.optimum` for many coefficients of the two laws at once."""

    def one(loss: LossLaw, acceptance: AcceptanceLaw) -> _Reference:
        best = problem._replace(loss_law=loss, acceptance_law=acceptance).optimum()
        return _Reference(*(getattr(best, name) for name in _Reference._fields))

    return jax.vmap(one)(loss, acceptance)


class _Evaluation(NamedTuple):
    """The objective at the optimum, at its whole-numbered neighbours, along N, over a map, and along the path."""

    acceptance: jax.Array
    cost: jax.Array
    verify_cost: jax.Array
    speedup: jax.Array
    whole: jax.Array
    curve: dict[str, jax.Array]
    map: jax.Array
    path: jax.Array


@quick_jit
def _evaluate(
    problem: DraftProblem, x, whole, sizes, map_sizes, map_lookaheads, path
) -> _Evaluation:
    params, lookahead = jnp.exp(x[0]), jnp.expm1(x[1])
    alpha, step = jax.vmap(problem.acceptance)(sizes), jax.vmap(problem.cost.draft_step)(sizes)
    speculating = jax.vmap(problem.best_lookahead)(sizes)
    cost = problem.cost.draft_step(params)
    return _Evaluation(
        acceptance=jnp.asarray(problem.acceptance(params)),
        cost=cost,
        # All of a round that is not γ draft steps; on a device it depends on γ.
        verify_cost=problem.cost.round_cost(params, lookahead) - lookahead * cost,
        speedup=problem.speedup(params, lookahead),
        whole=jax.vmap(lambda g: problem.speedup(params, g))(whole),
        curve={
            "draft_params": sizes,
            "acceptance": alpha,
            "cost": step,
            "lookahead": speculating,
            # A hole where the law reaches 1: no lookahead is the best there.
            "speedup": jnp.where(alpha < 1, jax.vmap(problem.speedup)(sizes, speculating), jnp.nan),
        },
        map=jax.vmap(lambda n: jax.vmap(lambda g: problem.speedup(n, g))(map_lookaheads))(
            map_sizes
        ),
        path=jnp.exp(jax.vmap(problem.log_speedup)(path)),
    )


class _Solved(NamedTuple):
    """One problem, solved by both methods.

    Attributes:
      end: Where the gradient method ended.
      reference: The optimum by the reference method.
      draws: The same for every draw of the laws.
    """

    end: Minimum
    reference: _Reference
    draws: _Reference


def _solve(
    config: StudyConfig, problem: DraftProblem, loss: LossLaw, acceptance: AcceptanceLaw
) -> _Solved:
    """Solves one problem in float64; of the laws the fitted coefficients come first, then their draws."""
    c = config.codesign
    optima = jax.tree.map(np.asarray, _references(problem, loss, acceptance))
    end = gradient_optimum(
        problem,
        c.max_lookahead,
        jnp.asarray(spread_starts(c.starts)),
        c.learning_rate,
        optimizer=c.optimizer,
        steps=c.steps,
    )
    require(
        int(end.status) != SolverStatus.NON_FINITE,
        "the laws give no finite speed-up at any draft size and lookahead considered.",
    )
    return _Solved(
        jax.tree.map(np.asarray, end),
        jax.tree.map(lambda x: x[0], optima),
        jax.tree.map(lambda x: x[1:], optima),
    )


def _described(
    config: StudyConfig,
    problem: DraftProblem,
    solved: _Solved,
    target: ModelRecord,
    law: str,
    cost_model: str,
    draft_tokens: int,
) -> tuple[CodesignEntry, CodesignLandscape]:
    """Entry and landscape of one problem; what depends on trained models is still empty."""
    c, (end, reference, draws) = config.codesign, solved
    n, gamma, best = math.exp(end.x[0]), math.expm1(end.x[1]), math.exp(-float(end.objective))
    low, high = (float(b) for b in problem.bounds)
    fewest, most = problem.cost.lookahead_bounds
    widest = min(c.max_lookahead, max(8.0, 2.5 * gamma), most)
    map_sizes = np.geomspace(low, high, _MAP_POINTS)
    lookaheads = np.expm1(np.linspace(np.log1p(fewest), np.log1p(widest), _MAP_POINTS))
    whole = np.maximum(1.0, [math.floor(gamma), math.ceil(gamma)])
    # The path slows down as it converges: points evenly spread in the logarithm of the step show
    # all of it.
    path = end.path[np.unique(np.geomspace(1, c.steps, _PATH_POINTS).astype(int)) - 1]
    values = jax.tree.map(
        np.asarray,
        _evaluate(
            problem,
            end.x,
            whole,
            np.geomspace(low, high, _CURVE_POINTS),
            map_sizes,
            lookaheads,
            path,
        ),
    )
    # An unbounded law may reach α = 1: no lookahead is then too long, and there is no optimum to
    # report.
    saturates = bool(reference.acceptance >= 1) or bool(values.acceptance >= 1)
    pays = best > 1 and gamma > 0 and not saturates
    integer = int(whole[np.argmax(values.whole)]) if values.whole.max() > 1 and not saturates else 0
    reference_pays = bool(reference.speedup > 1) and not saturates
    # The reference knows nothing of the largest lookahead: beyond it the two solve different
    # problems, and a warning says so.
    compare = pays and 0 < float(reference.lookahead) <= c.max_lookahead
    over_draws = intervals_over_draws(
        {
            "draft_params": draws.params,
            "lookahead": draws.lookahead,
            "speedup": draws.speedup,
        },
        draws.speedup,
        draws.acceptance < 1,
        confidence=config.fit.confidence,
        of_speculating=("draft_params",),
        more_than=_SPECULATING,
    )

    def unless_saturated(value: float) -> float | None:
        return None if saturates else float(value)

    def if_pays(value: float) -> float | None:
        return float(value) if pays else None

    entry = CodesignEntry(
        target_id=target.model_id,
        acceptance_law=law,
        cost_model=cost_model,
        draft_params=if_pays(n),
        lookahead=gamma if pays else unless_saturated(0.0),
        lookahead_integer=integer,
        speculate=pays and integer > 0,
        acceptance=if_pays(values.acceptance),
        cost=if_pays(values.cost),
        verify_cost=float(values.verify_cost),
        speedup=float(values.speedup) if pays else unless_saturated(1.0),
        speedup_integer=float(values.whole.max()) if integer else unless_saturated(1.0),
        interior=reference_pays and bool(reference.interior),
        indifference_1pct=_pair(reference.indifference_1pct) if reference_pays else (None, None),
        reference=ReferenceOptimum(
            method=problem.cost.method,
            draft_params=float(reference.params) if reference_pays else None,
            lookahead=unless_saturated(float(reference.lookahead)),
            speedup=unless_saturated(float(reference.speedup)),
        ),
        relative_difference=RelativeDifference(
            draft_params=abs(n / float(reference.params) - 1) if compare else None,
            lookahead=abs(gamma / float(reference.lookahead) - 1) if compare else None,
        ),
        gradient=document(
            GradientRun,
            c,
            starts_agreeing=float(end.starts_agreeing),
            stationarity=float(end.kkt_residual),
            best_speedup_found=best,
        ),
        interval=OptimumInterval(
            **{k: _pair(v) for k, v in over_draws.ends.items()}
            if over_draws.ends
            else dict.fromkeys(("draft_params", "lookahead", "speedup"))
        ),
        interval_percent=round(100 * config.fit.confidence),
        interval_basis="joint bootstrap of loss law and acceptance law over models; N* among draws that speculate; "
        + FORMS_HOLD,
        share_of_draws_that_speculate=over_draws.share_that_speculate,
        share_of_draws_without_optimum=over_draws.share_without_optimum,
        target_params=target.params_nonembedding,
        draft_tokens=draft_tokens,
        trained=[],
        nearest_trained=None,
        warnings=[],
    )
    landscape = CodesignLandscape(
        target_id=target.model_id,
        acceptance_law=law,
        cost_model=cost_model,
        curve=Curve(**{name: _short(column) for name, column in values.curve.items()}),
        map=SpeedupMap(_short(map_sizes), _short(lookaheads), [_short(row) for row in values.map]),
        path=OptimizerPath(
            _short(np.exp(path[:, 0])), _short(np.expm1(path[:, 1])), _short(values.path)
        ),
    )
    return entry, landscape


def _pair(ends) -> tuple[float, float]:
    return float(ends[0]), float(ends[1])


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{x:.6g}") for x in values]


def _timed_like(laws: FittedLaws, models: list[ModelRecord], model: ModelRecord) -> str | None:
    """The timed model of the same shape: one model of each role and size was timed, whatever its budget and seed."""
    alike = {
        m.model_id
        for m in models
        if (m.role, m.params_nonembedding) == (model.role, model.params_nonembedding)
    }
    return next((name for name in laws.decode_seconds if name in alike), None)


def _trained(
    drafts: list[ModelRecord],
    targets: list[ModelRecord],
    target: ModelRecord,
    survival: list[SurvivalRecord],
    cost: CostModel,
    cost_model: str,
    laws: FittedLaws,
) -> list[TrainedDraft]:
    """Measured tokens per round of every trained draft and lookahead over the cost of such a round.

    Under measured costs the round is made of the draft's own timed step and the verify pass timed
    at that very lookahead.
    """
    by_id = {m.model_id: m for m in drafts}
    timed = _timed_like(laws, targets, target)
    verify = laws.verify_seconds.get(timed or "", {})
    trained = []
    for row in survival:
        if row.target_id != target.model_id or row.position != 1 or row.draft_id not in by_id:
            continue
        draft = by_id[row.draft_id]
        round_cost = float(cost.round_cost(float(draft.params_nonembedding), float(row.lookahead)))
        step = _timed_like(laws, drafts, draft)
        if cost_model == "measured" and timed and step and row.lookahead in verify:
            seconds = row.lookahead * laws.decode_seconds[step] + verify[row.lookahead]
            round_cost = seconds / laws.decode_seconds[timed]
        trained.append(
            TrainedDraft(
                draft_id=row.draft_id,
                draft_params=draft.params_nonembedding,
                train_tokens=draft.train_tokens,
                lookahead=row.lookahead,
                tokens_per_round=row.tokens_per_round,
                speedup=row.tokens_per_round / round_cost,
                speedup_low=row.tokens_per_round_low / round_cost,
                speedup_high=row.tokens_per_round_high / round_cost,
            )
        )
    return trained


def _nearest(entry: CodesignEntry, trained: list[TrainedDraft]) -> TrainedDraft | None:
    """Of the trained drafts the one nearest to N* in log size, most tokens first, at the lookahead nearest to γ*."""
    best, gamma = entry.draft_params, entry.lookahead
    if best is None or gamma is None:
        return None

    def distance(draft: TrainedDraft) -> tuple[float, ...]:
        size = abs(math.log(draft.draft_params / best))
        lookahead = abs(math.log1p(draft.lookahead) - math.log1p(gamma))
        return size, -draft.train_tokens, lookahead

    return min(trained, key=distance, default=None)


def _warnings(entry: CodesignEntry, drafts: list[ModelRecord], status: int) -> list[str]:
    if entry.lookahead is None:
        return [
            "the acceptance law reaches 1 within the sizes considered, so that it has no finite optimum"
        ]
    warnings = []
    sizes = [m.params_nonembedding for m in drafts]
    if text := convergence_warning(status, entry.gradient.stationarity):
        warnings.append(text)
    if not entry.speculate or entry.draft_params is None or entry.speedup is None:
        return [
            *warnings,
            "speculation does not pay: no draft size and whole lookahead beat plain decoding at these costs",
        ]
    if not min(sizes) <= entry.draft_params <= max(sizes):
        warnings.append(
            f"N* lies outside the trained drafts ({min(sizes):,} to {max(sizes):,} parameters)"
        )
    if entry.relative_difference.lookahead is None:
        warnings.append(
            "the lookahead stops at codesign.max_lookahead, which the reference would exceed"
        )
    if 0.99 * entry.speedup <= 1:
        warnings.append("plain decoding is within 1% of the optimum")
    if not entry.interior:
        warnings.append("S still rises at the edge of the sizes considered")
    return warnings
