"""A co-design problem, solved and put into plain values: what `sdsl codesign --json` prints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.codesign.break_even import break_even
from sdsl_jax.codesign.caveats import Caveat, caveats, of_break_even
from sdsl_jax.codesign.comparisons import Comparison, compare, front, money, plain
from sdsl_jax.codesign.engines import engine_settings
from sdsl_jax.codesign.evaluate import Landscape, landscape
from sdsl_jax.codesign.program import Solved
from sdsl_jax.codesign.related import interval_90, solve_together
from sdsl_jax.codesign.remedies import keeps_limits, remedies
from sdsl_jax.codesign.rounding import fixed_at, round_design
from sdsl_jax.codesign.sensitivity import of_stated_sizes, sensitivities
from sdsl_jax.codesign.served_draft import notes_of, served_draft
from sdsl_jax.codesign.serving_problem import MEMORY_SHARE, Problem, memory, smallest_draft
from sdsl_jax.codesign.wording import ranked_sensitivities, relative_errors
from sdsl_jax.errors import require
from sdsl_jax.theory.serving import Design, Outcome, outcome, target_prefill

# Batches of the front of latency against throughput; training tokens of that of training cost
# against speed-up.
_BATCHES = tuple(2.0**k for k in range(11))
_DRAFT_TOKENS = tuple(float(d) for d in np.geomspace(1e10, 1e13, 13))
# Rounds of the optimiser, as a multiple, where it found no feasible design and there is one.
_PATIENCE = 4
# How far a break-even is looked for.
_LARGEST_BATCH, _LARGEST_TARGET = 4096, 1e13


class Answer(NamedTuple):
    """An answer, and what a picture of it needs.

    Attributes:
      values: plain values, as JSON holds them.
      solved: the optimum.
    """

    values: dict[str, Any]
    solved: Solved


def answer(problem: Problem) -> Answer:
    """Solves a problem and answers it in float64.

    Raises:
      SdslError: the laws give nothing finite there.
    """
    with jax.enable_x64(True):
        return _answer(problem)


def _answer(problem: Problem) -> Answer:
    inputs, config = problem.inputs, problem.config
    asked = [inputs, *(fixed_at(inputs, "batch", b) for b in _BATCHES)]
    solved, *by_batch = solve_together(problem, asked)
    if not bool(solved.feasible) and not problem.misfits and keeps_limits(problem, solved.design):
        # A limit that hardly moves with the choice, as memory with a small draft, takes more rounds
        # to be kept.
        problem = replace(
            problem, program=replace(problem.program, rounds=_PATIENCE * problem.program.rounds)
        )
        solved, *by_batch = solve_together(problem, asked)
    design, given = solved.design, solved.outcome
    require(
        bool(np.isfinite([solved.objective, given.speedup]).all()),
        f"for a target of {config.target.params:g} parameters the laws give no finite speed: it is too far outside them.",
    )
    rounded = round_design(
        problem.program, inputs, solved, solve_all=lambda many: solve_together(problem, many)
    )
    whole = rounded.solved
    fronts: dict[str, Any] = {"batch": front(problem, "batch", _BATCHES, by_batch)}
    if float(inputs.serving.hardware.price_per_hour) > 0:
        by_tokens = solve_together(
            problem, [fixed_at(inputs, "draft_tokens", d) for d in _DRAFT_TOKENS]
        )
        fronts["draft_tokens"] = front(problem, "draft_tokens", _DRAFT_TOKENS, by_tokens)
    feasible = bool(solved.feasible) and bool(whole.feasible) and not problem.misfits
    # An α of 1 or more is no probability, and nothing follows from it.
    usable = feasible and float(given.acceptance) < 1
    speculates = usable and float(whole.outcome.speedup) > 1
    comparison = compare(problem, solved, whole.design)
    even = _break_even(problem, design)
    found = caveats(problem, solved, whole, speculates)
    found += [Caveat(text, False) for text in of_break_even(problem, even)]
    held, alone = memory(inputs.serving, design), _baseline(problem, design, given)
    if "total_cost" in problem.program.objective and float(given.total_cost) > alone["total_cost"]:
        text = (
            f"training the draft costs {float(given.training_cost):.3g}, more than speculation saves: serving the volume by the "
            f"target alone costs {alone['total_cost']:.3g}, with the draft {float(given.total_cost):.3g}"
        )
        found.append(Caveat(text, False))
    interval = interval_90(problem)
    values: dict[str, Any] = {
        "speculate": speculates,
        "variables": {name: plain(problem, design, name) for name in problem.program.variables},
        "design": {name: plain(problem, design, name) for name in Design._fields},
        "objective": {
            name: {"weight": float(w), "value": float(getattr(given, name))}
            for name, w in zip(problem.program.objective, np.asarray(inputs.weights))
        },
        "baseline": alone,
        "speedup": float(given.speedup),
        "decode_speedup": float(given.decode_speedup),
        "prefill_load": float(given.prefill_load),
        "acceptance": float(given.acceptance),
        "tokens_per_round": float(given.tokens_per_round),
        "lookahead": float(design.lookahead),
        "cost_breakdown": _breakdown(given),
        "hardware_measured": bool(problem.hardware.measured),
        "assumed_overhead_share": _overhead_share(problem, design, given),
        "tokens_per_second": float(given.tokens_per_second),
        "first_token_seconds": float(given.first_token_seconds),
        "latency_seconds": float(given.latency_seconds),
        "memory": {
            "target_bytes": held.target_bytes,
            "draft_bytes": held.draft_bytes,
            "per_device_bytes": held.per_device_bytes,
            "capacity_bytes": held.capacity_bytes if np.isfinite(held.capacity_bytes) else None,
            "usable_share": MEMORY_SHARE,
            "devices": problem.devices,
            "fits": held.fits,
            "smallest_devices": held.smallest_devices,
            "smallest_devices_exactly": held.smallest_exactly,
        },
        **money(problem, given),
        "draft_loss": float(given.draft_loss),
        "target_loss": float(given.target_loss),
        "binding_constraints": [
            {"metric": name, "limit": float(limit), "multiplier": float(m)}
            for name, limit, m in zip(
                problem.program.constraints, np.asarray(inputs.limits), solved.multipliers
            )
            if float(m) > 1e-6
        ],
        "feasible": feasible,
        "kkt_residual": float(solved.kkt_residual),
        "starts_agreeing": float(solved.starts_agreeing),
        "interval_90": interval.values,
        "interval_basis": interval.basis,
        "share_of_draws_that_speculate": interval.share_that_speculate,
        "share_of_draws_left_out": interval.share_left_out,
        "sensitivities": _sensitivities(problem, solved),
        "rounded": _rounded(problem, solved, whole),
        "pareto": fronts,
        "break_even": even,
        "candidates": comparison.candidates,
        "engine_settings": _settings(problem, solved, whole, comparison) if usable else None,
        "nearest_published": comparison.published,
        "would_be_feasible_with": [] if feasible else remedies(problem, solved.design),
        "warnings": [one.text for one in found],
        "warning_severities": ["grave" if one.grave else "note" for one in found],
    }
    return Answer(values, solved)


# What a device takes whatever it moves or multiplies.
_OVERHEADS = ("pass", "layer", "matrix", "token", "logit", "round", "link")


def _overhead_share(problem: Problem, design: Design, given: Outcome) -> float:
    """Share of a round that the overheads of the device's file make up."""
    serving = problem.inputs.serving
    without = serving.hardware._replace(**{f"{name}_seconds": 0.0 for name in _OVERHEADS})
    return 1 - float(
        outcome(serving._replace(hardware=without), design).round.seconds / given.round.seconds
    )


