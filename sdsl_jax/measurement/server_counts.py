"""Counts of rounds that a server reports: what they must satisfy, and what follows from them.

Counts come as sums over all rounds or as intervals of a log, whose rates by position are printed
with three digits and are turned into counts again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sdsl_jax.errors import SdslError, require

# More drafts in a round than any engine proposes.
LARGEST_LOOKAHEAD = 1024
# Rates by position are printed with three digits.
RATE_ROUNDING = 0.0005 + 1e-9
# Counters of a running server are not read at one instant.
RACE = 0.01


@dataclass(frozen=True)
class ServerReport:
    """Counts that a server reports of its rounds with drafts.

    Attributes:
      server: vLLM, SGLang or llama.cpp.
      source: What was read, such as "counters since the server started" or "12 log lines".
      convention: Name of the server's figure in `measurement.events.CONVENTIONS`.
      model: Name of the model or, in a log of llama.cpp, of the drafter; empty where none is told.
      lookahead: γ, the most drafts of a round.
      tokens_per_round: τ, with the bonus token.
      tokens_error: Standard error of τ from its spread between log lines; NaN where it follows
        from counts, or from nothing.
      rounds: Rounds with drafts; None if unknown.
      drafted: Drafts that were proposed; None if unknown.
      accepted: Drafts that were accepted; None if unknown.
      survived: For k = 1 … γ, rounds whose first k drafts were all accepted; empty if unknown.
      not_drafted: For each k, the most rounds that can have ended before a draft k was proposed,
        though none was rejected. All 0 if every round drafted γ.
      intervals: Rounds and survivors of each log line, [lines, 1 + γ]; None if unknown.
      notes: What the reader should know of the figures.
    """

    server: str
    source: str
    convention: str
    model: str
    lookahead: int
    tokens_per_round: float
    tokens_error: float = math.nan
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    survived: tuple[int, ...] = ()
    not_drafted: tuple[int, ...] = ()
    intervals: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class Counts(NamedTuple):
    """Counts of one interval; `survived` is empty where rates by position are missing."""

    rounds: int
    drafted: int
    accepted: int
    survived: tuple[int, ...]


def report_of_counts(
    server: str,
    counts: Counts,
    source: str,
    where: str,
    model: str,
    lookahead: int | None,
    drafted_at: tuple[int, ...] = (),
    intervals: np.ndarray | None = None,
) -> ServerReport:
    """A report from counts.

    Args:
      server: As in `ServerReport`, like `source` and `model`.
      counts: Sums over all rounds.
      source: What was read.
      where: Where the counts stand, for messages.
      model: Name of the model.
      lookahead: γ if it is known; otherwise the most drafts that the counts show.
      drafted_at: Rounds that drafted at least 1 … γ tokens; empty if unknown.
      intervals: The same counts by interval, [intervals, 1 + positions]; None if unknown.

    Raises:
      SdslError: The counts contradict one another, or there is no round.
    """
    rounds, drafted, accepted, survived = counts
    require(
        rounds > 0, f"{where} counts no round with drafts: the server has drafted nothing there."
    )
    require(
        accepted <= drafted and rounds <= drafted,
        f"{where} counts {rounds:,} rounds, {drafted:,} drafts and {accepted:,} accepted; a round has at least one draft, "
        "and no more are accepted than drafted.",
    )
    steps = [rounds]
    for k, here in enumerate(survived, 1):
        require(
            here <= steps[-1] * (1 + RACE),
            f"{where} counts {here:,} rounds that accepted {k} drafts, of {steps[-1]:,} that accepted {k - 1}; there "
            "cannot be more.",
        )
        steps.append(min(here, steps[-1]))
    survived = tuple(steps[1:])
    require(
        not survived or abs(sum(survived) - accepted) <= RACE * accepted + len(survived),
        f"{where} counts {accepted:,} accepted drafts, and {sum(survived):,} over all positions; both must be the same.",
    )
    # llama.cpp prints no positions behind the last that was ever accepted.
    gamma = max(len(survived), math.ceil(drafted / rounds - 1e-9), len(drafted_at))
    if lookahead is not None:
        require(
            lookahead >= gamma,
            f"--lookahead is {lookahead}; {where} counts {gamma} drafts per round.",
        )
        # vLLM counts every position that it drafts, accepted or not.
        require(
            lookahead == gamma or not (server == "vLLM" and survived),
            f"--lookahead is {lookahead}; {where} has the positions of {gamma} drafts per round.",
        )
        gamma = lookahead
    require(
        gamma <= LARGEST_LOOKAHEAD,
        f"{where} counts {drafted:,} drafts in {rounds:,} rounds; a round has at most {LARGEST_LOOKAHEAD}.",
    )
    if survived:
        survived += (0,) * (gamma - len(survived))
    missing = max(0, gamma * rounds - drafted)
    if drafted_at:
        padded = drafted_at + (0,) * (gamma - len(drafted_at))
        not_drafted = tuple(max(0, rounds - n) for n in padded)
    else:
        # Whoever lacks draft k lacks the later ones as well, and every round has a first.
        not_drafted = (0, *(missing // (gamma - k + 1) for k in range(2, gamma + 1)))
    if intervals is not None and intervals.shape[1] < gamma + 1:
        intervals = np.pad(intervals, ((0, 0), (0, gamma + 1 - intervals.shape[1])))
    return ServerReport(
        server=server,
        source=source,
        convention="vllm_position" if survived else "vllm_acceptance_rate",
        model=model,
        lookahead=gamma,
        tokens_per_round=1 + (sum(survived) if survived else accepted) / rounds,
        rounds=rounds,
        drafted=drafted,
        accepted=accepted,
        survived=survived,
        not_drafted=not_drafted,
        intervals=intervals,
    )


def report_of_intervals(
    server: str, lines: Sequence[Counts], where: str, model: str, lookahead: int | None
) -> ServerReport:
    """A report from the sum of intervals; see `report_of_counts`."""
    require(lines, f"{where} counts no round with drafts: the server has drafted nothing there.")
    sizes = {len(one.survived) for one in lines}
    if server == "vLLM":
        require(
            len(sizes) == 1,
            f"{where} has lines of {' and '.join(map(str, sorted(sizes)))} positions; the server restarted with another "
            "lookahead: give the lines of one.",
        )
    gamma = max(sizes)
    table = np.zeros((len(lines), 1 + gamma), int)
    for row, one in zip(table, lines):
        row[: 1 + len(one.survived)] = (one.rounds, *one.survived)
    counts = Counts(
        sum(one.rounds for one in lines),
        sum(one.drafted for one in lines),
        sum(one.accepted for one in lines),
        tuple(int(n) for n in table[:, 1:].sum(axis=0)) if min(sizes) else (),
    )
    said = f"{len(lines)} log line{'s' * (len(lines) > 1)}"
    intervals = table if min(sizes) else None
    return report_of_counts(server, counts, said, where, model, lookahead, intervals=intervals)


def counts_of_rates(accepted: int, drafted: int, rates: Sequence[float], at: str) -> Counts:
    """Rounds and survivors behind printed rates: the rounds are those at which every rate, rounded
    to three digits, is a whole number of rounds, and these sum to the accepted drafts.

    Where several numbers of rounds fit, it is that of whole blocks of drafts, or else the nearest to
    accepted / Σ rates.
    """
    require(
        accepted <= drafted
        and all(0 <= r <= 1 for r in rates)
        and list(rates) == sorted(rates)[::-1],
        f"{at} has {accepted:,} of {drafted:,} drafts accepted and rates {', '.join(f'{r:g}' for r in rates)}; rates must "
        "lie in [0, 1] and cannot rise with the position.",
    )
    gamma, total = len(rates), sum(rates)

    def survivors(rounds: int) -> tuple[int, ...] | None:
        counts = tuple(round(r * rounds) for r in rates)
        slack = gamma * max(RATE_ROUNDING * rounds - 0.5, 0)
        fits = abs(sum(counts) - accepted) <= slack and all(
            abs(n / rounds - r) <= RATE_ROUNDING for n, r in zip(counts, rates)
        )
        return counts if fits else None

    candidates = [drafted // gamma] if drafted % gamma == 0 else []
    if total > 0:
        middle = accepted / total
        reach = 2 + int(middle * gamma * RATE_ROUNDING / total)
        near = range(max(1, round(middle) - reach), round(middle) + reach + 1)
        candidates += sorted(near, key=lambda n: abs(n - middle))
    elif accepted == 0:
        candidates.append(math.ceil(drafted / gamma))
    for rounds in candidates:
        if rounds <= drafted and (counts := survivors(rounds)) is not None:
            return Counts(rounds, drafted, accepted, counts)
    raise SdslError(
        f"{at} has {accepted:,} of {drafted:,} drafts accepted and rates {', '.join(f'{r:g}' for r in rates)}, which no "
        "number of rounds gives; was the line cut or edited?"
    )
