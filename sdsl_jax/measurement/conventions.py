"""Every convention of "acceptance" from one table of raw events.

Tools mean different things by one word: the same run has an acceptance rate of 0.535 in vLLM and of
0.651 in older SGLang. So each quantity here carries the name of its source, all are ratios of sums
over row-rounds, and what the sums run over is written out. Below, Σ is over the counted rounds, γ
the drafts that a round proposed (it may differ from round to round), a the drafts that were kept
and emitted, and a round is *cut* if its row stopped at one of its drafts, so that nothing followed
them (emitted = a; otherwise emitted = a + 1). A draft behind a stop counts as neither accepted nor
tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from sdsl_jax.errors import require
from sdsl_jax.ranges import share_hint
from sdsl_jax.statistics import Interval, mean_interval, ratio_interval
from sdsl_jax.theory import acceptance_from_tokens_per_round, tokens_per_round


class Convention(NamedTuple):
    """Where a convention comes from and what it is."""

    source: str
    definition: str


_LEVIATHAN = "Leviathan et al., 2211.17192"

# The names of `AcceptanceReport.estimates`; those of one value per position have the position
# added, as in vllm_position_1.
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


class ConventionRow(NamedTuple):
    """One line of a table of conventions; `low` and `high` are NaN where the events of one batch give no interval."""

    name: str
    source: str
    definition: str
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class AcceptanceReport:
    """Every convention for one run; intervals take rows (prompts) as clusters.

    Attributes:
      estimates: by the names of `CONVENTIONS`, those of one value per position as `vllm_position_1`
        … `vllm_position_γ` and `eagle_alpha_0` … `eagle_alpha_(γ−1)`.
      lookahead: γ of every counted round with drafts; None where it differs between them.
      confidence: of the intervals.
      rows: rows of the run.
      rounds: rounds counted.
      excluded: rounds left out, because they began with too little room for γ + 1 tokens.
      cut: rounds counted that a stop cut short.
    """

    estimates: dict[str, Interval]
    lookahead: int | None
    confidence: float
    rows: int
    rounds: int
    excluded: int
    cut: int

    def table(self) -> list[ConventionRow]:
        """One row per estimate, with source and definition."""
        rows = []
        for name, value in self.estimates.items():
            base = name if name in CONVENTIONS else name.rpartition("_")[0]
            rows.append(ConventionRow(name, *CONVENTIONS[base], *value))
        return rows


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
            numeric
            and bool(np.all(np.isfinite(column)))
            and bool(np.all(column == np.floor(column))),
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
            bool(good.all()),
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
    """Every convention from the raw events of one run, whoever recorded them.

    What cuts do. `per_test_acceptance` and `eagle_alpha` count tests, and under token verification
    whether a draft is tested is settled before its outcome: cuts bias neither. (Block verification
    does not test drafts one by one; there the two are counts by the same definition, and no
    probabilities.) All others divide by rounds or by proposed drafts, and a cut round shows less
    than it would have accepted. A round's *room*, the tokens left to the row's maximum length, is
    known before it is verified, so leaving out rounds with room for fewer than γ + 1 tokens
    (`whole_rounds_only`) removes cuts by length and biases nothing; it only gives late contexts
    less weight and, if γ adapts to the text, late rounds counted lean to short ones. Rounds cut by
    a stop token are never left out: that would choose by outcome, since rounds that accept more
    reach the stop more often. They stay, with what they emitted. To count instead what verification
    kept, drafts behind a stop included, pass the column `verified` as accepted, and emitted as one
    more: then no round is cut.

    Args:
      events: a pandas frame or a mapping of one-dimensional columns, one entry per row and round:
        row, proposed, accepted, emitted; `start` (position of the first token emitted) for
        `whole_rounds_only`. A column `round` is used to see that no row has a round twice, a column
        `batch` to know which rows waited for one another, and others are passed over. `emitted`
        must be accepted + 1 for every round that was not cut: for events of a decoder without a
        bonus token after full acceptance, add it first.
      max_lengths: length, prompt included, at which rows stop: one for all, or one for each row
        number.
      whole_rounds_only: count only rounds that began with room for γ + 1 tokens. Row and batch
        rounds count all.
      confidence: of the intervals.

    Raises:
      SdslError: a column is missing or holds impossible values, or no round is left to count.
    """
    require(
        0 < confidence < 1,
        f"the confidence is {confidence}; it must lie in (0, 1){share_hint(confidence)}.",
    )
    columns = _columns(
        events, ("row", "proposed", "accepted", "emitted") + ("start",) * whole_rounds_only
    )
    everything, sizes = np.unique(columns["row"], return_counts=True)
    emitted = int(columns["emitted"].sum())
    counted = np.ones(columns["row"].shape, bool)
    if whole_rounds_only:
        require(
            max_lengths is not None,
            "whole_rounds_only needs max_lengths, for how much room a round had cannot be seen from its events.",
        )
        counted = _has_room(columns, max_lengths)
        require(
            bool(counted.any()),
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
    # A maximum over the rows of one batch: what varies within it gives no interval for another
    # batch.
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
        """Of sums over rounds, with rows as clusters."""
        return ratio_interval(
            np.bincount(row, numerators), np.bincount(row, denominators), confidence
        )

    # The token after the accepted drafts replaces a rejected one if there was one; a cut round has
    # none.
    tests = accepted + ((emitted == accepted + 1) & (accepted < proposed))
    mean = ratio(accepted, drafted)
    tar = ratio(accepted, proposed)
    deepest = int(proposed.max())
    found = {
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
    found |= {f"vllm_position_{k}": ratio(accepted >= k, drafted) for k in range(1, deepest + 1)}
    found |= {f"eagle_alpha_{n}": ratio(accepted > n, tests > n) for n in range(deepest)}
    return found


def _geometric_acceptance(proposed: np.ndarray, accepted: np.ndarray, ratio: Any) -> Interval:
    """The α at which Σ (τ(α, γ) − 1) over the rounds is Σ a; for one γ this inverts the mean
    accepted drafts per round.

    The interval inverts that of Σ a / Σ (τ(α̂, γ) − 1), so rows differ in their lookaheads as well
    as in what they accept.
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