def _baseline(problem: Problem, design: Design, given: Outcome) -> dict[str, Any]:
    """The target alone, at the batch of the design; money is None without a price."""
    serving = problem.inputs.serving
    seconds = float(given.seconds_per_token * given.speedup)
    latency = float(design.batch) * float(serving.new_tokens) * seconds
    # Prompts that others read are over before a request takes a row; the draft's reading is no part
    # of it here.
    latency += (1 - float(serving.prefill_share)) * float(target_prefill(serving, design))
    priced = float(serving.hardware.price_per_hour) > 0
    per_second = float(serving.hardware.price_per_hour) * float(serving.devices) / 3600
    return {
        "tokens_per_second": 1 / seconds,
        "latency_seconds": latency,
        "cost_per_million_tokens": 1e6 * per_second * seconds if priced else None,
        "total_cost": float(serving.volume_tokens) * per_second * seconds if priced else None,
    }


def _breakdown(given: Outcome) -> dict[str, dict[str, float]]:
    whole = float(given.round.seconds)
    parts = {name: float(getattr(given.round, name)) for name in given.round._fields}
    return {name: {"seconds": value, "share": value / whole} for name, value in parts.items()}


def _rounded(problem: Problem, solved: Solved, whole: Solved) -> dict[str, Any]:
    given, held = whole.outcome, memory(problem.inputs.serving, whole.design)
    return {
        **{name: plain(problem, whole.design, name) for name in problem.program.variables},
        "lookahead": round(float(whole.design.lookahead)),
        "batch": round(float(whole.design.batch)),
        "speedup": float(given.speedup),
        "decode_speedup": float(given.decode_speedup),
        "prefill_load": float(given.prefill_load),
        "acceptance": float(given.acceptance),
        "tokens_per_round": float(given.tokens_per_round),
        "tokens_per_second": float(given.tokens_per_second),
        "latency_seconds": float(given.latency_seconds),
        "fits": held.fits,
        "within_constraints": bool(whole.feasible),
        "loss_of_rounding": float(np.expm1(whole.objective - solved.objective)),
    }


