"""What a reader must know before trusting an answer, a sentence each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sdsl_jax.codesign.drafts import is_head
from sdsl_jax.codesign.laws import AlphaRange, law_caveats, unit_caveats, valid_range
from sdsl_jax.codesign.optimise import convergence_warning
from sdsl_jax.codesign.program import METRICS, VARIABLES, Solved
from sdsl_jax.codesign.serving_problem import ServingProblem, Size
from sdsl_jax.counts import short_count
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.theory.hardware import family_shape
from sdsl_jax.theory.serving import Design, Outcome, size_in_law
from sdsl_jax.theory.serving import acceptance as alpha_of

# Width of an attention head.
_HEAD = 64
_UNITS = {
    "seconds": "s",
    "cost": "in the unit of the price",
    "joules": "J",
    "bytes": "bytes",
    "flops": "FLOPs",
    "loss": "nats per token",
}


class Caveat(NamedTuple):
    """A warning.

    Attributes:
      text: One sentence.
      critical: Whether it questions the answer as a whole.
    """

    text: str
    critical: bool


def caveats(
    problem: ServingProblem,
    solved: Solved,
    whole: Solved,
    speculates: bool,
    draft_width: float,
    paying_target: Size | None,
    cost_alone: float | None,
) -> list[Caveat]:
    """All warnings about an answer, the critical ones first.

    Args:
      problem: The problem that was solved.
      solved: Its optimum.
      whole: The optimum in whole numbers.
      speculates: Whether the answer is to speculate.
      draft_width: Width of its draft.
      paying_target: Target size from which speculation pays, where there is one.
      cost_alone: Cost of serving the volume without a draft, where a price is known.
    """
    units, laws = of_the_laws(problem, solved.design, solved.outcome)
    critical = [
        *problem.memory_errors,
        *_of_the_constraints(problem, solved, whole),
        *_of_the_acceptance(solved),
        *units,
    ]
    others = [
        *problem.notes,
        *_of_the_optimum(problem, solved, speculates),
        *laws,
        *_of_the_experts(problem, solved.design),
        *_of_the_overlap(problem, whole.outcome, float(whole.design.lookahead)),
        *of_the_device(problem, draft_width),
        *_of_the_workload(problem, solved.outcome),
        *_of_the_names(problem),
        *_of_the_break_even(problem, paying_target),
        *_of_the_cost(problem, solved.outcome, cost_alone),
    ]
    return [Caveat(text, True) for text in critical] + [Caveat(text, False) for text in others]


def _of_the_constraints(problem: ServingProblem, solved: Solved, whole: Solved) -> list[str]:
    """Which constraints no design keeps. Of memory, the problem itself says why nothing fits."""
    if int(solved.status) == SolverStatus.NON_FINITE:
        return [convergence_warning(solved.status, solved.kkt_residual)]
    if solved.feasible:
        if whole.feasible:
            return []
        return [
            "no design with an integer lookahead and batch satisfies every constraint; a fractional one does"
        ]
    limits = dict(zip(problem.program.constraints, np.asarray(problem.inputs.limits)))
    over = {
        name: float(getattr(solved.outcome, name))
        for name, limit in limits.items()
        if float(getattr(solved.outcome, name)) > float(limit) * (1 + 1e-6)
        and not (problem.memory_errors and name == "memory_bytes")
    }
    # Of several limits, each may be kept better at the expense of the others.
    best = " at best" if len(over) == 1 else " where all are broken least"
    broken = [
        f"{METRICS[name]} is {value:.3g}{best}, and may be {float(limits[name]):.3g} {_unit(name)}"
        for name, value in over.items()
    ]
    if problem.memory_errors and not broken:
        return []
    return [
        "no design keeps all constraints: " + "; ".join(broken or ["they contradict each other"])
    ]


def _unit(metric: str) -> str:
    return next(unit for part, unit in _UNITS.items() if part in metric)


def _of_the_acceptance(solved: Solved) -> list[str]:
    alpha = float(solved.outcome.acceptance)
    if alpha < 1:
        return []
    return [
        f"the acceptance law gives α = {alpha:.3g} ≥ 1, which is not a probability: do not trust the optimum"
    ]


def _stated(problem: ServingProblem, design: Design) -> dict[str, dict[str, float]]:
    """Parameters, in the count of the loss law, and training tokens of draft and target."""
    tokens = {"draft": design.draft_tokens, "target": problem.inputs.serving.target_tokens}
    stated = {
        role: {"params": problem.sizes.stated(design, f"{role}_params"), "tokens": float(count)}
        for role, count in tokens.items()
    }
    if problem.config.target.experts > 1:
        stated["target"]["params"] = _target_in_laws(problem, float(design.target_params))
    return stated


def _target_in_laws(problem: ServingProblem, params: float) -> float:
    """The size that a target of `params` non-embedding parameters has in the loss law."""
    shape = family_shape(np.float64(params), problem.sizes.families["target"])
    return float(size_in_law(shape, problem.loss.law))


def _of_the_experts(problem: ServingProblem, design: Design) -> list[str]:
    """What the laws take a mixture of experts for, and how its experts are chosen."""
    target = problem.config.target
    if target.experts == 1:
        return []
    params = float(design.target_params)
    shape = family_shape(np.float64(params), problem.sizes.families["target"])
    stated = problem.sizes.stated(design, "target_params")
    active = short_count(stated - float(shape.params - shape.active_params))
    return [
        f"the laws are of dense models: the target counts as one of {short_count(_target_in_laws(problem, params))} parameters, "
        f"the geometric mean of all {short_count(stated)} and the {active} that a token passes through, a rule of thumb",
        "tokens are taken to choose experts uniformly and independently; where they favour the same ones, a pass over several "
        "reads fewer than counted here",
    ]


def _of_the_overlap(problem: ServingProblem, gives: Outcome, lookahead: float) -> list[str]:
    """What max(γ·d, v) leaves out."""
    if not problem.config.hardware.overlapped:
        return []
    alpha = float(np.clip(gives.acceptance, 0.0, 1.0))
    power = 1 + max(1, round(lookahead))
    right = alpha**power
    in_turn = gives.round._replace(overlap=0.0).seconds
    seconds = right * gives.round.seconds + (1 - right) * in_turn
    single = float(gives.tokens_per_round * gives.step_seconds / seconds)
    own, more = problem.config.hardware.devices, problem.config.draft_devices
    return [
        f"overlapped drafting is taken as perfect, so S is an upper bound: a round takes max(γ·d, v), as if every draft made "
        f"during a verify pass were of use; a single guess of how the round ends is right in about α^{power} = {right:.0%} of "
        f"the rounds, and S of decoding would be {single:.2f}",
        f"S compares with the target alone on its {own} device{'s' * (own > 1)}; the draft has {more} more, which cost and "
        "energy count",
    ]


def _of_the_optimum(problem: ServingProblem, solved: Solved, speculates: bool) -> list[str]:
    if problem.memory_errors or not solved.feasible:
        # Where no design keeps the limits there is no optimum to be rough, or to rest on a bound.
        return []
    texts = []
    alpha = float(solved.outcome.acceptance)
    if alpha <= 0:
        texts.append(
            f"the acceptance law gives α = {alpha:.2f} ≤ 0: none of the draft's tokens would be accepted"
        )
    for name, low, high in zip(
        problem.program.variables, np.asarray(solved.at_lower), np.asarray(solved.at_upper)
    ):
        # Without speculation a lookahead of 1 is the least bad of all, and said to be so.
        if (low or high) and (speculates or name != "lookahead"):
            shown = short_count(problem.sizes.stated(solved.design, name))
            texts.append(
                f"the optimum rests on the {'smallest' if low else 'largest'} {VARIABLES[name]} considered, {shown}: "
                f"nothing holds it there but the bound of [variables] {name}"
            )
    if float(solved.starts_agreeing) < 0.25:
        texts.append(
            f"only {float(solved.starts_agreeing):.0%} of the starts found this optimum; raise optimizer.starts or steps"
        )
    if text := convergence_warning(solved.status, solved.kkt_residual):
        texts.append(text)
    if "aspect_ratio" in problem.program.variables:
        texts.append(
            "the acceptance law does not know depth: all that a shape costs is the penalty on its loss, "
            f"{problem.config.aspect_penalty:.2g}·ln²(aspect ratio/{problem.config.draft.aspect_ratio:g}), least at the ratio of "
            "[draft] by assumption; Kaplan et al. (2001.08361, Fig. 5) find (6 layers, 4288 wide) within 3% of (48, 1600): "
            "0.0056 from a ratio of 64"
        )
    return texts


def of_the_laws(
    problem: ServingProblem, design: Design, gives: Outcome
) -> tuple[list[str], list[str]]:
    """Sizes and tokens in doubtful units, and all else about the laws."""
    stated = _stated(problem, design)
    spread = None
    if not problem.config.draft.acceptance and float(gives.acceptance) < 1:
        larger = min(100 * float(design.draft_params), float(design.target_params))
        other = design._replace(draft_params=larger)
        alpha = float(alpha_of(problem.inputs.serving._replace(draft_shape=None), other))
        spread = AlphaRange(
            stated["draft"]["params"],
            float(gives.acceptance),
            problem.sizes.stated(other, "draft_params"),
            alpha,
        )
    losses = {"draft_loss": float(gives.draft_loss), "target_loss": float(gives.target_loss)}
    laws = problem.loss, problem.acceptance, stated
    return unit_caveats(*laws), law_caveats(*laws, losses, spread)


def _of_the_break_even(problem: ServingProblem, size: Size | None) -> list[str]:
    """On the target size from which speculation pays, where the laws were not fitted on its like."""
    if size is None:
        return []
    params = float(getattr(size, problem.sizes.counted))
    shown = short_count(params)
    if problem.config.target.experts > 1:
        params = _target_in_laws(problem, size.non_embedding)
    tokens = float(problem.inputs.serving.target_tokens)
    loss, acceptance = problem.loss.law.about, problem.acceptance.law.about
    fitted = []
    if loss.outside(params=params, tokens=tokens):
        fitted.append(f"the loss law was fitted on {valid_range(loss)}")
    if acceptance.outside(target_params=params):
        fitted.append(f"the acceptance law was fitted on {valid_range(acceptance)}")
    if not fitted:
        return []
    return [
        f"the target size from which speculation pays, {shown}, is extrapolated: {'; '.join(fitted)}"
    ]


def _of_the_cost(problem: ServingProblem, gives: Outcome, alone: float | None) -> list[str]:
    """Whether training the draft costs more than it saves."""
    if "total_cost" not in problem.program.objective or alone is None:
        return []
    if float(gives.total_cost) <= alone:
        return []
    return [
        f"training the draft costs {float(gives.training_cost):.3g}, more than speculation saves: serving the volume by the "
        f"target alone costs {alone:.3g}, with the draft {float(gives.total_cost):.3g}"
    ]


def of_the_device(problem: ServingProblem, width: float) -> list[str]:
    """What the times of a device rest on; `width` is that of the draft."""
    file, config = problem.hardware, problem.config
    texts = []
    if file.engine is not None:
        texts += [note[0].lower() + note[1:].rstrip(".") for note in file.notes]
    elif not file.measured:
        texts.append(
            f"the overheads of {file.name} are assumed, not measured: small drafts depend on them, and sdsl calibrate measures "
            "yours"
        )
    if (file.measured or file.engine) and (
        file.precision.weight_bytes != config.target.weight_bytes
    ):
        texts.append(
            f"{file.name} was measured with weights of {float(file.precision.weight_bytes):g} bytes, and the target has "
            f"{config.target.weight_bytes:g}"
        )
    if config.hardware.devices > 1 and not np.isfinite(float(file.hardware.link_bytes_per_second)):
        texts.append(
            f"nothing is known about the links between devices of {file.name}: communication is taken as free"
        )
    elif config.hardware.devices > 1 and (file.engine is not None or not file.measured):
        latency = float(file.hardware.link_seconds)
        texts.append(
            f"the latency of links between devices of {file.name} is assumed, {1e6 * latency:g} µs a step of an all-reduce"
        )
    if width / _HEAD < config.draft_devices:
        texts.append(
            f"a draft {width:.0f} wide has {max(1, int(width // _HEAD))} heads of {_HEAD}, fewer than its {config.draft_devices} "
            "devices: engines want whole heads on each"
        )
    return texts


def _of_the_names(problem: ServingProblem) -> list[str]:
    """What the names of target and draft do not tell."""
    config, named, family = problem.config, problem.drafts.named, problem.drafts.family
    texts: list[str] = []
    target = config.target.name
    if target and family is None:
        texts.append(
            f"the tokenizer of {target} is unknown here: check yourself whether a published model shares it"
        )
    if named is None:
        return texts
    if is_head(named.name):
        texts.append(
            f"{named.name} is a drafting head and no model by itself: the laws know neither its acceptance nor its cost, and no "
            "settings here are for it; to compare it, measure its acceptance length and ask sdsl lookahead --acceptance-length"
        )
    elif named.size is None:
        texts.append(
            f"the size of {named.name} is unknown, so no lookahead can be given for it: write its size as the only entry of "
            "[draft] candidates"
        )
    elif problem.drafts.measured_with_another:
        texts.append(
            f"the acceptance was measured with a draft of {short_count(config.draft.candidates[0])} parameters, and "
            f"{named.name} has {short_count(named.size)}: no lookahead can be given for it"
        )
    if named.model is not None and target and named.model.family != family:
        difference = (
            "a different tokenizer from" if family else "a tokenizer that may differ from that of"
        )
        texts.append(f"{named.name} has {difference} {target}: engines need the same one for both")
    return texts


def _of_the_workload(problem: ServingProblem, gives: Outcome) -> list[str]:
    w, load = problem.config.workload, float(gives.prefill_load)
    texts = []
    if load > 0.5:
        texts.append(
            f"prefill takes {load:.0%} of the time, and limits S: with prompts read elsewhere it would be "
            f"{float(gives.decode_speedup):.2f} at this design"
        )
    if w.prompt > w.mean_context:
        texts.append(
            f"prompts of {w.prompt:g} tokens are longer than the mean context of {w.mean_context:g}, which holds the prompt and "
            "half of the new tokens"
        )
    asked = w.prompt_tokens + w.new_tokens / 2
    if w.context and w.prompt_tokens and w.prompt <= w.mean_context and w.context > 1.05 * asked:
        texts.append(
            f"the mean context of {w.context:g} is longer than prompts of {w.prompt_tokens:g} and half of {w.new_tokens:g} new "
            f"tokens make it, {asked:g}: one of them is wrong"
        )
    return texts
