"""What draft to train for a target, from laws alone: published ones by name, fitted ones from a file. Nothing is trained.

The mathematics is in `theory`; here laws are looked up, questions checked, and answers put into words.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.errors import SdslError, require
from sdsl_jax.formatting import short_count
from sdsl_jax.law_files import LoadedLaw
from sdsl_jax.theory import (
    About,
    AcceptanceLaw,
    DraftOptimum,
    Elasticities,
    Flags,
    LossLaw,
    Scenario,
    acceptance_from_tokens_per_round,
    flags,
    optima_of_draws,
    optimal_lookahead,
    optimum_with_elasticities,
    speedup,
    tokens_per_round,
)


@dataclass(frozen=True)
class Target:
    """A target in need of a draft: M, and the training tokens D of the draft and D′ of the target."""

    target_params: float
    draft_tokens: float
    target_tokens: float
    name: str = ""


def targets_from_csv(path: Path, draft_tokens: float | None = None, target_tokens: float | None = None) -> list[Target]:
    """Targets from a CSV with the column target_params, and draft_tokens, target_tokens and name unless given for all.

    Raises:
      SdslError: the file cannot be read, or lacks a column or a number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SdslError(f"cannot read {path} ({getattr(error, 'strerror', None) or 'not a text file'}).") from None
    require(bool(rows), f"{path} holds no rows below its header.")
    given = {"target_params": None, "draft_tokens": draft_tokens, "target_tokens": target_tokens}
    found = []
    for line, row in enumerate(rows, 2):
        values = {}
        for name, everywhere in given.items():
            text = (row.get(name) or "").strip()
            require(
                bool(text) or everywhere is not None,
                f"{path}, line {line}: no {name}; give the column, or --{name.replace('_', '-')} for all.",
            )
            values[name] = parse_count(text, f"{path}, line {line}: {name}") if text else float(everywhere or 0)
        found.append(Target(**values, name=(row.get("name") or "").strip()))
    return found


_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def parse_count(text: str, name: str) -> float:
    """A count of parameters or tokens: 30e9, 30B, 180b, 1.5T.

    Raises:
      SdslError: it is not a positive number.
    """
    plain = text.strip().replace("_", "")
    factor = _SUFFIXES.get(plain[-1:].lower(), 1.0)
    try:
        value = float(plain[:-1] if factor > 1 else plain) * factor
    except ValueError:
        raise SdslError(f"{name} is {text!r}; it must be a number such as 30e9 or 30B.") from None
    require(0 < value < float("inf"), f"{name} is {text}; it must be positive and finite.")
    return value


def predict(
    targets: Sequence[Target],
    loss: LoadedLaw,
    acceptance: LoadedLaw,
    draft_overhead: float = 0.0,
    smallest_draft: float | None = None,
) -> list[dict[str, Any]]:
    """For each target the draft to train, as what `sdsl predict --json` prints: see the README for the fields.

    Everything is computed in float64, all targets in one program.

    Args:
      targets: sizes in the parameter count of the laws.
      loss: gives L(N, D).
      acceptance: gives α.
      draft_overhead: c₀, cost of a draft step of any size in target steps, on top of N/M.
      smallest_draft: smallest N considered; a 100,000th of each target if None.

    Raises:
      SdslError: a number is out of range.
    """
    require(0 <= draft_overhead < float("inf"), f"the draft overhead is {draft_overhead}; it must be 0 or more.")
    for target in targets:
        low = smallest_draft if smallest_draft is not None else target.target_params / 1e5
        require(
            0 < low < target.target_params,
            f"the smallest draft is {low:g} parameters and the target {target.target_params:g}; a draft must be smaller.",
        )
    with jax.enable_x64(True):
        columns = np.asarray([(t.target_params, t.draft_tokens, t.target_tokens) for t in targets], float).T
        lows = np.full(len(targets), smallest_draft) if smallest_draft is not None else columns[0] / 1e5
        answers = jax.tree.map(np.asarray, _answers(columns, lows, loss.law, acceptance.law, draft_overhead))
        made = []
        for i, target in enumerate(targets):
            best, slopes, flagged, losses = jax.tree.map(lambda x, i=i: x[i], answers)
            m, d, d_target = columns[:, i]
            scenario = Scenario(m, d, d_target, loss.law, acceptance.law, draft_overhead, lows[i])
            interval, basis = _interval(scenario, loss, acceptance)
            made.append(_describe(target, scenario, best, slopes, flagged, losses, loss, acceptance, interval, basis))
    return made


@jax.jit
def _answers(
    columns: Any, lows: Any, loss: LossLaw, acceptance: AcceptanceLaw, overhead: Any
) -> tuple[DraftOptimum, Elasticities, Flags, jax.Array]:
    def one(column: jax.Array, low: jax.Array) -> tuple[DraftOptimum, Elasticities, Flags, jax.Array]:
        scenario = Scenario(column[0], column[1], column[2], loss, acceptance, overhead, low)
        optimum, slopes = optimum_with_elasticities(scenario)
        losses = jnp.stack([loss(optimum.params, column[1]), loss(column[0], column[2])])
        return optimum, slopes, flags(scenario, optimum), losses

    return jax.vmap(one)(columns.T, lows)