def _settings(
    problem: Problem, solved: Solved, whole: Solved, comparison: Comparison
) -> dict[str, Any]:
    """Settings of engines and the draft that they are of, judged where the engines put it: on all devices of the target."""
    config, serving = problem.config, problem.inputs.serving
    everywhere = problem.devices == config.draft_devices
    if not everywhere:
        problem = replace(
            problem,
            config=replace(config, draft=replace(config.draft, devices=None)),
            inputs=problem.inputs._replace(serving=serving._replace(draft_devices=serving.devices)),
        )
        comparison = compare(problem, solved, whole.design)
    served = served_draft(problem, comparison, whole, everywhere)
    found = engine_settings(
        served.lookahead,
        problem.devices,
        served.name,
        config.target.name,
        round(float(whole.design.batch)),
    )
    notes = notes_of(problem, served)
    return found | {
        "draft": served._asdict() | {"pays": served.pays, "sentence": served.sentence()},
        "notes": [*found["notes"], *notes],
        "speedup_with_draft_on_all_devices": served.speedup,
    }


def _sensitivities(problem: Problem, solved: Solved) -> list[dict[str, Any]] | None:
    """All elasticities of the choice; none where it keeps no constraints, for then there is no optimum to move."""
    if not bool(solved.feasible):
        return None
    found = sensitivities(problem.program, problem.inputs, solved)
    found = of_stated_sizes(problem.program, problem.inputs, solved, found)
    errors = relative_errors(loss=problem.loss.law, acceptance=problem.acceptance.law)
    return ranked_sensitivities(problem.program, solved, jax.tree.map(np.asarray, found), errors)


def _break_even(problem: Problem, design: Design) -> dict[str, Any] | None:
    """At which batches, and from which target size on, some draft of the law speculates with
    profit.

    A measured α says nothing of other drafts, and there is no answer then.
    """
    if problem.config.draft.acceptance:
        return None
    smallest = smallest_draft(float(design.target_params))
    # Of drafts of every size, where one was given too.
    serving = problem.inputs.serving._replace(draft_shape=None)
    found = break_even(serving, design, smallest, _LARGEST_BATCH, _LARGEST_TARGET)
    least, largest, size = (
        float(found.smallest_batch),
        float(found.largest_batch),
        float(found.target_params),
    )
    return {
        "pays_at_some_batch": largest > 0,
        "smallest_batch": round(least) if np.isfinite(least) else None,
        "largest_batch": round(largest) if 0 < largest < np.inf else None,
        "pays_between_them": bool(found.gapless),
        "pays_at_every_batch": bool(found.every_batch),
        "largest_batch_considered": _LARGEST_BATCH,
        "target_params": problem.both_counts(size, "target") if 0 < size < np.inf else None,
        "pays_for_every_target": size == 0,
        "best_speedup_here": float(found.at_design.speedup),
    }


def path_of(problem: Problem, solved: Solved) -> np.ndarray | None:
    """Draft size and lookahead at every step of the best start, [steps, 2]; None unless both were
    variables.

    Sizes are in the count of the loss law, as in `landscape_of`.
    """
    names = problem.program.variables
    if not {"draft_params", "lookahead"} <= {*names}:
        return None
    path = np.asarray(solved.path)[:, [names.index("draft_params"), names.index("lookahead")]]
    path[:, 0] = problem.stated_sizes(path[:, 0], "draft", float(solved.design.aspect_ratio))
    return path


def landscape_of(problem: Problem, solved: Solved) -> Landscape:
    """The design space around an optimum, as wide as the variables may go and as high as is of interest."""
    with jax.enable_x64(True):
        inputs, best = problem.inputs, float(solved.design.draft_params)
        # Drafts of every size, where one was given too.
        inputs = inputs._replace(serving=inputs.serving._replace(draft_shape=None))
        low, high = (float(end.draft_params) for end in (inputs.lower, inputs.upper))
        if low == high:
            low, high = best / 30, best * 30
        highest = max(10.0, 2.5 * float(solved.design.lookahead))
        found = landscape(problem.program, inputs, solved.design, (low, high), highest)
        sizes = problem.stated_sizes(found.draft_params, "draft", float(solved.design.aspect_ratio))
        return found._replace(draft_params=sizes, counted=problem.counted)
