"""The contenders of the race: a decoder of ours or of the peer with a fixed batch and lookahead, and its runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from benchmarks.child import SETTLE_SECONDS
from benchmarks.decode.pairs import Pair
from benchmarks.decode.peer import Transformers
from sdsl_jax.decoding import Decoded, Sampling, autoregress, speculate
from sdsl_jax.measurement.latency import timed

SAMPLING = Sampling(temperature=1.0)


class Run(NamedTuple):
    """One call of a decoder.

    Attributes:
      seconds: Wall-clock seconds, prefill included.
      tokens: Tokens emitted by all rows.
      rounds: Rounds of the whole batch; forward passes of the target in the peer; steps without a
        draft.
      row_rounds: Rounds that rows took part in; 0 if they are not counted.
      survivors: Row rounds that kept at least 1, 2, … γ drafts.
      output: Prompts and emitted tokens, if another measurement needs them.
    """

    seconds: float
    tokens: int
    rounds: int
    row_rounds: int = 0
    survivors: tuple[int, ...] = ()
    output: np.ndarray | None = None


@dataclass
class Contender:
    """A decoder with everything fixed but prompts and seed."""

    system: str
    batch: int
    lookahead: int
    new_tokens: int
    call: Callable[[np.ndarray, int], Run]
    details: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    first_seconds: float = float("nan")

    def warm(self, prompts: np.ndarray) -> None:
        """Makes the first call, which compiles."""
        self.first_seconds = self.call(prompts, 0).seconds

    def run(self, prompts: np.ndarray, seed: int) -> Run:
        """Makes one timed call on the first `batch` rows of the prompts, and keeps its result."""
        time.sleep(SETTLE_SECONDS)
        self.runs.append(self.call(prompts, seed))
        return self.runs[-1]

    def per_run(self, cost: Callable[[Run], float]) -> float:
        """Median over runs."""
        return statistics.median(cost(run) for run in self.runs)

    @property
    def seconds(self) -> float:
        """Median seconds of a call."""
        return self.per_run(lambda run: run.seconds)

    @property
    def tokens_per_round(self) -> float:
        """Tokens per row and round of the batch, over all runs; rows that are done wait for the others."""
        return (
            sum(run.tokens for run in self.runs) / sum(run.rounds for run in self.runs) / self.batch
        )

    @property
    def round_seconds(self) -> float:
        """Median seconds per round, prefill spread over the rounds."""
        return self.per_run(lambda run: run.seconds / run.rounds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all rows: median seconds per round, and mean tokens per round, because luck
        in acceptance is not noise of the clock."""
        return self.batch * self.tokens_per_round / self.round_seconds

    @property
    def survival(self) -> list[float]:
        """S_k: the share of row rounds that kept at least k drafts, for k = 1 … γ."""
        row_rounds = sum(run.row_rounds for run in self.runs)
        return [
            sum(run.survivors[k] for run in self.runs) / row_rounds for k in range(self.lookahead)
        ]

    def summary(self) -> dict[str, Any]:
        """All numbers, for the table and the JSON."""
        result: dict[str, Any] = {
            "system": self.system,
            "batch": self.batch,
            "lookahead": self.lookahead,
            "new_tokens": self.new_tokens,
            "runs": len(self.runs),
            "seconds": self.seconds,
            "seconds_of_each_run": [run.seconds for run in self.runs],
            "rounds_of_each_run": [run.rounds for run in self.runs],
            "tokens_per_second": self.tokens_per_second,
            "ms_per_token": 1e3 * self.batch / self.tokens_per_second,
            "ms_per_round": 1e3 * self.round_seconds,
            "tokens_per_round": self.tokens_per_round,
            **self.details,
        }
        if self.system == "ours":
            result["compile_seconds"] = self.first_seconds - self.seconds
        if self.runs[0].row_rounds:
            row_rounds = sum(run.row_rounds for run in self.runs)
            result["tokens_per_row_round"] = sum(run.tokens for run in self.runs) / row_rounds
            result["survival"] = self.survival
        return result


def ours(
    pair: Pair, batch: int, lookahead: int, new_tokens: int, sampling: Sampling = SAMPLING
) -> Contender:
    """Our decoder; autoregressive if the lookahead is 0."""

    def call(prompts: np.ndarray, seed: int) -> Run:
        common: dict[str, Any] = dict(new_tokens=new_tokens, sampling=sampling, seed=seed)

        def decode() -> Decoded:
            if not lookahead:
                return autoregress(pair.target, prompts[:batch], **common)
            return speculate(
                pair.draft, pair.target, prompts[:batch], lookahead=lookahead, **common
            )

        seconds, decoded = timed(decode)
        tokens = int((decoded.lengths - decoded.prompt_lengths).sum())
        rounds, row_rounds = int(decoded.batch_rounds), 0
        survivors: tuple[int, ...] = ()
        if decoded.events is not None:
            took_part = np.asarray(decoded.events.emitted) > 0
            # What verification kept: a last round that the length limit cuts short counts in full.
            kept = np.asarray(decoded.events.verified)[took_part]
            row_rounds = int(took_part.sum())
            survivors = tuple(int((kept >= k).sum()) for k in range(1, lookahead + 1))
        return Run(seconds, tokens, rounds, row_rounds, survivors, np.asarray(decoded.tokens))

    return Contender("ours", batch, lookahead, new_tokens, call)


def theirs(
    peer: Transformers,
    batch: int,
    lookahead: int,
    new_tokens: int,
    threads: int,
    temperature: float = 1.0,
) -> Contender:
    """Transformers' `generate`, assisted if the lookahead is above 0, with torch at a number of threads."""

    def call(prompts: np.ndarray, seed: int) -> Run:
        peer.ask("threads", number=threads)
        answer = peer.ask(
            "generate",
            prompts=prompts[:batch].tolist(),
            new_tokens=new_tokens,
            lookahead=lookahead,
            seed=seed,
            temperature=temperature,
        )
        return Run(answer["seconds"], answer["tokens"], answer["rounds"])

    return Contender("transformers", batch, lookahead, new_tokens, call, {"threads": threads})
