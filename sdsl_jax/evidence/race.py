"""How much faster the chosen draft decodes than the target alone, on prompts that did not choose it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from sdsl_jax.evidence.common import Estimate
from sdsl_jax.evidence.study_records import StudyRecords
from sdsl_jax.records import RaceRecord
from sdsl_jax.statistics import bootstrap_weights, quantile_interval

# The name that stands for all kinds of text together.
ALL = "all"
_DRAWS = 4000


@dataclass(frozen=True)
class Rival:
    """A decoder on the choosing prompts.

    Attributes:
      draft_id: its draft; "ngram" for n-grams alone
      lookahead: its γ
      ngram: n-grams of at least so many tokens drafted first; 0 for the draft alone
      tokens_per_round: tokens of a round
      speedup: speed-up over plain decoding
    """

    draft_id: str
    lookahead: int
    ngram: int
    tokens_per_round: float
    speedup: Estimate


@dataclass(frozen=True)
class RaceResult:
    """The winner of one temperature.

    A speed-up is the ratio of two rates, tokens per second over all prompts. Its interval resamples
    prompts, each with all its runs, so neither a slow prompt nor a busy moment counts twice.

    Attributes:
      target_id: target model
      draft_id: the draft that won on the choosing prompts; "ngram" for n-grams alone
      lookahead: its γ
      ngram: n-grams of at least so many tokens drafted first; 0 for the draft alone
      temperature: sampling temperature
      prompts: prompts that judged it
      speedups: speed-up by kind of text, and of all together
      tokens_per_round: tokens of a round, all kinds together
      predicted: its speed-up on the choosing prompts, which is a little too high, as of any winner
      error: how far the judged speed-up is from it, as a share of it
      decoders: all decoders on the choosing prompts, the fastest first
    """

    target_id: str
    draft_id: str
    lookahead: int
    ngram: int
    temperature: float
    prompts: int
    speedups: dict[str, Estimate]
    tokens_per_round: float
    predicted: float
    error: float
    decoders: list[Rival] = field(default_factory=list)

    def __str__(self) -> str:
        ngrams = f"n-grams of {self.ngram} tokens or more"
        draft = self.draft_id if self.draft_id != "ngram" else ngrams
        first = f" after {ngrams}" if self.ngram and draft != ngrams else ""
        kinds = "; ".join(
            f"{name} {s.estimate:.2f} ({s.low:.2f} to {s.high:.2f})"
            for name, s in self.speedups.items()
        )
        return (
            f"T = {self.temperature:g}: {draft}{first}, γ = {self.lookahead}, best of {len(self.decoders)}. Speed-up on "
            f"{self.prompts} other prompts: {kinds}. Predicted {self.predicted:.2f}, {self.error:+.1%} off."
        )


@dataclass(frozen=True)
class Race:
    """The race of a study.

    Attributes:
      results: the winner of each temperature
      confidence: confidence of the intervals
    """

    results: list[RaceResult]
    confidence: float


def race(records: StudyRecords) -> Race | None:
    """The results of the race; None if there was none."""
    rows = records.race
    confidence = records.config.measure.confidence
    if not rows:
        return None
    temperatures = dict.fromkeys(row.temperature for row in rows)
    each = ([r for r in rows if r.temperature == t] for t in temperatures)
    return Race([_result(some, confidence, records.config.seed) for some in each], confidence)


def _sums(rows: Sequence[RaceRecord]) -> Float[np.ndarray, "prompts 2"]:
    """Tokens and seconds of each prompt."""
    sums = np.zeros((1 + max(r.prompt for r in rows), 2))
    for row in rows:
        sums[row.prompt] += row.tokens, row.seconds
    return sums


def _speedup(
    fast: Sequence[RaceRecord],
    plain: Sequence[RaceRecord],
    confidence: float,
    seed: int,
) -> Estimate:
    sums = _sums(fast), _sums(plain)
    raced = np.flatnonzero(sums[0][:, 1])
    draws = bootstrap_weights(len(raced), _DRAWS, seed)

    def ratios(weights: np.ndarray) -> np.ndarray:
        (tokens, seconds), (plain_tokens, plain_seconds) = ((weights @ s[raced]).T for s in sums)
        return tokens / seconds * plain_seconds / plain_tokens

    return Estimate(
        float(ratios(np.ones(len(raced)))), *quantile_interval(ratios(draws), confidence)
    )


def _tokens_per_round(rows: Sequence[RaceRecord]) -> float:
    return sum(r.tokens for r in rows) / sum(r.rounds for r in rows)


def _rivals(choosing: Sequence[RaceRecord], confidence: float, seed: int) -> list[Rival]:
    """Every decoder beside plain decoding, the fastest first."""
    runs: dict[tuple[str, int, int], list[RaceRecord]] = defaultdict(list)
    for r in choosing:
        runs[r.draft_id, r.lookahead, r.ngram].append(r)
    plain = [r for r in choosing if not r.draft_id]
    rivals = [
        Rival(*name, _tokens_per_round(rows), _speedup(rows, plain, confidence, seed))
        for name, rows in runs.items()
        if name[0]
    ]
    return sorted(rivals, key=lambda r: -r.speedup.estimate)


def _result(rows: Sequence[RaceRecord], confidence: float, seed: int) -> RaceResult:
    """The result of one temperature."""
    judging = [r for r in rows if r.part == "judging"]
    fast = [r for r in judging if r.draft_id]
    plain = [r for r in judging if not r.draft_id]
    won = fast[0]
    name = (won.draft_id, won.lookahead, won.ngram)
    rivals = _rivals([r for r in rows if r.part == "choosing"], confidence, seed)
    predicted = next(
        r.speedup.estimate for r in rivals if (r.draft_id, r.lookahead, r.ngram) == name
    )
    speedups = {ALL: _speedup(fast, plain, confidence, seed)}
    for kind in dict.fromkeys(r.domain for r in fast):
        ours, theirs = ([r for r in part if r.domain == kind] for part in (fast, plain))
        speedups[kind] = _speedup(ours, theirs, confidence, seed)
    return RaceResult(
        target_id=won.target_id,
        draft_id=won.draft_id,
        lookahead=won.lookahead,
        ngram=won.ngram,
        temperature=won.temperature,
        prompts=len({r.prompt for r in fast}),
        speedups=speedups,
        tokens_per_round=_tokens_per_round(fast),
        predicted=predicted,
        error=speedups[ALL].estimate / predicted - 1,
        decoders=rivals,
    )
