"""What an explorer page shows in one state: numbers for its charts, and its sentences.

Every number is one of `codesign`: the page computes nothing. Charts read the datasets of
`View.datasets`, whose rows may hold lists; the specifications of the charts flatten them. A dataset
may also be {"shared": ..., "rows": ...}, where every row holds what is shared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdsl_jax.codesign.answer import choice_sentence
from sdsl_jax.codesign.caveats import of_the_device, of_the_laws
from sdsl_jax.codesign.comparison import Candidate, SuggestedDraft, compare, on_all_devices
from sdsl_jax.codesign.designs import sizes_within
from sdsl_jax.codesign.engines import settings_of_best_draft
from sdsl_jax.codesign.grid import (
    GridOptimum,
    at_design,
    at_most,
    draft_range,
    moves,
    search,
    speedup_interval,
    with_serving,
)
from sdsl_jax.codesign.laws import MEASURED as MEASURED_ALPHA
from sdsl_jax.codesign.program import evaluate
from sdsl_jax.codesign.schedule import allowed_cells, speedups
from sdsl_jax.codesign.serving_problem import ServingProblem, build
from sdsl_jax.config.problem_flags import ProblemFlags
from sdsl_jax.counts import short_bytes, short_count
from sdsl_jax.explore.state import MEASURED, Choices, State, command
from sdsl_jax.theory.serving import shapes

# Columns of the map and points of the curve; a page that holds many states has fewer.
COLUMNS, FEWER_COLUMNS = 40, 24
# Batches and contexts of the schedule.
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONTEXTS = (512, 2048, 8192, 32768)
# Rows of the map: whole lookaheads, up to a little more than the best one.
_ROWS = (8, 32)
_PARTS = {"draft": "drafting", "verify": "verification", "overhead": "overheads"}
# Overheads of a device, which an engine may halve.
_OVERHEADS = ("pass", "layer", "matrix", "wide", "token", "logit", "round")
_LOGITS, _DIGITS = 0.25, 5
# After a change the best lookahead is first looked for up to here, or twice as far as before.
_LEAST_AHEAD = 12
_UNFIT = " (does not fit)"
# Measured speed-ups that differ by more than this from the predicted ones are worth a sentence.
_FAR = 0.1


@dataclass(frozen=True)
class View:
    """What a page shows in one state.

    Attributes:
      state: The state, as an address holds it.
      verdict: The answer in a sentence.
      pays: Whether speculation pays.
      numbers: Labels and values of the best design.
      datasets: Rows for the charts, by the names that their specifications use.
      moves: Change, best draft, lookahead and speed-up after it.
      candidates: Draft, lookahead, acceptance, speed-up and loss of the drafts to compare.
      command: The command line that gives this answer.
      engines: Settings of serving engines to paste, by engine.
      warnings: What the answer rests on.
    """

    state: dict[str, str]
    verdict: str
    pays: bool
    numbers: list[tuple[str, str]]
    datasets: dict[str, Any]
    moves: list[tuple[str, str, str, str]]
    candidates: list[tuple[str, str, str, str, str]]
    command: str
    engines: dict[str, str]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """As a page reads it: numbers to five digits, and null for what is not finite."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, str) or value is None or isinstance(value, bool | np.bool_):
        return bool(value) if isinstance(value, np.bool_) else value
    if isinstance(value, Sequence):
        return [_plain(one) for one in value]
    if not math.isfinite(value):
        return None
    number = float(f"{float(value):.{_DIGITS}g}")
    return int(number) if number == int(number) and abs(number) < 1e15 else number


def problem_of(choices: Choices, state: State) -> ServingProblem:
    """The co-design problem of a state.

    Raises:
      SdslError: A value is not allowed, or a law or device cannot be loaded.
    """
    return build(ProblemFlags(**choices.flags(state)).config())


