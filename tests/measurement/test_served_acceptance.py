"""Verdicts on simulated servers: each is reached where it is true, and seldom where it is not."""

import math

import numpy as np
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.served_acceptance import (
    LEVEL,
    dispersion_of,
    judge,
    offline_of_alpha,
    offline_of_records,
    shape_of,
)
from sdsl_jax.measurement.server_counts import Counts, report_of_counts, report_of_intervals
from sdsl_jax.records.tables import AcceptanceRecord, SurvivalRecord


def simulated(random, rounds, acceptances):
    """Survivors of independent rounds."""
    steps = [rounds]
    for alpha in acceptances:
        steps.append(int(random.binomial(steps[-1], alpha)))
    return steps


def shape(steps, dispersion=1.0):
    return shape_of(steps[:-1], steps[1:], dispersion)


def report(steps, drafted=None):
    gamma = len(steps) - 1
    counts = Counts(
        steps[0], drafted or gamma * steps[0], sum(steps[1:]), tuple(int(n) for n in steps[1:])
    )
    return report_of_counts("vLLM", counts, "counters", "r", "", gamma)


@pytest.mark.parametrize("rounds", [150, 4000])
def test_a_geometric_server_is_called_something_else_at_the_stated_level(rounds):
    """Of 600 servers at most 6 are expected to be misnamed, and 18 or more are once in 1e4 times
    (binomial); the p-value of the slope, itself, is uniform to within 4 standard deviations."""
    random = np.random.default_rng(1)
    shapes = [
        shape(simulated(random, rounds, [alpha] * 5))
        for alpha in (0.5, 0.75, 0.9)
        for _ in range(200)
    ]
    misnamed = sum(one.verdict not in ("geometric", "unknown") for one in shapes)
    assert misnamed < 18
    for chance in (0.1, 0.5):
        for values in ([one.p_slope for one in shapes], [one.p_equal for one in shapes]):
            share = np.mean(np.array(values) < chance)
            assert share == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 600))


@pytest.mark.parametrize(
    ("acceptances", "verdict", "cliff_at"),
    [
        ([0.8] * 5, "geometric", None),
        ([0.92, 0.74, 0.56], "decaying", None),
        ([0.85, 0.80, 0.75, 0.70], "decaying", None),
        ([0.70, 0.74, 0.78, 0.80], "rising", None),
        ([0.8, 0.8, 0.8, 0.1], "cliff", 4),
        ([0.8, 0.2, 0.2, 0.2], "cliff", 2),
        ([0.8, 0.8, 0.0, 0.0], "cliff", 3),
        ([0.85, 0.65, 0.85, 0.65, 0.85], "uneven", None),
        ([0.75, 0.83, 0.75, 0.79], "uneven", None),
        # Halved smoothly is no cliff.
        ([0.9, 0.6, 0.4, 0.3], "decaying", None),
    ],
)
def test_each_shape_is_recognised(acceptances, verdict, cliff_at):
    """3,000 rounds show each of these by five standard errors and more."""
    random = np.random.default_rng(2)
    found = [shape(simulated(random, 3000, acceptances)) for _ in range(20)]
    names = [(one.verdict, one.cliff_at) for one in found]
    # A geometric one may be misnamed once in a hundred times.
    assert names.count((verdict, cliff_at)) >= 19


def test_a_decay_to_exactly_half_is_no_cliff_at_the_stated_level():
    """The edge of what counts as no cliff: alarms in at most a third of 1% of 2,000 servers, beyond
    20 once in 1e5 times."""
    random = np.random.default_rng(3)
    found = [shape(simulated(random, 400, [0.8, 0.4])) for _ in range(2000)]
    assert sum(one.verdict == "cliff" for one in found) <= 20


def test_changes_too_small_to_matter_are_not_named():
    rounds = 10**9
    steps = rounds * np.cumprod([1, 0.800, 0.795, 0.790])
    assert shape(steps).verdict == "geometric"
    assert shape(steps).p_slope < 1e-9
    assert shape(rounds * np.cumprod([1, 0.80, 0.79, 0.77])).verdict == "decaying"


