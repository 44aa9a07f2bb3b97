"""The answer to a co-design problem: what `sdsl codesign --json` prints, as dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from sdsl_jax.codesign.break_even import PayingBatches, break_even
from sdsl_jax.codesign.caveats import caveats
from sdsl_jax.codesign.comparison import (
    Candidate,
    ComparedDraft,
    SuggestedDraft,
    compare,
    on_all_devices,
)
from sdsl_jax.codesign.concurrency import Concurrency, concurrency
from sdsl_jax.codesign.designs import (
    FrontPoint,
    energy,
    front,
    interval_90,
    money,
    round_design,
    sizes_within,
)
from sdsl_jax.codesign.engines import EngineSettings, settings_of_best_draft
from sdsl_jax.codesign.experts import MixtureOfExperts, mixture_of_experts
from sdsl_jax.codesign.optimise import TOLERANCE
from sdsl_jax.codesign.program import Solved, solve_together
from sdsl_jax.codesign.remedies import Remedy, keeps_limits, remedies
from sdsl_jax.codesign.sensitivity import Sensitivity, ranked_sensitivities
from sdsl_jax.codesign.serving_problem import (
    Memory,
    ServingProblem,
    Size,
    memory,
    smallest_draft,
)
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require
from sdsl_jax.notebook import table_of
from sdsl_jax.records.documents import document, to_json
from sdsl_jax.theory.hardware import Round
from sdsl_jax.theory.serving import Design, Outcome, Serving, outcome, target_prefill

# Batches of the front of latency against throughput; training tokens of that of training cost
# against speed-up.
_BATCHES = tuple(2.0**k for k in range(11))
_DRAFT_TOKENS = tuple(float(d) for d in np.geomspace(1e10, 1e13, 13))
# Rounds of the optimiser, as a multiple, where it found no feasible design and there is one.
_PATIENCE = 4
# How far a break-even is looked for.
_LARGEST_BATCH, _LARGEST_TARGET = 4096, 1e13
# What a device takes whatever it moves or multiplies.
_OVERHEADS = ("pass", "layer", "matrix", "wide", "token", "logit", "round", "link")


@dataclass(frozen=True)
class DesignValues:
    """A design as plain values.

    Attributes:
      draft_params: Size of the draft.
      lookahead: Drafts per round, γ.
      draft_tokens: Training tokens of the draft.
      aspect_ratio: Width over layers of the draft.
      batch: Rows that are decoded together.
      target_params: Size of the target.
    """

    draft_params: Size
    lookahead: float
    draft_tokens: float
    aspect_ratio: float
    batch: float
    target_params: Size


@dataclass(frozen=True)
class Performance:
    """What a design gives.

    Attributes:
      speedup: Speed-up S over the target alone, prefills included.
      decode_speedup: Speed-up S of decoding alone.
      prefill_load: Share of the decoding devices' time that prefills take.
      acceptance: Probability α that a draft token is accepted.
      tokens_per_round: Tokens emitted per round, τ, the bonus token included.
      tokens_per_second: Tokens of all rows per second.
      latency_seconds: Seconds of a request, its prefill included.
    """

    speedup: float
    decode_speedup: float
    prefill_load: float
    acceptance: float
    tokens_per_round: float
    tokens_per_second: float
    latency_seconds: float


@dataclass(frozen=True)
class RoundedDesign(DesignValues, Performance):
    """The best design with whole lookahead and batch; other variables have adapted.

    Attributes:
      draft_layers: Layers of the draft, by the aspect ratio of its family.
      draft_width: Width of the draft's residual stream.
      fits: Whether both models fit; null where the memory is unknown.
      within_constraints: Whether every constraint holds.
      loss_of_rounding: By which share the objective is worse than unrounded.
    """

    draft_layers: float
    draft_width: float
    fits: bool | None
    within_constraints: bool
    loss_of_rounding: float


@dataclass(frozen=True)
class Baseline:
    """The target alone, at the batch of the design.

    Attributes:
      tokens_per_second: Tokens of all rows per second.
      latency_seconds: Seconds of a request, its prefill included.
      output_token_seconds: Seconds between two tokens of a request while it decodes (TPOT).
      cost_per_million_tokens: In the unit of the price; null without one.
      joules_per_token: Energy of a token; null where the power of a device is unknown.
      total_cost: Cost of serving the volume; null without a price.
    """

    tokens_per_second: float
    latency_seconds: float
    output_token_seconds: float
    cost_per_million_tokens: float | None
    joules_per_token: float | None
    total_cost: float | None


@dataclass(frozen=True)
class Objective:
    """One metric that is to be small.

    Attributes:
      weight: Weight of its logarithm in the objective.
      value: Its value at the optimum.
    """

    weight: float
    value: float


@dataclass(frozen=True)
class RoundPart:
    """One part of the time of a round.

    Attributes:
      seconds: Seconds of a round.
      share: Share of the round.
    """

    seconds: float
    share: float


@dataclass(frozen=True)
class BindingConstraint:
    """A constraint that the optimum rests on.

    Attributes:
      metric: Metric that is limited.
      limit: Its largest value.
      multiplier: Gain of the objective per e-fold of the limit.
    """

    metric: str
    limit: float
    multiplier: float


@dataclass(frozen=True)
class PayingRegion(PayingBatches):
    """The batches and target sizes at which some draft speculates with profit, memory aside.

    Attributes:
      target_params: Target size from which speculation pays, at this batch; null where no
        such size was found.
      pays_for_every_target: Whether every target size considered pays.
      best_speedup_here: Best S of any draft at this batch and target.
    """

    target_params: Size | None
    pays_for_every_target: bool
    best_speedup_here: float


@dataclass(frozen=True)
class Answer(Performance):
    """The answer to a co-design problem. Sizes are in the count of the loss law where nothing else
    is said; seconds, bytes, and money in the unit of the price.

    Attributes:
      speculate: Whether to speculate.
      feasible: Whether a design in whole numbers keeps every constraint.
      variables: The optimum: value of each variable.
      design: The optimum: the whole design.
      lookahead: Drafts per round at the optimum, γ, a real number.
      rounded: The optimum with whole lookahead and batch: what to build.
      indifference_1pct: Draft sizes, each at its best whole lookahead and all else as rounded,
        that lose at most 1% of the objective; null where the draft size is no variable or nothing
        is feasible.
      indifference_5pct: Likewise, of at most 5%.
      objective: What was minimised, by metric.
      baseline: The target alone.
      cost_breakdown: Time of a round, by part; with overlapped drafting also `overlap`, below 0.
      hardware_measured: Whether the device's file holds measured overheads.
      assumed_overhead_share: Share of a round that overheads of the file make up.
      first_token_seconds: Seconds of a prefill by both models (TTFT).
      output_token_seconds: Seconds between two tokens of a request while it decodes (TPOT).
      memory: Weights and caches against the memory of the devices.
      concurrency: Rows and cache tokens that fit with the draft of `rounded` and without, and the
        throughput of so many rows; null where the memory is unknown.
      mixture_of_experts: A target with experts beside its dense twin, with the draft of `rounded`;
        null for a dense target.
      cost_per_million_tokens: Null without a price.
      joules_per_token: Energy of a token; null where the power of a device is unknown.
      training_cost: Cost of training the draft; null without a price.
      total_cost: Training the draft and serving the volume.
      draft_loss: Loss of the draft in nats per token.
      target_loss: Loss of the target in nats per token.
      binding_constraints: Constraints that hold the optimum.
      kkt_residual: Largest violation of the conditions of an optimum.
      starts_agreeing: Share of the optimiser's starts that reached the optimum.
      interval_90: 90% interval over draws of the laws of each variable, speed-up and
        acceptance.
      interval_basis: What the intervals are taken over, or why there are none.
      share_of_draws_that_speculate: Null where the laws have no draws.
      share_of_draws_left_out: Draws of the laws without an optimum.
      sensitivities: What the choice depends on, most first.
      pareto: Best designs by batch, and by draft tokens.
      next_batch_breaks: Limits that the best design at the next larger batch of `pareto` breaks.
      break_even: Where speculation pays; null for a measured α.
      candidates: The draft sizes that were asked about.
      nearest_published: Published models in the draft's place.
      engine_settings: Settings to paste; null if nothing is usable.
      would_be_feasible_with: Changes that make it feasible, one at a time.
      warnings: What to know before trusting the answer, critical ones first.
      warning_severities: "grave" or "note", for each warning.
    """

    speculate: bool
    feasible: bool
    variables: dict[str, float | Size]
    design: DesignValues
    lookahead: float
    rounded: RoundedDesign
    indifference_1pct: list[float] | None
    indifference_5pct: list[float] | None
    objective: dict[str, Objective]
    baseline: Baseline
    cost_breakdown: dict[str, RoundPart]
    hardware_measured: bool
    assumed_overhead_share: float
    first_token_seconds: float
    output_token_seconds: float
    memory: Memory
    concurrency: Concurrency | None
    mixture_of_experts: MixtureOfExperts | None
    cost_per_million_tokens: float | None
    joules_per_token: float | None
    training_cost: float | None
    total_cost: float | None
    draft_loss: float
    target_loss: float
    binding_constraints: list[BindingConstraint]
    kkt_residual: float
    starts_agreeing: float
    interval_90: dict[str, list[float]] | None
    interval_basis: str
    share_of_draws_that_speculate: float | None
    share_of_draws_left_out: float | None
    sensitivities: list[Sensitivity] | None
    pareto: dict[str, list[FrontPoint]]
    next_batch_breaks: list[str]
    break_even: PayingRegion | None
    candidates: list[Candidate]
    nearest_published: list[SuggestedDraft]
    engine_settings: EngineSettings | None
    would_be_feasible_with: list[Remedy]
    warnings: list[str]
    warning_severities: list[str]

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two."""
        whole = self.rounded
        if not self.feasible:
            return f"No feasible design: {self.warnings[0]}"
        if self.acceptance >= 1:
            return "No answer: where every draft token is accepted, no draft and no lookahead is the best."
        text = choice_sentence(
            self.speculate, whole.draft_params.total, round(whole.lookahead), whole.speedup
        )
        if self.speculate or self.break_even is None:
            return text
        # Break-evens are those of the best draft of the law, which need not be one that was asked
        # about.
        asked = bool(self.candidates) or "draft_params" not in self.variables
        return " ".join([text, *_where_it_pays(self.break_even, asked)])

    def to_json(self) -> dict[str, Any]:
        """The answer as `sdsl codesign --json` prints it."""
        return {name: to_json(value) for name, value in vars(self).items()}

    def __repr__(self) -> str:
        return f"<Answer: {self.verdict}>"

    def _repr_html_(self) -> str:
        whole = self.rounded
        rows = {
            "draft size": f"{short_count(whole.draft_params.total)} parameters",
            "lookahead": f"{whole.lookahead}",
            "speed-up": f"{whole.speedup:.2f}×",
            "acceptance": f"{whole.acceptance:.3f}",
            "tokens/s": f"{whole.tokens_per_second:,.0f}",
            "latency": f"{whole.latency_seconds:.2f} s",
        }
        return table_of(self.verdict, rows)


