"""How long one request takes, as whoever calls the decoder sees it: time to the first token, per token after it, and in all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sdsl_jax.data.prompts import Prompts
from sdsl_jax.decoding import Model, NgramDraft, autoregress, speculate
from sdsl_jax.errors import require
from sdsl_jax.measurement.pair import PairSettings
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.statistics import Interval, median_interval


class GenerationTimes(NamedTuple):
    """Times of single requests; medians over prompts and repetitions.

    Attributes:
      lookahead: γ; 0 for the target alone.
      first_token: seconds to the first token: reading the prompt, and one step or round.
      per_token: seconds for each token after the first: (total − first_token)/(tokens − 1).
      total: seconds in all.
      new_tokens: tokens of a request.
      requests: timed.
      speedup: total of the target alone over this total, request by request; 1 for the target
        alone.
    """

    lookahead: int
    first_token: Interval
    per_token: Interval
    total: Interval
    new_tokens: int
    requests: int
    speedup: Interval


def time_generation(
    draft: Model | NgramDraft,
    target: Model,
    prompts: Prompts,
    settings: PairSettings,
    count: int,
    repetitions: int = 3,
    progress: Progress | None = None,
) -> list[GenerationTimes]:
    """Times requests of one prompt each, with the target alone and with every lookahead, one after
    another in turn.

    No token ends a request, so that all have the same length; prompts are filled up to one width.
    Programs are compiled first, and with the lookahead as a constant: a verify pass is γ + 1 tokens
    wide.

    Args:
      draft: proposes.
      target: verifies.
      prompts: of which some, spread evenly, are timed.
      settings: of the pair; its batch and stop tokens are not looked at.
      count: prompts to time.
      repetitions: of each prompt.
      progress: told after every request.

    Raises:
      SdslError: a count is below 1.
    """
    require(
        count >= 1 and repetitions >= 1,
        f"{count} prompts × {repetitions} repetitions cannot be timed.",
    )
    progress = progress or Silent()
    rows = np.unique(
        np.linspace(0, len(prompts.lengths) - 1, min(count, len(prompts.lengths)))
        .round()
        .astype(int)
    )
    each, new_tokens = (0, *settings.lookaheads), settings.new_tokens
    progress.start("time", len(each) * (1 + len(rows) * repetitions))

    def median_of_repetitions(values: np.ndarray) -> np.ndarray:
        return np.median(values.reshape(*values.shape[:-1], repetitions, len(rows)), axis=-2)

    def request(lookahead: int, row: int, new: int) -> Callable[[], object]:
        common: dict[str, Any] = dict(
            prompt_lengths=prompts.lengths[row : row + 1], new_tokens=new, sampling=settings.sampling, seed=settings.seed,
            rows=np.array([row]), room=new_tokens,
        )  # fmt: skip
        tokens = prompts.tokens[row : row + 1]
        if lookahead == 0:
            return lambda: autoregress(target, tokens, **common).tokens
        rule = settings.verification
        return lambda: (
            speculate(
                draft, target, tokens, lookahead=lookahead, verification=rule, **common
            ).tokens
        )

    def seconds(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - began

    for lookahead in each:
        seconds(request(lookahead, int(rows[0]), new_tokens))
        progress.advance(1, f"compiled γ = {lookahead}")
    found = np.zeros((2, len(each), len(rows) * repetitions))
    random = np.random.default_rng(settings.seed)
    for number in range(found.shape[2]):
        row = int(rows[number % len(rows)])
        for at in random.permutation(len(each)):
            found[:, at, number] = [seconds(request(each[at], row, new)) for new in (1, new_tokens)]
            progress.advance(1, f"γ = {each[at]}")
    progress.finish()

    def result(at: int) -> GenerationTimes:
        # Prompts are what an interval is over: repetitions of one are no more of them.
        (first, total), plain = (
            median_of_repetitions(found[:, at]),
            median_of_repetitions(found[1, 0]),
        )
        return GenerationTimes(
            lookahead=each[at],
            first_token=median_interval(first, settings.confidence),
            per_token=median_interval((total - first) / (new_tokens - 1), settings.confidence),
            total=median_interval(total, settings.confidence),
            new_tokens=new_tokens,
            requests=found.shape[2],
            speedup=median_interval(plain / total, settings.confidence),
        )

    return [result(at) for at in range(len(each))]