def view(
    choices: Choices,
    state: State,
    *,
    measured: Mapping[str, list[dict[str, Any]]] | None = None,
    columns: int = COLUMNS,
) -> View:
    """What the page shows in a state.

    Args:
      choices: What the page offers.
      state: The state.
      measured: Rows of measured points, by dataset; none if left out.
      columns: Draft sizes of the charts.

    Raises:
      SdslError: A value is not allowed, or a law or device cannot be loaded.
    """
    problem = problem_of(choices, state)
    best = search(problem)
    design, gives = best.solved.design, best.solved.outcome
    # No draft of the law wants a longer lookahead than those of the search; one that is compared may.
    near = at_most(problem, 2 * float(np.max(best.table.design.lookahead)))
    comparison = compare(near, best.solved, design)
    if comparison.longest >= float(near.inputs.upper.lookahead):
        comparison = compare(problem, best.solved, design)
    feasible = bool(best.solved.feasible) and not problem.memory_errors
    acceptance = float(gives.acceptance)
    speedup, ahead = float(gives.speedup), int(design.lookahead)
    usable = feasible and acceptance < 1
    pays = usable and speedup > 1
    size = problem.sizes.of(float(design.draft_params), "draft")
    if problem.memory_errors or not feasible:
        reason = problem.memory_errors or ("no design keeps every limit",)
        verdict = f"No feasible design: {reason[0]}."
    elif not usable:
        verdict = "No answer: the law says that every draft token is accepted."
    else:
        verdict = choice_sentence(pays, size.total, ahead, speedup)
    serving = problem.inputs.serving
    draft, _ = shapes(serving, design)
    from_law = problem.acceptance.law.about.source != MEASURED_ALPHA
    doubtful, of_laws = of_the_laws(problem, design, gives) if from_law else ([], [])
    engines = {}
    if usable:
        settings = settings_of_best_draft(
            problem.config,
            design,
            on_all_devices(problem, best.solved, best.solved, comparison),
        )
        engines = {
            "vLLM": settings.vllm.command,
            "SGLang": settings.sglang.command,
            "Transformers": settings.hugging_face.code,
        }
    plain_step = float(gives.step_seconds)
    numbers = [
        ("Speed-up S", f"{speedup:.3f}"),
        ("Draft", f"{short_count(size.total)} parameters"),
        ("Lookahead γ", f"{ahead} token" + "s" * (ahead != 1)),
        ("Acceptance α", f"{acceptance:.3f}"),
        ("Tokens per round", f"{float(gives.tokens_per_round):.2f}"),
        ("Throughput", f"{float(gives.tokens_per_second):,.0f} tokens/s"),
        ("Latency of a request", f"{float(gives.latency_seconds):.2f} s"),
        ("Memory of a device", short_bytes(float(gives.memory_bytes))),
    ]
    datasets: dict[str, Any] = {
        "map": _map(problem, best, columns),
        "curve": _curve(problem, best, columns),
        "within": _within(near, best) if usable else [],
        "best": [_point(problem, best)],
        "candidates": _candidate_points(problem, comparison.candidates),
        "schedule": _schedule(problem, best, state),
        "round": _round(gives.round, plain_step, float(gives.tokens_per_round)),
        "measured": [],
        "measured_schedule": [],
    } | dict(measured or {})
    return View(
        state=state.texts(),
        verdict=verdict,
        pays=pays,
        numbers=numbers,
        datasets=datasets,
        moves=_moves(state, problem, best),
        candidates=_candidates(comparison.candidates, comparison.published),
        command=command(choices.flags(state)),
        engines=engines,
        warnings=[
            *_of_measured(problem, datasets["measured"]),
            *_of_the_bound(problem, datasets["within"]),
            *problem.notes,
            *doubtful,
            *of_the_device(problem, float(draft.width)),
            *of_laws,
        ],
    )