def choice_sentence(speculate: bool, draft_params: float, lookahead: int, speedup: float) -> str:
    """The choice in a sentence: whether to speculate, with which draft, and what it gains.

    Args:
      speculate: Whether to speculate.
      draft_params: All parameters of the draft.
      lookahead: Drafts per round.
      speedup: Speed-up S over the target alone.
    """
    if not speculate:
        return (
            f"Do not speculate: the best choice is {speedup:.2f} times as fast as the target alone."
        )
    ahead = "1 token ahead" if lookahead == 1 else f"{lookahead} tokens ahead"
    return (
        f"Speculate: a draft of {short_count(draft_params)} parameters, {ahead}, is "
        f"{speedup:.2f} times as fast as the target alone."
    )


def _where_it_pays(region: PayingRegion, with_another_draft: bool) -> list[str]:
    pays = "With another draft it pays" if with_another_draft else "It pays"
    texts = [f"{pays} at {region.batches}."] if region.pays_at_some_batch else []
    if region.target_params:
        size = short_count(region.target_params.total)
        texts.append(f"{pays} for targets of {size} parameters or more.")
    elif not region.pays_for_every_target and not region.pays_at_some_batch:
        texts.append("No batch and no target size considered makes it pay.")
    return texts


def solve(problem: ServingProblem) -> Answer:
    """Solves a problem and answers it in float64.

    Raises:
      SdslError: the laws give nothing finite there.
    """
    with jax.enable_x64(True):
        solved, *by_batch = _at_batches(problem)
        infeasible = not solved.feasible and not problem.memory_errors
        if infeasible and keeps_limits(problem, solved.design):
            # A limit that hardly moves with the choice, as memory with a small draft, takes more
            # rounds to be kept.
            patient = replace(problem.program, rounds=_PATIENCE * problem.program.rounds)
            problem = replace(problem, program=patient)
            solved, *by_batch = _at_batches(problem)
        require(
            np.isfinite([solved.objective, solved.outcome.speedup]).all(),
            f"for a target of {problem.config.target.params:g} parameters the laws give no finite "
            "speed: it is too far outside them.",
        )
        return _answer(problem, solved, by_batch)


