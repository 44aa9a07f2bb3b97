"""What draft to train for a target: the optimum of a scenario, put into words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.codesign.targets import Target, few_tokens
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require
from sdsl_jax.fitting.law_files import LoadedLaw, far_outside, moves, quality
from sdsl_jax.theory import (
    About,
    AcceptanceLaw,
    DraftOptimum,
    Elasticities,
    Flags,
    LossLaw,
    Scenario,
    flags,
    optima_of_draws,
    optimum_with_elasticities,
)


def predict(
    targets: Sequence[Target],
    loss: LoadedLaw,
    acceptance: LoadedLaw,
    draft_overhead: float = 0.0,
    smallest_draft: float | None = None,
) -> list[dict[str, Any]]:
    """For each target the draft to train, as what `sdsl predict --json` prints: see the README for
    the fields.

    Everything is computed in float64, the optima of all targets in one call.

    Args:
      targets: sizes in the parameter count of the laws.
      loss: gives L(N, D).
      acceptance: gives α.
      draft_overhead: c₀, cost of a draft step of any size in target steps, on top of N/M.
      smallest_draft: smallest N considered; a 100,000th of each target if None.

    Raises:
      SdslError: a number is out of range.
    """
    require(
        0 <= draft_overhead < float("inf"),
        f"the draft overhead is {draft_overhead}; it must be 0 or more.",
    )
    for target in targets:
        low = smallest_draft if smallest_draft is not None else target.target_params / 1e5
        require(
            0 < low < target.target_params,
            f"the smallest draft is {low:g} parameters and the target {target.target_params:g}; a draft must be smaller.",
        )
    with jax.enable_x64(True):
        columns = np.asarray(
            [(t.target_params, t.draft_tokens, t.target_tokens) for t in targets], float
        ).T
        lows = (
            np.full(len(targets), smallest_draft)
            if smallest_draft is not None
            else columns[0] / 1e5
        )
        answers = jax.tree.map(
            np.asarray, _answers(columns, lows, loss.law, acceptance.law, draft_overhead)
        )
        made = []
        for i, target in enumerate(targets):
            best, slopes, flagged, losses = jax.tree.map(lambda x, i=i: x[i], answers)
            m, d, d_target = columns[:, i]
            scenario = Scenario(m, d, d_target, loss.law, acceptance.law, draft_overhead, lows[i])
            require(
                bool(np.isfinite([best.acceptance, *losses]).all()),
                f"for the target of {short_count(target.target_params)} parameters and {short_count(target.draft_tokens)} | "
                f"{short_count(target.target_tokens)} tokens "
                "the laws give no finite loss and acceptance: it is too far outside them.",
            )
            interval, basis = _interval(scenario, loss, acceptance)
            made.append(
                _describe(
                    target,
                    scenario,
                    best,
                    slopes,
                    flagged,
                    losses,
                    loss,
                    acceptance,
                    interval,
                    basis,
                )
            )
    return made


@jax.jit
def _answers(
    columns: Any, lows: Any, loss: LossLaw, acceptance: AcceptanceLaw, overhead: Any
) -> tuple[DraftOptimum, Elasticities, Flags, jax.Array]:
    def one(
        column: jax.Array, low: jax.Array
    ) -> tuple[DraftOptimum, Elasticities, Flags, jax.Array]:
        scenario = Scenario(column[0], column[1], column[2], loss, acceptance, overhead, low)
        optimum, slopes = optimum_with_elasticities(scenario)
        losses = jnp.stack([loss(optimum.params, column[1]), loss(column[0], column[2])])
        return optimum, slopes, flags(scenario, optimum), losses

    return jax.vmap(one)(columns.T, lows)


def _interval(
    scenario: Scenario, loss: LoadedLaw, acceptance: LoadedLaw
) -> tuple[dict[str, Any] | None, str]:
    """90% interval over the draws of both laws, or why there is none."""
    without = [
        (kind, law)
        for kind, law in (("loss", loss), ("acceptance", acceptance))
        if law.draws is None
    ]
    if without:
        return None, "; ".join(f"{kind} law {law.name}: {law.basis}" for kind, law in without)
    joint = loss.joint is not None and loss.joint == acceptance.joint
    count = min(len(jax.tree.leaves(law.draws)[0]) for law in (loss, acceptance))
    draws = [
        jax.tree.map(lambda x: jnp.asarray(x[:count]), law.draws) for law in (loss, acceptance)
    ]
    found = jax.tree.map(np.asarray, optima_of_draws(scenario, *draws))
    finite = np.isfinite(found.lookahead)
    pays = finite & found.speculate
    basis = (
        loss.basis
        if joint
        else f"loss law: {loss.basis}; acceptance law: {acceptance.basis}; taken as independent"
    )
    if not pays.all():
        basis += (
            f"; speculation pays in {pays.mean():.0%} of the draws, and draft_params is among these"
        )
    if pays.mean() <= 0.5:
        return None, f"{basis}; too few for an interval"

    def ends(values: np.ndarray) -> list[float]:
        return [float(x) for x in np.quantile(values, [0.05, 0.95])]

    return {
        "draft_params": ends(found.params[pays]),
        "lookahead": ends(found.lookahead[finite]),
        "speedup": ends(found.speedup[finite]),
    }, basis


def _describe(
    target: Target,
    scenario: Scenario,
    best: DraftOptimum,
    slopes: Elasticities,
    flagged: Flags,
    losses: np.ndarray,
    loss: LoadedLaw,
    acceptance: LoadedLaw,
    interval: dict[str, Any] | None,
    basis: str,
) -> dict[str, Any]:
    certain = bool(flagged.acceptance_certain)
    pays = bool(best.speculate) and not certain
    return {
        **({"name": target.name} if target.name else {}),
        "target_params": target.target_params,
        "draft_tokens": target.draft_tokens,
        "target_tokens": target.target_tokens,
        "loss_law": loss.name,
        "acceptance_law": acceptance.name,
        "params_count": scenario.loss_law.about.params_count,
        "draft_overhead": float(scenario.draft_overhead),
        "draft_params": float(best.params) if pays else None,
        "lookahead": None if certain else float(best.lookahead),
        "lookahead_integer": None if certain else int(best.lookahead_integer),
        "acceptance": float(best.acceptance) if pays else None,
        "draft_cost": float(best.draft_step) if pays else None,
        "draft_loss": float(losses[0]) if pays else None,
        "target_loss": float(losses[1]),
        "speedup": None if certain else float(best.speedup),
        "speedup_integer": None if certain else float(best.speedup_integer),
        "speculate": pays,
        "indifference_1pct": [float(x) for x in best.indifference_1pct] if pays else None,
        "indifference_5pct": [float(x) for x in best.indifference_5pct] if pays else None,
        "elasticity": {k: float(v) for k, v in slopes._asdict().items()} if pays else None,
        "interval_90": interval if pays else None,
        "interval_basis": basis,
        "warnings": _warnings(scenario, best, flagged, loss, acceptance),
    }


def valid_range(about: About) -> str:
    """What a law was fitted on, in words."""
    return ", ".join(
        f"{name.replace('_', ' ').replace('params', 'parameters')} {short_count(low)} to {short_count(high)}"
        for name, low, high in about.valid or ()
    )


def _flatness(
    scenario: Scenario, best: DraftOptimum, flagged: Flags, acceptance: LoadedLaw
) -> list[str]:
    """How far the law moves α with the size of the draft, to be held against its error."""
    if flagged.acceptance_certain or not best.speculate:
        return []
    larger = min(100 * float(best.params), float(scenario.target_params))
    return [
        moves(
            acceptance, best.params, best.acceptance, larger, scenario.problem().acceptance(larger)
        )
    ]


def _warnings(
    scenario: Scenario, best: DraftOptimum, flagged: Flags, loss: LoadedLaw, acceptance: LoadedLaw
) -> list[str]:
    draft = {"tokens": float(scenario.draft_tokens)}
    if best.speculate and not flagged.acceptance_certain:
        draft["params"] = float(best.params)
    target = {"params": float(scenario.target_params), "tokens": float(scenario.target_tokens)}
    found = []
    if flagged.acceptance_certain:
        found.append(
            "the acceptance law gives α ≥ 1 to drafts as good as the best, which is no probability: it has no optimum here"
        )
    elif not best.speculate:
        # No whole lookahead of any draft gains more than the best real one.
        gain = 100 * (float(best.speedup) - 1)
        found.append(
            "speculation does not pay: no draft size and lookahead beat plain decoding"
            if gain <= 0
            else "speculation does not pay: the best draft size needs a lookahead below 1, and no size with a whole one "
            f"gains more than {gain:.2g}%"
        )
        if flagged.acceptance_not_positive:
            found.append("the acceptance law gives no draft a positive α")
    else:
        if 0.99 * best.speedup_integer <= 1:
            found.append("plain decoding is within 1% of the optimum")
        if flagged.at_bound:
            found.append(
                "the optimum is the smallest or largest draft considered: S may rise beyond it"
            )
        problem, (low, high) = scenario.problem(), best.indifference_1pct
        if problem.acceptance(high) <= problem.acceptance(low):
            found.append(
                "the acceptance law does not rise with the size of the draft around the optimum"
            )
    found += far_outside(loss, acceptance, draft=draft, target=target)
    if flagged.acceptance_extrapolated:
        found.append(
            f"extrapolates the acceptance law, fitted on {valid_range(acceptance.law.about)}"
        )
    for flag, who in (
        (flagged.draft_loss_extrapolated, "draft"),
        (flagged.target_loss_extrapolated, "target"),
    ):
        if flag:
            found.append(
                f"extrapolates the loss law for the {who}: fitted on {valid_range(loss.law.about)}"
            )
    if flagged.interval_extrapolated and not (
        flagged.acceptance_extrapolated or flagged.draft_loss_extrapolated
    ):
        found.append("the sizes within 5% reach beyond what the laws were fitted on")
    for role, values in (("draft", draft), ("target", target)):
        found += few_tokens(role, **values) if "params" in values else []
    found += [quality(acceptance), *_flatness(scenario, best, flagged, acceptance)]
    texts = [law.law.about.text for law in (loss, acceptance)]
    if texts[0] != texts[1]:
        found.append(
            f"the laws are of different texts: losses on {texts[0]}; acceptance on {texts[1]}"
        )
    counts = [law.law.about.params_count for law in (loss, acceptance)]
    if counts[0] != counts[1]:
        found.append(
            f"the loss law counts {counts[0]} parameters and the acceptance law {counts[1]}; sizes are taken for both"
        )
    elif counts[0] != "total":
        found.append(f"sizes are {counts[0]} parameters, the count of the laws")
    return found + [
        f"{kind} law: {w}"
        for kind, law in (("loss", loss), ("acceptance", acceptance))
        for w in law.warnings
    ]
