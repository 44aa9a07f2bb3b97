"""The lookahead of every load: for one draft and one target, how many tokens to guess at each batch and
context, and when not to guess at all.

A round of a batch that fills the device costs more, and every rejected draft is then paid for. So γ
falls with the batch. Engines take it as a table by batch, which this module computes by trying every
γ in every cell.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from sdsl_jax.codesign.caveats import of_the_device, of_the_laws
from sdsl_jax.codesign.concurrency import cache_room
from sdsl_jax.codesign.laws import MEASURED
from sdsl_jax.codesign.serving_problem import ServingProblem
from sdsl_jax.config.codesign_problem import LARGEST_LOOKAHEAD
from sdsl_jax.counts import short_count
from sdsl_jax.errors import require
from sdsl_jax.records.documents import to_json
from sdsl_jax.theory.arrays import in_numpy
from sdsl_jax.theory.hardware import Load, pass_time, round_time
from sdsl_jax.theory.lookahead import tokens_per_round
from sdsl_jax.theory.position import mixed_tokens_per_round
from sdsl_jax.theory.serving import acceptance, outcome, shapes

# Drafts per round that are tried where no survival says how many were measured.
MOST_DRAFTS = 16
LARGEST_BATCH = 4096


@dataclass(frozen=True)
class Cell:
    """The best lookahead at one batch and context.

    Attributes:
      batch: Rows decoded together.
      context: Positions in the cache of each row.
      lookahead: Best γ; 0 where plain decoding is fastest.
      speedup: S of decoding at that γ over the target alone; 1 at γ = 0.
      tokens_per_round: τ at that γ.
      scheduled: γ of the table at this batch.
      scheduled_loss: Share of S that the table's γ loses here.
      single_loss: Share of S that the best single γ loses here.
      fits: Whether weights and caches fit in the devices' memory; null where that is unknown.
    """

    batch: int
    context: float
    lookahead: int
    speedup: float
    tokens_per_round: float
    scheduled: int
    scheduled_loss: float
    single_loss: float
    fits: bool | None


@dataclass(frozen=True)
class Span:
    """A range of batches with one lookahead.

    Attributes:
      first: Smallest batch.
      last: Largest batch.
      lookahead: γ; 0 is plain decoding.
    """

    first: int
    last: int
    lookahead: int


@dataclass(frozen=True, repr=False)
class Schedule:
    """A table of lookaheads by load.

    Attributes:
      target: The target, by name or size.
      draft: The draft, by name or size.
      device: The devices, and the engine whose overheads count.
      acceptance: α; null where survival was given.
      survival: S_1 … S_K, the share of rounds whose first k drafts are all accepted.
      basis: Where acceptance comes from.
      cells: Every batch and context that was asked for.
      spans: γ by batch, the best table for all contexts alike. It never rises, except for a mixture
        of experts: its verify passes read many more experts than a step as long as batches are small.
      largest_scheduled_loss: The most that the table loses in a cell.
      single_lookahead: The one γ ≥ 0 that loses least over all cells on average.
      single_mean_loss: Its mean loss.
      single_largest_loss: The most that it loses in a cell.
      vllm: Value of --speculative-config for vLLM; null where speculation never pays.
      sglang: Content of the file for --speculative-adaptive-config of SGLang; null as above.
      notes: What to know before pasting them, a sentence each.
      warnings: What the times and the acceptance rest on, a sentence each.
    """

    target: str
    draft: str
    device: str
    acceptance: float | None
    survival: list[float]
    basis: str
    cells: list[Cell]
    spans: list[Span]
    largest_scheduled_loss: float
    single_lookahead: int
    single_mean_loss: float
    single_largest_loss: float
    vllm: dict[str, Any] | None
    sglang: dict[str, Any] | None
    notes: list[str]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """As `sdsl codesign --schedule --json` prints it."""
        return {name: to_json(value) for name, value in vars(self).items()}

    def __repr__(self) -> str:
        spans = ", ".join(f"{s.first}–{s.last}: {s.lookahead}" for s in self.spans)
        return f"Schedule(γ by batch {spans})"


def speedups(
    problem: ServingProblem,
    batches: Sequence[int] | Int[np.ndarray, " B"],
    contexts: Sequence[float],
    survival: Sequence[float] = (),
) -> tuple[Float[np.ndarray, "gamma B C"], Float[np.ndarray, " gamma"]]:
    """S of decoding for every lookahead, batch and context, and τ of every lookahead, from γ = 0 on.

    Prefill is left out: no lookahead changes it.

    Args:
      problem: The problem, whose fixed design names draft and target.
      batches: Rows.
      contexts: Positions in the cache of each row.
      survival: S_1 … S_K; a law's α, or a measured one, if empty.
    """
    serving, design = in_numpy((problem.inputs.serving, problem.inputs.fixed))
    draft, target = shapes(serving, design)
    if len(survival):
        tau = 1 + np.concatenate([[0.0], np.cumsum(survival)])
    else:
        alpha = float(np.clip(acceptance(serving, design), 0.0, 1.0))
        tau = np.asarray(
            [float(tokens_per_round(np.float64(alpha), g)) for g in range(MOST_DRAFTS + 1)]
        )
    gamma = np.arange(len(tau), dtype=float)[:, None, None]
    rows = np.asarray(batches, float)[None, :, None]
    context = np.asarray(contexts, float)[None, None, :]
    step = pass_time(
        serving.hardware, target, serving.precision, Load(1.0, rows, context, serving.devices)
    )
    took = round_time(
        serving.hardware,
        draft,
        target,
        np.maximum(gamma, 1.0),
        rows,
        context,
        serving.precision,
        serving.draft_precision,
        serving.devices,
        serving.draft_devices,
    )
    gain = tau[:, None, None] * np.asarray(step) / np.asarray(took.seconds)
    return np.where(gamma == 0, 1.0, gain), tau


def falling_lookaheads(value: Float[np.ndarray, "gamma B"]) -> Int[np.ndarray, " B"]:
    """The γ of each batch that never rises from one batch to the next and has the largest sum of values.

    Exact, by dynamic programming over batches: best[g, b] is the largest sum of the batches up to b
    if the last of them has a lookahead of g or more.
    """
    choices, batches = value.shape
    best = np.zeros(choices)
    chosen = np.zeros((choices, batches), int)
    for b in range(batches):
        # A later batch may have any γ up to that of the one before.
        total = value[:, b] + best
        at = np.arange(choices)
        for g in range(choices - 2, -1, -1):
            # Ties go to the smaller γ, which drafts less for the same speed.
            at[g] = at[g + 1] if total[at[g + 1]] > total[g] else g
        best, chosen[:, b] = total[at], at
    path, floor = np.zeros(batches, int), 0
    for b in range(batches - 1, -1, -1):
        path[b] = floor = chosen[floor, b]
    return path


def schedule(
    problem: ServingProblem,
    batches: Sequence[int],
    contexts: Sequence[float],
    *,
    draft: str = "",
    survival: Sequence[float] = (),
    basis: str = "",
) -> Schedule:
    """The best lookahead of every batch and context, and the best table by batch.

    Every γ from 0 to 16 is tried in every cell, or up to the last position of `survival`. The table
    covers every whole batch from 1 to the largest asked for, and counts all contexts alike.

    Args:
      problem: The problem; its fixed draft is the one at hand.
      batches: Rows to show.
      contexts: Cache positions per row to show.
      draft: Name of the draft, for the engines.
      survival: S_1 … S_K measured for this pair, in place of one α.
      basis: Where acceptance comes from; the problem's law if empty.

    Raises:
      SdslError: A batch, a context or a survival is out of range, none of the cells fits in memory, or
        the problem has limits, variables or overlapped drafting, which a table cannot hold.
    """
    config = problem.config
    require(
        not config.hardware.overlapped,
        "a schedule is for engines that draft and verify in turn; overlapped drafting is a bound that they do not reach.",
    )
    asked = config.constraints.given() | vars(config.objective)
    asked |= {name: value for name, value in vars(config.variables).items() if name != "lookahead"}
    others = [name for name, value in asked.items() if value]
    require(
        not others,
        f"a schedule is the fastest lookahead of every load; it takes no {', '.join(others)} as objective, limit or variable.",
    )
    batches, contexts = sorted(set(batches)), sorted(set(contexts))
    require(
        batches and batches[0] >= 1 and batches[-1] <= LARGEST_BATCH,
        f"the batches are {', '.join(map(str, batches)) or 'none'}; they must lie in [1, {LARGEST_BATCH}].",
    )
    require(contexts and contexts[0] >= 0, "the contexts must be 0 or more positions.")
    _check_survival(survival)
    with jax.enable_x64(True):
        every = np.arange(1, batches[-1] + 1)
        gains, tau = speedups(problem, every, contexts, survival)
        fits = allowed_cells(problem, every, contexts)
    allowed = np.ones(gains.shape[1:], bool) if fits is None else fits
    shown = np.asarray(batches) - 1
    most = int(every[allowed.any(-1)].max(initial=0))
    require(
        allowed[shown].any(),
        f"the models do not fit in memory at any of these batches and contexts; of contexts of {contexts[0]:,.0f} positions "
        f"{most} rows fit.",
    )
    # A batch at which no context fits is never run: it has no say in the table.
    value = np.where(allowed, np.log(gains), 0.0).sum(-1)
    experts = float(problem.inputs.serving.target_family.experts) > 1
    table = value.argmax(0) if experts else falling_lookaheads(value)
    lost = np.where(allowed[shown], 1 - gains[:, shown] / gains[:, shown].max(0), 0.0)
    single = int(np.argmin(lost.sum((1, 2))))
    cells = []
    for b in shown:
        for c, context in enumerate(contexts):
            at = gains[:, b, c]
            best = int(np.argmax(at))
            cells.append(
                Cell(
                    int(every[b]),
                    float(context),
                    best,
                    float(at[best]),
                    float(tau[best]),
                    int(table[b]),
                    float(1 - at[table[b]] / at[best]),
                    float(1 - at[single] / at[best]),
                    None if fits is None else bool(fits[b, c]),
                )
            )
    counted = [cell for cell in cells if cell.fits is not False]
    spans = _spans(every, table, np.asarray(allowed.any(-1)))
    serving, design = in_numpy((problem.inputs.serving, problem.inputs.fixed))
    alpha = None if len(survival) else float(np.clip(acceptance(serving, design), 0.0, 1.0))
    size = float(shapes(serving, design)[0].total_params)
    return Schedule(
        target=config.target.name or short_count(config.target.params),
        draft=draft or short_count(size),
        device=f"{config.hardware.devices} × {problem.hardware.display_name}",
        acceptance=alpha,
        survival=[float(s) for s in survival],
        basis=basis or problem.acceptance.law.about.source,
        cells=cells,
        spans=spans,
        largest_scheduled_loss=max(cell.scheduled_loss for cell in counted),
        single_lookahead=single,
        single_mean_loss=float(np.mean([cell.single_loss for cell in counted])),
        single_largest_loss=max(cell.single_loss for cell in counted),
        vllm=_vllm(spans, draft, problem.config.hardware.devices),
        sglang=_sglang(spans),
        notes=_notes(spans, survival, tau, experts),
        warnings=_warnings(problem, from_law=not survival),
    )


def _warnings(problem: ServingProblem, from_law: bool) -> list[str]:
    """What the times rest on, and the acceptance where a law gave it."""
    serving, design = in_numpy((problem.inputs.serving, problem.inputs.fixed))
    texts = of_the_device(problem, float(shapes(serving, design)[0].width))
    if from_law and problem.acceptance.law.about.source != MEASURED:
        texts += of_the_laws(problem, design, outcome(serving, design))[1]
    return texts


def mixed_survival(
    survival: Mapping[str, Sequence[float]], token_shares: Mapping[str, float]
) -> list[float]:
    """The survival of traffic that mixes domains: S_k = τ(k) − τ(k − 1), with τ that of all tokens over
    all rounds, up to the last position that every domain has.

    Args:
      survival: S_1 … S_K of each domain.
      token_shares: Share of the generated tokens of each domain; they sum to 1.

    Raises:
      SdslError: A domain is missing, or the shares are none.
    """
    require(
        set(token_shares) == set(survival),
        f"the mix is of {', '.join(token_shares)}, and acceptance was given of {', '.join(survival) or 'none'}; both must name "
        "the same domains.",
    )
    most = min(len(survival[name]) for name in token_shares)
    for name in token_shares:
        _check_survival(survival[name])
    taus = np.asarray([[1.0, *(1 + np.cumsum(survival[n][:most]))] for n in token_shares])
    shares = np.asarray(list(token_shares.values()))
    with jax.enable_x64(True):
        tau = [
            float(mixed_tokens_per_round(jnp.asarray(column), jnp.asarray(shares)))
            for column in taus.T
        ]
    # Concave, as a harmonic mean of concave functions is; rounding apart.
    return np.minimum.accumulate(np.clip(np.diff(tau), 0.0, 1.0)).tolist()


def _check_survival(survival: Sequence[float]) -> None:
    require(
        len(survival) <= LARGEST_LOOKAHEAD,
        f"survival has {len(survival)} positions; at most {LARGEST_LOOKAHEAD} are known to any engine.",
    )
    for k, (value, before) in enumerate(zip(survival, [1.0, *survival]), 1):
        require(
            0 <= value <= before,
            f"the survival of position {k} is {value:g}; it must lie between 0 and that of the position before, {before:g}: "
            "it is the share of rounds whose first drafts are all accepted.",
        )


def allowed_cells(
    problem: ServingProblem, batches: Int[np.ndarray, " B"], contexts: Sequence[float]
) -> Bool[np.ndarray, "B C"] | None:
    """Whether weights and caches of every batch and context fit; None where the memory is unknown."""
    serving, design = in_numpy((problem.inputs.serving, problem.inputs.fixed))
    if not np.isfinite(float(serving.hardware.memory_bytes)):
        return None
    draft, target = shapes(serving, design)
    room = cache_room(serving, target, draft)
    return batches[:, None] * np.asarray(contexts, float)[None, :] <= room * (1 + 1e-6)


def _spans(batches: np.ndarray, table: np.ndarray, reached: np.ndarray) -> list[Span]:
    """Runs of batches with the same γ, up to the largest batch that fits."""
    spans: list[Span] = []
    for batch, gamma in zip(batches[reached], table[reached]):
        if spans and spans[-1].lookahead == gamma:
            spans[-1] = Span(spans[-1].first, int(batch), int(gamma))
        else:
            spans.append(Span(int(batch), int(batch), int(gamma)))
    return spans


def _vllm(spans: list[Span], draft: str, devices: int) -> dict[str, Any] | None:
    """num_speculative_tokens_per_batch_size of vLLM: [first batch, last batch, drafts]."""
    most = max(span.lookahead for span in spans)
    if not most:
        return None
    return {
        "method": "draft_model",
        "model": draft or "path/to/draft",
        "num_speculative_tokens": most,
        "num_speculative_tokens_per_batch_size": [
            [span.first, span.last, span.lookahead] for span in spans
        ],
        "draft_tensor_parallel_size": devices,
        "draft_sample_method": "probabilistic",
    }


def _sglang(spans: list[Span]) -> dict[str, Any] | None:
    """The adaptive settings of SGLang: steps by the smallest batch that they hold for."""
    if not any(span.lookahead for span in spans):
        return None
    return {str(span.first): {"candidate_steps": [span.lookahead]} for span in spans}


def vllm_option(config: dict[str, Any]) -> str:
    """The option as it is typed into a POSIX shell."""
    return f"--speculative-config {shlex.quote(json.dumps(config))}"


def _notes(
    spans: list[Span],
    survival: Sequence[float],
    tau: Float[np.ndarray, " gamma"],
    experts: bool,
) -> list[str]:
    most = max(span.lookahead for span in spans)
    notes = []
    if experts:
        notes.append(
            "γ may rise with the batch of a mixture of experts: at small batches a verify pass reads many more experts "
            "than a step does"
        )
    if most == len(tau) - 1 and len(survival):
        notes.append(
            f"γ = {most} is the last position that was measured; more drafts may be better still: measure further"
        )
    if most:
        notes += [
            "vLLM has tested its table with EAGLE, EAGLE-3 and DFlash drafts, and data parallelism switches it off "
            "(documentation of its main branch on dynamic speculative decoding, November 2026)",
            "SGLang takes its table as the file of --speculative-adaptive --speculative-adaptive-config FILE, for EAGLE and "
            "EAGLE3 with --speculative-eagle-topk 1 only (adaptive_spec_params.py of its main branch, November 2026); a draft "
            "model (STANDALONE) has one γ for all loads",
        ]
    return notes