def _interval(scenario: Scenario, loss: LoadedLaw, acceptance: LoadedLaw) -> tuple[dict[str, Any] | None, str]:
    """90 % interval over the draws of both laws, or why there is none."""
    without = [(kind, law) for kind, law in (("loss", loss), ("acceptance", acceptance)) if law.draws is None]
    if without:
        return None, "; ".join(f"{kind} law {law.name}: {law.basis}" for kind, law in without)
    joint = loss.law.about.source == acceptance.law.about.source
    count = min(len(jax.tree.leaves(law.draws)[0]) for law in (loss, acceptance))
    draws = [jax.tree.map(lambda x: jnp.asarray(x[:count]), law.draws) for law in (loss, acceptance)]
    found = jax.tree.map(np.asarray, optima_of_draws(scenario, *draws))
    finite = np.isfinite(found.lookahead)
    pays = finite & found.speculate
    basis = loss.basis if joint else f"loss law: {loss.basis}; acceptance law: {acceptance.basis}; taken as independent"
    if not pays.all():
        basis += f"; speculation pays in {pays.mean():.0%} of the draws, and draft_params is among these"
    if pays.mean() <= 0.5:
        return None, basis

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
        "warnings": _warnings(best, flagged, loss, acceptance),
    }


def _range(about: About) -> str:
    return ", ".join(
        f"{name.replace('_', ' ').replace('params', 'parameters')} {short_count(low)} to {short_count(high)}"
        for name, low, high in about.valid or ()
    )


def _warnings(best: DraftOptimum, flagged: Flags, loss: LoadedLaw, acceptance: LoadedLaw) -> list[str]:
    found = []
    if flagged.acceptance_certain:
        found.append(
            "the acceptance law gives α ≥ 1 to drafts as good as the best, which is no probability: it has no optimum here"
        )
    elif not best.speculate:
        found.append("speculation does not pay: no draft size and whole lookahead beat plain decoding")
        if flagged.acceptance_not_positive:
            found.append("the acceptance law gives no draft a positive α")
    elif 0.99 * best.speedup_integer <= 1:
        found.append("plain decoding is within 1 % of the optimum")
    if flagged.not_interior:
        found.append("the optimum lies at the smallest or largest draft considered: S still rises there")
    if flagged.acceptance_extrapolated:
        found.append(f"extrapolates the acceptance law, fitted on {_range(acceptance.law.about)}")
    for flag, who in ((flagged.draft_loss_extrapolated, "draft"), (flagged.target_loss_extrapolated, "target")):
        if flag:
            found.append(f"extrapolates the loss law for the {who}: fitted on {_range(loss.law.about)}")
    texts = [law.law.about.text for law in (loss, acceptance)]
    if texts[0] != texts[1]:
        found.append(f"the laws are of different texts: losses on {texts[0]}; acceptance on {texts[1]}")
    counts = [law.law.about.params_count for law in (loss, acceptance)]
    if counts[0] != "total":
        found.append(f"sizes are {counts[0]} parameters, the count of the loss law")
    return found + [
        f"{kind} law: {w}" for kind, law in (("loss", loss), ("acceptance", acceptance)) for w in law.warnings
    ]


def best_lookahead(
    cost: float,
    acceptance: float | None = None,
    acceptance_length: float | None = None,
    at_lookahead: int | None = None,
    verify_cost: float = 1.0,
) -> dict[str, Any]:
    """γ*, the best whole γ and what they give, as `sdsl lookahead --json` prints.

    Args:
      cost: d, of a draft step in target steps.
      acceptance: α in [0, 1); or instead of it
      acceptance_length: τ in [1, γ + 1), measured at
      at_lookahead: γ.
      verify_cost: v, in target steps.

    Raises:
      SdslError: a number is missing or out of range.
    """
    require(0 < cost < float("inf"), f"the cost of a draft step is {cost:g} target steps; it must be positive.")
    require(
        0 < verify_cost < float("inf"),
        f"the cost of a verify pass is {verify_cost:g} target steps; it must be positive.",
    )
    require(
        (acceptance is None) != (acceptance_length is None),
        "give either --acceptance, or --acceptance-length with --at-lookahead.",
    )
    with jax.enable_x64(True):
        if acceptance_length is not None:
            require(
                at_lookahead is not None and at_lookahead >= 1,
                "an acceptance length means nothing without the lookahead it was measured at: give --at-lookahead 1 or more.",
            )
            assert at_lookahead is not None
            require(
                1 <= acceptance_length < at_lookahead + 1,
                f"the acceptance length is {acceptance_length:g}; at lookahead {at_lookahead} it must be at least 1 and below "
                f"{at_lookahead + 1}.",
            )
            acceptance = float(acceptance_from_tokens_per_round(acceptance_length, at_lookahead))
        assert acceptance is not None
        require(0 <= acceptance < 1, f"the acceptance is {acceptance:g}; it must be at least 0 and below 1.")
        best = optimal_lookahead(acceptance, cost, verify_cost)
        whole = int(best.lookahead_integer)
        within = [whole, whole]
        if whole:
            near = np.arange(1, 4 * whole + 50)
            good = near[np.asarray(speedup(acceptance, near, cost, verify_cost)) >= 0.99 * float(best.speedup_integer)]
            within = [int(good[0]), int(good[-1])]
        # S(γ) > 1 for some whole γ exactly if d < (τ(γ) − v)/γ for one of them; at v = 1 the best of these is γ = 1, and d < α.
        every = np.arange(1, 10_001)
        break_even = float(np.max((np.asarray(tokens_per_round(acceptance, every)) - verify_cost) / every))
        return {
            "acceptance": acceptance,
            "cost": cost,
            "verify_cost": verify_cost,
            "lookahead": float(best.lookahead),
            "lookahead_integer": whole,
            "lookahead_within_1pct": within,
            "tokens_per_round": float(tokens_per_round(acceptance, whole)),
            "speedup": float(best.speedup),
            "speedup_integer": float(best.speedup_integer),
            "speculate": bool(best.speculate),
            "break_even_cost": max(break_even, 0.0),
        }