def _at_batches(problem: ServingProblem) -> list[Solved]:
    """The optimum, and those at given batches."""
    inputs = [problem.inputs, *(problem.inputs.fixed_at("batch", b) for b in _BATCHES)]
    return solve_together(problem.program, inputs, problem.config.optimizer)


def _answer(problem: ServingProblem, solved: Solved, by_batch: list[Solved]) -> Answer:
    program, inputs, serving = problem.program, problem.inputs, problem.inputs.serving
    design, gives = jax.tree.map(float, (solved.design, solved.outcome))
    solve_all = partial(solve_together, program, optimizer=problem.config.optimizer)
    whole, loss_of_rounding = round_design(program, inputs, solved, solve_all=solve_all)
    feasible = bool(solved.feasible) and bool(whole.feasible) and not problem.memory_errors
    # An α of 1 or more is no probability, and nothing follows from it.
    usable = feasible and gives.acceptance < 1
    speculates = usable and float(whole.outcome.speedup) > 1
    within: list[list[float] | None] = [None, None]
    if usable and "draft_params" in program.variables:
        within = [*sizes_within(problem, whole, (0.01, 0.05))]
    pareto = {"batch": front(problem, by_batch)}
    if problem.priced:
        many = [inputs.fixed_at("draft_tokens", tokens) for tokens in _DRAFT_TOKENS]
        pareto["draft_tokens"] = front(problem, solve_all(many))
    interval = interval_90(problem)
    comparison = compare(problem, solved, whole.design)
    engines = None
    if usable:
        where_run = on_all_devices(problem, solved, whole, comparison)
        engines = settings_of_best_draft(problem.config, whole.design, where_run)
    region = None if problem.config.draft.acceptance else _paying_region(problem, design)
    alone = _baseline(problem, design, gives)
    rounded = _rounded(problem, whole, comparison.optimum, loss_of_rounding)
    warnings = caveats(
        problem,
        solved,
        whole,
        speculates,
        rounded.draft_width,
        region.target_params if region else None,
        alone.total_cost,
    )
    round_seconds = gives.round.seconds
    return document(
        Answer,
        gives,
        speculate=speculates,
        feasible=feasible,
        variables={name: problem.sizes.in_design(design, name) for name in program.variables},
        design=DesignValues(**_values(problem, design)),
        lookahead=design.lookahead,
        rounded=rounded,
        indifference_1pct=within[0],
        indifference_5pct=within[1],
        objective={
            name: Objective(float(weight), getattr(gives, name))
            for name, weight in zip(program.objective, inputs.weights)
        },
        baseline=alone,
        cost_breakdown={
            name: RoundPart(part, part / round_seconds) for name, part in _parts(gives.round)
        },
        hardware_measured=bool(problem.hardware.measured),
        assumed_overhead_share=_overhead_share(serving, design, gives),
        memory=memory(serving, design),
        concurrency=concurrency(problem, whole.design),
        mixture_of_experts=mixture_of_experts(
            problem, whole.design, float(whole.outcome.acceptance)
        ),
        **money(problem, gives),
        **energy(problem, gives),
        binding_constraints=[
            BindingConstraint(name, float(limit), float(multiplier))
            for name, limit, multiplier in zip(
                program.constraints, inputs.limits, solved.multipliers
            )
            if float(multiplier) > 1e-6
        ],
        kkt_residual=float(solved.kkt_residual),
        starts_agreeing=float(solved.starts_agreeing),
        interval_90=interval.values,
        interval_basis=interval.basis,
        share_of_draws_that_speculate=interval.share_that_speculate,
        share_of_draws_left_out=interval.share_left_out,
        sensitivities=ranked_sensitivities(problem, solved),
        pareto=pareto,
        next_batch_breaks=_broken_limits(problem, by_batch),
        break_even=region,
        candidates=comparison.candidates,
        nearest_published=comparison.published,
        engine_settings=engines,
        would_be_feasible_with=[] if feasible else remedies(problem, design),
        warnings=[one.text for one in warnings],
        warning_severities=["grave" if one.critical else "note" for one in warnings],
    )