def _of_measured(problem: ServingProblem, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far measured speed-ups are from what laws and device predict of the same drafts."""
    if not points:
        return []
    ratios = []
    for point in points:
        size = problem.sizes.non_embedding(point["size"], "draft")
        design = problem.inputs.fixed._replace(
            draft_params=size, lookahead=float(point["lookahead"])
        )
        predicted = float(evaluate(problem.program, problem.inputs, design).outcome.speedup)
        ratios.append(point["speedup"] / predicted)
    off = float(np.median(np.abs(np.asarray(ratios) - 1)))
    if off <= _FAR:
        return []
    return [
        f"the measured speed-ups of the {len(points)} points differ from the predicted ones by {off:.0%} (median): the band "
        "covers what the laws leave open, and not errors of the device's step times"
    ]


def _of_the_bound(problem: ServingProblem, within: Sequence[Mapping[str, Any]]) -> list[str]:
    """That the sizes nearly as good as the best reach the smallest draft that is considered."""
    smallest = float(_stated(problem, np.asarray([draft_range(problem)[0]]))[0])
    if not within or within[0]["low"] > 1.001 * smallest:
        return []
    return [f"no draft below {short_count(smallest)} parameters is considered"]


def _stated(problem: ServingProblem, sizes: np.ndarray) -> np.ndarray:
    """Draft sizes in the count of the loss law."""
    both = problem.sizes.of(sizes, "draft", float(problem.inputs.fixed.aspect_ratio))
    return np.asarray(getattr(both, problem.sizes.counted))


def _sizes(problem: ServingProblem, columns: int) -> np.ndarray:
    """The draft sizes of the charts, non-embedding parameters."""
    low, high = draft_range(problem)
    if low == high:  # one draft was measured: its neighbours show what size alone would change
        low, high = low / 30, min(30 * low, float(problem.inputs.fixed.target_params))
    return np.geomspace(low, high, columns)


def _map(problem: ServingProblem, best: GridOptimum, columns: int) -> dict[str, Any]:
    """S over draft size and whole lookahead, a row of the map for each lookahead."""
    serving = problem.inputs.serving._replace(draft_shape=None)
    edges = _sizes(problem, columns + 1)
    middles = np.sqrt(edges[1:] * edges[:-1])
    highest = math.ceil(1.5 * float(best.solved.design.lookahead))
    rows = np.arange(1.0, min(max(_ROWS[0], highest), _ROWS[1]) + 1)
    grid = problem.inputs.fixed._replace(draft_params=middles[None, :], lookahead=rows[:, None])
    table = evaluate(problem.program, problem.inputs._replace(serving=serving), grid)
    lost = -np.expm1(float(best.solved.objective) - table.objective)
    # Where nothing fits, the map shows the times that a device with more memory would have.
    shown = table.allowed if table.allowed.any() else np.ones_like(table.allowed)
    speedup = np.where(shown, table.outcome.speedup, np.nan)
    left, middle = _stated(problem, edges), _stated(problem, middles)
    return {
        "shared": {"left": left[:-1], "right": left[1:], "size": middle},
        "rows": [
            {"lookahead": int(gamma), "speedup": speedup[i], "lost": np.round(lost[i], 4)}
            for i, gamma in enumerate(rows)
        ],
    }


def _curve(problem: ServingProblem, best: GridOptimum, columns: int) -> list[dict[str, Any]]:
    """S against draft size, each at its best whole lookahead, with the interval of the laws."""
    sizes = _sizes(problem, columns)
    if "draft_params" in problem.program.variables:
        # The best size is a point of the curve, so that its top is where the star is.
        sizes = np.union1d(sizes, float(best.solved.design.draft_params))
    inputs = problem.inputs._replace(serving=problem.inputs.serving._replace(draft_shape=None))
    rows = np.arange(1.0, float(np.max(best.table.design.lookahead)) + 1)
    grid = inputs.fixed._replace(draft_params=sizes[:, None], lookahead=rows[None, :])
    table = evaluate(problem.program, inputs, grid)
    at = np.argmin(table.objective, axis=1)[:, None]
    speedup = np.take_along_axis(np.asarray(table.outcome.speedup), at, 1)[:, 0]
    interval = speedup_interval(problem, sizes, float(best.solved.design.lookahead))
    low, high = interval if interval is not None else (np.full_like(speedup, np.nan),) * 2
    return [
        {
            "size": _stated(problem, sizes),
            "speedup": speedup,
            "lookahead": rows[at[:, 0]],
            "low": low,
            "high": high,
        }
    ]


def _within(problem: ServingProblem, best: GridOptimum) -> list[dict[str, Any]]:
    """The draft sizes that lose at most 1% and 5%."""
    if "draft_params" not in problem.program.variables:
        return []
    ends = sizes_within(problem, best.solved, (0.01, 0.05))
    return [
        {"loss": loss, "low": low, "high": high}
        for loss, (low, high) in zip(("within 1%", "within 5%"), ends)
    ]


def _point(problem: ServingProblem, best: GridOptimum) -> dict[str, Any]:
    design = best.solved.design
    return {
        "name": "best design",
        "size": problem.sizes.stated(design, "draft_params"),
        "lookahead": int(design.lookahead),
        "speedup": float(best.solved.outcome.speedup),
    }


def _candidate_points(
    problem: ServingProblem, candidates: Sequence[Candidate]
) -> list[dict[str, Any]]:
    return [
        {
            "name": short_count(one.size),
            "size": getattr(one.draft_params, problem.sizes.counted),
            "lookahead": one.lookahead,
            "speedup": one.speedup,
        }
        for one in candidates
    ]


def _schedule(problem: ServingProblem, best: GridOptimum, state: State) -> list[dict[str, Any]]:
    """The best lookahead of every batch and context with the best draft, 0 where none pays."""
    if problem.config.hardware.overlapped:
        return []  # a bound that engines do not reach; they draft and verify in turn
    here = at_design(problem, best.solved.design)
    batches = np.asarray(sorted({*_BATCHES, int(state.batch)}))
    contexts = sorted({*map(float, _CONTEXTS), state.context})
    gains, _ = speedups(here, batches, contexts)
    fits = allowed_cells(here, batches, contexts)
    ahead, speedup = gains.argmax(0), gains.max(0)
    return [
        {
            "context": int(context),
            "batch": batches,
            "lookahead": ahead[:, c],
            "speedup": speedup[:, c],
            "fits": np.ones(len(batches), bool) if fits is None else fits[:, c],
        }
        for c, context in enumerate(contexts)
    ]


def _round(of_round: Any, step: float, tokens: float) -> list[dict[str, Any]]:
    """Milliseconds of a round by part, and of the target alone for as many tokens."""
    parts: list[dict[str, Any]] = [
        {
            "way": "speculative round",
            "part": label,
            "milliseconds": 1e3 * float(getattr(of_round, name)),
        }
        for name, label in _PARTS.items()
    ]
    if float(of_round.overlap):
        # Drafting that runs beside the verification takes no time of its own.
        parts[0]["milliseconds"] -= 1e3 * float(of_round.overlap)
    alone = {
        "way": "target alone",
        "part": "plain steps",
        "milliseconds": 1e3 * step * tokens,
    }
    return [*parts, alone]


def _moves(
    state: State,
    problem: ServingProblem,
    best: GridOptimum,
) -> list[tuple[str, str, str, str]]:
    """The best design after each change, those that move S most first; the unchanged one on top."""

    config = problem.config

    def other(section: str, **changes: Any) -> ServingProblem:
        changed = dataclasses.replace(getattr(config, section), **changes)
        return build(dataclasses.replace(config, **{section: changed}))

    hardware = problem.inputs.serving.hardware
    halved = {f"{name}_seconds": getattr(hardware, f"{name}_seconds") / 2 for name in _OVERHEADS}
    changed: list[tuple[str, Any]] = [
        ("batch × 4", other("workload", batch=4 * state.batch)),
        ("context × 4", other("workload", context=4 * state.context)),
        ("devices × 2", other("hardware", devices=2 * config.hardware.devices)),
        ("draft trained on 10 × the tokens", other("draft", tokens=10 * state.draft_tokens)),
        ("target trained on 10 × the tokens", other("target", tokens=10 * state.target_tokens)),
        ("target weights of half the bytes", other("target", weight_bytes=state.weight_bytes / 2)),
        ("memory bandwidth × 1.5", {"bytes_per_second": hardware.bytes_per_second * 1.5}),
        ("arithmetic × 1.5", {"flops_per_second": hardware.flops_per_second * 1.5}),
        ("overheads halved", halved),
    ]
    if state.prefill == "here":
        changed.append(("prefill elsewhere", other("workload", prefill="elsewhere")))
    if state.acceptance_law == MEASURED:
        higher = min(0.98, state.acceptance + 0.05)
        changed.append((f"α = {higher:.2f}", other("draft", acceptance=higher)))
    else:
        law = problem.inputs.serving.acceptance_law
        raised = {"level": _LOGITS, "C": 0.05}
        name = next((name for name in raised if hasattr(law, name)), None)
        if name is not None:
            words = "α + 0.05 for every draft" if name == "C" else f"logit α + {_LOGITS}"
            more = dataclasses.replace(law, **{name: getattr(law, name) + raised[name]})
            changed.append((words, with_serving(problem, acceptance_law=more)))
    problems = [
        (
            words,
            with_serving(problem, hardware=hardware._replace(**one))
            if isinstance(one, dict)
            else one,
        )
        for words, one in changed
    ]
    now = float(best.solved.outcome.speedup)
    ahead = max(_LEAST_AHEAD, 2 * int(best.solved.design.lookahead))
    rows = sorted(
        moves(problem, problems, ahead), key=lambda row: -abs(math.log(row.speedup / now))
    )
    own = best.solved.design
    first = (
        "as set",
        short_count(problem.sizes.stated(own, "draft_params")),
        f"{int(own.lookahead)}",
        f"{now:.2f}" + ("" if best.solved.feasible else _UNFIT),
    )
    return [
        first,
        *(
            (
                row.change,
                short_count(row.draft_params),
                f"{row.lookahead}",
                f"{row.speedup:.2f}" + ("" if row.feasible else _UNFIT),
            )
            for row in rows
        ),
    ]


def _candidates(
    candidates: Sequence[Candidate], published: Sequence[SuggestedDraft]
) -> list[tuple[str, str, str, str, str]]:
    """The drafts that were asked about, then published ones."""
    named = [(one.published or short_count(one.size), one) for one in candidates]
    named += [(one.name, one) for one in published[:4]]  # type: ignore[misc]
    return [
        (
            name,
            f"{one.lookahead}",
            f"{one.acceptance:.3f}",
            f"{one.speedup:.3f}",
            f"{100 * one.regret:.1f}%" if one.regret > 0 else "none",
        )
        for name, one in named
    ]