def test_few_rounds_tell_no_shape():
    assert shape([12, 9, 6, 4]).verdict == "unknown"
    assert shape([100, 90]).verdict == "unknown"  # a single position has no shape
    assert shape([40, 40, 40, 40]).verdict == "geometric"
    few = shape([2000, 1600, 1280, 1024])
    assert few.verdict == "geometric"
    # What is seen half the time: a fall of that size over the positions.
    alphas = 0.8 - few.unseen_change / 2 * np.arange(3) + few.unseen_change / 2
    random = np.random.default_rng(5)
    seen = [shape(simulated(random, 2000, alphas)).p_slope < LEVEL / 3 for _ in range(300)]
    assert np.mean(seen) == pytest.approx(0.5, abs=0.15)


def intervals(random, lines, spread):
    """Log lines of 250 rounds; acceptance at each position differs between lines by this much."""
    table = []
    for _ in range(lines):
        draws = 0.75 + spread * random.standard_normal(4)
        table.append(simulated(random, 250, np.clip(draws, 0, 1)))
    return np.array(table)


def test_spread_between_log_lines_widens_the_tests():
    """Lines that differ by 0.08 triple the variance: 300 servers are misnamed in 10% and more if
    that is left out, and in at most 2.5% (three standard deviations above 1%, and as much again for
    an estimated spread) if it is allowed for."""
    random = np.random.default_rng(6)
    assert dispersion_of(intervals(random, 400, 0.0)) == pytest.approx(1, abs=0.1)
    assert dispersion_of(intervals(random, 9, 0.2)) == 1
    allowed, naive = 0, 0
    for _ in range(300):
        table = intervals(random, 40, 0.08)
        steps = table.sum(axis=0)
        naive += shape(steps).verdict not in ("geometric", "unknown")
        allowed += shape(steps, dispersion_of(table)).verdict not in ("geometric", "unknown")
    assert naive > 30
    assert allowed <= 11


def test_intervals_cover_what_they_should():
    """90% intervals of τ, α and each conditional acceptance hold the truth in 90% of 600 servers, to
    within four standard deviations (0.05) and a little for rounding at small counts."""
    random, truth = np.random.default_rng(7), [0.8, 0.7, 0.6]
    tau = 1 + np.cumprod(truth).sum()
    inside = np.zeros(4)
    for _ in range(600):
        found = judge(report(simulated(random, 300, truth)))
        ends = [found.tokens_per_round, *(one.acceptance for one in found.positions)]
        inside += [low <= x <= high for x, (_, low, high) in zip([tau, *truth], ends)]
    np.testing.assert_allclose(inside / 600, 0.9, atol=0.05)


def test_short_rounds_bound_the_acceptance_and_withhold_a_verdict_that_depends_on_them():
    steps = [4000, 3200, 2560, 1400]
    full = judge(report(steps))
    assert full.shape.verdict == "decaying"
    # 700 drafts were never proposed; all at position 3, acceptance there may be 0.75.
    short = judge(report(steps, drafted=3 * 4000 - 700))
    assert short.shape.verdict == "undecided"
    assert short.verdict == "short rounds leave the shape open"
    last = short.positions[-1].acceptance
    assert last.estimate == 1400 / 2560
    assert last.high > 1400 / (2560 - 700) > last.low
    # A cliff is one whoever they were.
    broken = judge(report([4000, 3200, 2560, 300], drafted=3 * 4000 - 700))
    assert broken.verdict == "cliff at 3"


def test_below_offline_is_found_and_seldom_claimed():
    """Two-sided at 1%: of 500 servers that do as offline at most 5 are expected, 15 or more once in
    1e4 times. One that loses 0.03 of α in 4,000 rounds is 4.6 standard errors below."""
    random, offline = np.random.default_rng(8), offline_of_alpha(0.75, 4)
    assert offline.tokens_per_round == pytest.approx(1 + sum(0.75**k for k in range(1, 5)))
    verdicts = [
        judge(report(simulated(random, 500, [0.75] * 4)), offline).comparison.verdict
        for _ in range(500)
    ]
    assert len(verdicts) - verdicts.count("agrees") < 15
    low = judge(report(simulated(random, 4000, [0.72] * 4)), offline)
    assert low.verdict == "geometric, below what was measured offline"
    assert low.comparison.z < -3
    high = judge(report(simulated(random, 4000, [0.79] * 4)), offline)
    assert high.verdict.endswith("above what was measured offline")
    # A difference of half a percent of τ is not named, however certain.
    almost = judge(report(10**8 * np.cumprod([1, 0.748, 0.748, 0.748, 0.748])), offline)
    assert almost.comparison.z < -10
    assert almost.comparison.verdict == "agrees"
    nothing = judge(report([500, 0, 0, 0, 0]), offline)
    assert nothing.comparison.verdict == "below"


