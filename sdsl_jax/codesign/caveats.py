"""What a reader must know before trusting an answer: a sentence each, the gravest first."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.codesign.drafts_at_hand import measured_with_another, named_draft
from sdsl_jax.codesign.laws import AlphaRange, law_caveats, unit_caveats, valid_range
from sdsl_jax.codesign.program import Solved
from sdsl_jax.codesign.published_drafts import family_of_drafts, is_head
from sdsl_jax.codesign.serving_problem import Problem, unit_of
from sdsl_jax.codesign.wording import METRICS, VARIABLES
from sdsl_jax.counts import short_count
from sdsl_jax.theory.serving import Design, Outcome, shapes
from sdsl_jax.theory.serving import acceptance as alpha_of

# Width of an attention head.
_HEAD = 64


class Caveat(NamedTuple):
    """A warning.

    Attributes:
      text: one sentence.
      grave: whether it questions the answer as a whole.
    """

    text: str
    grave: bool


def caveats(problem: Problem, solved: Solved, whole: Solved, speculates: bool) -> list[Caveat]:
    """All warnings about a solved problem and its optimum in whole numbers, the grave ones first."""
    grave = [
        *problem.misfits,
        *_of_the_constraints(problem, solved, whole),
        *_of_the_acceptance(solved),
        *unit_caveats(problem.loss, problem.acceptance, _stated(problem, solved.design)),
    ]
    others = [
        *problem.notes,
        *_of_the_optimum(problem, solved, speculates),
        *_of_the_laws(problem, solved.design, solved.outcome),
        *_of_the_device(problem, solved.design),
        *_of_the_workload(problem, solved.outcome),
        *_of_the_names(problem),
    ]
    return [*(Caveat(text, True) for text in grave), *(Caveat(text, False) for text in others)]


def _of_the_constraints(problem: Problem, solved: Solved, whole: Solved) -> list[str]:
    """Which constraints no design keeps; that of memory is told by the misfits of the problem where nothing fits."""
    if bool(solved.feasible):
        if bool(whole.feasible):
            return []
        return [
            "no design of a whole lookahead and batch keeps all constraints, though one of broken numbers does"
        ]
    limits = dict(zip(problem.program.constraints, np.asarray(problem.inputs.limits)))
    over = [
        name
        for name, limit in limits.items()
        if float(getattr(solved.outcome, name)) > float(limit) * (1 + 1e-6)
        and not (problem.misfits and name == "memory_bytes")
    ]
    # Of several limits, each may be kept better at the expense of the others.
    best = " at best" if len(over) == 1 else " where all are broken least"
    values = {name: float(getattr(solved.outcome, name)) for name in over}
    broken = [
        f"{METRICS[name]} is {value:.3g}{best}, and may be {float(limits[name]):.3g} {unit_of(name)}"
        for name, value in values.items()
    ]
    if problem.misfits and not broken:
        return []
    return [
        "no design keeps all constraints: " + "; ".join(broken or ["they contradict each other"])
    ]


def _of_the_acceptance(solved: Solved) -> list[str]:
    alpha = float(solved.outcome.acceptance)
    if alpha < 1:
        return []
    return [
        f"the acceptance law gives α = {alpha:.3g} ≥ 1, which is no probability: the optimum is not to be trusted"
    ]


def _stated(problem: Problem, design: Design) -> dict[str, dict[str, float]]:
    """Parameters, in the count of the loss law, and training tokens of draft and target."""
    tokens = {"draft": design.draft_tokens, "target": problem.inputs.serving.target_tokens}
    return {
        role: {
            "params": float(
                problem.stated_size(
                    getattr(design, f"{role}_params"), role, float(design.aspect_ratio)
                )
            ),
            "tokens": float(tokens[role]),
        }
        for role in tokens
    }


def _of_the_optimum(problem: Problem, solved: Solved, speculates: bool) -> list[str]:
    if problem.misfits or not bool(solved.feasible):
        # Where no design keeps the limits there is no optimum to be rough, or to rest on a bound.
        return []
    program, found = problem.program, []
    alpha = float(solved.outcome.acceptance)
    if alpha <= 0:
        found.append(
            f"the acceptance law gives α = {alpha:.2f} ≤ 0: none of the draft's tokens would be accepted"
        )
    for name, low, high in zip(
        program.variables, np.asarray(solved.at_lower), np.asarray(solved.at_upper)
    ):
        # Without speculation a lookahead of 1 is the least bad of all, and said to be so.
        if (low or high) and (speculates or name != "lookahead"):
            value = float(getattr(solved.design, name))
            shown = short_count(
                problem.stated_size(value, name.split("_")[0])
                if name in ("draft_params", "target_params")
                else value
            )
            found.append(
                f"the optimum rests on the {'smallest' if low else 'largest'} {VARIABLES[name]} considered, {shown}: "
                f"nothing holds it there but the bound of [variables] {name}"
            )
    if float(solved.starts_agreeing) < 0.25:
        found.append(
            f"only {float(solved.starts_agreeing):.0%} of the starts found this optimum; raise optimizer.starts or steps"
        )
    if float(solved.kkt_residual) > 1e-4:
        found.append(
            f"the optimiser has not converged (residual of the optimality conditions {float(solved.kkt_residual):.1g}); raise "
            "optimizer.steps or rounds"
        )
    if "aspect_ratio" in program.variables:
        found.append(
            "the acceptance law does not know depth: all that a shape costs is the penalty on its loss, "
            f"{problem.config.aspect_penalty:.2g}·ln²(aspect ratio/{problem.config.draft.aspect_ratio:g}), least at the ratio of "
            "[draft] by assumption; Kaplan et al. (2001.08361, Fig. 5) find (6 layers, 4288 wide) within 3% of (48, 1600): "
            "0.0056 from a ratio of 64"
        )
    return found


def _of_the_laws(problem: Problem, design: Design, given: Outcome) -> list[str]:
    stated = _stated(problem, design)
    spread = None
    if not problem.config.draft.acceptance and float(given.acceptance) < 1:
        larger = min(100 * float(design.draft_params), float(design.target_params))
        serving = problem.inputs.serving._replace(draft_shape=None)
        alpha = float(alpha_of(serving, design._replace(draft_params=larger)))
        of_larger = problem.stated_size(larger, "draft", float(design.aspect_ratio))
        spread = AlphaRange(stated["draft"]["params"], float(given.acceptance), of_larger, alpha)
    losses = {"draft_loss": float(given.draft_loss), "target_loss": float(given.target_loss)}
    return law_caveats(problem.loss, problem.acceptance, stated, losses, spread)


def of_break_even(problem: Problem, even: dict[str, Any] | None) -> list[str]:
    """Of the target size from which speculation pays, where the laws were not fitted on its like."""
    if even is None or even["target_params"] is None:
        return []
    size = float(even["target_params"][problem.counted])
    tokens = float(problem.inputs.serving.target_tokens)
    outside = {
        "loss": bool(problem.loss.law.about.outside(params=size, tokens=tokens)),
        "acceptance": bool(problem.acceptance.law.about.outside(target_params=size)),
    }
    fitted = [
        f"the {name} law was fitted on {valid_range(getattr(problem, name).law.about)}"
        for name in outside
        if outside[name]
    ]
    if not fitted:
        return []
    return [
        f"the target size from which speculation pays, {short_count(size)}, is extrapolated: {'; '.join(fitted)}"
    ]


def _of_the_device(problem: Problem, design: Design) -> list[str]:
    file, c, found = problem.hardware, problem.config, []
    if not file.measured:
        found.append(
            f"the overheads of {file.name} are assumed, not measured: small drafts depend on them, and sdsl calibrate measures "
            "yours"
        )
    elif file.precision.weight_bytes != c.target.weight_bytes:
        found.append(
            f"{file.name} was measured with weights of {float(file.precision.weight_bytes):g} bytes, and the target has "
            f"{c.target.weight_bytes:g}"
        )
    if c.hardware.devices > 1 and not np.isfinite(float(file.hardware.link_bytes_per_second)):
        found.append(
            f"nothing is known about the links between devices of {file.name}: communication is taken as free"
        )
    elif c.hardware.devices > 1 and not file.measured:
        latency = float(file.hardware.link_seconds)
        found.append(
            f"the latency of links between devices of {file.name} is assumed, {1e6 * latency:g} µs a step of an all-reduce"
        )
    with jax.enable_x64(True):
        width = float(shapes(problem.inputs.serving, design)[0].width)
    if width / _HEAD < c.draft_devices:
        found.append(
            f"a draft {width:.0f} wide has {max(1, int(width // _HEAD))} heads of {_HEAD}, fewer than its {c.draft_devices} "
            "devices: engines want whole heads on each"
        )
    return found


def _of_the_names(problem: Problem) -> list[str]:
    """What the names of target and draft do not tell."""
    config, found = problem.config, []
    target, family = config.target.name, family_of_drafts(config.target.name)
    if target and family is None:
        found.append(
            f"the tokenizer of {target} is not known here: whether a published model shares it is for you to check"
        )
    named = named_draft(config, problem.counted)
    if named is None:
        return found
    if is_head(named.name):
        found.append(
            f"{named.name} is a drafting head and no model by itself: the laws know neither its acceptance nor its cost, and no "
            "settings here are for it"
        )
    elif named.size is None:
        found.append(
            f"the size of {named.name} is not known, so that no lookahead can be given for it: give it as the only size of "
            "[draft] candidates"
        )
    elif measured_with_another(config, named, problem.counted):
        found.append(
            f"the acceptance was measured with a draft of {short_count(config.draft.candidates[0])}, and {named.name} is one of "
            f"{short_count(named.size)}: it has no lookahead here"
        )
    if named.model is not None and target and named.model.family != family:
        known = (
            "another tokenizer than" if family else "a tokenizer that is not known to be that of"
        )
        found.append(f"{named.name} has {known} {target}: engines need one that both share")
    return found


def _of_the_workload(problem: Problem, given: Outcome) -> list[str]:
    w, found, load = problem.config.workload, [], float(given.prefill_load)
    if load > 0.5:
        found.append(
            f"prefill takes {load:.0%} of the time, and limits S: with prompts read elsewhere it would be "
            f"{float(given.decode_speedup):.2f} at this design"
        )
    if w.prompt > w.mean_context:
        found.append(
            f"prompts of {w.prompt:g} tokens are longer than the mean context of {w.mean_context:g}, which holds the prompt and "
            "half of the new tokens"
        )
    asked = w.prompt_tokens + w.new_tokens / 2
    if w.context and w.prompt_tokens and w.prompt <= w.mean_context and w.context > 1.05 * asked:
        found.append(
            f"the mean context of {w.context:g} is longer than prompts of {w.prompt_tokens:g} and half of {w.new_tokens:g} new "
            f"tokens make it, {asked:g}: one of them is wrong"
        )
    return found
