"""Is the acceptance that a server reports what it should be: the same at every position, falling
smoothly, broken from some position on, or below what was measured offline?

Position k of a round is tested in the rounds whose first k − 1 drafts were accepted. With rounds
taken as independent, the drafts accepted at each position are binomial, independently of the other
positions. The shape is named by three tests, which together call a server with equal acceptance at
all positions anything else in at most `LEVEL` of all cases (Bonferroni, a third for each):

- cliff at k: acceptance at k is below half of that at k − 1 (one-sided, over all k together);
- decaying or rising: the slope over positions (Cochran–Armitage), if no step from one position to
  the next goes significantly against it;
- uneven: the likelihood ratio against one common acceptance, χ² with one degree less than positions.

A departure that is smaller than `LEAST_CHANGE` is not named, however many rounds show it; nor is a
difference from offline below `LEAST_DIFFERENCE` of τ.

Requests differ, so rounds are not quite independent. Where a log gives many intervals, the spread
between them (Pearson's χ² per degree of freedom) widens every test and interval; counters cannot
tell it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import NamedTuple

import jax
import numpy as np

from sdsl_jax.errors import require
from sdsl_jax.measurement.server_counts import ServerReport
from sdsl_jax.ranges import share_hint
from sdsl_jax.records.tables import AcceptanceRecord, SurvivalRecord
from sdsl_jax.statistics import Interval
from sdsl_jax.theory import acceptance_from_tokens_per_round, tokens_per_round

# How often a server as it should be is called something else, in each of the two judgements.
LEVEL = 0.01
# Least change of acceptance over all positions that is given a name.
LEAST_CHANGE = 0.02
# Least difference of τ from offline that is given a name.
LEAST_DIFFERENCE = 0.01
# A geometric verdict needs enough rounds to see a change of this size.
MOST_UNSEEN = 0.2
# Log intervals from which the spread between intervals is estimated.
FEWEST_INTERVALS = 10
# Normal approximations hold from about so many expected successes and failures.
_FEWEST_EXPECTED = 5.0
_NORMAL = NormalDist()
_Z_90 = _NORMAL.inv_cdf(0.95)


class Shape(NamedTuple):
    """How acceptance depends on the position.

    Attributes:
      verdict: "geometric", "decaying", "rising", "cliff" or "uneven"; "unknown" where there are too
        few counts, "undecided" where rounds that drafted fewer than γ decide.
      cliff_at: The position of a cliff; None for any other verdict.
      slope: Change of acceptance per position, weighted by tests.
      p_slope: Two-sided p-value of the slope.
      p_equal: p-value of equal acceptances.
      unseen_change: Change over all positions that the test of the slope would miss half the time.
      judged: Positions with enough tests to judge.
    """

    verdict: str
    cliff_at: int | None = None
    slope: float = math.nan
    p_slope: float = math.nan
    p_equal: float = math.nan
    unseen_change: float = math.nan
    judged: int = 0


def shape_of(
    tested: Sequence[float] | np.ndarray,
    accepted: Sequence[float] | np.ndarray,
    dispersion: float = 1.0,
) -> Shape:
    """Names how acceptance depends on the position; see the module for the tests.

    Args:
      tested: Drafts tested at positions 1 … γ.
      accepted: Drafts accepted there, at most as many.
      dispersion: Variance of the counts in units of the binomial one, at least 1.
    """
    n, s = np.asarray(tested, float), np.asarray(accepted, float)
    n, s = n / dispersion, s / dispersion
    third = LEVEL / 3
    cliff = _cliff(n, s, third)
    # Later positions have fewer tests, so what can be judged is a beginning.
    pooled = s.sum() / n.sum() if n.sum() else math.nan
    least = n * min(pooled, 1 - pooled) if 0 < pooled < 1 else n / 2
    judged = int(np.argmin(np.append(least >= _FEWEST_EXPECTED, False)))
    if cliff is not None:
        return Shape("cliff", cliff_at=cliff, judged=max(judged, cliff))
    if judged < 2:
        return Shape("unknown", judged=judged)
    n, s = n[:judged], s[:judged]
    place = np.arange(1, judged + 1.0)
    # Half a success and half a failure more, so that all accepted is not certainty.
    p = (s.sum() + 0.5) / (n.sum() + 1)
    centred = place - (n * place).sum() / n.sum()
    spread = (n * centred**2).sum()
    slope = float((s * centred).sum() / spread)
    error = math.sqrt(p * (1 - p) / spread)
    p_slope = 2 * _NORMAL.cdf(-abs(slope) / error)
    p_equal = _chi_square_tail(_likelihood_ratio(n, s), judged - 1)
    unseen = _NORMAL.inv_cdf(1 - third / 2) * error * (judged - 1)
    verdict = "geometric"
    if p_slope < third and abs(slope) * (judged - 1) >= LEAST_CHANGE:
        verdict = "decaying" if slope < 0 else "rising"
        if _turns_back(n, s, math.copysign(1, slope), third):
            verdict = "uneven"
    elif p_equal < third and np.ptp(s / n) >= LEAST_CHANGE:
        verdict = "uneven"
    elif unseen > MOST_UNSEEN:
        verdict = "unknown"
    return Shape(verdict, None, slope, p_slope, p_equal, unseen, judged)


def _cliff(n: np.ndarray, s: np.ndarray, level: float) -> int | None:
    """The first position whose acceptance is below half of that before, by a one-sided score test."""
    threshold = _NORMAL.inv_cdf(level / max(1, len(n) - 1))
    for k in range(1, len(n)):
        if n[k - 1] <= 0:
            break
        before = s[k - 1] / n[k - 1]
        half = before / 2
        if n[k] * half < _FEWEST_EXPECTED:
            continue
        variance = half * (1 - half) / n[k] + before * (1 - before) / n[k - 1] / 4
        if (s[k] / n[k] - half) / math.sqrt(variance) < threshold:
            return k + 1
    return None


def _turns_back(n: np.ndarray, s: np.ndarray, direction: float, level: float) -> bool:
    """Whether acceptance steps against a direction somewhere, beyond the noise and `LEAST_CHANGE`."""
    share, pooled = s / n, (s[1:] + s[:-1]) / (n[1:] + n[:-1])
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / n[1:] + 1 / n[:-1]))
    step = -direction * np.diff(share)
    threshold = -_NORMAL.inv_cdf(level / (len(n) - 1))
    return bool(((step > threshold * error) & (step >= LEAST_CHANGE)).any())


def _likelihood_ratio(n: np.ndarray, s: np.ndarray) -> float:
    """Twice the log-likelihood of each position's own share over that of the common one."""

    def log_likelihood(n: np.ndarray, s: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(s > 0, s * np.log(s / n), 0) + np.where(
                s < n, (n - s) * np.log((n - s) / n), 0
            )

    common = log_likelihood(n.sum(keepdims=True), s.sum(keepdims=True))
    return 2 * float(log_likelihood(n, s).sum() - common.sum())


def _chi_square_tail(value: float, degrees: int) -> float:
    with jax.enable_x64(True):
        return float(jax.scipy.special.gammaincc(degrees / 2, max(value, 0.0) / 2))


def dispersion_of(intervals: np.ndarray | None) -> float:
    """Variance of the accepted drafts between intervals over the binomial one, at least 1; 1 where
    there are fewer than `FEWEST_INTERVALS`.

    Args:
      intervals: Rounds and survivors of each interval, [intervals, 1 + γ].
    """
    if intervals is None or len(intervals) < FEWEST_INTERVALS:
        return 1.0
    n, s = np.asarray(intervals[:, :-1], float), np.asarray(intervals[:, 1:], float)
    totals = n.sum(axis=0)
    p = np.where(totals > 0, s.sum(axis=0) / np.maximum(totals, 1), 0.0)
    variance = n * p * (1 - p)
    used = variance > 0
    if not used.any():
        return 1.0
    squares = np.where(used, (s - n * p) ** 2 / np.where(used, variance, 1), 0).sum()
    return max(1.0, float(squares / max(1, used.sum() - used.any(axis=0).sum())))


class Position(NamedTuple):
    """Acceptance at one position of a round.

    Attributes:
      position: k, from 1.
      survival: S_k, share of rounds whose first k drafts were accepted.
      tested: Drafts tested, at most; fewer if rounds ended before they drafted k.
      accepted: Drafts accepted.
      acceptance: Accepted over tested with its 90% interval (Wilson); the interval holds both
        extremes of what may not have been drafted.
      offline: The same measured offline; NaN if unknown.
    """

    position: int
    survival: float
    tested: int
    accepted: int
    acceptance: Interval
    offline: float = math.nan


@dataclass(frozen=True)
class Offline:
    """What was measured offline, up to some position.

    Attributes:
      tokens_per_round: 1 + S_1 + … + S_K.
      error: Its standard error.
      variance: Variance of the accepted drafts of one round among the first K.
      positions: K.
      survival: S_1 … S_K.
      basis: Where it comes from.
      of_one_alpha: Whether it takes acceptance as the same at every position and in all text.
    """

    tokens_per_round: float
    error: float
    variance: float
    positions: int
    survival: tuple[float, ...]
    basis: str
    of_one_alpha: bool = False


class Comparison(NamedTuple):
    """A server against offline.

    Attributes:
      verdict: "below", "above", "agrees", or "undecided" where rounds that drafted fewer than γ decide.
      served: τ of the server, over the positions that both have.
      offline: τ measured offline.
      z: Difference in standard errors of both.
      smallest_seen: Relative loss of τ that the test would miss half the time.
      basis: What offline is.
      of_one_alpha: Whether offline is one α at every position and in all text.
    """

    verdict: str
    served: float
    offline: float
    z: float
    smallest_seen: float
    basis: str
    of_one_alpha: bool = False


@dataclass(frozen=True)
class Judgement:
    """What a server's figures say.

    Attributes:
      report: The figures.
      tokens_per_round: τ with its 90% interval, with the bonus token.
      acceptance: The α whose geometric formula gives τ at this γ (the paper's inversion).
      positions: Acceptance by position; empty where the server does not tell it.
      shape: How it depends on the position; None where the server does not tell it.
      dispersion: Variance of the counts over the binomial one, by which intervals are widened.
      comparison: Against offline; None if nothing was given.
    """

    report: ServerReport
    tokens_per_round: Interval
    acceptance: Interval
    positions: list[Position] = field(default_factory=list)
    shape: Shape | None = None
    dispersion: float = 1.0
    comparison: Comparison | None = None

    @property
    def verdict(self) -> str:
        """In words, such as "cliff at 3, below what was measured offline"."""
        said = []
        if self.shape is not None:
            at = f" at {self.shape.cliff_at}" if self.shape.cliff_at else ""
            words = {
                "unknown": "too few counts for a shape",
                "undecided": "short rounds leave the shape open",
            }
            said.append(words.get(self.shape.verdict, self.shape.verdict) + at)
        else:
            said.append("no acceptance by position")
        if self.comparison is not None:
            said.append(
                {
                    "below": "below what was measured offline",
                    "above": "above what was measured offline",
                    "agrees": "as measured offline",
                    "undecided": "short rounds leave open whether as offline",
                }[self.comparison.verdict]
            )
        return ", ".join(said)


def judge(report: ServerReport, offline: Offline | None = None) -> Judgement:
    """Judges a server's figures.

    Args:
      report: The figures.
      offline: What they should be.
    """
    spread = dispersion_of(report.intervals)
    positions, shape = [], None
    if report.survived:
        assert report.rounds is not None
        accepted = np.array(report.survived)
        most = np.array([report.rounds, *report.survived[:-1]])
        least = np.maximum(accepted, most - np.array(report.not_drafted))
        shape = shape_of(most, accepted, spread)
        # Rounds that drafted fewer than γ: the verdict must hold whoever they were.
        if (least < most).any() and shape_of(least, accepted, spread)[:2] != shape[:2]:
            shape = shape._replace(verdict="undecided", cliff_at=None)
        for k in range(report.lookahead):
            low = _wilson(accepted[k], most[k], spread).low
            high = _wilson(accepted[k], least[k], spread).high
            share = accepted[k] / most[k] if most[k] else math.nan
            apart = _offline_acceptance(offline, k)
            positions.append(
                Position(
                    k + 1,
                    accepted[k] / report.rounds,
                    int(most[k]),
                    int(accepted[k]),
                    Interval(float(share), low, high),
                    apart,
                )
            )
    tau = report.tokens_per_round
    error = report.tokens_error
    if report.rounds is not None:
        error = math.sqrt(_variance(report) * spread / report.rounds)
    half = _Z_90 * error
    interval = Interval(tau, max(1.0, tau - half), min(report.lookahead + 1.0, tau + half))
    with jax.enable_x64(True):
        alphas = (
            float(acceptance_from_tokens_per_round(x, report.lookahead)) if x == x else math.nan
            for x in interval
        )
        alpha = Interval(*alphas)
    comparison = None if offline is None else _compare(report, offline, spread)
    return Judgement(report, interval, alpha, positions, shape, spread, comparison)


def _offline_acceptance(offline: Offline | None, k: int) -> float:
    if offline is None or k >= offline.positions:
        return math.nan
    before = offline.survival[k - 1] if k else 1.0
    return offline.survival[k] / before if before > 0 else math.nan


def _wilson(accepted: float, tested: float, spread: float) -> Interval:
    """A share with its 90% score interval; from 0 to 1 without tests."""
    if tested <= 0:
        return Interval(math.nan, 0.0, 1.0)
    n, p, z2 = tested / spread, accepted / tested, _Z_90**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_90 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def _variance_of(survival: Sequence[float]) -> float:
    """Variance of the accepted drafts of a round: E a² = Σ (2k − 1) S_k."""
    mean = sum(survival)
    return max(0.0, sum((2 * k - 1) * s for k, s in enumerate(survival, 1)) - mean**2)


def _variance(report: ServerReport) -> float:
    assert report.rounds is not None
    if report.survived:
        return _variance_of([n / report.rounds for n in report.survived])
    with jax.enable_x64(True):
        alpha = float(acceptance_from_tokens_per_round(report.tokens_per_round, report.lookahead))
    return _variance_of([alpha**k for k in range(1, report.lookahead + 1)])


def _compare(report: ServerReport, offline: Offline, spread: float) -> Comparison:
    """A score test of the server's τ: its variance is that of the offline figures.

    Rounds that drafted fewer than γ accept fewer. What they would have accepted lies between
    nothing and what the others do, and a verdict must hold at both ends.
    """
    if report.survived:
        assert report.rounds is not None
        k = offline.positions
        accepted = np.array(report.survived[:k], float)
        most = np.array([report.rounds, *report.survived[: k - 1]], float)
        least = np.maximum(accepted, most - np.array(report.not_drafted[:k]))
        served = 1 + accepted.sum() / report.rounds
        share = np.divide(accepted, least, out=np.zeros_like(least), where=least > 0)
        at_most = 1 + np.cumprod(share).sum()
    else:
        require(
            offline.positions == report.lookahead,
            f"the server's γ is {report.lookahead} and the offline measurement's {offline.positions}; without positions from "
            "the server they must be the same.",
        )
        served = report.tokens_per_round
        at_most = report.lookahead + 1.0 if any(report.not_drafted) else served
    if report.rounds is not None:
        error = math.sqrt(offline.variance * spread / report.rounds)
    else:
        error = report.tokens_error
        require(
            error == error,
            "one reading of gauges has no uncertainty to compare by; give the server's log, or its counters.",
        )
    both = max(math.hypot(error, offline.error), 1e-12)
    threshold = _NORMAL.inv_cdf(1 - LEVEL / 2)

    def verdict(tau: float) -> str:
        z, change = (tau - offline.tokens_per_round) / both, tau / offline.tokens_per_round - 1
        if abs(z) <= threshold or abs(change) < LEAST_DIFFERENCE:
            return "agrees"
        return "below" if z < 0 else "above"

    return Comparison(
        verdict(served) if verdict(served) == verdict(at_most) else "undecided",
        float(served),
        offline.tokens_per_round,
        float((served - offline.tokens_per_round) / both),
        max(LEAST_DIFFERENCE, threshold * both / offline.tokens_per_round),
        offline.basis,
        offline.of_one_alpha,
    )


def offline_of_alpha(acceptance: float, lookahead: int) -> Offline:
    """What an acceptance probability, the same at every position, gives at a lookahead.

    Args:
      acceptance: α in [0, 1].
      lookahead: γ of the server.

    Raises:
      SdslError: α is outside.
    """
    require(
        0 <= acceptance <= 1,
        f"--acceptance is {acceptance:g}; it must lie in [0, 1]{share_hint(acceptance)}.",
    )
    survival = tuple(acceptance**k for k in range(1, lookahead + 1))
    with jax.enable_x64(True):
        tau = float(tokens_per_round(np.float64(acceptance), lookahead))
    basis = f"α = {acceptance:g} at every position, taken as exact"
    return Offline(tau, 0.0, _variance_of(survival), lookahead, survival, basis, True)


def offline_of_records(
    survival: Sequence[SurvivalRecord],
    acceptance: Sequence[AcceptanceRecord],
    report: ServerReport,
    draft: str = "",
    target: str = "",
) -> Offline:
    """What a pair's records give at the server's lookahead.

    Survival at the same γ is compared as it is. At another γ the positions that both have are, with
    the error of their sum taken as large as it can be. Without survival, or where the server tells
    no positions and no record has its γ, α on the target's samples is taken as the same at every
    position.

    Args:
      survival: Rows of `survival.csv`.
      acceptance: Rows of `acceptance.csv`.
      report: The server's figures.
      draft: Name of the draft, if the records hold several.
      target: Name of the target, likewise.

    Raises:
      SdslError: The records hold several pairs, or none that can be compared.
    """
    rows: list[SurvivalRecord | AcceptanceRecord] = [*survival, *acceptance]
    for flag, name, held in (
        ("--draft", draft, {row.draft_id for row in rows}),
        ("--target", target, {row.target_id for row in rows}),
    ):
        require(
            not name or name in held,
            f"{flag} is {name!r}; the records hold {_listed(sorted(held))}.",
        )
    chosen = [row for row in rows if draft in ("", row.draft_id) and target in ("", row.target_id)]
    pairs = sorted({f"{r.draft_id} for {r.target_id}, T = {r.temperature:g}" for r in chosen})
    require(
        len(pairs) == 1,
        f"the records hold {len(pairs)} measurements ({_listed(pairs)}); choose one by --draft and --target, in a "
        "folder with one temperature."
        if pairs
        else "the records hold no measured pair.",
    )
    own = [row for row in chosen if isinstance(row, SurvivalRecord)]
    domains = {row.domain for row in own}
    require(
        len(domains) <= 1,
        f"the records hold survival on {_listed(sorted(domains))}; one folder must hold one kind of prompts.",
    )
    gammas = sorted({row.lookahead for row in own})
    if not report.survived:
        gammas = [gamma for gamma in gammas if gamma == report.lookahead]
    if gammas:
        gamma = next((one for one in gammas if one >= report.lookahead), gammas[-1])
        shared = min(gamma, report.lookahead)
        at = sorted((row for row in own if row.lookahead == gamma), key=lambda row: row.position)
        at = at[:shared]
        share = tuple(row.survival for row in at)
        z = _NORMAL.inv_cdf(0.5 + at[0].confidence / 2)
        halves = [(row.survival_high - row.survival_low) / 2 for row in at]
        half = sum(halves)
        if gamma == report.lookahead and at[0].tokens_per_round_high == at[0].tokens_per_round_high:
            half = (at[0].tokens_per_round_high - at[0].tokens_per_round_low) / 2
        require(
            half == half and z == z,
            "the records' survival has no interval; measure the pair on more prompts.",
        )
        basis = f"survival of {at[0].draft_id} at γ = {gamma}"
        if gamma != report.lookahead:
            basis += f", positions 1 to {shared}"
        return Offline(1 + sum(share), half / z, _variance_of(share), shared, share, basis)
    exact = [
        row
        for row in chosen
        if isinstance(row, AcceptanceRecord) and row.estimator == "teacher_forced_samples"
    ]
    require(
        len(exact) == 1,
        f"the records hold no survival to compare a server of γ = {report.lookahead} with, and {len(exact)} values of α on "
        "the target's samples; measure with --lookahead of the server.",
    )
    (row,) = exact
    low, high = (
        offline_of_alpha(min(max(end, 0.0), 1.0), report.lookahead).tokens_per_round
        for end in (row.alpha_low, row.alpha_high)
    )
    return replace(
        offline_of_alpha(row.alpha, report.lookahead),
        error=(high - low) / 2 / _NORMAL.inv_cdf(0.5 + row.confidence / 2),
        basis=f"α = {row.alpha:.3f} of {row.draft_id} on the target's samples, at every position",
    )


def _listed(names: Sequence[str], most: int = 4) -> str:
    said = ", ".join(names[:most])
    return f"{said} and {len(names) - most} more" if len(names) > most else said