def _broken_limits(problem: ServingProblem, by_batch: Sequence[Solved]) -> list[str]:
    """The limits that a design breaks at the first batch past the largest that keeps all of them."""
    kept = max((i for i, one in enumerate(by_batch) if one.feasible), default=-1)
    limits = zip(problem.program.constraints, np.asarray(problem.inputs.limits))
    return [
        name
        for name, limit in limits
        for one in by_batch[kept + 1 : kept + 2]
        if float(getattr(one.outcome, name)) > (1 + TOLERANCE) * limit
    ]


def _values(problem: ServingProblem, design: Design) -> dict[str, Any]:
    return {name: problem.sizes.in_design(design, name) for name in Design._fields}


def _rounded(
    problem: ServingProblem, whole: Solved, draft: ComparedDraft, loss: float
) -> RoundedDesign:
    values = _values(problem, whole.design)
    values |= {name: round(values[name]) for name in ("lookahead", "batch")}
    return document(
        RoundedDesign,
        jax.tree.map(float, whole.outcome),
        **values,
        draft_layers=draft.draft_layers,
        draft_width=draft.draft_width,
        fits=draft.fits,
        within_constraints=bool(whole.feasible),
        loss_of_rounding=loss,
    )


def _overhead_share(serving: Serving, design: Design, gives: Outcome) -> float:
    """Share of a round that the overheads of the device's file make up."""
    without = serving.hardware._replace(**{f"{name}_seconds": 0.0 for name in _OVERHEADS})
    bare = outcome(serving._replace(hardware=without), design)
    return 1 - float(bare.round.seconds / gives.round.seconds)


