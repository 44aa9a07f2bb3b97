"""Acceptance from the raw events of the decoder: the statistics of a run with its self-check, every
convention of "acceptance", and conversions between the conventions.

Tools mean different things by "acceptance": the same run has an acceptance rate of 0.535 in vLLM and
of 0.651 in older SGLang. Each quantity here carries the name of its source, and all are ratios of
sums over row-rounds. Below, Σ runs over the counted rounds, γ is the number of drafts that a round
proposed (it may differ from round to round), and a is the number of drafts that were kept and
emitted. A round is *cut* if its row stopped at one of its drafts, so that no token followed them
(emitted = a; otherwise emitted = a + 1). A draft behind a stop counts as neither accepted nor tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from sdsl_jax.decoding import Decoded, Events
from sdsl_jax.errors import require
from sdsl_jax.ranges import require_in
from sdsl_jax.statistics import Interval, mean_interval, poisson_binomial_score, ratio_interval
from sdsl_jax.theory import acceptance_from_tokens_per_round, tokens_per_round

# How often a decoder without errors is warned about, among all measurements.
FALSE_ALARM = 1e-4
# Rounding error of float32 sums of probabilities: no probability is taken nearer to 0 or 1 than this.
_ROUNDING = 1e-6


class DecodedStatistics(NamedTuple):
    """What a run of the decoder says about a pair at one lookahead; prompts are the clusters of the
    intervals.

    Attributes:
      per_test: Accepted over tested drafts; a draft behind a rejection is not tested.
      tar: The α whose geometric formula gives the observed tokens per round (the paper's inversion
        of 1 + γ·TAR).
      survival: For k = 1..γ, the share of rounds whose first k drafts were all accepted.
      tokens_per_round: τ = 1 + Σ_k survival_k.
      rounds: Rounds that `tar`, `survival` and `tokens_per_round` count.
      tests: Drafts tested.
      self_check: How far the number of drafts kept is from what the decoder's own probabilities
        give, as a standard normal score; see `self_check`.
      fallback_share: Share of rounds that the fallback of a hybrid draft drafted, or the larger slice
        of a nested one; None for a draft of one part.
    """

    per_test: Interval
    tar: Interval
    survival: list[Interval]
    tokens_per_round: Interval
    rounds: int
    tests: int
    self_check: float
    fallback_share: Interval | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The statistics of a draft of one part as plain arrays, which `from_arrays` reads."""
        intervals = [self.per_test, self.tar, self.tokens_per_round, *self.survival]
        return {
            "intervals": np.array(intervals, float),
            "counts": np.array([self.rounds, self.tests]),
            "self_check": np.array(self.self_check),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> DecodedStatistics:
        """The statistics that arrays hold."""
        per_test, tar, tau, *survival = (Interval(*map(float, x)) for x in arrays["intervals"])
        rounds, tests = map(int, arrays["counts"])
        return cls(per_test, tar, survival, tau, rounds, tests, float(arrays["self_check"]))


def summarise(decoded: Decoded, lookahead: int, confidence: float) -> DecodedStatistics:
    """Statistics of a run at one fixed lookahead.

    Survival and τ count what verification kept, even if the row stopped before all of it was
    emitted. Otherwise the last rounds of rows would make every draft look worse. Rounds that reach
    beyond a table of positions are left out. That depends on where a round starts, not on what it
    kept, so it does not bias the result.

    Args:
      decoded: A run of `speculate`.
      lookahead: γ of the run.
      confidence: Confidence of the intervals.
    """
    assert decoded.events is not None
    events: Any = jax.tree.map(np.asarray, decoded.events)
    happened = events.emitted > 0
    rejected = (
        happened & (events.emitted == events.accepted + 1) & (events.accepted < events.proposed)
    )
    accepted = events.accepted.sum(axis=1)
    tested = accepted + rejected.sum(axis=1)
    whole = happened
    if decoded.position_limit is not None:
        whole = happened & (events.start + lookahead <= np.asarray(decoded.position_limit)[:, None])
    rounds = whole.sum(axis=1)
    survival = [
        ratio_interval((whole & (events.verified >= k)).sum(axis=1), rounds, confidence)
        for k in range(1, lookahead + 1)
    ]
    tau = ratio_interval(np.where(whole, events.verified + 1, 0).sum(axis=1), rounds, confidence)
    fallback_share = None
    if events.drafted_by is not None:
        by_fallback = (whole & (events.drafted_by > 0)).sum(axis=1)
        fallback_share = ratio_interval(by_fallback, rounds, confidence)
    return DecodedStatistics(
        per_test=ratio_interval(accepted, tested, confidence),
        tar=Interval(*(float(acceptance_from_tokens_per_round(value, lookahead)) for value in tau)),
        survival=survival,
        tokens_per_round=tau,
        rounds=int(rounds.sum()),
        tests=int(tested.sum()),
        self_check=self_check(events),
        fallback_share=fallback_share,
    )


def self_check(events: Events) -> float:
    """A standard normal score of the number of drafts kept, under the decoder's own probabilities.

    Each tested draft is kept with a probability β that is known before it is drawn
    (`Verdict.expected_accepted`), whatever happened before, so the number kept less Σβ is a
    martingale. The score is that of independent coins with these probabilities,
    `statistics.poisson_binomial_score`. It is right where hardly any draft is kept, and standard
    normal where many are.

    The check covers the draws of the drafts, the accept tests, and the q and p behind them. It
    cannot see what comes after a rejection or a full acceptance, or randomness that rounds share:
    those change which contexts are visited, not what happens there.

    Args:
      events: Events of a run, at any lookahead and with either verification.

    Returns:
      The score; NaN if every test was certain.
    """
    verified, proposed, probability = (
        np.asarray(x) for x in (events.verified, events.proposed, events.expected_accepted)
    )
    tested = np.arange(probability.shape[-1]) < np.minimum(verified + 1, proposed)[..., None]
    chances, kept = probability[tested].astype(float), int(verified.sum())
    certain = (chances * (1 - chances)).sum() <= _ROUNDING * max(1, len(chances))
    if certain and abs(kept - chances.sum()) < 0.5:
        return math.nan
    return float(
        poisson_binomial_score(np.asarray(kept), np.clip(chances, _ROUNDING, 1 - _ROUNDING))
    )


def alarm_score(runs: int) -> float:
    """The self-check score beyond which a run is warned about, for a measurement of several runs.

    A decoder without errors exceeds it in at most one of `1 / FALSE_ALARM` measurements, all runs of
    a measurement together (Bonferroni): a score beyond x on either side is at most four times as
    probable as a normal one above x.

    Args:
      runs: Runs of the decoder, one for each lookahead.
    """
    return NormalDist().inv_cdf(1 - FALSE_ALARM / (4 * runs))


def event_columns(decoded: Decoded) -> dict[str, np.ndarray]:
    """Raw events as columns, one entry per row and round that took place. A draft of one part has 0 in
    `drafted_by`."""
    assert decoded.events is not None
    happened = np.asarray(decoded.events.emitted) > 0
    row, number = np.nonzero(happened)
    columns = {"row": row, "round": number}
    for name in ("start", "proposed", "verified", "accepted", "emitted", "stop_reason"):
        columns[name] = np.asarray(getattr(decoded.events, name))[happened]
    by = decoded.events.drafted_by
    columns["drafted_by"] = np.zeros_like(row) if by is None else np.asarray(by)[happened]
    return columns


class Convention(NamedTuple):
    """Source and definition of a convention."""

    source: str
    definition: str


_LEVIATHAN = "Leviathan et al., 2211.17192"

# By the names of `AcceptanceReport.estimates`; a convention with one value per position has the
# position added there, as in vllm_position_1.
CONVENTIONS: dict[str, Convention] = {
    "per_test_acceptance": Convention(
        _LEVIATHAN, "Σ a / Σ tests; a round tests its drafts up to the first rejection or stop"
    ),
    "accepted_per_round": Convention("raw events", "Σ a / rounds with drafts"),
    "vllm_acceptance_length": Convention("vLLM", "1 + Σ a / rounds with drafts"),
    "vllm_acceptance_rate": Convention("vLLM", "Σ a / Σ γ"),
    "vllm_position": Convention(
        "vLLM", "rounds with a ≥ k / rounds with drafts, whether or not they reached k"
    ),
    "eagle_tau": Convention("EAGLE, 2401.15077", "Σ (a + 1) / rounds"),
    "eagle_alpha": Convention(
        "EAGLE, 2401.15077", "n-α: rounds with a ≥ n + 1 / rounds that tested draft n + 1"
    ),
    "sglang_old_accept_rate": Convention(
        "SGLang before April 2026",
        "(Σ a + rounds with drafts) / Σ (γ + 1): the bonus token on both sides",
    ),
    "deepspec_accept_rate": Convention(
        "DeepSpec", "Σ (a + 1) / Σ (γ + 1) over all rounds, also those without drafts"
    ),
    "specbench_tokens_per_round": Convention("Spec-Bench, 2401.07851", "Σ emitted / rounds"),
    "paper_tar": Convention("arXiv 2603.11053", "TAR = Σ a / Σ γ"),
    "paper_alpha": Convention(
        "arXiv 2603.11053",
        "the α of 1 + γ·TAR = (1 − α^(γ+1))/(1 − α); for a γ that varies, of Σ a = Σ (τ(α, γ) − 1)",
    ),
    "rounds_per_row": Convention(
        "raw events", "mean over rows of the rounds that a row took part in"
    ),
    "batch_rounds": Convention(
        "lockstep batch",
        "rounds of a batch, as many as its slowest row takes; of all batches together",
    ),
    "tokens_per_batch_round": Convention("lockstep batch", "Σ emitted / (rows · batch rounds)"),
}


@dataclass(frozen=True)
class AcceptanceReport:
    """Every convention for one run; rows (prompts) are the clusters of the intervals.

    Attributes:
      estimates: Estimates by the names of `CONVENTIONS`, with one value per position as
        `vllm_position_1` … `vllm_position_γ` and `eagle_alpha_0` … `eagle_alpha_(γ−1)`. Ends of an
        interval are NaN where the events of one batch give none.
      lookahead: γ of every counted round with drafts; None if it differs between rounds.
      confidence: Confidence of the intervals.
      rows: Rows of the run.
      rounds: Rounds counted.
      excluded: Rounds left out because they began with too little room for γ + 1 tokens.
      cut: Counted rounds that a stop cut short.
    """

    estimates: dict[str, Interval]
    lookahead: int | None
    confidence: float
    rows: int
    rounds: int
    excluded: int
    cut: int


def _columns(
    events: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Int[np.ndarray, " rounds"]]:
    """Checked integer columns of a table of events, without rounds that a row took no part in."""
    missing = [name for name in names if name not in events]
    require(
        not missing,
        f"the events lack the column {', '.join(missing)}; they need {', '.join(names)}.",
    )
    columns = {name: np.asarray(events[name]) for name in (*names, "round") if name in events}
    shapes = {name: column.shape for name, column in columns.items()}
    require(
        len(set(shapes.values())) == 1 and columns["row"].ndim == 1,
        f"the columns of the events have shapes {shapes}; they must be one-dimensional and of one length.",
    )
    for name, column in columns.items():
        numeric = np.issubdtype(column.dtype, np.number)
        require(
            numeric and np.all(np.isfinite(column)) and np.all(column == np.floor(column)),
            f"the column {name} of the events must hold whole numbers; it is of type {column.dtype} or holds fractions.",
        )
        columns[name] = column.astype(np.int64)
        require(
            name == "row" or column.min(initial=0) >= 0,
            f"the column {name} of the events holds negative numbers.",
        )
    took_part = columns["emitted"] > 0
    columns = {name: column[took_part] for name, column in columns.items()}
    require(
        columns["row"].size > 0,
        "the events hold no round that emitted a token; they must hold at least one.",
    )
    accepted, emitted = columns["accepted"], columns["emitted"]
    for good, rule in (
        (accepted <= columns["proposed"], "accepted ≤ proposed"),
        (
            (emitted == accepted) | (emitted == accepted + 1),
            "emitted = accepted + 1, or accepted at a stop",
        ),
    ):
        bad = int(np.argmin(good))
        require(
            good.all(),
            f"round {bad} of the events has {columns['proposed'][bad]} proposed, {accepted[bad]} accepted and "
            f"{emitted[bad]} emitted; it must have {rule}.",
        )
    if "round" in columns:
        pairs, counts = np.unique(
            np.stack([columns["row"], columns["round"]]), axis=1, return_counts=True
        )
        twice = pairs[:, int(np.argmax(counts))]
        require(
            bool(counts.max() == 1),
            f"row {twice[0]} has round {twice[1]} {counts.max()} times; the events must be those of one run.",
        )
    return columns


def _has_room(columns: Mapping[str, np.ndarray], max_lengths: Any) -> Bool[np.ndarray, " rounds"]:
    """Whether each round began with room for γ + 1 tokens."""
    limits, row = np.asarray(max_lengths), columns["row"]
    if limits.ndim > 0:
        require(
            limits.ndim == 1 and row.min() >= 0 and row.max() < len(limits),
            f"max_lengths has shape {limits.shape}; it must hold one length for each row, and rows run from {row.min()} to "
            f"{row.max()}.",
        )
        limits = limits[row]
    return columns["start"] + columns["proposed"] + 1 <= limits


def acceptance_report(
    events: Mapping[str, Any],
    *,
    max_lengths: int | Int[np.ndarray | Array, " rows"] | None = None,
    whole_rounds_only: bool = False,
    confidence: float = 0.9,
) -> AcceptanceReport:
    """Every convention from the raw events of one run, from this or any other decoder.

    Cut rounds. `per_test_acceptance` and `eagle_alpha` count tests. Under token verification a draft
    is tested or not before its outcome is known, so cuts bias neither. (Block verification does not
    test drafts one by one; there the two are counts by the same definition and not probabilities.)
    All other conventions divide by rounds or by proposed drafts, and a cut round shows fewer drafts
    than it would have accepted.

    A round's *room*, the tokens left to the row's maximum length, is known before it is verified.
    Leaving out rounds with room for fewer than γ + 1 tokens (`whole_rounds_only`) therefore removes
    cuts by length without bias. It only gives late contexts less weight; if γ adapts to the text,
    the late rounds that count tend to be short ones. Rounds cut by a stop token always count, with
    what they emitted: rounds that accept more reach the stop more often, so leaving them out would
    select by outcome. To count what verification kept instead, drafts behind a stop included, pass
    the column `verified` as accepted and one more as emitted; then no round is cut.

    Args:
      events: A pandas frame or a mapping of one-dimensional columns with one entry per row and
        round: row, proposed, accepted, emitted, and for `whole_rounds_only` also `start` (position
        of the first token emitted). A column `round` is used to check that no row has a round
        twice, a column `batch` tells which rows waited for one another, and others are ignored.
        `emitted` must be accepted + 1 for every round that was not cut. For events of a decoder
        without a bonus token after full acceptance, add it first.
      max_lengths: Length, prompt included, at which rows stop: one for all or one per row number.
      whole_rounds_only: Counts only rounds that began with room for γ + 1 tokens. Row and batch
        rounds count all.
      confidence: Confidence of the intervals.

    Raises:
      SdslError: a column is missing or holds impossible values, or no round is left to count.
    """
    require_in("(0, 1)", "the confidence", confidence)
    columns = _columns(
        events, ("row", "proposed", "accepted", "emitted") + ("start",) * whole_rounds_only
    )
    everything, sizes = np.unique(columns["row"], return_counts=True)
    emitted = int(columns["emitted"].sum())
    counted = np.ones(columns["row"].shape, bool)
    if whole_rounds_only:
        require(
            max_lengths is not None,
            "whole_rounds_only needs max_lengths: the events do not tell how much room a round had.",
        )
        counted = _has_room(columns, max_lengths)
        require(
            counted.any(),
            "no round began with room for γ + 1 tokens; use longer rows or count all rounds.",
        )
    columns = {name: column[counted] for name, column in columns.items()}
    estimates = _estimates(columns, confidence)
    batches = (
        np.asarray(events["batch"])[np.unique(np.asarray(events["row"]), return_index=True)[1]]
        if "batch" in events
        else 0
    )
    batches = np.broadcast_to(batches, sizes.shape)
    slowest = {batch: int(sizes[batches == batch].max()) for batch in np.unique(batches)}
    places = sum(int((batches == batch).sum()) * rounds for batch, rounds in slowest.items())
    # Both depend on the slowest row of a batch: the rows of one batch give no interval for another.
    estimates |= {
        "rounds_per_row": mean_interval(sizes, confidence),
        "batch_rounds": Interval(float(sum(slowest.values())), math.nan, math.nan),
        "tokens_per_batch_round": Interval(emitted / places, math.nan, math.nan),
    }
    lookaheads = np.unique(columns["proposed"][columns["proposed"] > 0])
    return AcceptanceReport(
        estimates=estimates,
        lookahead=int(lookaheads[0]) if len(lookaheads) == 1 else None,
        confidence=confidence,
        rows=len(everything),
        rounds=int(counted.sum()),
        excluded=int((~counted).sum()),
        cut=int((columns["emitted"] == columns["accepted"]).sum()),
    )


def _estimates(columns: Mapping[str, np.ndarray], confidence: float) -> dict[str, Interval]:
    _, row = np.unique(columns["row"], return_inverse=True)
    proposed, accepted, emitted = (columns[name] for name in ("proposed", "accepted", "emitted"))
    drafted = proposed > 0

    def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
        """Ratio of sums over rounds, with rows as clusters."""
        return ratio_interval(
            np.bincount(row, numerators), np.bincount(row, denominators), confidence
        )

    # The token after the accepted drafts replaces a rejected draft if there was one; a cut round has
    # no such token.
    tests = accepted + ((emitted == accepted + 1) & (accepted < proposed))
    mean = ratio(accepted, drafted)
    tar = ratio(accepted, proposed)
    deepest = int(proposed.max())
    estimates = {
        "per_test_acceptance": ratio(accepted, tests),
        "accepted_per_round": mean,
        "vllm_acceptance_length": Interval(*(1 + value for value in mean)),
        "vllm_acceptance_rate": tar,
        "eagle_tau": ratio(accepted + 1, np.ones_like(accepted)),
        "sglang_old_accept_rate": ratio(accepted + drafted, (proposed + 1) * drafted),
        "deepspec_accept_rate": ratio(accepted + 1, proposed + 1),
        "specbench_tokens_per_round": ratio(emitted, np.ones_like(emitted)),
        "paper_tar": tar,
        "paper_alpha": _geometric_acceptance(proposed, accepted, ratio),
    }
    estimates |= {
        f"vllm_position_{k}": ratio(accepted >= k, drafted) for k in range(1, deepest + 1)
    }
    estimates |= {f"eagle_alpha_{n}": ratio(accepted > n, tests > n) for n in range(deepest)}
    return estimates


def _geometric_acceptance(
    proposed: np.ndarray, accepted: np.ndarray, ratio: Callable[..., Interval]
) -> Interval:
    """The α at which Σ (τ(α, γ) − 1) over the rounds equals Σ a; for a single γ this inverts the
    mean accepted drafts per round.

    The interval inverts the one of Σ a / Σ (τ(α̂, γ) − 1), so it covers that rows differ in their
    lookaheads as well as in what they accept.
    """
    lookaheads, index, rounds = np.unique(
        proposed[proposed > 0], return_inverse=True, return_counts=True
    )
    if len(lookaheads) == 0:
        return Interval(math.nan, math.nan, math.nan)

    def invert(total: float) -> float:
        if math.isnan(total):
            return math.nan
        if len(lookaheads) == 1:
            return float(acceptance_from_tokens_per_round(1 + total / rounds[0], lookaheads[0]))
        # Rounds that reach position k, by k: the sum is a polynomial in α with these coefficients.
        reach = np.array(
            [rounds[lookaheads >= k].sum() for k in range(lookaheads[-1], 0, -1)] + [0.0]
        )
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if np.polyval(reach, middle) < total else (low, middle)
        return high if total > 0 else 0.0

    total = float(accepted.sum())
    alpha = invert(total)
    expected = np.zeros(len(proposed))
    expected[proposed > 0] = (np.asarray(tokens_per_round(alpha, lookaheads), float) - 1)[index]
    around = ratio(accepted, expected)
    return Interval(
        alpha,
        *(invert(total * share) if total > 0 else alpha for share in (around.low, around.high)),
    )


# Conventions that are linear in the mean accepted drafts per round m at a fixed γ:
# (m + offset) / divisor.
_LINEAR = {
    "accepted_per_round": (0, lambda lookahead: 1),
    "vllm_acceptance_length": (1, lambda lookahead: 1),
    "vllm_acceptance_rate": (0, lambda lookahead: lookahead),
    "eagle_tau": (1, lambda lookahead: 1),
    "sglang_old_accept_rate": (1, lambda lookahead: lookahead + 1),
    "deepspec_accept_rate": (1, lambda lookahead: lookahead + 1),
    "specbench_tokens_per_round": (1, lambda lookahead: 1),
    "paper_tar": (0, lambda lookahead: lookahead),
}
CONVERTIBLE = (*_LINEAR, "paper_alpha", "per_test_acceptance")


def convert(
    value: float, source: str, target: str, lookahead: int, *, assume_geometric: bool = False
) -> float:
    """Converts a value between conventions, for whole rounds of one fixed lookahead that each emit a
    bonus token.

    All conventions but `per_test_acceptance` are functions of γ and the mean accepted drafts per
    round, so they determine one another exactly. This includes `paper_alpha`, which inverts that
    mean. Acceptance per test follows from a mean over rounds only if every draft is accepted with
    the same probability, independently of the others. It then equals `paper_alpha`;
    `assume_geometric` allows this conversion.

    Args:
      value: Value in the convention `source`.
      source: One of `CONVERTIBLE`.
      target: One of `CONVERTIBLE`.
      lookahead: γ ≥ 1 of every round.
      assume_geometric: Takes acceptance as independent and identically distributed.

    Raises:
      SdslError: a convention is unknown or cannot be converted, or the value is out of range for
        its convention.
    """
    require(
        int(lookahead) == lookahead and lookahead >= 1,
        f"the lookahead is {lookahead}; it must be a whole number of at least 1.",
    )
    for name in (source, target):
        require(
            name in CONVERTIBLE,
            f"the convention {name!r} does not determine the mean accepted drafts per round, or is unknown; use one of "
            f"{', '.join(CONVERTIBLE)}.",
        )
        require(
            name != "per_test_acceptance" or assume_geometric or source == target,
            "per_test_acceptance does not follow from a mean over rounds, nor a mean from it; "
            "assume_geometric allows the conversion for independent, identically distributed acceptance.",
        )

    def from_mean(name: str, mean: float) -> float:
        if name in _LINEAR:
            offset, divisor = _LINEAR[name]
            return (mean + offset) / divisor(lookahead)
        return float(acceptance_from_tokens_per_round(1 + mean, lookahead))

    low, high = from_mean(source, 0.0), from_mean(source, float(lookahead))
    require(
        low - 1e-6 <= value <= high + 1e-6,
        f"{source} is {value}; at a lookahead of {lookahead} it must lie in [{low:g}, {high:g}].",
    )
    if source == target:
        return float(value)
    value = min(max(value, low), high)
    if source in _LINEAR:
        offset, divisor = _LINEAR[source]
        mean = value * divisor(lookahead) - offset
    else:
        mean = float(tokens_per_round(value, lookahead)) - 1
    return from_mean(target, mean)
