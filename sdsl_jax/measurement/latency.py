"""The time of decoding steps and of single requests, and the helpers that all timing shares.

Every timer follows one pattern: compile what is timed, several programs side by side; then run all
of it in turn, repetition by repetition, so that a machine that is busy for a while slows everything
alike.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sdsl_jax.data.dataset import spread
from sdsl_jax.data.prompts import Prompts
from sdsl_jax.decoding import (
    HybridDraft,
    Model,
    NgramDraft,
    Sampling,
    autoregress,
    draw,
    probabilities,
    speculate,
    verify_tokens,
)
from sdsl_jax.decoding.decode import broken_logits
from sdsl_jax.decoding.drafters import ids_of
from sdsl_jax.decoding.noise import round_noise, row_keys
from sdsl_jax.decoding.sampling import finite_logits
from sdsl_jax.errors import require
from sdsl_jax.measurement.pair import PairDraft, PairSettings
from sdsl_jax.models import ModelConfig, Params, forward, init_cache
from sdsl_jax.models.weights import activation_dtype
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.statistics import Interval, median_interval

T = TypeVar("T")
R = TypeVar("R")

# Steps in one timed program: at least, at most, and the seconds that it should take. Dispatching
# from Python, about a millisecond, is then a small share of the time.
_STEPS, _MOST_STEPS, _LONG_ENOUGH = 16, 512, 0.03
# Compilations that run side by side: they take most of the time, and a core each on a CPU; for a GPU
# each of them uses more threads.
_COMPILERS = max(2, min(8, (os.cpu_count() or 1) // 2))
# Repetitions of the steps of a round.
_REPETITIONS = 15


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Wall-clock seconds of a call and its result; waits until devices have computed the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(work())
    return time.perf_counter() - began, result


def side_by_side(
    work: Callable[[T], R], items: Iterable[T], workers: int = _COMPILERS
) -> Iterator[R]:
    """Applies a function to all items, some at once, and yields the results in their order.

    It is for what spends its time compiling programs. Settings of JAX that belong to a thread, such
    as `jax.enable_x64` in a `with` statement, do not reach the workers.

    Args:
      work: The function.
      items: What it is applied to.
      workers: Items that are worked on at once.
    """
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, items)


def interleave(
    runs: Sequence[Callable[[int], T]],
    repetitions: int,
    random: np.random.Generator | None = None,
    after: Callable[[int, int], None] = lambda run, repetition: None,
) -> list[list[T]]:
    """Calls every function with every repetition's number, all functions in turn.

    Args:
      runs: Functions of the repetition's number.
      repetitions: Number of repetitions.
      random: Draws the order of the functions anew in each repetition; as given if None.
      after: Called with the number of the function and of the repetition after each call.

    Returns:
      The results of each function, by repetition.
    """
    results: list[list[T]] = [[] for _ in runs]
    for repetition in range(repetitions):
        order = range(len(runs)) if random is None else random.permutation(len(runs))
        for number in order:
            results[number].append(runs[number](repetition))
            after(int(number), repetition)
    return results


@functools.partial(jax.jit, static_argnames=("model", "width", "batch", "context"))
def _steps(
    params: Params, steps: Array, *, model: ModelConfig, width: int, batch: int, context: int
) -> tuple[Array, Array]:
    """Takes `steps` steps as a decoder would: forward, probabilities, and a draw (width 1), of a
    truncated readout among its ids, or a verification.

    The cache has room for twice the context, as halfway through a decoding run: empty slots cost
    time as well.

    Returns:
      The last tokens, and whether all logits were finite.
    """
    cache = init_cache(model, batch, 2 * context + width, activation_dtype(params))
    keys, ids = row_keys(0, np.arange(batch)), ids_of(model.readout_ids, batch)

    def step(i, carry):
        tokens, finite, cache = carry
        positions = jnp.broadcast_to(context + jnp.arange(width), (batch, width))
        logits, cache = forward(model, params, tokens, positions, cache, compact=width == 1)
        finite &= finite_logits(logits).all()
        p = probabilities(logits, Sampling())
        noise = round_noise(keys, jnp.full(batch, i), width - 1, model.vocab_size)
        if width == 1:
            drawn = draw(p[:, 0], noise.draft(0, ids), ids)
        else:
            # The target's own distributions stand in for q; their values do not change the work.
            q = jnp.roll(p[:, :-1], 1, axis=-1)
            drawn = jax.vmap(verify_tokens, (0, 0, 0, None, 0, 0))(
                tokens[:, 1:], q, p, width - 1, noise.uniforms, noise.residual
            ).next_token
        return jnp.broadcast_to(drawn[:, None], (batch, width)), finite, cache

    carry = (jnp.zeros((batch, width), jnp.int32), jnp.ones((), bool), cache)
    return jax.lax.fori_loop(0, steps, step, carry)[:2]


class Step(NamedTuple):
    """One kind of step to time.

    Attributes:
      model: The model.
      width: Tokens of the step.
      context: Positions that precede it.
      batch: Rows decoded together.
    """

    model: Model
    width: int
    context: int
    batch: int = 1


def time_steps(
    steps: dict[str, Step], *, repetitions: int, confidence: float
) -> dict[str, Interval]:
    """Median seconds of each kind of step, with all kinds interleaved.

    Args:
      steps: Kinds of steps by name.
      repetitions: Timed runs of each kind.
      confidence: Confidence of the intervals.

    Raises:
      SdslError: the logits of a model are not finite.
    """

    def seconds(name: str, count: int) -> float:
        (config, params), width, context, batch = steps[name]
        shape = dict(model=config, width=width, batch=batch, context=context)
        elapsed, (_, finite) = timed(lambda: _steps(params, jnp.int32(count), **shape))
        require(finite, broken_logits(f"model {name}"))
        return elapsed

    counts = dict.fromkeys(steps, _STEPS)
    list(side_by_side(lambda name: seconds(name, 1), steps))
    for name in steps:
        while counts[name] < _MOST_STEPS and seconds(name, counts[name]) < _LONG_ENOUGH:
            counts[name] *= 2
    runs = [
        lambda _, name=name: seconds(name, counts[name]) / counts[name]  # type: ignore[misc]
        for name in steps
    ]
    return {
        name: median_interval(np.asarray(values), confidence)
        for name, values in zip(steps, interleave(runs, repetitions))
    }


@dataclass(frozen=True)
class GenerationTimes:
    """Times of single requests: medians over prompts, of the median over repetitions of each.

    Attributes:
      lookahead: γ; 0 for the target alone.
      first_token_seconds: Time to the first token: reading the prompt, and one step or round.
      per_token_seconds: Time of each token after the first: (total − first token)/(tokens − 1).
      total_seconds: Time of the whole request.
      speedup: Total time of the target alone over this total, request by request; 1 for the target
        alone.
      new_tokens: Tokens of a request.
      requests: Number of timed requests.
    """

    lookahead: int
    first_token_seconds: Interval
    per_token_seconds: Interval
    total_seconds: Interval
    speedup: Interval
    new_tokens: int
    requests: int


def time_generation(
    draft: PairDraft,
    target: Model,
    prompts: Prompts,
    settings: PairSettings,
    count: int,
    repetitions: int = 3,
    progress: Progress | None = None,
) -> list[GenerationTimes]:
    """Times requests of one prompt each, with the target alone and with every lookahead, in turn.

    No token ends a request, so all have the same length; prompts are padded to one width. Programs
    are compiled first, with the lookahead as a constant: a verify pass is γ + 1 tokens wide.

    Args:
      draft: The drafter.
      target: The model that verifies.
      prompts: Some of these, spread evenly, are timed.
      settings: Settings of the pair; its batch and stop tokens are ignored.
      count: Number of prompts to time.
      repetitions: Repetitions of each prompt.
      progress: Reports progress after every request.

    Raises:
      SdslError: a count is below 1.
    """
    require(
        count >= 1 and repetitions >= 1,
        f"{count} prompts × {repetitions} repetitions cannot be timed.",
    )
    progress = progress or Silent()
    rows = spread(len(prompts.lengths), count)
    lookaheads, new_tokens = (0, *settings.lookaheads), settings.new_tokens
    requests = len(rows) * repetitions
    progress.start("time", len(lookaheads) * (1 + requests))

    def seconds(lookahead: int, row: int, new: int) -> float:
        common: dict[str, Any] = dict(
            prompt_lengths=prompts.lengths[row : row + 1],
            new_tokens=new,
            sampling=settings.sampling,
            seed=settings.seed,
            rows=np.array([row]),
            room=new_tokens,
        )
        tokens = prompts.tokens[row : row + 1]
        if lookahead == 0:
            return timed(lambda: autoregress(target, tokens, **common).tokens)[0]
        common |= dict(lookahead=lookahead, verification=settings.verification)
        return timed(lambda: speculate(draft, target, tokens, **common).tokens)[0]

    for lookahead in lookaheads:
        seconds(lookahead, int(rows[0]), new_tokens)
        progress.advance(1, f"compiled γ = {lookahead}")

    def request(lookahead: int, number: int) -> list[float]:
        row = int(rows[number % len(rows)])
        return [seconds(lookahead, row, new) for new in (1, new_tokens)]

    runs = [functools.partial(request, lookahead) for lookahead in lookaheads]
    random = np.random.default_rng(settings.seed)
    measured = interleave(
        runs, requests, random, lambda at, _: progress.advance(1, f"γ = {lookaheads[at]}")
    )
    progress.finish()
    # Prompts are the clusters of an interval; repetitions of one prompt are not independent.
    medians = np.median(np.reshape(measured, (len(runs), repetitions, len(rows), 2)), axis=1)
    return [
        GenerationTimes(
            lookahead=lookahead,
            first_token_seconds=median_interval(first, settings.confidence),
            per_token_seconds=median_interval(
                (total - first) / (new_tokens - 1), settings.confidence
            ),
            total_seconds=median_interval(total, settings.confidence),
            speedup=median_interval(medians[0, :, 1] / total, settings.confidence),
            new_tokens=new_tokens,
            requests=requests,
        )
        for lookahead, first, total in zip(lookaheads, medians[..., 0], medians[..., 1])
    ]


class StepCosts(NamedTuple):
    """Costs of the parts of a round, for one row; ratios are in steps of the target.

    Attributes:
      target_step: Seconds of one decoding step of the target.
      draft_step: d, the time of a draft step, of a hybrid draft that of its fallback; None for n-grams
        and heads.
      verify_pass: v, the time of a pass over γ + 1 tokens, by γ.
      most_steps: Most draft steps of a round, of a hybrid draft whose fallback has a lookahead of its
        own; None for γ.
    """

    target_step: float
    draft_step: float | None
    verify_pass: dict[int, float]
    most_steps: int | None = None

    def best_lookahead(self, tokens_per_round: dict[int, float]) -> int:
        """The measured γ with the largest speed-up τ/(γ·d + v)."""
        return max(self.verify_pass, key=lambda g: tokens_per_round[g] / self.round_cost(g))

    def round_cost(self, lookahead: int, drafted: float = 1.0) -> float:
        """Mean time of a round of one row by these costs alone, s·γ·d + v, in steps of the target; with
        at most `most_steps` for γ in the first term.

        Args:
          lookahead: γ.
          drafted: s, the share of rounds in which the draft takes its steps. n-grams take none.
        """
        steps = lookahead if self.most_steps is None else min(lookahead, self.most_steps)
        draft = drafted * steps * (self.draft_step or 0.0)
        return draft + max(self.verify_pass[lookahead], 1.0)


def time_costs(
    draft: PairDraft,
    target: Model,
    prompts: Prompts,
    settings: PairSettings,
) -> StepCosts:
    """Times the steps that a round consists of, halfway through a request of the longest prompt."""
    limit = target.config.position_limit
    if not isinstance(draft, NgramDraft):
        limit = min(limit, draft.config.position_limit)
    halfway = int(prompts.lengths.max()) + settings.new_tokens // 2
    context = max(1, min(halfway, limit - max(settings.lookaheads) - 1))
    steps = {"target": Step(target, 1, context)} | {
        f"γ = {g}": Step(target, g + 1, context) for g in settings.lookaheads
    }
    stepping = draft.fallback if isinstance(draft, HybridDraft) else draft
    if isinstance(stepping, Model):
        steps["draft"] = Step(stepping, 1, context)
    timed_steps = time_steps(steps, repetitions=_REPETITIONS, confidence=settings.confidence)
    seconds = {name: value.estimate for name, value in timed_steps.items()}
    one = seconds["target"]
    return StepCosts(
        one,
        seconds["draft"] / one if "draft" in seconds else None,
        {g: seconds[f"γ = {g}"] / one for g in settings.lookaheads},
        draft.fallback_lookahead if isinstance(draft, HybridDraft) else None,
    )