def _parts(of_round: Round) -> list[tuple[str, float]]:
    """The parts of a round, which add up to it; an overlap counts negative."""
    parts = {"draft": of_round.draft, "verify": of_round.verify, "overhead": of_round.overhead}
    overlap = {"overlap": -of_round.overlap} if of_round.overlap else {}
    return [(name, float(seconds)) for name, seconds in (parts | overlap).items()]


def _baseline(problem: ServingProblem, design: Design, gives: Outcome) -> Baseline:
    """The target alone, at the batch of the design."""
    serving = problem.inputs.serving
    seconds = float(gives.seconds_per_token * gives.speedup)
    latency = float(design.batch) * float(serving.new_tokens) * seconds
    # Prompts that others read are over before a request takes a row; the draft's reading is no part
    # of it here.
    first = float(target_prefill(serving, design))
    latency += (1 - float(serving.prefill_share)) * first
    device_seconds = float(serving.devices) * seconds
    cost = float(serving.hardware.price_per_hour) * device_seconds / 3600
    joules = float(serving.hardware.watts) * device_seconds
    return Baseline(
        1 / seconds,
        latency,
        (latency - first) / float(serving.new_tokens),
        1e6 * cost if problem.priced else None,
        joules if problem.powered else None,
        float(serving.volume_tokens) * cost if problem.priced else None,
    )


def _paying_region(problem: ServingProblem, design: Design) -> PayingRegion:
    """Where some draft of the law speculates with profit: at which batches, and from which target
    size on."""
    # Of drafts of every size, where one was given too.
    serving = problem.inputs.serving._replace(draft_shape=None)
    smallest = smallest_draft(float(design.target_params))
    ends = break_even(serving, design, smallest, _LARGEST_BATCH, _LARGEST_TARGET)
    least, largest = float(ends.smallest_batch), float(ends.largest_batch)
    size = float(ends.target_params)
    return PayingRegion(
        pays_at_some_batch=largest > 0,
        smallest_batch=round(least) if np.isfinite(least) else None,
        largest_batch=round(largest) if 0 < largest < np.inf else None,
        pays_between_them=bool(ends.gapless),
        pays_at_every_batch=bool(ends.every_batch),
        largest_batch_considered=_LARGEST_BATCH,
        target_params=problem.sizes.of(size, "target") if 0 < size < np.inf else None,
        pays_for_every_target=size == 0,
        best_speedup_here=float(ends.at_design.speedup),
    )