def test_short_rounds_are_not_called_below_offline():
    """Drafts that were never proposed are not acceptance that was lost."""
    offline = offline_of_alpha(0.8, 3)
    steps = [4000, 3200, 2560, 1400]
    assert judge(report(steps), offline).comparison.verdict == "below"
    short = report(steps, drafted=3 * 4000 - 700)
    assert judge(short, offline).comparison.verdict == "undecided"
    bad = report([4000, 2400, 1440, 600], drafted=3 * 4000 - 300)
    assert judge(bad, offline).comparison.verdict == "below"


def survival_rows(gamma, shares, half=0.01, **changes):
    return [
        SurvivalRecord(
            **{
                "draft_id": "d", "target_id": "t", "lookahead": gamma, "temperature": 1.0,
                "domain": "text", "position": k, "survival": s, "survival_low": s - half,
                "survival_high": s + half, "confidence": 0.9, "rounds": 900,
                "tokens_per_round": 1 + sum(shares),
                "tokens_per_round_low": 1 + sum(shares) - 0.05,
                "tokens_per_round_high": 1 + sum(shares) + 0.05,
            }
            | changes
        )
        for k, s in enumerate(shares, 1)
    ]  # fmt: skip


def test_records_are_compared_at_the_lookahead_of_the_server():
    shares = np.cumprod([0.8, 0.7, 0.6])
    server = report([2000, 1600, 1120, 672])
    own = offline_of_records(survival_rows(3, shares), [], server)
    assert own.tokens_per_round == pytest.approx(1 + shares.sum())
    assert own.error == pytest.approx(0.05 / 1.645, rel=1e-3)
    found = judge(server, own)
    assert found.comparison.z == pytest.approx(0, abs=1e-6)
    assert [one.offline for one in found.positions] == pytest.approx([0.8, 0.7, 0.6])
    # A longer one gives its first positions, with the error of their sum as large as it can be.
    longer = survival_rows(5, [*shares, 0.1, 0.05]) + survival_rows(2, shares[:2])
    other = offline_of_records(longer, [], server)
    assert (other.positions, other.survival) == (3, tuple(shares))
    assert other.error == pytest.approx(0.03 / 1.645, rel=1e-3)
    # A shorter one is compared over the positions that both have.
    short = offline_of_records(survival_rows(2, shares[:2]), [], server)
    assert judge(server, short).comparison.served == pytest.approx(1 + 0.8 + 0.56)


def test_records_of_several_pairs_need_a_choice():
    server, shares = report([2000, 1600, 1120]), (0.8, 0.6)
    rows = survival_rows(2, shares) + survival_rows(2, shares, draft_id="e")
    with pytest.raises(SdslError, match=r"2 measurements \(d for t, T = 1, e for t, T = 1\)"):
        offline_of_records(rows, [], server)
    assert "of e at" in offline_of_records(rows, [], server, draft="e").basis
    with pytest.raises(SdslError, match="--target is 'x'; the records hold t"):
        offline_of_records(rows, [], server, target="x")
    with pytest.raises(SdslError, match="no measured pair"):
        offline_of_records([], [], server)


def test_records_without_survival_give_alpha():
    server = report([2000, 1600, 1280])
    row = AcceptanceRecord("d", "t", "teacher_forced_samples", 0, 1.0, "x", 0.8, 0.79, 0.81, 0.9)
    found = offline_of_records([], [row], server)
    assert found.of_one_alpha
    assert found.tokens_per_round == pytest.approx(2.44)
    assert found.error == pytest.approx(0.01 * (1 + 2 * 0.8) / 1.645, rel=1e-3)


def test_a_server_without_positions_is_compared_by_its_tokens_per_round():
    counts = Counts(4000, 12000, 6000, ())
    server = report_of_intervals("llama.cpp", [counts], "r", "", None)
    found = judge(server, offline_of_alpha(0.75, 3))
    assert found.shape is None
    assert found.positions == []
    assert found.verdict == "no acceptance by position, below what was measured offline"
